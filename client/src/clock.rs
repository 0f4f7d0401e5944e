//! The only reader of wall-clock time and of randomness in this crate.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Random bytes from the operating system; `None` if it has none to give.
pub(crate) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut out = [0; N];
    aws_lc_rs::rand::fill(&mut out).ok()?;
    Some(out)
}

/// The same, into a buffer; false if there are none.
pub(crate) fn fill(out: &mut [u8]) -> bool {
    aws_lc_rs::rand::fill(out).is_ok()
}
