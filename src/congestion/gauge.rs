//! How much of what was written is delivered, and so when more may be written.
//!
//! Bytes that lie in QUIC's own buffers can't be overtaken, so few may lie there: writes are
//! released as acknowledgements come in, at the rate at which the path delivers. Written and not
//! acknowledged is never much more than what may be in flight.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::Owes;
use super::again::{self, Urgent};
use super::tail::Tail;

/// Bytes of a packet that carry no stream data: QUIC's and the frames' heads, the seal, now and
/// then an acknowledgement. A little more than it is, so that the count errs to the side on which
/// [`Ledger::acknowledged`] finds it out.
const OVERHEAD: u64 = 45;
/// Packets that may wait in QUIC's buffer beyond the window: what an acknowledgement sets free at
/// once is already there.
const SPARE_PACKETS: u64 = 4;
/// The same as a part of the window.
const SPARE_PART: u64 = 4;
/// An answer after so much silence ends an outage: by then another connection is tried. A link on which answers are
/// shorter apart than that is slow, and what it has not answered is on its way.
const OUTAGE: Duration = Duration::from_secs(2);
/// Packets in flight that are let be after an outage: a connection that is not heard for longer than they are
/// sent in is dead.
const MOST_HELD: u64 = 256;

/// quinn's clock.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What is written and what of it is acknowledged. Pure.
#[derive(Debug, Clone, Copy)]
struct Ledger {
    mtu: u64,
    window: u64,
    written: u64,
    acked: u64,
}

impl Ledger {
    const fn new(window: u64, mtu: u64) -> Self {
        Self { mtu, window, written: 0, acked: 0 }
    }

    /// Bytes not acknowledged, sent or not.
    const fn open(&self) -> u64 {
        self.written.saturating_sub(self.acked)
    }

    /// What may be open.
    fn most(&self) -> u64 {
        self.window + (SPARE_PACKETS * self.mtu).max(self.window / SPARE_PART)
    }

    /// `beyond`: bytes that may be open beyond that.
    fn has_room(&self, beyond: u64) -> bool {
        self.open() < self.most() + beyond
    }

    /// A packet is acknowledged.
    fn packet(&mut self, bytes: u64) {
        self.acked = self.written.min(self.acked + bytes.saturating_sub(OVERHEAD));
    }

    /// An acknowledgement was read to its end. `dry`: QUIC had nothing more to send; then what is
    /// open is what is in flight, and the count is put right.
    fn acknowledged(&mut self, window: u64, in_flight: u64, dry: bool) {
        self.window = window;
        if dry {
            self.acked = self.acked.max(self.written.saturating_sub(in_flight));
        }
    }
}

/// What the path is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Path {
    /// Bytes a second that arrive at best; 0 before anything is known.
    pub rate: u64,
    /// The round trip of late, queues included.
    pub rtt: Duration,
    /// Part of the bytes that is lost, in thousandths.
    pub loss_permille: u64,
}

/// Bytes allowed beyond the window, in flight and of those written.
#[derive(Debug, Clone, Copy, Default)]
struct Extra {
    flying: u64,
    written: u64,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    path: Path,
    /// What pokes allow until something is acknowledged; see [`Gauge::nudge`].
    poked: Extra,
    /// What is let be of an outage; it only becomes less.
    held: Extra,
    /// The packet that may follow its end, until it is sent: answers come in bursts.
    follows: u64,
    /// The last acknowledgement, or the first that was written after it.
    heard: Instant,
    wrote: Instant,
    /// Something that was sent since `began` was acknowledged. A handshake may seem done here, and its last packet
    /// be lost: then the peer can read nothing that is written.
    known: bool,
    /// When the first was written, on this network.
    began: Instant,
    tail: Tail,
    urgent: Urgent,
}

impl State {
    fn has_room(&self) -> bool {
        self.ledger.has_room(self.poked.written + self.held.written)
    }

    /// Something is acknowledged, and `in_flight` bytes are not. After an outage that is often a late answer to what
    /// was sent before it. All that was sent in it still counts, until something sent after it is
    /// acknowledged, and would shut the window: as much is let be, and one packet may follow.
    fn answer(&mut self, at: Instant, in_flight: u64) {
        let packet = self.ledger.mtu;
        let over = (in_flight + packet).saturating_sub(self.ledger.window);
        let unwritten = self.ledger.open().saturating_sub(self.ledger.most());
        let most = MOST_HELD * packet;
        self.held = if over > 0 && at.saturating_duration_since(self.heard) >= OUTAGE {
            self.follows = packet;
            Extra { flying: over.min(most) + packet, written: unwritten.min(most) + packet }
        } else {
            let (flying, written) = (over + self.follows, unwritten + self.follows);
            Extra { flying: self.held.flying.min(flying), written: self.held.written.min(written) }
        };
        (self.poked, self.heard) = (Extra::default(), at);
    }

