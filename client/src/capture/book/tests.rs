//! Each rule by itself.

use super::*;
use crate::capture::queue::Room;
use crate::keys::ClientKey;
use crate::receipt::tests::{issue, jwks};
use waystation_proto::{Code, Digest, Variant};

const ROOM: Room = Room { bodies: 4, asked: 0, ahead: false, probes: 2 };

fn new(id: u64) -> New {
    let header = format!(
        r#"incident="i", stream="s", index={}, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#,
        id + 1
    );
    let offer = waystation_proto::dictionary::parse_offer(&header, Digest([1; 32]), Some(100)).unwrap();
    let variant = Variant::AudioPriority;
    let label = Label { variant, lane_seq: id, stream_no: 0, index: id + 1, started_ms: 0, length: 100 };
    New { label, offer, manifest: false, note: Note::default() }
}

fn book(chunks: u64) -> Book {
    let mut book = Book::new(0, 7);
    book.set_keys(None, 0);
    for id in 0..chunks {
        book.add(id, new(id), 0);
    }
    book
}

/// A book that does not know yet whether the core has keys.
fn unasked(chunks: u64) -> Book {
    let mut book = Book::new(0, 7);
    (0..chunks).for_each(|id| book.add(id, new(id), 0));
    book
}

fn core() -> ClientKey {
    ClientKey::from_seed(&[1; 32]).unwrap()
}

/// What the core signs for the chunk with this index.
fn receipt(index: u64) -> String {
    let payload = serde_json::json!({"iss": "core", "iat": 1, "incident": "i", "stream": "s", "index": index,
        "length": 100, "sha256": "01".repeat(32)});
    issue(&core(), "k1", &payload)
}

fn told(state: Option<ChunkState>, code: Option<Code>, last: bool) -> Verdict {
    Verdict { state, error: code.map(Error::from), last, ..Verdict::default() }
}

fn take(book: &mut Book, now_ms: u64) -> Option<(u64, u64, bool)> {
    let give = book.take(now_ms, ROOM)?;
    book.given(give.id);
    Some((give.id, give.offer.attempt, give.resume))
}

/// Fails the chunk's next try; returns when the one after it comes, if one does.
fn fail(book: &mut Book, code: Code, now_ms: u64) -> Option<u64> {
    let (id, attempt, _) = take(book, now_ms).expect("it is due");
    book.verdict(id, attempt, told(None, Some(code), true), now_ms);
    book.next_due(now_ms)
}

fn of_state(effects: &[Effect], wanted: ItemState) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Item { state, .. } if *state == wanted))
}

#[test]
fn what_an_old_attempt_brings_changes_nothing() {
    let mut book = book(1);
    assert_eq!(take(&mut book, 0), Some((0, 1, false)));
    book.disconnected(0);
    assert_eq!(take(&mut book, 0), Some((0, 2, true)));
    assert!(book.verdict(0, 1, told(Some(ChunkState::Rejected), None, true), 0).is_empty());
    assert!(book.sent(0, 1, 0).is_none() && book.offset(0, 1, 50, 0).is_none());
    let effects = book.verdict(0, 2, told(Some(ChunkState::Confirmed), None, true), 0);
    assert!(effects.contains(&Effect::Free { id: 0 }), "{effects:?}");
    assert!(book.verdict(0, 2, told(Some(ChunkState::Rejected), None, true), 0).is_empty());
    assert!(book.entries.is_empty());
}

