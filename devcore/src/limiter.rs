//! The core's rate limits: fixed windows per (class, SHA-256 of the peer's host) (contract A.0).
//! Pure: the time is an argument.

use std::collections::HashMap;

use aws_lc_rs::digest;

/// Length of a window, in milliseconds.
const WINDOW_MS: i64 = 60_000;
/// Peers remembered at once: 64 bytes each. Beyond it, ended windows go first, then all of them.
const MAX_PEERS: usize = 4096;

/// Which calls are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Preflight, fan-out authorisation, relay sessions.
    Stream,
    /// Commits.
    Upload,
    /// What contacts ask with their grants.
    Contact,
}

struct Window {
    since_ms: i64,
    calls: u32,
}

/// Counts calls. 0 calls a minute: no limit.
pub(crate) struct Limiter {
    calls_per_minute: u32,
    windows: HashMap<(Class, [u8; 32]), Window>,
}

impl Limiter {
    pub(crate) fn new(calls_per_minute: u32) -> Self {
        Self { calls_per_minute, windows: HashMap::new() }
    }

    pub(crate) const fn set(&mut self, calls_per_minute: u32) {
        self.calls_per_minute = calls_per_minute;
    }

    /// Counts one call; `Err` holds the seconds for `Retry-After`: the window's length, as the core sends it.
    pub(crate) fn call(&mut self, class: Class, host: std::net::IpAddr, now_ms: i64) -> Result<(), u64> {
        if self.calls_per_minute == 0 {
            return Ok(());
        }
        if self.windows.len() >= MAX_PEERS {
            self.windows.retain(|_, window| now_ms < window.since_ms + WINDOW_MS);
            if self.windows.len() >= MAX_PEERS {
                self.windows.clear();
            }
        }
        let window = self.windows.entry((class, peer(host))).or_insert(Window { since_ms: now_ms, calls: 0 });
        if now_ms >= window.since_ms + WINDOW_MS {
            *window = Window { since_ms: now_ms, calls: 0 };
        }
        if window.calls >= self.calls_per_minute {
            return Err(WINDOW_MS.unsigned_abs() / 1000);
        }
        window.calls += 1;
        Ok(())
    }
}

fn peer(host: std::net::IpAddr) -> [u8; 32] {
    let hash = digest::digest(&digest::SHA256, host.to_string().as_bytes());
    hash.as_ref().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_fixed_and_apart() {
        let (a, b) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut limiter = Limiter::new(2);
        assert_eq!(limiter.call(Class::Stream, a, 0), Ok(()));
        assert_eq!(limiter.call(Class::Stream, a, 59_999), Ok(()));
        assert_eq!(limiter.call(Class::Stream, a, 59_999), Err(60));
        assert_eq!(limiter.call(Class::Upload, a, 59_999), Ok(()), "another class");
        assert_eq!(limiter.call(Class::Stream, b, 59_999), Ok(()), "another peer");
        assert_eq!(limiter.call(Class::Stream, a, 60_000), Ok(()), "the next window");
        assert_eq!(limiter.call(Class::Stream, a, 119_999), Ok(()));
        assert_eq!(limiter.call(Class::Stream, a, 119_999), Err(60));
    }

    #[test]
    fn peers_are_bounded() {
        let mut limiter = Limiter::new(1);
        for i in 0..10_000_u32 {
            assert_eq!(limiter.call(Class::Stream, i.to_be_bytes().into(), i64::from(i)), Ok(()));
            assert!(limiter.windows.len() <= MAX_PEERS);
        }
    }
}
