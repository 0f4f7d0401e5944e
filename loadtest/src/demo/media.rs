//! Whether a file plays, as ffprobe sees it. Without ffprobe that is not known.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::Error;

/// Decodes every frame of a file. `None` if it plays; otherwise why not.
pub(super) async fn complaint(file: &Path) -> Result<Option<String>, Error> {
    let (said, complaint) =
        ask(file, &["-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]).await?;
    let frames: u64 = said.lines().filter_map(|line| line.trim_matches(',').parse::<u64>().ok()).sum();
    Ok(match (complaint.lines().next(), frames) {
        (Some(line), _) => Some(line.to_owned()),
        (None, 0) => Some("no frame".into()),
        (None, _) => None,
    })
}

/// A file's timeline, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timeline {
    /// From the start of the first packet to the end of the last.
    pub(super) length: f64,
    /// The longest time between a packet's end and the next one's start, or of an overlap.
    pub(super) hole: f64,
}

/// Reads when each packet is shown and for how long.
pub(super) async fn timeline(file: &Path) -> Result<Timeline, Error> {
    let (said, _) = ask(file, &["-show_entries", "packet=pts_time,duration_time", "-of", "csv=p=0"]).await?;
    Ok(read_timeline(&said))
}

fn read_timeline(said: &str) -> Timeline {
    let packet = |line: &str| {
        let mut fields = line.split(',');
        Some((fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?))
    };
    let packets: Vec<(f64, f64)> = said.lines().filter_map(packet).collect();
    let hole = packets.windows(2).map(|pair| (pair[1].0 - pair[0].0 - pair[0].1).abs()).fold(0.0, f64::max);
    let length = match (packets.first(), packets.last()) {
        (Some(first), Some(last)) => last.0 + last.1 - first.0,
        _ => 0.0,
    };
    Timeline { length, hole }
}

/// Whether ffprobe is there.
pub(super) async fn is_there() -> bool {
    let asked = Command::new("ffprobe").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.await.is_ok_and(|status| status.success())
}

async fn ask(file: &Path, args: &[&str]) -> Result<(String, String), Error> {
    let done = Command::new("ffprobe").args(["-v", "error"]).args(args).arg(file).kill_on_drop(true).output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let mut complaint = text(&done.stderr);
    if complaint.is_empty() && !done.status.success() {
        complaint = "ffprobe failed".into();
    }
    Ok((text(&done.stdout), complaint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_what_no_packet_covers() {
        let whole = read_timeline("0.000000,0.500000\n0.500000,0.500000\n1.000000,0.500000\n");
        assert_eq!(whole, Timeline { length: 1.5, hole: 0.0 });
        let torn = read_timeline("0.0,0.5\n2.5,0.5,\nN/A,N/A\n");
        assert_eq!(torn, Timeline { length: 3.0, hole: 2.0 });
        assert_eq!(read_timeline(""), Timeline { length: 0.0, hole: 0.0 });
    }
}