#[test]
fn attempts_go_on_above_those_of_earlier_runs() {
    let mut book = Book::new(3, 0);
    book.add(0, new(0), 0);
    assert_eq!(take(&mut book, 0).unwrap().1, 3 * ATTEMPTS_OF_A_RUN + 1);
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
fn five_failures_are_tried_again_and_the_sixth_is_not() {
    let mut book = book(1);
    let mut now = 0;
    for (n, middle) in [5_000, 15_000, 45_000, 120_000, 120_000].into_iter().enumerate() {
        let due = fail(&mut book, Code::StagingFailed, now).unwrap() - now;
        assert!((middle * 8 / 10..=middle * 12 / 10).contains(&due), "{due} ms after failure {n}");
        let item = book.items(false).next().unwrap();
        assert_eq!((item.state, item.retries), (ItemState::Retrying, n as u32 + 1));
        now += due;
    }
    assert_eq!(fail(&mut book, Code::StagingFailed, now), None);
    assert_eq!(book.items(false).next().unwrap().state, ItemState::Failed);
    assert!(take(&mut book, u64::MAX / 2).is_none() && !book.all_ended(), "its bytes are kept");
    let effects = book.retry_all(now);
    assert!(of_state(&effects, ItemState::Queued), "{effects:?}");
    let due = fail(&mut book, Code::StagingFailed, now).unwrap() - now;
    assert!(due <= 6_000, "it counts anew");
}

#[test]
fn a_new_byte_at_the_relay_resets_the_count_and_an_old_one_does_not() {
    let mut book = book(1);
    let mut now = 0;
    for _ in 0..4 {
        now = fail(&mut book, Code::InternalError, now).unwrap();
    }
    let retries = |book: &Book| book.items(false).next().unwrap().retries;
    let (id, attempt, _) = take(&mut book, now).unwrap();
    book.offset(id, attempt, 0, now);
    assert_eq!(retries(&book), 4);
    assert!(matches!(book.offset(id, attempt, 60, now), Some(Effect::Note { .. })));
    assert_eq!(retries(&book), 0);
    book.verdict(id, attempt, told(None, Some(Code::InternalError), true), now);
    let (id, attempt, _) = take(&mut book, now + 6_000).unwrap();
    book.offset(id, attempt, 60, now);
    assert_eq!(retries(&book), 1, "no byte more than before");
    book.offset(id, attempt, 10, now);
    assert_eq!(retries(&book), 1, "the relay lost some");
    assert_eq!(book.items(false).next().unwrap().done, 60, "progress never goes back");
    book.offset(id, attempt, 20, now);
    assert_eq!(retries(&book), 0);
}

#[test]
fn waiting_counts_nothing_and_a_relays_time_is_a_floor() {
    let waits = [
        Code::TooManyRequests,
        Code::InFlightPerSession,
        Code::CapabilityUnverifiable,
        Code::CoreUnavailable,
        Code::AttemptSuperseded,
    ];
    for code in waits {
        let mut book = book(1);
        for n in 0..20 {
            assert!(take(&mut book, n * 1000).is_some(), "{code:?}");
            book.verdict(0, n + 1, told(None, Some(code), true), n * 1000);
            assert_eq!(book.items(false).next().unwrap().retries, 0, "{code:?}");
        }
    }
    let mut book = book(1);
    take(&mut book, 0);
    let later = |seconds, code| Verdict { retry_after_s: Some(seconds), ..told(None, Some(code), true) };
    book.verdict(0, 1, later(30, Code::StagingFull), 0);
    assert_eq!(book.next_due(0), Some(30_000), "longer than the delay");
    book.retry_all(0);
    assert!(take(&mut book, 0).is_some(), "but for another network, or whoever asks");
    book.verdict(0, 2, later(1, Code::StagingFull), 30_000);
    assert!(book.next_due(30_000).unwrap() >= 42_000, "shorter than the delay");
    book.retry_all(30_000);
    assert!(take(&mut book, 30_000).is_some(), "a new network goes before the delay");
    book.verdict(0, 3, later(u64::MAX, Code::TooManyRequests), 30_000);
    assert_eq!(book.next_due(30_000), Some(630_000), "nobody makes it wait for longer than ten minutes");
}

#[test]
fn a_broken_way_counts_nothing() {
    let mut book = book(1);
    for (attempt, pause) in (1..).zip([0, 250, 500, 1000, 1000, 1000, 1000, 1000]) {
        assert_eq!(take(&mut book, 10_000).map(|(id, attempt, _)| (id, attempt)), Some((0, attempt)));
        book.broken(0, attempt, 10_000 - pause);
        assert_eq!(book.items(false).next().unwrap().retries, 0);
    }
}

#[test]
fn renewal_waits_for_a_capability_and_counts_nothing() {
    let mut book = book(1);
    take(&mut book, 0);
    let effects = book.verdict(0, 1, told(None, Some(Code::CapabilityExpired), true), 0);
    assert_eq!(effects, [Effect::Renew]);
    assert_eq!(take(&mut book, 100_000), None, "not before there is a capability");
    book.renewed(0);
    assert_eq!(take(&mut book, 0), Some((0, 2, true)));
}

#[test]
fn what_is_refused_stays_failed_with_its_bytes() {
    let mut book = book(1);
    take(&mut book, 0);
    let effects = book.verdict(0, 1, told(None, Some(Code::ChunkTooLarge), true), 0);
    assert!(of_state(&effects, ItemState::Failed) && !effects.contains(&Effect::Free { id: 0 }), "{effects:?}");
    assert!(book.all_ended());
    book.retry_all(0);
    assert_eq!((take(&mut book, 100_000), book.count().rejected), (None, 1));
    let again = book.entries[&0].note;
    let mut next_run = Book::new(1, 0);
    next_run.add(0, New { note: again, ..new(0) }, 0);
    assert_eq!((take(&mut next_run, 0), next_run.count().rejected), (None, 1));
}

#[test]
fn what_expired_at_the_relay_is_brought_again() {
    let mut book = book(1);
    take(&mut book, 0);
    book.verdict(0, 1, told(Some(ChunkState::Staged), None, false), 0);
    book.verdict(0, 1, told(Some(ChunkState::Expired), Some(Code::ChunkExpired), true), 0);
    assert_eq!(book.count().expired, 1);
    let due = book.next_due(0).unwrap();
    assert!((4_000..=6_000).contains(&due));
    assert!(take(&mut book, due).is_some(), "this device still has the bytes");
}

#[test]
fn what_failed_in_an_earlier_run_is_tried_again_and_counts_go_on() {
    let mut book = Book::new(1, 0);
    let failed = Note { failed: true, retries: 5, ..Note::default() };
    book.add(0, New { note: failed, ..new(0) }, 0);
    let retrying = Note { retries: 5, offered: true, ..Note::default() };
    book.add(1, New { note: retrying, ..new(1) }, 0);
    assert!(fail(&mut book, Code::InternalError, 0).is_some());
    let attempt = ATTEMPTS_OF_A_RUN + 1;
    assert_eq!(take(&mut book, 0), Some((1, attempt, true)), "it was offered before");
    let effects = book.verdict(1, attempt, told(None, Some(Code::InternalError), true), 0);
    assert!(of_state(&effects, ItemState::Failed), "{effects:?}");
}

#[test]
fn unsettled_ends_the_waiting_is_asked_for_and_may_still_be_confirmed() {
    let mut book = book(1);
    take(&mut book, 0);
    book.verdict(0, 1, told(Some(ChunkState::Unsettled), None, false), 0);
    assert!(book.all_ended());
    assert_eq!(book.count().unsettled, 1);
    book.requeue_stalled(59_999);
    assert_eq!(take(&mut book, 59_999), None);
    book.requeue_stalled(60_000);
    assert_eq!((take(&mut book, 60_000), book.all_ended()), (Some((0, 2, true)), true));
    book.verdict(0, 2, told(Some(ChunkState::Confirmed), None, true), 60_000);
    assert_eq!(book.count(), Count::default());
    assert!(book.entries.is_empty());
}

#[test]
fn a_chunk_of_which_nothing_is_heard_is_queued_again_and_its_old_attempt_ignored() {
    let mut book = book(2);
    take(&mut book, 0);
    take(&mut book, 0);
    book.requeue_stalled(STALLED_MS - 1);
    assert!(book.queue.is_empty());
    book.moves(1, 1, STALLED_MS - 1);
    book.moves(0, 9, 3 * STALLED_MS);
    book.requeue_stalled(STALLED_MS);
    assert!(book.queue.is_empty(), "one waits behind the other");
    book.requeue_stalled(2 * STALLED_MS);
    assert_eq!(book.queue.len(), 2);
    assert_eq!(take(&mut book, 2 * STALLED_MS), Some((0, 2, true)));
    let late = book.verdict(0, 1, told(Some(ChunkState::Rejected), Some(Code::CoreRejected), true), 2 * STALLED_MS);
    assert!(late.is_empty());
}

#[test]
fn what_another_relay_holds_gives_it_time_to_answer() {
    let mut book = book(2);
    take(&mut book, 0);
    book.verdict(0, 1, told(Some(ChunkState::Staged), None, false), 0);
    book.disconnected(0);
    book.at_relay(1, 0);
    assert_eq!(take(&mut book, 0), Some((1, 1, false)));
    assert_eq!(take(&mut book, ELSEWHERE_MS - 1), None);
    book.at_relay(0, 1000);
    assert_eq!(take(&mut book, 1000), Some((0, 2, true)), "the first one is back");
}

#[test]
fn the_manifest_goes_after_everything() {
    let mut book = Book::new(0, 0);
    book.add(9, New { manifest: true, ..new(0) }, 0);
    book.add(10, new(7), 0);
    assert_eq!(take(&mut book, 0).unwrap().0, 10);
    assert_eq!(take(&mut book, 0).unwrap().0, 9);
}

#[test]
fn a_confirmation_frees_nothing_before_its_receipt_is_checked() {
    let mut book = unasked(2);
    for id in 0..2 {
        take(&mut book, 0);
        let verdict = Verdict { receipt: Some(receipt(1)), ..told(Some(ChunkState::Confirmed), None, true) };
        assert_eq!(book.verdict(id, 1, verdict, 0), [Effect::FetchKeys]);
    }
    book.disconnected(0);
    assert_eq!((take(&mut book, 100_000), book.all_ended()), (None, false), "it waits, and is not sent again");
    let effects = book.set_keys(Some(jwks(&core(), "k1")), 0);
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
fn a_bare_word_frees_nothing_where_the_core_signs() {
    use crate::authority::Reconciled;
    let bare = || told(Some(ChunkState::Confirmed), None, true);
    let unsettled = |effects: &[Effect]| {
        assert!(effects.contains(&Effect::Reconcile { id: 0 }), "{effects:?}");
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Free { .. })), "{effects:?}");
    };
    let freed = |effects: &[Effect]| effects.contains(&Effect::Free { id: 0 });
    // A receipt was seen, in this run or in an earlier one.
    let mut book = unasked(1);
    book.signs();
    book.set_keys(None, 0);
    take(&mut book, 0);
    unsettled(&book.verdict(0, 1, bare(), 0));
    assert!(book.reconciled(0, Reconciled::Untold, 0).is_empty(), "nobody knows better");
    assert_eq!(book.count().unsettled, 1);
    assert!(freed(&book.reconciled(0, Reconciled::Stored { receipt: None }, 0)), "the core itself says so");
    // Whether there are keys is not known yet.
    let mut book = unasked(2);
    take(&mut book, 0);
    assert_eq!(book.verdict(0, 1, bare(), 0), [Effect::FetchKeys]);
    unsettled(&book.set_keys(Some(jwks(&core(), "k1")), 0));
    let effects = book.reconciled(0, Reconciled::Stored { receipt: Some(receipt(1)) }, 0);
    assert!(freed(&effects) && effects.contains(&Effect::Signs), "{effects:?}");
    take(&mut book, 0);
    let effects = book.verdict(1, 1, bare(), 0);
    assert!(effects.contains(&Effect::Reconcile { id: 1 }), "{effects:?}");
    assert!(book.reconciled(1, Reconciled::Missing, 0).iter().all(|effect| !matches!(effect, Effect::Free { .. })));
}

