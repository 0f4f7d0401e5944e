//! Whether the relay is still there, on a connection whose acknowledgements can't be seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// While bytes wait, an answer is asked for after so much silence; it is the round trip through
/// everything that lies in queues.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// The same while none wait: a NAT or a peer that forgot the connection is found out.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The same where the kernel finds it out, since each sign of life is acknowledged: only what stands before the relay and
/// acknowledges in its place is left to ask for. A question and its answer cost a third more than a sign.
const KEEP_ALIVE_WATCHED: Duration = Duration::from_secs(120);
/// Nothing comes for this long, and three times as long as answers took: another connection is
/// tried beside this one, which goes on if it answers first.
const STALLED: Duration = Duration::from_millis(2500);
/// Before the first answer they are thought to take this long.
const FIRST_ANSWER: Duration = Duration::from_millis(1500);
/// The relay's first word is awaited for this long, and for two round trips. What was lost of so little goes again
/// only after the kernel's timer, which counts twice as long each time; another connection is through sooner.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// It takes no longer than this, however often it is doubled.
const MAX_FIRST_WORD: Duration = Duration::from_secs(15);
/// Nothing comes for this long, half of it after a question: the connection is dead.
const DEAD: Duration = Duration::from_secs(40);

/// How long answers take on the way to a relay, for the connections that follow each other there.
#[derive(Clone)]
pub(super) struct Takes(Arc<Way>);

struct Way {
    answer_ms: AtomicU64,
    /// Connections in a row whose first word was not awaited any longer.
    in_vain: AtomicU32,
}

impl Default for Takes {
    fn default() -> Self {
        let answer_ms = AtomicU64::new(FIRST_ANSWER.as_millis() as u64);
        Self(Arc::new(Way { answer_ms, in_vain: AtomicU32::new(0) }))
    }
}

impl Takes {
    fn get(&self) -> Duration {
        Duration::from_millis(self.0.answer_ms.load(Ordering::Relaxed))
    }

    fn set(&self, takes: Duration) {
        self.0.answer_ms.store((takes.as_millis() as u64).max(1), Ordering::Relaxed);
    }

    /// How long nothing may come.
    fn borne(&self) -> Duration {
        STALLED.max(3 * self.get())
    }

    /// How long the first word may take: twice as long after each that was not awaited, so that a relay that is slow to
    /// greet is not asked for one connection after another.
    fn first_word(&self, round_trip: Duration) -> Duration {
        let doubled = FIRST_WORD.max(2 * round_trip) * (1 << self.0.in_vain.load(Ordering::Relaxed).min(4));
        doubled.min(MAX_FIRST_WORD)
    }

    /// The way is another one: how long answers took on the one before says nothing.
    pub(super) fn moved(&self) {
        self.set(FIRST_ANSWER);
        self.0.in_vain.store(0, Ordering::Relaxed);
    }
}

/// The relay's greeting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FirstWord {
    /// It may take this long, and until then nothing else is a stall.
    Awaited(Duration),
    /// It is late: the connection stalls, or answers what it was asked then.
    Late,
    /// It came, or is like any other word.
    Heard,
}

/// What is heard of the relay, and what is owed. Questions are numbered, and their answers with them.
pub(super) struct Ear {
    last: Instant,
    /// The answer to this question is awaited since, and how long answers took until then.
    asked: Option<(u32, Instant, Duration)>,
    /// Questions so far.
    number: u32,
    /// The longest counts, and fades.
    takes: Takes,
    /// It stalls until it answers this question or a later one.
    stalled: Option<u32>,
    first_word: FirstWord,
    keep_alive: Duration,
}

impl Ear {
    /// `round_trip`: what the last one before `HELLO` took, if a first word that is late is reason for another connection.
    /// `watched`: while no bytes wait the kernel ends the connection if what is sent is not acknowledged.
    pub(super) fn new(takes: Takes, round_trip: Option<Duration>, watched: bool) -> Self {
        let first_word = round_trip.map_or(FirstWord::Heard, |time| FirstWord::Awaited(takes.first_word(time)));
        let keep_alive = if watched { KEEP_ALIVE_WATCHED } else { KEEP_ALIVE };
        Self { last: Instant::now(), asked: None, number: 0, takes, stalled: None, first_word, keep_alive }
    }

