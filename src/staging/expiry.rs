//! When what is held is let go. A calendar that is set wrong, or set right after it was wrong, must
//! not delete evidence: time is counted from the start by a clock that never jumps.

use std::time::Duration;

use super::store::Staging;
use crate::clock::Clock;

/// How often it is looked whether something's time is over.
const EVERY: Duration = Duration::from_secs(30);
/// A calendar that moved so much more, or less, than time passed was set, ms.
const JUMP_MS: i64 = 60_000;

/// The calendar as it was at the start, and the time since.
pub(super) struct Calendar {
    clock: Clock,
    start_unix_ms: i64,
    start_ms: u64,
}

impl Calendar {
    pub(super) fn new(clock: &Clock) -> Self {
        Self { start_unix_ms: clock.unix_ms(), start_ms: clock.now_ms(), clock: clock.clone() }
    }

    /// Unix ms as they are if nobody set the calendar since the start.
    pub(super) fn now_ms(&self) -> i64 {
        self.start_unix_ms.saturating_add_unsigned(self.clock.now_ms() - self.start_ms)
    }
}

impl Staging {
    /// Lets go of what was kept for `keep_for`. Runs until it is dropped.
    pub async fn expire(self) {
        let mut set_by = 0;
        loop {
            self.0.clock.sleep(EVERY).await;
            let (now, calendar) = (self.0.calendar.now_ms(), self.0.clock.unix_ms());
            let ahead = calendar.saturating_sub(now);
            if ahead.abs_diff(set_by) > JUMP_MS.unsigned_abs() {
                set_by = ahead;
                self.0.metrics.staging.clock_jumps.inc();
                tracing::warn!(
                    component = "staging",
                    ahead_s = ahead / 1000,
                    "the machine's calendar was set: chunks are kept for the time that really passes"
                );
            }
            self.let_go(now, calendar).await;
        }
    }

    async fn let_go(&self, now: i64, calendar: i64) {
        let (gone, damaged) = {
            let mut ledger = self.ledger();
            let gone = ledger.handle_time(now, calendar);
            for (chunk, _) in gone.iter().filter(|(_, staged)| !staged) {
                self.tell_dropped(&ledger, *chunk);
            }
            (gone, ledger.handle_time_aside(now, calendar))
        };
        self.remove_damaged(damaged).await;
        let expired = gone.iter().filter(|(_, staged)| *staged).count();
        if expired > 0 {
            tracing::warn!(component = "staging", chunks = expired, "unconfirmed for keep_for: let go");
        }
        for (chunk, staged) in gone {
            if staged {
                self.changed(chunk);
                self.remove_staged(chunk).await;
            } else {
                self.forget_partial(chunk).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::capability::{Capability, Trust};
    use crate::config;
    use crate::proto::{ChunkState, Variant};
    use crate::staging::fixture::{disk_at, grant, key, meta};
    use crate::staging::{Meta, Offered};
    use crate::telemetry::Metrics;

    const KEEP: Duration = Duration::from_secs(7 * 86_400);
    const TEN_YEARS_MS: i64 = 10 * 365 * 86_400_000;

    struct Rig {
        dir: tempfile::TempDir,
        clock: Clock,
    }

    impl Rig {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), clock: Clock::at_unix_ms(1_000_000) }
        }

        fn open(&self) -> (Staging, Metrics, tokio::task::JoinHandle<()>) {
            let metrics = Metrics::new();
            let config = config::Staging {
                directory: self.dir.path().into(),
                quota: 64 << 20,
                max_chunk: 8 << 20,
                keep_for: KEEP,
                seal_key_file: self.dir.path().into(),
            };
            let disk = Arc::new(disk_at(self.dir.path()));
            let (clock, limits) = (self.clock.clone(), config::Limits::default());
            let (staging, _) = Staging::open(disk, &key(), &config, &limits, clock, metrics.clone()).unwrap();
            let expiring = tokio::spawn(staging.clone().expire());
            (staging, metrics, expiring)
        }

        /// Lets so much time pass, and the relay look at it.
        async fn pass(&self, time: Duration) {
            self.clock.advance(time);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn stage(staging: &Staging, meta: &Meta) {
        let grant = Arc::new(crate::proto::claims::Grant { exp: i64::MAX, commit_exp: i64::MAX, ..grant() });
        let capability = Capability { token: "token".into(), grant, trust: Trust::Verified };
        let offered = staging.offer(meta.offer.clone(), Variant::AudioPriority, &capability).await.unwrap();
        let Offered::Receive(mut incoming) = offered else { panic!("it is here") };
        incoming.push(bytes::Bytes::from_static(b"chunk")).await.unwrap();
        assert_eq!(incoming.finish().await.unwrap().state, ChunkState::Staged);
    }

    fn state(staging: &Staging, meta: &Meta) -> ChunkState {
        staging.standing(meta.offer.chunk_ref()).unwrap().state
    }

    #[tokio::test]
    async fn a_calendar_that_is_set_forward_deletes_nothing() {
        let (rig, meta) = (Rig::new(), meta(1, b"chunk"));
        let (staging, metrics, _expiring) = rig.open();
        stage(&staging, &meta).await;
        rig.clock.set_calendar(TEN_YEARS_MS);
        rig.pass(EVERY).await;
        assert_eq!(metrics.staging.clock_jumps.get(), 1);
        rig.pass(EVERY).await;
        assert_eq!(metrics.staging.clock_jumps.get(), 1, "once");
        assert_eq!(state(&staging, &meta), ChunkState::Staged);
        assert!(staging.next_expiry_s().unwrap() > KEEP.as_secs() - 100);
        rig.pass(KEEP).await;
        assert_eq!(state(&staging, &meta), ChunkState::Expired, "its time passed all the same");
    }

    #[tokio::test]
    async fn after_a_start_with_a_calendar_far_ahead_there_is_time_to_set_it_right() {
        let (rig, meta) = (Rig::new(), meta(1, b"chunk"));
        let (staging, _, expiring) = rig.open();
        stage(&staging, &meta).await;
        expiring.abort();
        let _ = expiring.await;
        drop(staging);
        rig.clock.set_calendar(TEN_YEARS_MS);
        let (staging, metrics, _expiring) = rig.open();
        rig.pass(Duration::from_secs(1800)).await;
        assert_eq!(state(&staging, &meta), ChunkState::Staged, "overdue by years, and yet it has its hour");
        rig.clock.set_calendar(-TEN_YEARS_MS);
        rig.pass(Duration::from_secs(3 * 3600)).await;
        assert_eq!((state(&staging, &meta), metrics.staging.clock_jumps.get()), (ChunkState::Staged, 1));
        rig.pass(KEEP).await;
        assert_eq!(state(&staging, &meta), ChunkState::Expired);
    }
}