#[test]
fn a_core_with_keys_that_never_signs_is_asked_once() {
    use crate::authority::Reconciled;
    for core_says in [Reconciled::Stored { receipt: None }, Reconciled::Untold] {
        let mut book = unasked(2);
        book.set_keys(Some(jwks(&core(), "k1")), 0);
        take(&mut book, 0);
        let bare = || told(Some(ChunkState::Confirmed), None, true);
        assert!(book.verdict(0, 1, bare(), 0).contains(&Effect::Reconcile { id: 0 }));
        let effects = book.reconciled(0, core_says.clone(), 0);
        assert!(effects.contains(&Effect::Free { id: 0 }), "{core_says:?}: {effects:?}");
        take(&mut book, 0);
        let effects = book.verdict(1, 1, bare(), 0);
        assert!(effects.contains(&Effect::Free { id: 1 }), "{core_says:?}: {effects:?}");
    }
}

#[test]
fn where_the_core_has_no_keys_a_receipt_is_unchecked() {
    let mut book = unasked(1);
    take(&mut book, 0);
    let verdict = Verdict { receipt: Some("a.b.c".into()), ..told(Some(ChunkState::Confirmed), None, true) };
    book.verdict(0, 1, verdict, 0);
    let effects = book.set_keys(None, 0);
    let unchecked = |effect: &Effect| matches!(effect, Effect::State { receipt: Proof::Unchecked, .. });
    assert!(unchecked(&effects[0]) && effects.contains(&Effect::Free { id: 0 }), "{effects:?}");
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

#[test]
fn what_the_core_itself_says_of_an_unsettled_chunk_decides() {
    use crate::authority::Reconciled;
    let unsettled = || {
        let mut book = book(1);
        take(&mut book, 0);
        // As a relay says that did not bring it itself, and so calls it refused.
        let effects = book.verdict(0, 1, told(Some(ChunkState::Rejected), Some(Code::DuplicateChunk), true), 0);
        assert!(effects.contains(&Effect::Reconcile { id: 0 }), "{effects:?}");
        assert_eq!((book.count().unsettled, book.count().rejected), (1, 0));
        book
    };
    let effects = unsettled().reconciled(0, Reconciled::Stored { receipt: None }, 0);
    assert!(effects.contains(&Effect::Free { id: 0 }), "{effects:?}");
    let mut book = unsettled();
    assert!(of_state(&book.reconciled(0, Reconciled::Conflict, 0), ItemState::Failed));
    assert_eq!((book.count().rejected, take(&mut book, 1_000_000)), (1, None));
    assert!(book.reconciled(0, Reconciled::Stored { receipt: None }, 0).is_empty(), "it is over");
    let mut book = unsettled();
    book.reconciled(0, Reconciled::Missing, 0);
    assert_eq!(take(&mut book, 0), Some((0, 2, true)));
}

#[test]
fn what_can_not_be_read_is_told_once_and_tried_later_each_time() {
    let mut book = book(1);
    let (mut now, mut pauses) = (0, Vec::new());
    for n in 0..9 {
        let give = book.take(now, ROOM).expect("it is due");
        let told = book.unreadable(give.id, now);
        assert_eq!(told.is_some(), n == 0, "{told:?}");
        assert_eq!(book.items(false).next().unwrap().state, ItemState::Retrying);
        let due = book.next_due(now).unwrap();
        pauses.push((due - now) / 1000);
        now = due;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 128]);
    assert!(take(&mut book, now).is_some());
    book.disconnected(now);
    assert_eq!(book.items(false).next().unwrap().state, ItemState::Queued);
}