    fn takes(&self) -> Duration {
        self.takes.get()
    }

    pub(super) fn heard(&mut self) {
        self.last = Instant::now();
    }

    /// Something stands before the relay, and acknowledges in its place.
    pub(super) const fn is_behind_another(&mut self) {
        self.keep_alive = KEEP_ALIVE;
    }

    /// The relay greeted, which answers `HELLO` and nothing from before.
    pub(super) fn greeted(&mut self) {
        self.takes.0.in_vain.store(0, Ordering::Relaxed);
        if std::mem::replace(&mut self.first_word, FirstWord::Heard) != FirstWord::Heard {
            (self.stalled, self.asked) = (None, None);
        }
    }

    /// The answer to a question. One that an outage held up says little of the next: it counts for at most twice what
    /// they took.
    pub(super) fn answered(&mut self, number: u32) {
        // A question behind it may have been answered alone, or sent in its place.
        if let Some((_, at, before)) = self.asked.take_if(|(asked, ..)| number >= *asked) {
            let takes = at.elapsed().min(before * 2).max(self.takes() * 7 / 8);
            self.takes.set(takes);
        }
        if self.stalled.is_some_and(|question| number >= question) {
            (self.stalled, self.asked) = (None, None);
            // It can be reached; a greeting that comes later says nothing of the next stall.
            self.first_word = FirstWord::Heard;
        }
    }

    /// One more question, which nobody waits for.
    pub(super) fn ask(&mut self) -> u32 {
        self.number += 1;
        self.number
    }

    /// The device is on another network: this connection stalls until it answers what is asked now.
    pub(super) fn moved(&mut self) -> u32 {
        self.takes.moved();
        self.first_word = FirstWord::Heard;
        self.stall()
    }

    fn stall(&mut self) -> u32 {
        let question = self.ask();
        self.stalled = Some(question);
        question
    }

    /// What is to be asked now, if anything is.
    pub(super) fn asks(&mut self, bytes_wait: bool) -> Option<u32> {
        let after = if bytes_wait || self.stalled.is_some() { ASK_AFTER } else { self.keep_alive };
        if self.asked.is_some() || self.last.elapsed() < after {
            return None;
        }
        let question = self.ask();
        self.asked = Some((question, Instant::now(), self.takes()));
        Some(question)
    }

    /// Looks whether an answer is overdue and nothing else came either: then it stalls, and this is to be asked. What
    /// was silent before it was asked is no sign: while nothing waits, the relay has nothing to say.
    ///
    /// Only the answer to this ends it. After an outage the relay's kernel may say again what nobody had
    /// acknowledged, an earlier answer too, while this side's waits for its next try, up to as long as the outage was.
    pub(super) fn look(&mut self) -> Option<u32> {
        if self.stalled.is_some() {
            return None;
        }
        let silent = self.last.elapsed();
        let overdue = if let FirstWord::Awaited(limit) = self.first_word {
            if silent > limit {
                self.first_word = FirstWord::Late;
                self.takes.0.in_vain.fetch_add(1, Ordering::Relaxed);
            }
            silent > limit
        } else {
            let borne = self.takes.borne();
            silent > borne && self.asked.is_some_and(|(_, asked, _)| asked.elapsed() + ASK_AFTER > borne)
        };
        overdue.then(|| self.stall())
    }

