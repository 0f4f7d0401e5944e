//! Liveness, by virtual time.

use proptest::prelude::*;

use super::tests::{contact, empty, meta, small};
use super::{Contact, QUIET_MS, Window};
use crate::frame::{kind, split_message};
use crate::message::{CaptureEvent, CaptureWord, Sign};
use crate::state::ContactState;

const SILENT_MS: u64 = 15_000;

/// What a contact is told of the device.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Told {
    Sign(u64),
    Capture(CaptureWord, u64),
}

fn told(contact: &mut Contact, window: &mut Window, now: u64) -> Vec<Told> {
    window.tick(now);
    let mut out = super::out::Out::default();
    contact.poll(window, now, &mut out);
    let frames = out.frames.iter().flat_map(|frame| split_message(frame.clone()).unwrap_or_default());
    frames
        .filter_map(|frame| match frame.kind {
            kind::SIGN => Some(Told::Sign(serde_json::from_slice::<Sign>(&frame.body).unwrap().last_sign)),
            kind::CAPTURE => {
                let event: CaptureEvent = serde_json::from_slice(&frame.body).unwrap();
                Some(Told::Capture(event.event, event.last_sign))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn quiet_is_told_from_five_seconds_on_and_silence_after_fifteen() {
    let mut window = empty();
    small(&mut window, 1, 0);
    let mut contact = contact(&window);
    let mut heard = Vec::new();
    for now in (0..=60_000).step_by(100) {
        heard.extend(told(&mut contact, &mut window, now).into_iter().map(|told| (now, told)));
    }
    let silent = Told::Capture(CaptureWord::Silent, 15);
    let quiet = [5, 10].map(|seconds| (seconds * 1_000, Told::Sign(seconds)));
    assert_eq!(heard, [(0, Told::Sign(0)), quiet[0], quiet[1], (15_000, silent)]);
    window.alive(61_000);
    assert_eq!(told(&mut contact, &mut window, 61_000), [Told::Capture(CaptureWord::Back, 0)]);
    assert!(told(&mut contact, &mut window, 62_000).is_empty());
}

#[test]
fn a_sign_after_a_pause_is_told_to_everybody_and_at_once() {
    let mut window = empty();
    small(&mut window, 1, 0);
    let mut early = contact(&window);
    assert_eq!(told(&mut early, &mut window, 4_999), [Told::Sign(0)], "who comes is told that it gives signs");
    assert_eq!(early.sign_due(&window), Some(5_000));
    assert_eq!(told(&mut early, &mut window, 7_000), [Told::Sign(7)]);
    let mut late = contact(&window);
    assert_eq!(told(&mut late, &mut window, 8_000), [Told::Sign(8)], "who comes then is told too");
    let captures = window.captures();
    window.seen(9_000);
    assert!(window.captures() > captures, "contacts of every lane are woken");
    assert_eq!(told(&mut early, &mut window, 9_000), [Told::Sign(0)]);
    assert_eq!(told(&mut late, &mut window, 9_000), [Told::Sign(0)]);
    let captures = window.captures();
    window.seen(10_000);
    assert_eq!(window.captures(), captures, "no pause, nobody is woken");
}

#[test]
fn a_contact_that_is_far_behind_hears_how_the_device_is() {
    let mut window = empty();
    small(&mut window, 1, 0);
    let mut contact = contact(&window);
    let more = |window: &mut Window| {
        let chunk = meta("a", 1, 0, 1).chunk;
        for _ in 0..super::MAX_EVENTS {
            assert!(window.set_state(chunk, ContactState::Unsettled, None, None));
            assert!(window.set_state(chunk, ContactState::NearLiveUnconfirmed, None, None));
        }
    };
    assert_eq!(told(&mut contact, &mut window, SILENT_MS), [Told::Capture(CaptureWord::Silent, 15)]);
    window.alive(20_000);
    more(&mut window);
    assert_eq!(
        told(&mut contact, &mut window, 21_000),
        [Told::Capture(CaptureWord::Back, 1)],
        "its word was forgotten"
    );
    more(&mut window);
    assert!(told(&mut contact, &mut window, 21_000).is_empty(), "it is told once");
    window.ended(22_000);
    more(&mut window);
    assert_eq!(told(&mut contact, &mut window, 22_000), [Told::Capture(CaptureWord::Ended, 0)]);
}

#[test]
fn what_is_left_to_send_after_the_end_is_no_sign() {
    let mut window = empty();
    small(&mut window, 1, 0);
    window.set_state(meta("a", 1, 0, 1).chunk, ContactState::Confirmed, None, None);
    let mut contact = contact(&window);
    told(&mut contact, &mut window, 0);
    window.ended(1_000);
    assert_eq!(told(&mut contact, &mut window, 1_000), [Told::Capture(CaptureWord::Ended, 0)]);
    for now in (2_000..600_000).step_by(1_000) {
        window.seen(now);
        assert!(told(&mut contact, &mut window, now).is_empty());
    }
    assert!(contact.settled(&window, 600_000), "masters that come later do not hold a contact");
    window.alive(600_000);
    assert_eq!(told(&mut contact, &mut window, 600_000), [Told::Capture(CaptureWord::Back, 0)]);
}

proptest! {
    /// A phone gives a sign every five seconds, by whatever; the link delays each by up to two
    /// seconds and is away for a while, shorter than the limit, again and again. Ten minutes.
    #[test]
    fn outages_that_are_shorter_are_no_silence(
        delays in prop::collection::vec(0u64..2_000, 120),
        outages in prop::collection::vec((0u64..600_000, 0u64..7_900), 0..8),
        media in prop::collection::vec(any::<bool>(), 120),
    ) {
        let mut window = empty();
        let mut signs: Vec<(u64, bool)> = (0..120u64).map(|n| {
            let mut at = n * QUIET_MS + delays[n as usize];
            // What an outage holds back comes with its end.
            let mut over = outages.clone();
            over.sort_unstable();
            let mut end = 0;
            for (from, length) in over {
                // Outages that touch are one; they stay apart.
                if from < end + QUIET_MS + 2_000 { continue; }
                end = from + length;
                if (from..end).contains(&at) { at = end; }
            }
            (at, media[n as usize])
        }).collect();
        signs.sort_unstable();
        small(&mut window, 1, 0);
        let mut contact = contact(&window);
        let mut next = signs.into_iter().peekable();
        let mut last = 0;
        for now in (0..600_000).step_by(250) {
            while let Some((at, media)) = next.next_if(|(at, _)| *at <= now) {
                if media { window.seen(at) } else { window.alive(at) }
                last = at;
            }
            for told in told(&mut contact, &mut window, now) {
                match told {
                    Told::Sign(seconds) => prop_assert_eq!(seconds, (now - last) / 1000),
                    Told::Capture(word, _) => prop_assert!(false, "{word:?} at {now}, last sign at {last}"),
                }
            }
        }
    }

    /// Whatever happens: `silent` only after the limit without a sign, `ended` only when it was said.
    #[test]
    fn nothing_is_said_that_is_not_so(steps in prop::collection::vec((0u64..9_000, 0u8..5), 1..200)) {
        let mut window = empty();
        small(&mut window, 1, 0);
        let mut contact = contact(&window);
        let (mut now, mut last, mut ended, mut greeted) = (0, 0, false, false);
        for (passed, what) in steps {
            now += passed;
            let before = last;
            match what {
                0 => { window.alive(now); (last, ended) = (now, false); }
                1 => { window.seen(now); if !ended { last = now } }
                2 => { window.ended(now); (last, ended) = (now, true); }
                _ => {}
            }
            for told in told(&mut contact, &mut window, now) {
                match told {
                    Told::Capture(CaptureWord::Silent, seconds) => {
                        prop_assert!(!ended && now - last >= SILENT_MS && seconds == (now - last) / 1000);
                    }
                    Told::Capture(CaptureWord::Ended, _) => prop_assert!(ended),
                    Told::Capture(CaptureWord::Back, _) => prop_assert!(now == last && now - before < 1 << 40),
                    // Whoever comes hears 0 of a device that is not quiet; later it is told of a sign at once.
                    Told::Sign(0) if !greeted => prop_assert!(!ended && now - last < QUIET_MS),
                    Told::Sign(seconds) => prop_assert!(!ended && seconds == (now - last) / 1000 && seconds < 15),
                }
            }
            greeted = true;
        }
    }
}
