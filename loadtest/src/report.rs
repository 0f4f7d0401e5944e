//! What a run found: one line of JSON, or a small table.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::Failure;

/// The figures of one run. A megabyte is 10⁶ bytes, a gigabyte 10⁹.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `upload`, `fanout` or `disk`.
    pub scenario: &'static str,
    /// Which way the bytes go; absent for `disk`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<&'static str>,
    /// Bytes of a chunk's plaintext.
    pub size: u64,
    /// Sessions, contacts or threads at once.
    pub parallel: usize,
    /// From the first byte sent to the last answer.
    pub seconds: f64,
    /// Chunks confirmed, delivered or synced.
    pub chunks: u64,
    /// Megabytes a second, confirmed, delivered or synced.
    pub mb_s: f64,
    /// Chunks a second.
    pub chunks_s: f64,
    /// Seconds of processor time of the relay for a gigabyte; of this program itself for `disk`.
    pub cpu_s_per_gb: f64,
    /// Half of the chunks took no longer.
    pub p50_ms: f64,
    /// 99 of 100 chunks took no longer.
    pub p99_ms: f64,
    /// Most memory that process ever had.
    pub max_rss_mb: f64,
    /// Chunks that were sent and did not arrive. More than none fails the run.
    pub lost: u64,
    /// `disk` alone: files made durable in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syncs_s: Option<f64>,
}

/// What was counted, before it is divided.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    /// From the first byte sent to the last answer.
    pub time: Duration,
    /// Chunks that arrived.
    pub chunks: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// How long each took.
    pub latencies: Vec<Duration>,
    /// Processor time.
    pub cpu: Duration,
    /// Most memory, in bytes.
    pub max_rss: u64,
    /// Chunks that did not arrive.
    pub lost: u64,
}

impl Report {
    /// Divides.
    #[must_use]
    pub fn new(scenario: &'static str, size: u64, parallel: usize, mut counted: Counted) -> Self {
        counted.latencies.sort_unstable();
        let seconds = counted.time.as_secs_f64();
        let per_second = |amount: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
        let gigabytes = counted.bytes as f64 / 1e9;
        Self {
            scenario,
            transport: None,
            size,
            parallel,
            seconds: rounded(seconds),
            chunks: counted.chunks,
            mb_s: rounded(per_second(counted.bytes as f64 / 1e6)),
            chunks_s: rounded(per_second(counted.chunks as f64)),
            cpu_s_per_gb: if gigabytes > 0.0 { rounded(counted.cpu.as_secs_f64() / gigabytes) } else { 0.0 },
            p50_ms: percentile(&counted.latencies, 50),
            p99_ms: percentile(&counted.latencies, 99),
            max_rss_mb: rounded(counted.max_rss as f64 / 1e6),
            lost: counted.lost,
            syncs_s: None,
        }
    }

    /// A table of one row.
    #[must_use]
    pub fn table(&self) -> String {
        let way = self.transport.map_or_else(String::new, |way| format!(" over {way}"));
        let mut out = format!(
            "{}{way}: {} bytes, {} at once, {} chunks in {:.1} s\n",
            self.scenario, self.size, self.parallel, self.chunks, self.seconds
        );
        let columns = [
            ("MB/s", self.mb_s),
            ("chunks/s", self.chunks_s),
            ("CPU s/GB", self.cpu_s_per_gb),
            ("p50 ms", self.p50_ms),
            ("p99 ms", self.p99_ms),
            ("RSS MB", self.max_rss_mb),
            ("lost", self.lost as f64),
        ];
        out += &columns.iter().map(|(name, _)| format!("{name:>10}")).collect::<String>();
        out.push('\n');
        out += &columns.iter().map(|(_, value)| format!("{value:>10}")).collect::<String>();
        out.push('\n');
        if let Some(syncs) = self.syncs_s {
            out += &format!("syncs/s: {syncs}\n");
        }
        out
    }
}

/// Says how a run ended, and turns it into an exit code: 0 if nothing was lost.
#[must_use]
pub fn end(result: Result<Report, Failure>, json: bool) -> ExitCode {
    match result {
        Ok(report) => {
            let text = match serde_json::to_string(&report) {
                Ok(line) if json => format!("{line}\n"),
                _ => report.table(),
            };
            // A reader that went away is no reason to fail.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            if report.lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            let _ = std::io::stderr().lock().write_all(format!("{failure}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Three digits behind the point.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The smallest of `sorted` that `percent` of them do not exceed, in milliseconds.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |found| rounded(found.as_secs_f64() * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let of = |list: &[u64]| list.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(percentile(&[], 50), 0.0);
        assert_eq!(percentile(&of(&[7]), 99), 7.0);
        assert_eq!(percentile(&of(&[1, 2, 3, 4]), 50), 2.0);
        assert_eq!(percentile(&of(&(1..=100).collect::<Vec<_>>()), 99), 99.0);
        assert_eq!(percentile(&of(&(1..=101).collect::<Vec<_>>()), 99), 100.0);
    }

    #[test]
    fn a_report_divides_by_time_and_bytes() {
        let counted = Counted {
            time: Duration::from_secs(2),
            chunks: 1000,
            bytes: 500_000_000,
            latencies: vec![Duration::from_millis(3), Duration::from_millis(1)],
            cpu: Duration::from_millis(1500),
            max_rss: 42_000_000,
            lost: 1,
        };
        let report = Report::new("upload", 500_000, 32, counted);
        assert_eq!((report.mb_s, report.chunks_s, report.cpu_s_per_gb), (250.0, 500.0, 3.0));
        assert_eq!((report.p50_ms, report.p99_ms, report.max_rss_mb, report.lost), (1.0, 3.0, 42.0, 1));
        let line = serde_json::to_value(&report).unwrap();
        for key in ["mb_s", "chunks_s", "cpu_s_per_gb", "p50_ms", "p99_ms", "max_rss_mb", "lost"] {
            assert!(line[key].is_number(), "{key}");
        }
        let nothing = Report::new("upload", 1, 1, Counted::default());
        assert_eq!((nothing.mb_s, nothing.cpu_s_per_gb, nothing.p50_ms), (0.0, 0.0, 0.0));
    }

    #[test]
    fn loss_and_failure_fail_the_run() {
        let report = |lost| Report::new("upload", 1, 1, Counted { lost, ..Counted::default() });
        assert_eq!(end(Ok(report(0)), true), ExitCode::SUCCESS);
        assert_eq!(end(Ok(report(1)), true), ExitCode::FAILURE);
        assert_eq!(end(Err(Failure::Wire("nothing")), true), ExitCode::FAILURE);
    }
}
