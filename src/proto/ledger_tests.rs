use super::*;
use crate::id::Digest;
use proptest::prelude::*;

const LIMITS: Limits = Limits { receiving: 8, per_session: 4, keep_ms: 1_000_000 };

fn key(n: u8) -> ChunkRef {
    ChunkRef([n; 16])
}

fn terms(n: u8) -> Terms {
    Terms {
        owner: Owner(u64::from(n % 3)),
        stream: StreamKey(u64::from(n % 4)),
        lane: u64::from(n % 4),
        class: Class::ALL[usize::from(n % 4)],
        index: u64::from(n) + 1,
        length: 100,
        digest: Digest([n; 32]),
        attempt: 1,
        expires: 1_000,
    }
}

fn ledger() -> Ledger {
    Ledger::new(10 << 20, LIMITS)
}

fn stage(ledger: &mut Ledger, n: u8) {
    let Ok(Decision::Receive { .. }) = ledger.handle_offer(key(n), terms(n), 0) else { panic!("refused") };
    assert!(ledger.handle_staged(key(n), terms(n).digest));
}

fn take(ledger: &mut Ledger, now_ms: u64) -> Option<ChunkRef> {
    ledger.take(now_ms, 0, Class::Master, &mut Vec::new())
}

fn state(ledger: &Ledger, n: u8) -> ChunkState {
    ledger.record(key(n)).expect("no record").state
}

#[test]
fn a_higher_attempt_takes_over_and_keeps_the_bytes() {
    let mut l = ledger();
    let Ok(Decision::Receive { epoch: old, .. }) = l.handle_offer(key(1), terms(1), 0) else { panic!() };
    l.handle_progress(key(1), old, 60);
    let again = Terms { attempt: 2, ..terms(1) };
    let Ok(Decision::Receive { epoch: new, held: 60, replaces: false }) = l.handle_offer(key(1), again, 0) else {
        panic!()
    };
    assert!(!l.current(key(1), old) && l.current(key(1), new));
    l.handle_progress(key(1), old, 90);
    l.handle_attempt_ended(key(1), old);
    assert_eq!(l.record(key(1)).unwrap().held, 60, "a stale attempt changes nothing");
    assert_eq!(l.receiving(), 1);
    assert_eq!(l.handle_offer(key(1), terms(1), 0), Err(Code::AttemptSuperseded));
    assert!(l.handle_staged(key(1), terms(1).digest), "whichever attempt made its bytes durable");
    assert!(!l.handle_staged(key(1), terms(1).digest));
    assert_eq!(l.receiving(), 0);
}

#[test]
fn another_digest_replaces_a_partial_and_conflicts_from_staged_on() {
    let mut l = ledger();
    l.handle_offer(key(1), terms(1), 0).unwrap();
    let other = Terms { digest: Digest([9; 32]), ..terms(1) };
    let Ok(Decision::Receive { held: 0, replaces: true, .. }) = l.handle_offer(key(1), other, 0) else { panic!() };
    assert!(!l.handle_staged(key(1), terms(1).digest), "the bytes that were replaced");
    assert!(l.handle_staged(key(1), other.digest));
    assert_eq!(l.handle_offer(key(1), terms(1), 0), Err(Code::ChunkConflict));
    assert_eq!(l.handle_offer(key(1), other, 0), Ok(Decision::Have));
    assert_eq!(l.handle_delete(key(1)), Err(Code::ChunkStaged));
}