    /// Whether it stalls.
    pub(super) const fn stalls(&self) -> bool {
        self.stalled.is_some()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.last.elapsed() > DEAD && self.asked.is_some_and(|(_, asked, _)| asked.elapsed() > DEAD / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(ear: &mut Ear, ms: u64) -> Option<u32> {
        tokio::time::advance(Duration::from_millis(ms)).await;
        ear.look()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_with_bytes_waiting_stalls_soon_and_a_slow_link_later() {
        let takes = Takes::default();
        let mut ear = Ear::new(takes.clone(), None, false);
        pass(&mut ear, 900).await;
        assert_eq!(ear.asks(true), None, "too early");
        pass(&mut ear, 100).await;
        assert_eq!((ear.asks(true), ear.asks(true)), (Some(1), None), "once");
        pass(&mut ear, 2900).await;
        ear.heard();
        ear.answered(1);
        assert!(!ear.stalls());
        pass(&mut ear, 1000).await;
        assert_eq!(ear.asks(true), Some(2));
        pass(&mut ear, 7_600).await;
        assert!(!ear.stalls(), "an answer took 2.9 s once");
        pass(&mut ear, 33_000).await;
        assert!(ear.stalls() && ear.is_dead());
        // The connection that takes its place knows it too.
        let mut next = Ear::new(takes, None, false);
        pass(&mut next, 1000).await;
        assert_eq!(next.asks(true), Some(1));
        pass(&mut next, 7_600).await;
        assert!(!next.stalls());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_relay_says_again_is_no_answer() {
        let mut ear = Ear::new(Takes::default(), None, false);
        pass(&mut ear, 1_000).await;
        assert_eq!(ear.asks(true), Some(1));
        assert_eq!(pass(&mut ear, 19_000).await, Some(2), "asked when it stalls");
        assert_eq!(pass(&mut ear, 100).await, None, "once");
        ear.heard();
        assert!(ear.stalls(), "its ping of before the outage");
        ear.answered(1);
        assert!(ear.stalls(), "its answer of before the outage");
        ear.answered(2);
        assert!(!ear.stalls());
        // The outage is not how long answers take.
        pass(&mut ear, 1_000).await;
        assert_eq!(ear.asks(true), Some(3));
        pass(&mut ear, 8_100).await;
        assert!(ear.stalls());
    }

    #[tokio::test(start_paused = true)]
    async fn several_that_an_outage_held_up_count_once() {
        let takes = Takes::default();
        let mut all = [0; 5].map(|_| Ear::new(takes.clone(), None, false));
        tokio::time::advance(ASK_AFTER).await;
        let asked = all.each_mut().map(|ear| ear.asks(true));
        assert_eq!(asked, [Some(1); 5]);
        tokio::time::advance(Duration::from_secs(20)).await;
        all.iter_mut().for_each(|ear| ear.answered(1));
        assert_eq!(takes.get(), 2 * FIRST_ANSWER);
        // Answers at once fade it, and never to nothing.
        for _ in 0..100 {
            tokio::time::advance(ASK_AFTER).await;
            let question = all[0].asks(true).unwrap();
            all[0].answered(question);
        }
        assert_eq!(takes.get(), Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_another_took_the_place_of_is_answered_by_it() {
        let mut ear = Ear::new(Takes::default(), None, false);
        pass(&mut ear, 1_000).await;
        assert_eq!((ear.asks(true), ear.ask()), (Some(1), 2));
        ear.answered(2);
        assert_eq!(ear.asks(true), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn on_another_network_it_stalls_until_it_answers() {
        let mut ear = Ear::new(Takes::default(), None, false);
        pass(&mut ear, 1_000).await;
        assert_eq!((ear.asks(true), ear.moved()), (Some(1), 2));
        ear.heard();
        ear.answered(1);
        assert!(ear.stalls(), "over the network before");
        ear.answered(2);
        assert!(!ear.stalls());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_seldom_asked() {
        let mut ear = Ear::new(Takes::default(), None, false);
        pass(&mut ear, 19_900).await;
        assert_eq!(ear.asks(false), None);
        pass(&mut ear, 100).await;
        assert_eq!(ear.asks(false), Some(1));
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

    #[tokio::test(start_paused = true)]
    async fn where_the_kernel_watches_an_idle_connection_is_hardly_asked() {
        let mut ear = Ear::new(Takes::default(), None, true);
        pass(&mut ear, 119_900).await;
        assert_eq!((ear.asks(false), ear.is_dead()), (None, false), "nobody asked it anything");
        pass(&mut ear, 100).await;
        assert_eq!(ear.asks(false), Some(1));
        pass(&mut ear, 20_000).await;
        assert!(ear.stalls() && !ear.is_dead());
        pass(&mut ear, 1).await;
        assert!(ear.is_dead());
        // Behind a proxy the kernel knows nothing of the relay.
        let mut ear = Ear::new(Takes::default(), None, true);
        ear.is_behind_another();
        pass(&mut ear, 20_000).await;
        assert_eq!(ear.asks(false), Some(1));
        // One that never greets is asked too.
        let mut ear = Ear::new(Takes::default(), Some(Duration::ZERO), true);
        assert!(pass(&mut ear, 1_001).await.is_some());
        assert!(ear.asks(false).is_some());
        pass(&mut ear, 39_001).await;
        assert!(ear.is_dead());
        // While bytes wait it is asked as ever.
        let mut ear = Ear::new(Takes::default(), None, true);
        pass(&mut ear, 1_000).await;
        assert_eq!(ear.asks(true), Some(1));
        pass(&mut ear, 39_001).await;
        assert!(ear.is_dead());
    }

    /// Milliseconds until such a connection stalls.
    async fn stalls_after(takes: &Takes, round_trip_ms: u64) -> u64 {
        let mut ear = Ear::new(takes.clone(), Some(Duration::from_millis(round_trip_ms)), false);
        let begun = Instant::now();
        while pass(&mut ear, 10).await.is_none() {}
        begun.elapsed().as_millis() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_word_that_is_late_is_awaited_twice_as_long_the_next_time() {
        let takes = Takes::default();
        assert_eq!(stalls_after(&takes, 100).await, 1010);
        assert_eq!(stalls_after(&takes, 800).await, 3210, "the second in a row");
        let mut ear = Ear::new(takes.clone(), Some(Duration::ZERO), false);
        ear.greeted();
        assert_eq!(stalls_after(&takes, 800).await, 1610);
        takes.set(Duration::from_millis(200));
        let mut all = Vec::new();
        for _ in 0..5 {
            all.push(stalls_after(&takes, 1_500).await / 1000);
        }
        assert_eq!(all, [6, 12, 15, 15, 15], "however soon answers come");
        takes.moved();
        assert_eq!(stalls_after(&takes, 0).await, 1010, "on another network");
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_and_does_not_greet_is_given_up_once() {
        let mut ear = Ear::new(Takes::default(), Some(Duration::ZERO), false);
        let question = loop {
            if let Some(question) = pass(&mut ear, 10).await {
                break question;
            }
        };
        ear.heard();
        ear.answered(question);
        assert!(!ear.stalls());
        for _ in 0..20 {
            pass(&mut ear, 1_000).await;
            let question = ear.asks(true).unwrap();
            ear.heard();
            ear.answered(question);
            assert!(!ear.stalls());
        }
        // An outage, behind which the relay's kernel says again that it greets.
        pass(&mut ear, 1_000).await;
        assert!(ear.asks(true).is_some());
        assert!(pass(&mut ear, 20_000).await.is_some());
        ear.greeted();
        assert!(ear.stalls());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_word_ends_the_wait_for_it_and_nothing_else() {
        let mut ear = Ear::new(Takes::default(), Some(Duration::ZERO), false);
        assert_eq!(pass(&mut ear, 1_001).await, Some(1));
        ear.heard();
        assert!(ear.stalls(), "a ping of the relay");
        ear.greeted();
        assert!(!ear.stalls());
        assert_eq!(pass(&mut ear, 2_000).await, None);
        let mut ear = Ear::new(Takes::default(), Some(Duration::ZERO), false);
        assert_eq!(ear.moved(), 1);
        ear.greeted();
        assert!(ear.stalls(), "it may have come over the network before");
        assert_eq!(pass(&mut ear, 2_000).await, None);
    }
}
