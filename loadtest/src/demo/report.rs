//! The text at the end.

use super::place::Place;
use super::verify::{Check, Evidence, Verdict};

/// Figures, checks, and where to look.
pub(super) fn text(e: &Evidence<'_>, checks: &[Check], place: &Place) -> String {
    let (sent, watched) = (&e.ended.sent, &e.watched);
    let first = delays(e, |came| came.first_byte - came.ended);
    let last = delays(e, |came| came.last_byte - came.ended);
    let mut out = format!(
        "chunks   {} sent, {} of {} near-live seen by the contact\n         \
         {} confirmed, {} unsettled, {} rejected, {} lost\n\
         delay    from the cut of a chunk to its first byte at the contact: {first}\n         \
         to its last byte: {last}\n\n",
        e.cut(),
        e.ended.seen.complete,
        watched.wanted,
        sent.confirmed,
        sent.unsettled,
        sent.rejected + sent.expired,
        e.lost(),
    );
    for check in checks {
        let word = match check.verdict {
            Verdict::Passed => "pass",
            Verdict::Failed => "FAIL",
            Verdict::Skipped => "skip",
        };
        out.push_str(&format!("{word}  {} ({})\n", check.what, check.detail));
    }
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Failed).count();
    let verdict = if failed == 0 { "PASSED".into() } else { format!("FAILED: {failed} of {} checks", checks.len()) };
    let (contact, logs) = (Place::shown(&place.contact()), Place::shown(&place.file("logs")));
    out.push_str(&format!("\nWhat the contact saw and heard: {contact}   Logs: {logs}\ndemo: {verdict}"));
    out
}

/// Median, 99th percentile and maximum of a delay.
fn delays(e: &Evidence<'_>, of: impl Fn(&super::board::Came) -> i64) -> String {
    let mut all: Vec<i64> = e.board.came().map(of).collect();
    all.sort_unstable();
    format!("p50 {}, p99 {}, max {} ms", nearest(&all, 50), nearest(&all, 99), nearest(&all, 100))
}

/// The nearest-rank percentile of sorted values.
fn nearest(sorted: &[i64], percent: usize) -> i64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let all: Vec<i64> = (1..=20).collect();
        assert_eq!([nearest(&all, 50), nearest(&all, 99), nearest(&all, 100)], [10, 20, 20]);
        assert_eq!(nearest(&[], 99), 0);
    }
}