#[test]
fn another_digest_that_is_refused_leaves_the_partial_and_its_room() {
    let mut l = ledger();
    let of_one = |n: u8| Terms { owner: Owner(7), ..terms(n) };
    let Ok(Decision::Receive { epoch, .. }) = l.handle_offer(key(0), of_one(0), 0) else { panic!() };
    l.handle_progress(key(0), epoch, 60);
    l.handle_attempt_ended(key(0), epoch);
    for n in 1..=4 {
        l.handle_offer(key(n), of_one(n), 0).unwrap();
    }
    let (used, receiving) = (l.quota().used(), l.receiving());
    let other = Terms { digest: Digest([9; 32]), ..of_one(0) };
    assert_eq!(l.handle_offer(key(0), other, 0), Err(Code::InFlightPerSession));
    assert_eq!((l.quota().used(), l.receiving(), l.record(key(0)).unwrap().held), (used, receiving, 60));
    let huge = Terms { length: 1 << 40, digest: Digest([9; 32]), ..of_one(1) };
    assert_eq!(l.handle_offer(key(1), huge, 0), Err(Code::StagingFull));
    assert_eq!((l.quota().used(), l.receiving()), (used, receiving));
    // Its own place is free for what replaces it.
    let other = Terms { digest: Digest([9; 32]), ..of_one(1) };
    assert!(matches!(l.handle_offer(key(1), other, 0), Ok(Decision::Receive { replaces: true, .. })));
    assert_eq!((l.quota().used(), l.receiving()), (used, receiving));
}

#[test]
fn what_an_earlier_process_left_is_let_go_when_both_clocks_say_so() {
    const DAY: i64 = 24 * 3600 * 1000;
    let mut l = ledger();
    l.recover_staged(key(1), terms(1), 0, DAY);
    l.recover_staged(key(2), terms(2), 90 * DAY, DAY);
    let over = DAY + keeping::RECOVERED_KEEP_MS;
    assert!(l.handle_time(over - 1, over - 1).is_empty(), "overdue, and yet it has its hour");
    assert!(l.handle_time(over, 1_000).is_empty(), "the calendar was put back");
    assert!(l.handle_time(DAY, over).is_empty(), "the calendar was put forward");
    let gone = l.handle_time(over, over);
    assert_eq!(gone.len(), 2, "what was offered in the future is no older than the start");
}

#[test]
fn a_duplicate_after_a_lost_answer_is_unsettled_and_else_a_refusal() {
    let mut l = ledger();
    for n in [1, 2] {
        stage(&mut l, n);
    }
    let first = take(&mut l, 0).unwrap();
    l.handle_verdict(first, Verdict::Ambiguous(10), 0);
    let second = take(&mut l, 0).unwrap();
    assert_eq!(l.handle_verdict(second, Verdict::Duplicate, 0), Some(ChunkState::Rejected));
    assert_eq!(take(&mut l, 9), None);
    assert_eq!(take(&mut l, 10), Some(first));
    assert_eq!(l.handle_verdict(first, Verdict::Duplicate, 10), Some(ChunkState::Unsettled));
    assert_eq!(l.handle_offer(first, terms(if first == key(1) { 1 } else { 2 }), 0), Ok(Decision::Have));
}

#[test]
fn a_capability_that_ran_out_strands_a_chunk_and_any_for_its_stream_releases_it() {
    let mut l = ledger();
    stage(&mut l, 1);
    let mut stranded = Vec::new();
    assert_eq!(l.take(0, 1_000, Class::Master, &mut stranded), None);
    assert_eq!(stranded, [key(1)]);
    assert_eq!(state(&l, 1), ChunkState::AwaitingCapability);
    assert_eq!(l.shorter(StreamKey(2), 2_000), []);
    assert_eq!(l.shorter(StreamKey(1), 2_000), [key(1)]);
    assert_eq!(l.handle_capability(&[key(1)], 1_000, 1_000), 0, "an expired one releases nothing");
    assert_eq!(l.handle_capability(&[key(1)], 2_000, 1_000), 1);
    assert_eq!(l.shorter(StreamKey(1), 2_000), []);
    assert_eq!(l.take(0, 1_500, Class::Master, &mut stranded), Some(key(1)));
    assert_eq!(l.handle_verdict(key(1), Verdict::CapabilityExpired, 0), Some(ChunkState::AwaitingCapability));
    assert_eq!(l.handle_capability(&[key(1)], 2_000, 1_500), 1);
    assert_eq!(l.handle_capability(&[key(1)], 3_000, 1_500), 0, "nothing waits any more");
    assert_eq!(l.record(key(1)).unwrap().terms.expires, 3_000, "a later one carries what waits for its turn");
}

