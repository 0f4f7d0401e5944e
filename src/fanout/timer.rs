//! A deadline that is kept over many waits, so that a wake by media does not arm it anew.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::clock::Clock;
use crate::rare::Rare;

/// Longest sleep: the machine's calendar may be set while a contact waits for its capability's
/// end, which is a calendar time.
const MAX_SLEEP_MS: u64 = 30_000;

type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The armed sleep, with its end in milliseconds of the clock.
#[derive(Default)]
pub(crate) struct Timer {
    armed: Option<(u64, Rare<Sleep>)>,
}

impl Timer {
    /// Waits until `due` (milliseconds of `clock`) or earlier. Cancel-safe.
    pub(crate) async fn until(&mut self, clock: &Clock, due: u64) {
        let now = clock.now_ms();
        let due = due.min(now.saturating_add(MAX_SLEEP_MS));
        let armed = match &mut self.armed {
            Some(armed) if armed.0 <= due => armed,
            slot => {
                let (clock, time) = (clock.clone(), Duration::from_millis(due.saturating_sub(now)));
                slot.insert((due, Rare::new(Box::pin(async move { clock.sleep(time).await }))))
            }
        };
        (&mut armed.1).await;
        self.armed = None;
    }
}