#[test]
fn what_something_on_the_way_answers_counts_nothing_and_ends_no_chunk() {
    let mut book = book(1);
    let mut now = 0;
    let mut pauses = Vec::new();
    for n in 0..8 {
        let (id, attempt, _) = take(&mut book, now).expect("it is due");
        let made_up = crate::http::error_of(http::StatusCode::NOT_FOUND, b"<html>not here</html>");
        // It may call for more haste than it is followed in.
        let verdict = Verdict { error: Some(made_up), last: true, retry_after_s: Some(1), ..Verdict::default() };
        let told = book.verdict(id, attempt, verdict, now);
        assert_eq!(told.iter().any(|effect| matches!(effect, Effect::Item { .. })), n == 0, "{told:?}");
        assert_eq!((book.count().rejected, book.all_ended()), (0, false));
        let due = book.next_due(now).unwrap();
        pauses.push((due - now) / BETWEEN_MS);
        now = due;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32, 32]);
    let item = book.items(false).next().unwrap();
    assert_eq!((item.state, item.retries), (ItemState::Retrying, 0));
    assert_eq!(book.open().count(), 1, "the session is not over");
    assert_eq!(take(&mut book, now - 1), None);
    book.retry_all(now - 1);
    assert!(take(&mut book, now - 1).is_some(), "it is tried at once when the network changes");
}
