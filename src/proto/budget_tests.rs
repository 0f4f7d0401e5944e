use super::*;
use proptest::prelude::*;

/// Asks every `step` milliseconds for every call in `calls`, as callers that always have work.
fn run(budget: &mut Budget, calls: &[Call], from: u64, until: u64, step: u64) -> Vec<(u64, Call)> {
    let mut gone = Vec::new();
    let mut now = from;
    while now < until {
        for call in calls {
            while budget.poll(now, *call) == Poll::Go {
                gone.push((now, *call));
            }
        }
        now += step;
    }
    gone
}

fn most_in_a_window(times: &[u64]) -> usize {
    let within = |from: u64| times.iter().filter(|t| (from..from + WINDOW_MS).contains(t)).count();
    times.iter().map(|t| within(*t)).max().unwrap_or(0)
}

fn times(gone: &[(u64, Call)], call: Call) -> Vec<u64> {
    gone.iter().filter(|(_, c)| *c == call).map(|(t, _)| *t).collect()
}

#[test]
fn a_configured_budget_is_used_but_never_passed() {
    for n in [1, 2, 5, 9, 10, 19, 20, 120, 1000] {
        let mut budget = Budget::new(n);
        let gone = run(&mut budget, &[Call::Commit], 0, 10 * WINDOW_MS, 7);
        let most = most_in_a_window(&times(&gone, Call::Commit));
        assert!(most <= n as usize, "{most} of {n}");
        let steady = n.saturating_sub((n / 10).max(1)).max(1) as usize * 10;
        assert!(gone.len() * 100 >= steady * 98, "{} of {n} a minute", gone.len());
    }
}

#[test]
fn the_budget_is_spread_over_the_minute() {
    let gone = run(&mut Budget::new(120), &[Call::Commit], 0, WINDOW_MS, 5);
    let second = times(&gone, Call::Commit).iter().filter(|t| **t < 1000).count();
    assert!(second <= 14, "{second} in the first second");
    let gaps = gone.windows(2).skip(13).map(|pair| pair[1].0 - pair[0].0).max();
    assert!(gaps < Some(600), "{gaps:?}");
}

#[test]
fn nothing_limits_until_the_first_429_and_then_its_pace_is_kept() {
    let mut budget = Budget::new(0);
    for i in 0..120 {
        assert_eq!(budget.poll(i * 10, Call::Commit), Poll::Go);
    }
    assert_eq!(budget.poll(1_300, Call::Commit), Poll::Go, "the core refuses this one");
    budget.limited(1_400, Limiter::Upload, Some(60));
    assert_eq!(budget.per_minute(Limiter::Upload), Some(120));
    assert_eq!(budget.paused_until(1_400, Limiter::Upload), Some(61_400));
    assert_eq!(budget.poll(1_400, Call::Commit), Poll::WaitUntil(61_400));
    assert_eq!(budget.poll(1_400, Call::Preflight), Poll::Go, "the other class goes on");
    let gone = run(&mut budget, &[Call::Commit], 61_400, 61_400 + WINDOW_MS, 5);
    assert!((100..=120).contains(&gone.len()), "{}", gone.len());
}

#[test]
fn several_refusals_at_once_are_one_lesson() {
    let mut budget = Budget::new(0);
    for _ in 0..50 {
        assert_eq!(budget.poll(1_000, Call::Commit), Poll::Go);
    }
    for _ in 0..20 {
        budget.limited(1_100, Limiter::Upload, Some(5));
    }
    assert_eq!(budget.per_minute(Limiter::Upload), Some(30));
    assert_eq!(budget.paused_until(1_100, Limiter::Upload), Some(6_100));
    budget.limited(200_000, Limiter::Upload, None);
    assert_eq!(budget.per_minute(Limiter::Upload), Some(FLOOR_PER_MINUTE));
    assert_eq!(budget.paused_until(200_000, Limiter::Upload), Some(200_000 + DEFAULT_PAUSE_S * 1000));
}

#[test]
fn a_quiet_minute_that_used_its_budget_earns_a_twentieth() {
    let mut budget = Budget::new(0);
    for _ in 0..100 {
        budget.poll(0, Call::Commit);
    }
    budget.limited(0, Limiter::Upload, Some(1));
    assert_eq!(budget.per_minute(Limiter::Upload), Some(99));
    run(&mut budget, &[Call::Commit], 1_000, 63_000, 10);
    assert_eq!(budget.per_minute(Limiter::Upload), Some(103));
    budget.poll(1_000_000, Call::Commit);
    assert_eq!(budget.per_minute(Limiter::Upload), Some(103), "an idle hour earns nothing");
}

