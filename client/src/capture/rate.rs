//! The measured upload rate: bytes over the time in which there was something to send. Pure.

/// Busy time over which the rate is taken; older figures fade by half each time it is passed.
const WINDOW_MS: u64 = 10_000;
/// Less busy time than this says nothing.
const LEAST_MS: u64 = 50;

/// Bytes sent and the time it took.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    bytes: u64,
    busy_ms: u64,
    since: Option<u64>,
}

impl Rate {
    /// There is something to send.
    pub(crate) fn started(&mut self, now_ms: u64) {
        self.since.get_or_insert(now_ms);
    }

    /// A chunk is sent; `idle` if nothing else moves.
    pub(crate) fn sent(&mut self, bytes: u64, idle: bool, now_ms: u64) {
        self.bytes += bytes;
        self.paused(idle, now_ms);
    }

    /// Nothing moves any more, if `idle`.
    pub(crate) fn paused(&mut self, idle: bool, now_ms: u64) {
        if !idle {
            return;
        }
        if let Some(since) = self.since.take() {
            self.busy_ms += now_ms.saturating_sub(since);
        }
        while self.busy_ms > WINDOW_MS {
            self.busy_ms /= 2;
            self.bytes /= 2;
        }
    }

    /// Bytes per second; none while too little was seen.
    pub(crate) fn bytes_per_second(&self, now_ms: u64) -> Option<u64> {
        let busy = self.busy_ms + self.since.map_or(0, |since| now_ms.saturating_sub(since));
        (busy >= LEAST_MS && self.bytes > 0).then(|| self.bytes.saturating_mul(1000) / busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_does_not_count() {
        let mut rate = Rate::default();
        assert_eq!(rate.bytes_per_second(5), None);
        rate.started(1000);
        rate.sent(1000, true, 1100);
        assert_eq!(rate.bytes_per_second(9000), Some(10_000));
        rate.started(9000);
        assert_eq!(rate.bytes_per_second(9900), Some(1000), "what moves without end slows the rate");
    }
}
