//! What is known of every chunk that is not confirmed, and what follows from what the relay says.
//! Pure: time is an argument, in milliseconds of any monotonic clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use waystation_proto::message::Error;
use waystation_proto::{ChunkState, Class, Offer, Retry};

use super::event::Label;
use super::policy::Turn;
use super::queue::{Moving, Queue, Rank, Room, Waiting};
use super::rate::Rate;
use crate::receipt::{Jwks, Keys, Proof};

/// Longest pause after errors of one chunk.
const MAX_PAUSE_MS: u64 = 1000;

/// What the relay said of a chunk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    pub(crate) state: Option<ChunkState>,
    pub(crate) receipt: Option<String>,
    pub(crate) error: Option<Error>,
    pub(crate) retry_after_s: Option<u64>,
    /// Nothing more will be said unless the chunk is offered again.
    pub(crate) last: bool,
}

/// Where a chunk is on its way, as far as this device acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// Waits for a capability before it is offered again.
    Parked,
    /// Offered; bytes are to be sent.
    Moving,
    /// Offered; the relay is thought to hold it.
    Probing,
    /// Offered, and every byte is sent.
    Sent,
    /// Confirmed, says the relay; the receipt waits for the core's keys.
    Doubted,
    Ended,
}

/// One chunk.
pub(crate) struct Entry {
    pub(crate) label: Label,
    pub(crate) class: Class,
    pub(crate) offer: Arc<Offer>,
    stage: Stage,
    state: Option<ChunkState>,
    attempt: u64,
    errors: u32,
}

/// Something that follows from an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A chunk has a new state.
    State { id: u64, label: Label, state: ChunkState, code: Option<String>, receipt: Proof },
    /// The bytes of a chunk are no longer needed here.
    Free { id: u64 },
    /// A new capability is needed.
    Renew,
    /// A receipt can't be checked: the core's keys are to be fetched.
    FetchKeys,
}

/// A chunk to offer.
pub(crate) struct Give {
    pub(crate) id: u64,
    pub(crate) rank: Rank,
    pub(crate) offer: Offer,
    /// It was offered before: the relay may hold part of it.
    pub(crate) resume: bool,
}

/// Endings so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) chunks: u64,
    pub(crate) confirmed: u64,
    pub(crate) unsettled: u64,
    pub(crate) rejected: u64,
    pub(crate) expired: u64,
}

/// Every chunk that is not confirmed.
#[derive(Default)]
pub(crate) struct Book {
    entries: BTreeMap<u64, Entry>,
    queue: Queue,
    rate: Rate,
    keys: Keys,
    /// Receipts that wait for the core's keys.
    doubted: BTreeMap<u64, String>,
    confirmed: u64,
    chunks: u64,
}

impl Book {
    /// The core's keys, or that it has none. Receipts that waited for them are looked at.
    pub(crate) fn set_keys(&mut self, jwks: Option<Jwks>) -> Vec<Effect> {
        // What waits since before the first answer may be newer than that answer.
        let fresh = !matches!(self.keys, Keys::Awaited);
        // A core that once signed is not believed to have stopped.
        if jwks.is_some() || matches!(self.keys, Keys::Awaited) {
            self.keys = Keys::answered(jwks);
        }
        let mut out = Vec::new();
        for (id, receipt) in std::mem::take(&mut self.doubted) {
            self.confirm(id, Some(receipt), fresh, &mut out);
        }
        out
    }

    /// Adds a sealed chunk.
    pub(crate) fn add(&mut self, id: u64, label: Label, class: Class, offer: Offer, now_ms: u64) {
        let attempt = offer.attempt;
        let entry =
            Entry { label, class, offer: Arc::new(offer), stage: Stage::Waiting, state: None, attempt, errors: 0 };
        self.entries.insert(id, entry);
        self.chunks += 1;
        self.wait(id, now_ms);
    }

    /// When chunks of each class may go.
    pub(crate) const fn hold(&mut self, turns: [Turn; Class::COUNT]) {
        self.queue.hold(turns);
    }

