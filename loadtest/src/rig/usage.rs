//! What a process has used: processor time and memory, from `/proc`.

use std::io;
use std::time::Duration;

/// Length of a tick in `/proc/PID/stat`. The kernel's own clock may be faster; what it shows to
/// programs is 100 a second on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// What a process has used since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Time of processors, its own and the system's for it, to 10 ms.
    pub cpu: Duration,
    /// Most memory at once, in bytes.
    pub max_rss: u64,
    /// Memory now, in bytes.
    pub rss: u64,
}

impl Usage {
    /// Of a process.
    ///
    /// # Errors
    /// If there is none with that id.
    pub fn of(pid: u32) -> io::Result<Self> {
        let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (stat, status) = (read("stat")?, read("status")?);
        let usage =
            || Some(Self { cpu: cpu(&stat)?, max_rss: memory(&status, "VmHWM:")?, rss: memory(&status, "VmRSS:")? });
        usage().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Fields 14 and 15. The second is the program's name in parentheses and may hold anything, so
/// that counting begins behind the last one.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * (ticks()?.checked_add(ticks()?)?))
}

fn memory(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_does_not_move_the_fields() {
        let stat = "42 (a ) 1 2 3) S 1 42 42 0 -1 4194304 5 0 0 0 150 50 0 0 20 0 4 0 1 2 3";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(memory("VmPeak:\t  9 kB\nVmHWM:\t    2048 kB\n", "VmHWM:"), Some(2 << 20));
        assert_eq!((cpu("42 (x"), memory("", "VmHWM:")), (None, None));
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.max_rss >= usage.rss && usage.rss > 0);
        assert!(Usage::of(0).is_err());
    }
}
