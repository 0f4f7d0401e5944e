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
    /// It stalls until it answers.
    stalled: bool,
}

impl Default for Ear {
    fn default() -> Self {
        Self { last: Instant::now(), asked: None, takes: FIRST_ANSWER, stalled: false }
    }
}

impl Ear {
    pub(super) fn heard(&mut self) {
        self.last = Instant::now();
    }

    /// The answer that was asked for. One that an outage held up says little of the next: it counts at
    /// most for twice what they took.
    pub(super) fn answered(&mut self) {
        self.stalled = false;
        if let Some(asked) = self.asked.take() {
            self.takes = asked.elapsed().min(self.takes * 2).max(self.takes * 7 / 8);
        }
    }

    /// The device is on another network: only an answer shows that this connection goes on. It is asked
    /// for by whoever says so.
    pub(super) fn moved(&mut self) {
        self.stalled = true;
        self.asked = Some(Instant::now());
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

    /// Looks whether an answer is overdue and nothing else came either. What was silent before it was asked
    /// is no sign: while nothing waits, the relay has nothing to say.
    pub(super) fn look(&mut self) {
        let borne = STALLED.max(3 * self.takes);
        let overdue = self.asked.is_some_and(|asked| asked.elapsed() + ASK_AFTER > borne);
        self.stalled |= overdue && self.last.elapsed() > borne;
    }

    /// Whether it stalls. Only the answer ends that: after an outage the relay's kernel may say again what
    /// nobody had acknowledged, while this side's waits for its next try, up to as long as the outage was.
    pub(super) const fn stalls(&self) -> bool {
        self.stalled
    }

    pub(super) fn is_dead(&self) -> bool {
        self.last.elapsed() > DEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(ear: &mut Ear, ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
        ear.look();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_with_bytes_waiting_stalls_soon_and_a_slow_link_later() {
        let mut ear = Ear::default();
        pass(&mut ear, 900).await;
        assert!(!ear.asks(true), "too early");
        pass(&mut ear, 100).await;
        assert!(ear.asks(true) && !ear.asks(true), "once");
        pass(&mut ear, 2900).await;
        ear.heard();
        ear.answered();
        assert!(!ear.stalls());
        pass(&mut ear, 1000).await;
        assert!(ear.asks(true));
        pass(&mut ear, 7_600).await;
        assert!(!ear.stalls(), "an answer took 2.9 s once");
        pass(&mut ear, 33_000).await;
        assert!(ear.stalls() && ear.is_dead());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_relay_says_again_is_no_answer() {
        let mut ear = Ear::default();
        pass(&mut ear, 1_000).await;
        assert!(ear.asks(true));
        pass(&mut ear, 19_000).await;
        ear.heard();
        pass(&mut ear, 0).await;
        assert!(ear.stalls(), "its ping of before the outage");
        ear.answered();
        assert!(!ear.stalls());
        // The outage is not how long answers take.
        pass(&mut ear, 1_000).await;
        assert!(ear.asks(true));
        pass(&mut ear, 8_100).await;
        assert!(ear.stalls());
    }

    #[tokio::test(start_paused = true)]
    async fn on_another_network_it_stalls_until_it_answers() {
        let mut ear = Ear::default();
        ear.moved();
        pass(&mut ear, 10).await;
        ear.heard();
        assert!(ear.stalls() && !ear.asks(true), "it was asked already");
        ear.answered();
        assert!(!ear.stalls());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_seldom_asked() {
        let mut ear = Ear::default();
        pass(&mut ear, 19_900).await;
        assert!(!ear.asks(false));
        pass(&mut ear, 100).await;
        assert!(ear.asks(false));
        pass(&mut ear, 0).await;
        assert!(!ear.stalls(), "it was not asked before");
        pass(&mut ear, 3_000).await;
        assert!(!ear.stalls());
        ear.heard();
        pass(&mut ear, 1_000).await;
        assert!(!ear.stalls(), "the answer is behind something else, which came");
        pass(&mut ear, 3_600).await;
        assert!(ear.stalls(), "it does not answer");
    }
}
