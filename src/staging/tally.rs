//! What is held, counted: for the metrics and for `waystation status`.

use std::collections::HashMap;

use super::store::Staging;
use crate::proto::Class;
use crate::proto::ledger::{Ending, Reason, Tally};
use crate::telemetry::staging as labels;

/// Unconfirmed chunks of one class that wait for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Their class.
    pub class: Class,
    /// Why they wait.
    pub reason: Reason,
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Age of the oldest, in seconds.
    pub oldest_s: u64,
}

impl Staging {
    /// What waits, in the order of mercy.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        let (now, tally) = (self.0.calendar.now_ms(), self.tally());
        let mut out: Vec<_> = tally
            .into_iter()
            .map(|((class, reason), tally)| Waiting {
                class,
                reason,
                chunks: tally.chunks,
                bytes: tally.bytes,
                oldest_s: age_s(now, &tally),
            })
            .collect();
        out.sort_by_key(|waiting| (waiting.class, waiting.reason));
        out
    }

    /// Seconds until the next unconfirmed chunk is let go.
    #[must_use]
    pub fn next_expiry_s(&self) -> Option<u64> {
        let at = self.ledger().next_expiry()?;
        Some(u64::try_from(at.saturating_sub(self.0.calendar.now_ms())).unwrap_or(0) / 1000)
    }

    /// How full the room of each class is, in the order of mercy, 0 to 1.
    #[must_use]
    pub fn pressure(&self) -> [f32; Class::COUNT] {
        let ledger = self.ledger();
        std::array::from_fn(|rank| ledger.quota().pressure(Class::ALL[rank]))
    }

    /// Brings the gauges up to date; called before they are read.
    pub fn refresh_metrics(&self) {
        let (now, tally, metrics) = (self.0.calendar.now_ms(), self.tally(), &self.0.metrics.staging);
        for class in Class::ALL {
            for reason in Reason::ALL {
                let of = tally.get(&(*class, *reason)).copied().unwrap_or_default();
                let labels = labels::Waiting::new(*class, *reason);
                metrics.chunks.get_or_create(&labels).set(of.chunks.cast_signed());
                metrics.bytes.get_or_create(&labels).set(of.bytes.cast_signed());
                metrics.oldest_unconfirmed.get_or_create(&labels).set(age_s(now, &of) as f64);
            }
        }
        metrics.next_expiry.set(self.next_expiry_s().map_or(-1.0, |seconds| seconds as f64));
        let pressure = self.pressure();
        let ledger = self.ledger();
        for class in Class::ALL {
            metrics.pressure.get_or_create(&labels::OfClass::new(*class)).set(f64::from(pressure[class.rank()]));
            for ending in Ending::ALL {
                let counter = metrics.endings.get_or_create(&labels::Ended::new(*class, *ending)).clone();
                counter.inc_by(ledger.endings(*class, *ending).saturating_sub(counter.get()));
            }
        }
        metrics.used.set(ledger.quota().used().cast_signed());
        metrics.receiving.set(ledger.receiving() as i64);
    }

    fn tally(&self) -> HashMap<(Class, Reason), Tally> {
        let gate = self.gate();
        self.ledger().tally(gate)
    }
}

fn age_s(now: i64, tally: &Tally) -> u64 {
    tally.oldest.map_or(0, |oldest| u64::try_from(now.saturating_sub(oldest)).unwrap_or(0) / 1000)
}
