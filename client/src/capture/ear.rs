//! Whether the relay is still there, on a connection whose acknowledgements can't be seen.

use std::time::Duration;

use tokio::time::Instant;

/// While bytes wait, an answer is asked for after so much silence; it is the round trip through
/// everything that lies in queues.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// The same while none wait: a NAT or a peer that forgot the connection is found out.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Nothing comes for this long, and three times as long as answers took: another connection is
/// tried beside this one, which goes on if it is heard first.
const STALLED: Duration = Duration::from_millis(2500);
/// Before the first answer they are thought to take this long.
const FIRST_ANSWER: Duration = Duration::from_millis(1500);
/// Nothing comes for this long: the connection is dead.
const DEAD: Duration = Duration::from_secs(40);

/// What is heard of the relay, and what is owed.
pub(super) struct Ear {
    last: Instant,
    /// An answer is awaited since.
    asked: Option<Instant>,
    /// How long answers take; the longest counts, and fades.
    takes: Duration,
}

impl Default for Ear {
    fn default() -> Self {
        Self { last: Instant::now(), asked: None, takes: FIRST_ANSWER }
    }
}

impl Ear {
    pub(super) fn heard(&mut self) {
        self.last = Instant::now();
    }

    /// The answer that was asked for.
    pub(super) fn answered(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.takes = asked.elapsed().max(self.takes * 7 / 8);
        }
    }

    /// Whether an answer is to be asked for now.
    pub(super) fn asks(&mut self, bytes_wait: bool) -> bool {
        let after = if bytes_wait { ASK_AFTER } else { KEEP_ALIVE };
        let due = self.asked.is_none() && self.last.elapsed() >= after;
        if due {
            self.asked = Some(Instant::now());
        }
        due
    }

    /// Whether an answer is overdue and nothing else came either. What was silent before it was asked is no
    /// sign: while nothing waits, the relay has nothing to say.
    pub(super) fn stalls(&self) -> bool {
        let borne = STALLED.max(3 * self.takes);
        self.last.elapsed() > borne && self.asked.is_some_and(|asked| asked.elapsed() + ASK_AFTER > borne)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.last.elapsed() > DEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn silence_with_bytes_waiting_stalls_soon_and_a_slow_link_later() {
        let mut ear = Ear::default();
        pass(900).await;
        assert!(!ear.asks(true), "too early");
        pass(100).await;
        assert!(ear.asks(true) && !ear.asks(true), "once");
        pass(3000).await;
        assert!(!ear.stalls());
        pass(600).await;
        assert!(ear.stalls());
        ear.heard();
        ear.answered();
        assert!(!ear.stalls());
        pass(1000).await;
        assert!(ear.asks(true));
        pass(9_000).await;
        assert!(!ear.stalls(), "an answer took 3.6 s once");
        pass(33_000).await;
        assert!(ear.stalls() && ear.is_dead());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_seldom_asked() {
        let mut ear = Ear::default();
        pass(19_900).await;
        assert!(!ear.asks(false));
        pass(100).await;
        assert!(ear.asks(false) && !ear.stalls(), "it was not asked before");
        pass(3_600).await;
        assert!(ear.stalls(), "it does not answer");
        ear.heard();
        assert!(!ear.stalls(), "the answer is behind something else, which came");
    }
}
