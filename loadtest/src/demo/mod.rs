//! The main job, end to end: core, relay, capture client and contact as processes of their own,
//! on the recording shipped in the repository, played as if it were being recorded now. At the
//! end everything that was promised is checked, and each check is a line.

mod board;
mod contact;
mod event;
mod faults;
mod held;
mod media;
mod output;
mod parts;
mod place;
mod process;
mod report;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use tokio::sync::watch;
use waystation_client::playback::Recording;

use board::Board;
use output::Output;
use place::Place;
pub(crate) use process::stopped;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A longer run takes its streams and capabilities in small portions, so that both are renewed.
const LONG_SECONDS: u64 = 60;

/// What may differ from the plain run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How capture client and contact talk to the relay.
    #[arg(long, value_enum, default_value = "h3")]
    transport: Transport,
    /// Kill the core in the middle and bring it back after this time, as 10s.
    #[arg(long, value_parser = seconds)]
    core_down: Option<Duration>,
    /// Kill the relay (kill -9) in the middle, and start it again.
    #[arg(long)]
    relay_restart: bool,
    /// Seconds to record; the recording is looped. Without: once, as long as it is.
    #[arg(long, value_parser = clap::value_parser!(u64).range(6..))]
    seconds: Option<u64>,
    /// Directory for keys, data and logs. What an earlier demo left there is removed.
    #[arg(long, default_value = ".demo")]
    dir: PathBuf,
    /// Directory of the recording.
    #[arg(long, default_value = "client/recording")]
    recording: PathBuf,
    /// Directory of the programs; without: that of this one.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// The transports of the clients' command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    H3,
    Ws,
    H1,
}

impl Transport {
    const fn as_str(self) -> &'static str {
        match self {
            Self::H3 => "h3",
            Self::Ws => "ws",
            Self::H1 => "h1",
        }
    }
}

/// Runs the demo: 0 if every check passed, 1 if one failed, 2 if it could not be played.
pub async fn run(args: Args) -> ExitCode {
    // Whatever was started is killed when its handle is dropped, also on Ctrl-C.
    let result = tokio::select! {
        result = play(&args) => result,
        () = stopped() => Err("stopped".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            output::complain(&error, &args.dir);
            ExitCode::from(2)
        }
    }
}

async fn play(args: &Args) -> Result<bool, Error> {
    let recording =
        Recording::read(&args.recording).map_err(|error| format!("{}: {error}", args.recording.display()))?;
    let chunks = args.seconds.map_or(recording.chunks(), |s| (s * 1000).div_ceil(recording.chunk_ms));
    let seconds = chunks * recording.chunk_ms / 1000;
    let near_live = recording.lanes.iter().filter(|lane| board::is_near_live(lane.variant)).count() as u64;
    let place = Place::prepare(args)?;
    let mut output = Output::new();
    let mut core = parts::Core::new(&place, seconds > LONG_SECONDS);
    core.start().await?;
    let mut relay = parts::Relay::new(&place);
    relay.start(&core).await?;
    output.say(&opening(args, seconds, &relay));

    let mut capture = parts::capture(&place, args, &core, &relay, seconds)?;
    let session = place.session().await?;
    let mut contact = parts::contact(&place, args, &core, &relay, chunks * near_live)?;
    let (told, cuts) = watch::channel(0);
    let (notice, noticed) = watch::channel(String::new());
    let mut board = Board::new(&recording, chunks, told, noticed);
    let waiting = Duration::from_secs(seconds + parts::FINISH_SECONDS) + args.core_down.unwrap_or_default();
    let following = async {
        tokio::time::timeout(waiting, board::follow(&mut board, &mut capture, &mut contact, &mut output))
            .await
            .map_err(|_| Error::from("the clients did not end in time"))?
    };
    let plan = faults::Plan { core_down: args.core_down, relay_restart: args.relay_restart, chunks };
    let (ended, witnessed) = tokio::try_join!(following, faults::play(&plan, &mut core, &mut relay, cuts, &notice))?;

    let evidence = verify::Evidence {
        board: &board,
        ended,
        witnessed,
        waiting: parts::waiting(&place, &relay).await?,
        held: held::all(&core, &place, &session, &recording).await?,
        watched: contact::read(&place, &recording, chunks).await?,
        recording: &recording,
        plan: &plan,
        renewing: seconds > LONG_SECONDS,
    };
    let checks = verify::checks(&evidence, &place).await?;
    output.say(&report::text(&evidence, &checks, &place));
    Ok(checks.iter().all(|check| check.verdict != verify::Verdict::Failed))
}

fn opening(args: &Args, seconds: u64, relay: &parts::Relay<'_>) -> String {
    let transport = args.transport.as_str();
    format!(
        "Recording for {seconds} s over {transport}: core, relay, capture client and contact are running.\n\
         What the relay's operator sees: {}\n",
        relay.status_command()
    )
}

fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.strip_suffix('s').unwrap_or(text);
    match digits.parse::<u16>() {
        Ok(n) if n > 0 => Ok(Duration::from_secs(n.into())),
        _ => Err("seconds, as 10s".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_whole_seconds_and_more_than_nothing() {
        assert_eq!(seconds("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("3"), Ok(Duration::from_secs(3)));
        for bad in ["0s", "s", "1m", "-1s", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