#[test]
fn time_lets_go_of_what_nobody_confirmed() {
    let mut l = ledger();
    stage(&mut l, 1);
    let Ok(Decision::Receive { epoch, .. }) = l.handle_offer(key(2), terms(2), 0) else { panic!() };
    l.handle_attempt_ended(key(2), epoch);
    assert!(l.handle_time(999_999, 999_999).is_empty());
    assert_eq!(l.next_expiry(), Some(1_000_000));
    let mut gone = l.handle_time(1_000_000, 1_000_000);
    gone.sort_unstable();
    assert_eq!(gone, [(key(1), true), (key(2), false)]);
    assert_eq!(state(&l, 1), ChunkState::Expired);
    assert_eq!(l.quota().used(), 0);
    assert_eq!((l.endings(Class::Preview, Ending::Expired), l.endings(Class::Context, Ending::Abandoned)), (1, 1));
}

#[test]
fn a_partial_is_kept_for_a_day_and_a_staged_chunk_for_all_of_keep_for() {
    const WEEK: i64 = 7 * PARTIAL_KEEP_MS;
    let mut l = Ledger::new(10 << 20, Limits { keep_ms: WEEK, ..LIMITS });
    stage(&mut l, 1);
    l.recover_staged(key(2), terms(2), 0, 0);
    let Ok(Decision::Receive { epoch, .. }) = l.handle_offer(key(3), terms(3), 0) else { panic!() };
    l.handle_attempt_ended(key(3), epoch);
    l.recover_partial(key(4), terms(4), 0, 0, 40);
    assert!(l.handle_time(PARTIAL_KEEP_MS - 1, PARTIAL_KEEP_MS - 1).is_empty());
    let mut gone = l.handle_time(PARTIAL_KEEP_MS, PARTIAL_KEEP_MS);
    gone.sort_unstable();
    assert_eq!(gone, [(key(3), false), (key(4), false)]);
    assert_eq!(l.next_expiry(), Some(WEEK));
    assert!(l.handle_time(WEEK - 1, WEEK - 1).is_empty());
    let mut gone = l.handle_time(WEEK, WEEK);
    gone.sort_unstable();
    assert_eq!(gone, [(key(1), true), (key(2), true)]);
}

#[test]
fn limits_on_receiving_have_their_codes() {
    let mut l = ledger();
    let of = |n: u8, owner| Terms { owner: Owner(owner), ..terms(n) };
    for n in 0..4 {
        l.handle_offer(key(n), of(n, 1), 0).unwrap();
    }
    assert_eq!(l.handle_offer(key(9), of(9, 1), 0), Err(Code::InFlightPerSession));
    for n in 4..8 {
        l.handle_offer(key(n), of(n, 2), 0).unwrap();
    }
    assert_eq!(l.handle_offer(key(9), of(9, 3), 0), Err(Code::ReceivingFull));
    l.handle_delete(key(0)).unwrap();
    assert!(l.handle_offer(key(9), of(9, 3), 0).is_ok());
}

#[test]
fn a_recovered_chunk_may_have_been_committed_before() {
    let mut l = ledger();
    l.recover_staged(key(1), terms(1), 0, 0);
    l.recover_partial(key(2), terms(2), 0, 0, 40);
    assert_eq!(take(&mut l, 0), Some(key(1)));
    assert_eq!(l.handle_verdict(key(1), Verdict::Duplicate, 0), Some(ChunkState::Unsettled));
    assert!(matches!(l.handle_offer(key(2), terms(2), 0), Ok(Decision::Receive { held: 40, .. })));
}

