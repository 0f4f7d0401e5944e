//! The only reader of time and randomness. A test hands in a clock it moves by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// Time and randomness, as an input.
#[derive(Clone)]
pub struct Clock(Inner);

#[derive(Clone)]
enum Inner {
    System(Instant),
    Virtual { offset_ms: Arc<watch::Sender<u64>>, unix_start_ms: Arc<AtomicI64> },
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub fn system() -> Self {
        Self(Inner::System(Instant::now()))
    }

    /// A clock that stands at `unix_ms` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn at_unix_ms(unix_ms: i64) -> Self {
        Self(Inner::Virtual {
            offset_ms: Arc::new(watch::Sender::new(0)),
            unix_start_ms: Arc::new(AtomicI64::new(unix_ms)),
        })
    }

    /// Milliseconds since this clock was made; never goes back.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        match &self.0 {
            Inner::System(start) => u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            Inner::Virtual { offset_ms, .. } => *offset_ms.borrow(),
        }
    }

    /// Milliseconds since the Unix epoch; may jump with the machine's clock.
    #[must_use]
    pub fn unix_ms(&self) -> i64 {
        match &self.0 {
            Inner::System(_) => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            }
            Inner::Virtual { offset_ms, unix_start_ms } => {
                unix_start_ms.load(Ordering::Relaxed).saturating_add_unsigned(*offset_ms.borrow())
            }
        }
    }

    /// Seconds since the Unix epoch, as capabilities count.
    #[must_use]
    pub fn unix_s(&self) -> i64 {
        self.unix_ms().div_euclid(1000)
    }

    /// Waits for `time` to pass on this clock.
    pub async fn sleep(&self, time: Duration) {
        match &self.0 {
            Inner::System(_) => tokio::time::sleep(time).await,
            Inner::Virtual { offset_ms, .. } => {
                let mut moved = offset_ms.subscribe();
                let until = offset_ms.borrow().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                // The sender lives as long as `self`, so this can only end with the time. In a box: whoever waits on
                // the machine's clock need not keep room for it.
                let _ = Box::pin(moved.wait_for(|now| *now >= until)).await;
            }
        }
    }

    /// Moves a virtual clock; does nothing to the machine's.
    pub fn advance(&self, time: Duration) {
        if let Inner::Virtual { offset_ms, .. } = &self.0 {
            offset_ms.send_modify(|now| *now = now.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
        }
    }

    /// Sets a virtual clock's calendar forward, or back; no time passes.
    pub fn set_calendar(&self, by_ms: i64) {
        if let Inner::Virtual { unix_start_ms, .. } = &self.0 {
            unix_start_ms.fetch_add(by_ms, Ordering::Relaxed);
        }
    }

    /// Random bytes from the system's generator.
    ///
    /// # Panics
    /// If the system has no randomness: nothing can be sealed or named then.
    pub fn fill_random(&self, out: &mut [u8]) {
        #[expect(clippy::unwrap_used, reason = "a relay without randomness must not go on")]
        aws_lc_rs::rand::fill(out).unwrap();
    }

    /// A random number below `bound` (0 if `bound` is 0), for jitter.
    #[must_use]
    pub fn random_below(&self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        if bound == 0 { 0 } else { u64::from_le_bytes(bytes) % bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_virtual_sleep_ends_when_the_clock_is_moved() {
        let clock = Clock::at_unix_ms(5_000);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(600)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(599));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock.unix_s(), 605);
    }
}