#[test]
fn a_429_below_the_configured_budget_is_believed_and_never_probed_past_it() {
    let mut budget = Budget::new(40);
    run(&mut budget, &[Call::Commit], 0, 30_000, 10);
    budget.limited(30_000, Limiter::Upload, Some(1));
    let learned = budget.per_minute(Limiter::Upload).unwrap();
    assert!((FLOOR_PER_MINUTE..40).contains(&learned), "{learned}");
    run(&mut budget, &[Call::Commit], 31_000, 60 * WINDOW_MS, 50);
    assert_eq!(budget.per_minute(Limiter::Upload), Some(40));
}

#[test]
fn preflights_go_first_and_the_others_still_get_a_twentieth() {
    let mut budget = Budget::new(120);
    // The lowest asks first at every step, and still goes last.
    let calls = [Call::Reauthorize, Call::Authorize, Call::Preflight];
    let gone = run(&mut budget, &calls, 0, 20 * WINDOW_MS, 50);
    let late: Vec<_> = gone.into_iter().filter(|(t, _)| *t > 2 * WINDOW_MS).collect();
    let preflights = times(&late, Call::Preflight).len();
    let others = late.len() - preflights;
    assert!(preflights * 100 >= late.len() * 94, "{preflights} of {}", late.len());
    assert!(others * 100 >= late.len() * 4, "{others} of {}", late.len());
}

#[test]
fn a_caller_that_gives_up_blocks_nobody() {
    let mut budget = Budget::new(10);
    assert_eq!(budget.poll(0, Call::Preflight), Poll::Go);
    assert!(matches!(budget.poll(0, Call::Preflight), Poll::WaitUntil(_)));
    assert!(matches!(budget.poll(30_000, Call::Authorize), Poll::WaitUntil(_)), "a preflight waits");
    budget.give_up(Call::Preflight);
    assert_eq!(budget.poll(30_000, Call::Authorize), Poll::Go);
}

#[test]
fn a_refund_is_a_call_again_but_no_more_than_the_burst() {
    let mut budget = Budget::new(10);
    assert_eq!(budget.poll(0, Call::Commit), Poll::Go);
    budget.refund(1, Call::Commit);
    budget.refund(1, Call::Commit);
    assert_eq!(budget.poll(2, Call::Commit), Poll::Go);
    assert!(matches!(budget.poll(2, Call::Commit), Poll::WaitUntil(_)));
}

#[test]
fn backing_off_starts_at_half_a_second_and_has_an_end() {
    assert_eq!(backoff_ms(1, RETRY_LONGEST_MS, 0), 500);
    assert_eq!(backoff_ms(0, RETRY_LONGEST_MS, 0), 500);
    assert_eq!(backoff_ms(u32::MAX, RETRY_LONGEST_MS, u64::MAX / 2) / 15_000, 1);
    assert!((4_000..=AWAY_LONGEST_MS).contains(&backoff_ms(u32::MAX, AWAY_LONGEST_MS, u64::MAX / 2)));
    for failures in 0..40 {
        for random in [0, 1, 499, 500, 12_345, u64::MAX] {
            assert!((500..=30_000).contains(&backoff_ms(failures, RETRY_LONGEST_MS, random)));
        }
    }
    assert_eq!(backoff_ms(40, RETRY_LONGEST_MS, 15_000), 30_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_more_than_n_in_any_minute(
        n in 1u32..400,
        steps in prop::collection::vec((0u64..9_000, 0usize..4, 1u32..80, 0u8..12, 0u64..90), 1..120),
    ) {
        let mut budget = Budget::new(n);
        let (mut now, mut gone) = (0, Vec::new());
        for (wait, call, asks, event, retry) in steps {
            now += wait;
            let call = Call::ALL[call];
            for _ in 0..asks {
                if budget.poll(now, call) == Poll::Go {
                    gone.push((now, call));
                }
            }
            match event {
                0 => budget.limited(now, call.limiter(), Some(retry)),
                // Only a call that went and was not made is given back.
                1 if gone.last().is_some_and(|last| last.1 == call) => {
                    gone.pop();
                    budget.refund(now, call);
                }
                2 => budget.give_up(call),
                _ => {}
            }
        }
        for limiter in Limiter::ALL {
            let of: Vec<u64> = gone.iter().filter(|(_, c)| c.limiter() == *limiter).map(|(t, _)| *t).collect();
            prop_assert!(most_in_a_window(&of) <= n as usize);
        }
        let again = most_in_a_window(&times(&gone, Call::Reauthorize));
        prop_assert!(again <= (n as usize / 10).max(1), "{} of {}", again, n);
    }

    #[test]
    fn preflights_are_never_starved(n in 2u32..400, step in 1u64..300) {
        let mut budget = Budget::new(n);
        let calls = [Call::Reauthorize, Call::Authorize, Call::Preflight];
        let gone = run(&mut budget, &calls, 0, 6 * WINDOW_MS, step);
        let preflights = times(&gone, Call::Preflight);
        let longest = preflights.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(u64::MAX);
        // Two shares of one call, and what the asking itself costs.
        prop_assert!(longest <= 2 * WINDOW_MS / u64::from(n - (n / 10).max(1)) + 2 * step + 60, "{longest}");
    }
}