    /// The next chunk to offer.
    pub(crate) fn take(&mut self, now_ms: u64, room: Room) -> Option<Give> {
        let rate = self.rate.bytes_per_second(now_ms);
        let (item, rank) = self.queue.take(now_ms, rate, self.moving(), room)?;
        if !item.held {
            self.rate.started(now_ms);
        }
        let entry = self.entries.get_mut(&item.id)?;
        entry.stage = if item.held { Stage::Probing } else { Stage::Moving };
        let resume = entry.attempt > 1;
        let mut offer = (*entry.offer).clone();
        offer.attempt = entry.attempt;
        Some(Give { id: item.id, rank, offer, resume })
    }

    /// A chunk that was taken could not be given away; it waits again, as if untouched.
    pub(crate) fn give_back(&mut self, id: u64, now_ms: u64) {
        self.wait(id, now_ms);
    }

    /// Every byte of a chunk was sent.
    pub(crate) fn sent(&mut self, id: u64, attempt: u64, now_ms: u64) -> Option<Label> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.attempt == attempt)?;
        if !matches!(entry.stage, Stage::Moving | Stage::Probing) {
            return None;
        }
        entry.stage = Stage::Sent;
        let (length, label) = (entry.offer.length, entry.label);
        self.rate.sent(length, self.moving().bodies == 0, now_ms);
        Some(label)
    }

    /// The relay spoke of a chunk.
    pub(crate) fn verdict(&mut self, id: u64, attempt: u64, verdict: Verdict, now_ms: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        let known = self.entries.get(&id).is_some_and(|entry| entry.attempt == attempt);
        if !known {
            return out;
        }
        let code = verdict.error.as_ref().map(crate::wire::code_of);
        match verdict.state {
            Some(ChunkState::Confirmed) => self.confirm(id, verdict.receipt.clone(), false, &mut out),
            Some(state) => self.note(id, state, code.clone(), Proof::Absent, &mut out),
            None => {}
        }
        if verdict.state == Some(ChunkState::AwaitingCapability) && verdict.error.is_none() {
            out.push(Effect::Renew);
        }
        if let Some(error) = verdict.error.as_ref().filter(|_| !self.has_ended(id)) {
            self.refused(id, error, &verdict, code, now_ms, &mut out);
        } else if verdict.last && !self.has_ended(id) && !self.doubted.contains_key(&id) {
            self.again(id, verdict.retry_after_s.unwrap_or(1) * 1000, now_ms);
        }
        self.rate.paused(self.moving().bodies == 0, now_ms);
        out
    }

    /// One way of bringing a chunk broke off.
    pub(crate) fn broken(&mut self, id: u64, attempt: u64, now_ms: u64) {
        if self.entries.get(&id).is_some_and(|entry| entry.attempt == attempt) && !self.has_ended(id) {
            let pause = self.pause(id);
            self.again(id, pause, now_ms);
        }
        self.rate.paused(self.moving().bodies == 0, now_ms);
    }

    /// The connection is gone: everything given to it is to be offered again.
    pub(crate) fn disconnected(&mut self, now_ms: u64) {
        let given = |entry: &Entry| matches!(entry.stage, Stage::Moving | Stage::Probing | Stage::Sent);
        let ids: Vec<u64> = self.entries.iter().filter(|(_, entry)| given(entry)).map(|(id, _)| *id).collect();
        for id in ids {
            self.again(id, 0, now_ms);
        }
        self.rate.paused(true, now_ms);
    }

    /// A new capability is here: what waited for one goes on.
    pub(crate) fn renewed(&mut self, now_ms: u64) {
        let parked = |entry: &Entry| entry.stage == Stage::Parked;
        let ids: Vec<u64> = self.entries.iter().filter(|(_, entry)| parked(entry)).map(|(id, _)| *id).collect();
        for id in ids {
            self.wait(id, now_ms);
        }
    }

    pub(crate) fn next_due(&self, now_ms: u64) -> Option<u64> {
        self.queue.next_due(now_ms)
    }

    /// Chunks that are not ended.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.stage != Stage::Ended)
    }

    pub(crate) fn all_ended(&self) -> bool {
        self.open().next().is_none()
    }

    pub(crate) fn count(&self) -> Count {
        let of = |state| self.entries.values().filter(|entry| entry.state == Some(state)).count() as u64;
        Count {
            chunks: self.chunks,
            confirmed: self.confirmed,
            unsettled: of(ChunkState::Unsettled),
            rejected: of(ChunkState::Rejected),
            expired: of(ChunkState::Expired),
        }
    }

    fn moving(&self) -> Moving {
        let mut moving = Moving::default();
        for entry in self.entries.values() {
            match entry.stage {
                Stage::Moving => {
                    moving.bodies += 1;
                    moving.masters += usize::from(entry.class == Class::Master);
                }
                Stage::Probing => moving.probes += 1,
                _ => {}
            }
        }
        moving
    }

    fn has_ended(&self, id: u64) -> bool {
        self.entries.get(&id).is_none_or(|entry| entry.stage == Stage::Ended)
    }

    /// The core confirmed, says the relay; the receipt, if there is one, must agree.
    fn confirm(&mut self, id: u64, receipt: Option<String>, keys_are_new: bool, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(&id) else { return };
        let check = |text: &str| self.keys.check(text, keys_are_new, |receipt| receipt.is_for(&entry.offer));
        let checked = match receipt.as_deref().map_or(Some(Proof::Absent), check) {
            Some(checked) => checked,
            None => return self.doubt(id, receipt.unwrap_or_default(), out),
        };
        if checked == Proof::Invalid {
            // The relay is no authority: what its receipt does not prove is not confirmed.
            return self.note(id, ChunkState::Unsettled, Some("receipt_invalid".into()), checked, out);
        }
        self.note(id, ChunkState::Confirmed, None, checked, out);
        self.entries.remove(&id);
        self.queue.remove(id);
        self.confirmed += 1;
        out.push(Effect::Free { id });
    }

    /// The bytes stay here until the receipt is checked.
    fn doubt(&mut self, id: u64, receipt: String, out: &mut Vec<Effect>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stage = Stage::Doubted;
            self.queue.remove(id);
            self.doubted.insert(id, receipt);
            out.push(Effect::FetchKeys);
        }
    }

    fn note(&mut self, id: u64, state: ChunkState, code: Option<String>, receipt: Proof, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.state != Some(state) {
            entry.state = Some(state);
            entry.errors = 0;
            out.push(Effect::State { id, label: entry.label, state, code, receipt });
        }
        if state.held() && entry.stage == Stage::Probing {
            entry.stage = Stage::Sent;
        }
        if state == ChunkState::Receiving && entry.stage == Stage::Probing {
            entry.stage = Stage::Moving;
        }
        if state.held() && entry.stage == Stage::Moving {
            entry.stage = Stage::Sent;
        }
        if state.ended() || state == ChunkState::Unsettled {
            entry.stage = Stage::Ended;
            self.queue.remove(id);
            self.doubted.remove(&id);
        }
    }

    fn refused(
        &mut self,
        id: u64,
        error: &Error,
        verdict: &Verdict,
        code: Option<String>,
        now_ms: u64,
        out: &mut Vec<Effect>,
    ) {
        let later = verdict.retry_after_s.unwrap_or(1).max(1) * 1000;
        match error.retry {
            // The relay holds it and says what it waits for; it will tell.
            Retry::Renew if !verdict.last => out.push(Effect::Renew),
            _ if !verdict.last => {}
            Retry::Now => {
                let pause = self.pause(id);
                self.again(id, pause, now_ms);
            }
            Retry::Later => self.again(id, later, now_ms),
            Retry::Renew => {
                self.again(id, 0, now_ms);
                self.park(id);
                out.push(Effect::Renew);
            }
            Retry::Reconcile => self.note(id, ChunkState::Unsettled, code, Proof::Absent, out),
            // An older connection of ours let go too late: this device still has the bytes.
            Retry::Never if error.code == "attempt_superseded" => self.again(id, later, now_ms),
            Retry::Never => self.note(id, ChunkState::Rejected, code, Proof::Absent, out),
        }
    }

    /// Pause before the next try after an error that allows one at once: none, then 0.25, 0.5 and
    /// one second.
    fn pause(&mut self, id: u64) -> u64 {
        let Some(entry) = self.entries.get_mut(&id) else { return 0 };
        entry.errors = entry.errors.saturating_add(1);
        match entry.errors {
            1 => 0,
            n => (125u64 << (n - 1).min(8)).min(MAX_PAUSE_MS),
        }
    }

    fn park(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stage = Stage::Parked;
            self.queue.remove(id);
        }
    }

    fn again(&mut self, id: u64, after_ms: u64, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.attempt += 1;
        }
        self.wait(id, now_ms + after_ms);
    }

    fn wait(&mut self, id: u64, due_ms: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.stage = Stage::Waiting;
        self.queue.put(Waiting {
            id,
            class: entry.class,
            first: entry.label.lane_seq == 0,
            started_ms: entry.offer.started.unix_ms(),
            length: entry.offer.length,
            held: entry.state.is_some_and(ChunkState::held),
            due_ms,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ClientKey;
    use crate::receipt::tests::{issue, jwks};
    use waystation_proto::{Code, Digest, Variant};

    const ROOM: Room = Room { bodies: 4, probes: 2 };

    fn book(chunks: u64) -> Book {
        let mut book = Book::default();
        for id in 0..chunks {
            let header = format!(
                r#"incident="i", stream="s", index={}, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#,
                id + 1
            );
            let offer = waystation_proto::dictionary::parse_offer(&header, Digest([1; 32]), Some(100)).unwrap();
            let label = Label {
                variant: Variant::AudioPriority,
                lane_seq: id,
                stream_no: 0,
                index: id + 1,
                started_ms: 0,
                length: 100,
            };
            book.add(id, label, Class::Audio, offer, 0);
        }
        book
    }

    fn told(state: Option<ChunkState>, code: Option<Code>, last: bool) -> Verdict {
        Verdict { state, error: code.map(Error::from), last, ..Verdict::default() }
    }

    fn take(book: &mut Book, now_ms: u64) -> Option<(u64, u64, bool)> {
        book.take(now_ms, ROOM).map(|give| (give.id, give.offer.attempt, give.resume))
    }

    #[test]
    fn what_an_old_attempt_brings_changes_nothing() {
        let mut book = book(1);
        assert_eq!(take(&mut book, 0), Some((0, 1, false)));
        book.disconnected(0);
        assert_eq!(take(&mut book, 0), Some((0, 2, true)));
        assert!(book.verdict(0, 1, told(Some(ChunkState::Rejected), None, true), 0).is_empty());
        assert!(book.sent(0, 1, 0).is_none());
        let effects = book.verdict(0, 2, told(Some(ChunkState::Confirmed), None, true), 0);
        assert!(matches!(effects[..], [Effect::State { .. }, Effect::Free { id: 0 }]), "{effects:?}");
        assert!(book.verdict(0, 2, told(Some(ChunkState::Rejected), None, true), 0).is_empty());
        assert_eq!(book.count(), Count { chunks: 1, confirmed: 1, ..Count::default() });
    }

    #[test]
    fn several_are_on_their_way_and_what_is_sent_makes_room() {
        let mut book = book(6);
        for id in 0..4 {
            assert_eq!(take(&mut book, 0), Some((id, 1, false)));
        }
        assert_eq!(take(&mut book, 0), None);
        assert!(book.sent(2, 1, 10).is_some());
        assert_eq!(take(&mut book, 10), Some((4, 1, false)), "nobody waits for the verdict");
    }

    #[test]
    fn what_is_held_is_asked_for_within_its_own_room() {
        let mut book = book(3);
        for id in 0..3 {
            take(&mut book, 0);
            book.verdict(id, 1, told(Some(ChunkState::Staged), None, false), 0);
        }
        book.disconnected(0);
        assert_eq!(take(&mut book, 0), Some((0, 2, true)));
        assert_eq!(take(&mut book, 0), Some((1, 2, true)));
        assert_eq!(take(&mut book, 0), None, "two questions at a time");
        book.verdict(0, 2, told(Some(ChunkState::Staged), None, false), 0);
        assert_eq!(take(&mut book, 0), Some((2, 2, true)));
    }

    #[test]
    fn each_retry_is_what_it_says() {
        let mut b = book(1);
        take(&mut b, 0);
        let later = Verdict { retry_after_s: Some(3), ..told(None, Some(Code::StagingFull), true) };
        b.verdict(0, 1, later, 0);
        assert_eq!((take(&mut b, 2999), take(&mut b, 3000)), (None, Some((0, 2, true))));
        for (attempt, pause) in [(2, 0), (3, 250), (4, 500), (5, 1000), (6, 1000)] {
            b.verdict(0, attempt, told(None, Some(Code::HashMismatch), true), 10_000);
            if pause > 0 {
                assert_eq!(take(&mut b, 9_999 + pause), None);
            }
            assert_eq!(take(&mut b, 10_000 + pause), Some((0, attempt + 1, true)), "after {pause} ms");
        }
        let effects = b.verdict(0, 7, told(None, Some(Code::CapabilityExpired), true), 0);
        assert_eq!(effects, [Effect::Renew]);
        assert_eq!(take(&mut b, 100_000), None, "not before there is a capability");
        b.renewed(0);
        assert_eq!(take(&mut b, 0), Some((0, 8, true)));
        b.verdict(0, 8, told(None, Some(Code::AttemptSuperseded), true), 0);
        assert_eq!(take(&mut b, 1000), Some((0, 9, true)), "this device still has the bytes");
        let effects = b.verdict(0, 9, told(None, Some(Code::CoreRejected), true), 0);
        assert!(matches!(&effects[..], [Effect::State { state: ChunkState::Rejected, .. }]), "{effects:?}");
        assert!(b.all_ended());
    }

    #[test]
    fn unsettled_ends_the_waiting_but_may_still_be_confirmed() {
        let mut book = book(1);
        take(&mut book, 0);
        book.verdict(0, 1, told(Some(ChunkState::Unsettled), None, false), 0);
        assert!(book.all_ended());
        assert_eq!(book.count().unsettled, 1);
        book.verdict(0, 1, told(Some(ChunkState::Confirmed), None, true), 0);
        assert_eq!((book.count().unsettled, book.count().confirmed), (0, 1));
    }

    #[test]
    fn a_confirmation_frees_nothing_before_its_receipt_is_checked() {
        let core = ClientKey::from_seed(&[1; 32]).unwrap();
        let mut book = book(2);
        let receipt = |index: u64| {
            issue(
                &core,
                "k1",
                &serde_json::json!({"iss": "core", "iat": 1, "incident": "i", "stream": "s",
                "index": index, "length": 100, "sha256": "01".repeat(32)}),
            )
        };
        for id in 0..2 {
            take(&mut book, 0);
            let verdict = Verdict { receipt: Some(receipt(1)), ..told(Some(ChunkState::Confirmed), None, true) };
            assert_eq!(book.verdict(id, 1, verdict, 0), [Effect::FetchKeys]);
        }
        book.disconnected(0);
        assert_eq!((take(&mut book, 100_000), book.all_ended()), (None, false), "it waits, and is not sent again");
        let effects = book.set_keys(Some(jwks(&core, "k1")));
        let ends: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::State { id, state, receipt, .. } => Some((*id, *state, *receipt)),
                _ => None,
            })
            .collect();
        let wrong = (1, ChunkState::Unsettled, Proof::Invalid);
        assert_eq!(ends, [(0, ChunkState::Confirmed, Proof::Verified), wrong], "the second's is of another chunk");
        assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Free { .. })).count(), 1);
    }

    #[test]
    fn where_the_core_has_no_keys_a_receipt_is_unchecked() {
        let mut book = book(1);
        take(&mut book, 0);
        let verdict = Verdict { receipt: Some("a.b.c".into()), ..told(Some(ChunkState::Confirmed), None, true) };
        book.verdict(0, 1, verdict, 0);
        let effects = book.set_keys(None);
        let unchecked = |effect: &Effect| matches!(effect, Effect::State { receipt: Proof::Unchecked, .. });
        assert!(unchecked(&effects[0]) && effects[1] == Effect::Free { id: 0 }, "{effects:?}");
    }

    #[test]
    fn a_chunk_that_awaits_a_capability_asks_for_one_and_stays() {
        let mut book = book(1);
        take(&mut book, 0);
        let effects = book.verdict(0, 1, told(Some(ChunkState::AwaitingCapability), None, false), 0);
        assert!(effects.contains(&Effect::Renew));
        book.renewed(0);
        assert_eq!(take(&mut book, 0), None, "the relay releases it; it is not offered again");
    }
}