    /// Nothing was written since the last acknowledgement.
    fn answered(&self) -> bool {
        self.heard > self.wrote
    }
}

/// Shared by one connection's congestion controller and its writer.
#[derive(Debug)]
pub struct Gauge {
    state: Mutex<State>,
    /// Packets that are to go twice.
    again: AtomicU32,
    moved: Notify,
    /// There may be something to ask after.
    ends: Notify,
}

impl Default for Gauge {
    fn default() -> Self {
        Self::new()
    }
}

impl Gauge {
    /// One of a connection that is not begun.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            ledger: Ledger::new(0, 1200),
            path: Path::default(),
            poked: Extra::default(),
            held: Extra::default(),
            follows: 0,
            heard: now(),
            wrote: now(),
            known: false,
            began: now(),
            tail: Tail::new(now()),
            urgent: Urgent::default(),
        };
        Self { state: Mutex::new(state), again: AtomicU32::new(0), moved: Notify::new(), ends: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === the writer's side ===

    /// Waits until more may be written.
    pub async fn room(&self) {
        loop {
            let moved = self.moved.notified();
            if self.state().has_room() {
                return;
            }
            moved.await;
        }
    }

    /// So many bytes were written.
    pub fn written(&self, bytes: usize) {
        let mut state = self.state();
        let now = now();
        if state.ledger.open() == 0 || state.answered() {
            // Silence counts from when something is owed.
            state.heard = now;
        }
        if state.ledger.written == 0 {
            (state.known, state.began) = (false, now);
        }
        state.wrote = now;
        state.ledger.written += bytes as u64;
    }

    /// So many bytes, which are written next, are most urgent, and go before all others: what is lost of them goes
    /// twice the next time.
    pub fn urgent(&self, bytes: usize) {
        let mut state = self.state();
        let packet = state.ledger.mtu;
        state.urgent.written(now(), bytes as u64, packet);
    }

    /// Packets that are to go twice, of those that are sent next.
    pub fn again(&self) -> &AtomicU32 {
        &self.again
    }

    /// What the path is like.
    pub fn path(&self) -> Path {
        self.state().path
    }

    /// How long nothing was acknowledged though something is open; none while nothing is. Where only a sign of
    /// life is owed, any acknowledgement after it will do: what brought it again is smaller than
    /// what the count takes for its heads, so that a few bytes of it may stay open.
    pub fn silence(&self, owes: Owes) -> Option<Duration> {
        let state = self.state();
        let open = state.ledger.open() > 0 && !(owes == Owes::Sign && state.answered());
        open.then(|| now().saturating_duration_since(state.heard.max(state.began)))
    }

    /// The way may be another from now on: nothing was heard on it.
    pub fn elsewhere(&self) {
        let mut state = self.state();
        (state.known, state.began) = (false, now());
    }

    /// What is owed, where `chunks` are under way or not.
    pub fn owes(&self, chunks: bool) -> Owes {
        match (self.state().known, chunks) {
            (false, _) => Owes::Trust,
            (true, true) => Owes::Bytes,
            (true, false) => Owes::Sign,
        }
    }

    /// Lets a packet more into flight than the window allows, and if `write` be written. After an outage the
    /// path is found again by whatever is sent first; QUIC's own probes come ever more rarely by then.
    pub fn nudge(&self, write: bool) {
        let mut state = self.state();
        let packet = state.ledger.mtu;
        state.poked.flying += packet;
        if write {
            state.poked.written += packet;
            drop(state);
            self.moved.notify_waiters();
        }
    }

    /// Waits until a packet that asks for an acknowledgement shall follow what was sent last: on a
    /// path that loses much, an end that nothing follows is not known to be lost before a time-out.
    /// Whoever waits sends it.
    pub async fn end(&self) {
        loop {
            let ends = self.ends.notified();
            let due = {
                let mut state = self.state();
                let due = state.tail.due(state.path);
                if due.is_some_and(|due| due <= now()) {
                    state.tail.asked(now());
                    return;
                }
                due
            };
            match due {
                // Later by then, if more was sent.
                Some(due) => _ = timeout_at(due.into(), ends).await,
                None => ends.await,
            }
        }
    }

    // === the controller's side ===

    pub(super) fn started(&self, at: Instant, window: u64, mtu: u64) {
        let mut state = self.state();
        (state.ledger, state.tail) = (Ledger::new(window, mtu), Tail::new(at));
        (state.poked, state.held, state.follows) = (Extra::default(), Extra::default(), 0);
        state.urgent = Urgent::default();
        drop(state);
        self.moved.notify_waiters();
    }

    pub(super) fn sent(&self, at: Instant, bytes: u64) {
        self.with_end(|state| {
            state.tail.sent(at, bytes);
            state.urgent.sent(at, bytes);
            // Less is an acknowledgement.
            if bytes >= state.follows / 2 {
                state.follows = 0;
            }
        });
    }

    pub(super) fn packet(&self, sent: Instant, bytes: u64) {
        let mut state = self.state();
        state.known |= sent >= state.began;
        state.ledger.packet(bytes);
        state.tail.acked(bytes);
    }

    pub(super) fn lost(&self, at: Instant, sent: Instant, bytes: u64) {
        let mut state = self.state();
        let packet = state.ledger.mtu;
        let more = state.urgent.lost(at, sent, bytes, packet);
        let most = |again: u32| Some((again + more).min(again::MOST));
        let _ = self.again.fetch_update(Ordering::Relaxed, Ordering::Relaxed, most);
        state.tail.lost(bytes);
        state.held.flying = state.held.flying.saturating_sub(bytes);
        state.held.written = state.held.written.min(state.held.flying);
    }

    pub(super) fn acknowledged(&self, at: Instant, window: u64, in_flight: u64, dry: bool, path: Path) {
        self.with_end(|state| {
            state.ledger.acknowledged(window, in_flight, dry);
            state.tail.batch_end(at, in_flight, dry);
            state.path = path;
            state.answer(at, in_flight);
        });
        self.moved.notify_waiters();
    }

    /// Changes what decides when it is asked; whoever waits for that hears if it is to be asked from now on.
    fn with_end(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let before = state.tail.due(state.path);
        change(&mut state);
        let begins = before.is_none() && state.tail.due(state.path).is_some();
        drop(state);
        if begins {
            self.ends.notify_waiters();
        }
    }

    pub(super) fn mtu(&self, mtu: u64) {
        self.state().ledger.mtu = mtu;
    }

    pub(super) fn beyond(&self) -> u64 {
        let state = self.state();
        state.poked.flying + state.held.flying
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn writes_are_released_as_they_are_acknowledged() {
        let mut ledger = Ledger::new(10_000, 1200);
        let mut writes = 0;
        while ledger.has_room(0) {
            ledger.written += 1000;
            writes += 1;
        }
        assert_eq!(writes, 15, "the window and four packets");
        ledger.packet(1045);
        assert!(ledger.has_room(0));
        ledger.written += 1000;
        assert!(!ledger.has_room(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_that_came_with_what_asked_after_it_is_no_silence() {
        const SECOND: Duration = Duration::from_secs(1);
        let gauge = Gauge::new();
        gauge.started(now(), 10_000, 1200);
        gauge.written(4);
        gauge.sent(now(), 50);
        tokio::time::advance(SECOND).await;
        assert_eq!(gauge.silence(Owes::Sign), Some(SECOND));
        // What brought it again; the first is still in flight, and given up afterwards.
        gauge.packet(now(), 40);
        gauge.acknowledged(now(), 10_000, 50, true, Path::default());
        gauge.lost(now(), now(), 50);
        tokio::time::advance(8 * SECOND).await;
        assert_eq!(gauge.silence(Owes::Sign), None);
        gauge.written(4);
        assert_eq!(gauge.silence(Owes::Sign), Some(Duration::ZERO), "from the next sign on");
        tokio::time::advance(SECOND).await;
        gauge.written(4);
        assert_eq!(gauge.silence(Owes::Sign), Some(SECOND), "though another is written");
        gauge.acknowledged(now(), 10_000, 10_000, false, Path::default());
        tokio::time::advance(SECOND).await;
        assert_eq!(gauge.silence(Owes::Bytes), Some(SECOND), "bytes are owed until they are there");
    }

    #[test]
    fn running_dry_puts_the_count_right() {
        let mut ledger = Ledger::new(10_000, 1200);
        ledger.written = 16_000;
        ledger.acknowledged(10_000, 9_000, false);
        assert!(!ledger.has_room(0));
        ledger.acknowledged(10_000, 9_000, true);
        assert_eq!(ledger.open(), 9_000);
        assert!(ledger.has_room(0));
    }

    proptest! {
        /// Whatever is told: no more is open than the window and the spare allow, but for one write.
        #[test]
        fn what_is_open_is_bounded(steps in prop::collection::vec((0u8..3, 0u64..5000, 2400u64..100_000), 1..300)) {
            let mut ledger = Ledger::new(20_000, 1200);
            for (kind, bytes, window) in steps {
                let most = ledger.window + (4 * 1200).max(ledger.window / 4) + 5000;
                match kind {
                    0 if ledger.has_room(0) => {
                        ledger.written += bytes;
                        prop_assert!(ledger.open() <= most);
                    }
                    0 => {}
                    1 => ledger.packet(bytes),
                    _ => ledger.acknowledged(window, bytes, bytes % 2 == 0),
                }
                prop_assert!(ledger.acked <= ledger.written);
            }
        }
    }
}