#[derive(Debug, Clone)]
enum Op {
    Offer(u8, bool, u64),
    End(u8),
    Staged(u8),
    Mismatch(u8),
    Delete(u8),
    Take,
    Verdict(u8, u8),
    Capability(u8),
    Time(i64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let n = 0u8..12;
    let op = prop_oneof![
        4 => (n.clone(), any::<bool>(), 1u64..4).prop_map(|(n, other, attempt)| Op::Offer(n, other, attempt)),
        1 => n.clone().prop_map(Op::End),
        4 => n.clone().prop_map(Op::Staged),
        1 => n.clone().prop_map(Op::Mismatch),
        1 => n.clone().prop_map(Op::Delete),
        5 => Just(Op::Take),
        5 => (n.clone(), 0u8..8).prop_map(|(n, v)| Op::Verdict(n, v)),
        1 => n.prop_map(Op::Capability),
        1 => (0i64..2_000_000).prop_map(Op::Time),
    ];
    prop::collection::vec(op, 0..120)
}

proptest! {
    /// No order of events makes a staged chunk vanish, an ended one come back, or room leak.
    #[test]
    fn it_never_goes_backwards(ops in ops()) {
        let mut l = ledger();
        let mut epochs = [0u64; 12];
        let mut now = 0i64;
        for op in ops {
            let before: Vec<_> = (0..12).map(|n| l.record(key(n)).map(|r| (r.state, r.terms.digest))).collect();
            match op {
                Op::Offer(n, other, attempt) => {
                    let digest = if other { Digest([99; 32]) } else { terms(n).digest };
                    if let Ok(Decision::Receive { epoch, .. }) = l.handle_offer(key(n), Terms { digest, attempt, ..terms(n) }, now) {
                        epochs[usize::from(n)] = epoch;
                    }
                }
                Op::End(n) => l.handle_attempt_ended(key(n), epochs[usize::from(n)]),
                Op::Staged(n) => { l.handle_staged(key(n), terms(n).digest); }
                Op::Mismatch(n) => l.handle_mismatch(key(n), epochs[usize::from(n)]),
                Op::Delete(n) => { let _ = l.handle_delete(key(n)); }
                Op::Take => { l.take(now.unsigned_abs(), now / 1000, Class::Master, &mut Vec::new()); }
                Op::Verdict(n, v) => {
                    let verdict = match v {
                        0 => Verdict::Confirmed(None),
                        1 => Verdict::Rejected(Code::CoreRejected, None),
                        2 => Verdict::CapabilityExpired,
                        3 => Verdict::Duplicate,
                        4 => Verdict::AccountFull(100),
                        5 => Verdict::Retry(100),
                        7 => Verdict::Damaged,
                        _ => Verdict::Ambiguous(100),
                    };
                    l.handle_verdict(key(n), verdict, now.unsigned_abs());
                }
                Op::Capability(n) => {
                    let keys = l.shorter(terms(n).stream, now / 1000 + 500);
                    l.handle_capability(&keys, now / 1000 + 500, now / 1000);
                }
                Op::Time(t) => { now = now.max(t); l.handle_time(now, now); l.handle_time_aside(now, now); }
            }
            for (n, before) in before.into_iter().enumerate() {
                let Some((state, digest)) = before else { continue };
                let after = l.record(key(n as u8));
                if state.held() {
                    let after = after.expect("a held chunk vanished");
                    prop_assert!(after.state != ChunkState::Receiving && after.terms.digest == digest);
                }
                if state == ChunkState::Confirmed {
                    prop_assert_eq!(after.map(|r| r.state), Some(ChunkState::Confirmed));
                }
            }
            let open: Vec<_> = (0..12).filter_map(|n| l.record(key(n))).filter(|r| !r.state.ended()).collect();
            let damaged = l.aside.iter().map(|aside| aside.length);
            let lengths = open.iter().map(|r| r.terms.length).chain(damaged);
            prop_assert_eq!(l.quota().used(), lengths.map(|length| length + crate::quota::OVERHEAD).sum::<u64>());
            prop_assert_eq!(l.receiving(), open.iter().filter(|r| r.active).count());
            prop_assert_eq!(l.receiving.values().sum::<usize>(), l.receiving_total);
        }
        // Everything that is staged and not delayed can be taken; nothing is lost in a queue.
        l.wake_delayed(u64::MAX);
        let staged = (0..12).filter(|n| l.record(key(*n)).is_some_and(|r| r.state == ChunkState::Staged)).count();
        let taken = std::iter::from_fn(|| l.take(u64::MAX, i64::MIN + 1, Class::Master, &mut Vec::new())).count();
        prop_assert_eq!(taken, staged);
    }
}
