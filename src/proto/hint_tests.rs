use super::*;
use Variant::{AudioPriority, EvidenceMaster, LivePreview, LocationContext, MetadataContext};
use proptest::prelude::*;

const EASY: [f32; 4] = [0.0; 4];

/// A link that carries `rate` bytes per second, and a phone that sends lanes over it, by virtual
/// time: two seconds of each lane, those that are kept, in the order of mercy.
struct World {
    pace: Pace,
    now: u64,
    /// When the link is free again.
    free: u64,
    advice: Advice,
}

/// A recording: bytes per second of each lane.
const LIVE: [(Variant, u64); 3] = [(AudioPriority, 3_000), (LivePreview, 19_000), (EvidenceMaster, 250_000)];

impl World {
    fn new() -> Self {
        Self { pace: Pace::default(), now: 0, free: 0, advice: Advice { rate: None, lanes: None, chunk_ms: None } }
    }

    /// Two seconds pass.
    fn step(&mut self, lanes: &[(Variant, u64)], rate: u64, pressure: [f32; 4]) {
        self.now += 2_000;
        for (variant, per_second) in lanes {
            if self.advice.lanes.as_ref().is_some_and(|kept| !kept.contains(variant)) {
                continue;
            }
            let length = per_second * 2;
            let start = self.free.max(self.now);
            let lag = start as i64 - self.now as i64;
            self.pace.offered(start, *variant, length, 2_000, lag);
            self.pace.opened();
            let took = length * 1000 / rate;
            for part in 0..=20 {
                self.pace.came(start + took * part / 20, length / 20);
            }
            self.pace.closed();
            self.free = start + took;
        }
        // What a phone has not sent after half a minute waits behind the rest.
        self.free = self.free.min(self.now + 30_000);
        self.advice = self.pace.advise(self.now, pressure, false);
    }

    fn run(&mut self, seconds: u64, rate: u64) -> &Advice {
        for _ in 0..seconds / 2 {
            self.step(&LIVE, rate, EASY);
        }
        &self.advice
    }
}

#[test]
fn idle_time_and_outages_do_not_count() {
    let mut pace = Pace::default();
    let mut now = 0;
    for _ in 0..20 {
        pace.opened();
        for at in 0..=10 {
            pace.came(now + at * 10, 1_000);
        }
        pace.closed();
        now += 5_000;
    }
    assert_eq!(pace.rate(), Some(100_000));
    pace.opened();
    pace.came(now, 1_000);
    pace.came(now + 60_000, 1_000);
    assert_eq!(pace.rate(), Some(100_000), "an outage is not a rate");
}

#[test]
fn a_link_that_carries_everything_is_left_alone() {
    let advice = World::new().run(120, 600_000).clone();
    assert_eq!((advice.lanes, advice.chunk_ms), (None, None));
    assert!((570_000..640_000).contains(&advice.rate.unwrap()), "{:?}", advice.rate);
}

#[test]
fn only_the_lanes_that_fit_are_kept_and_the_others_come_back() {
    let mut world = World::new();
    let kept = world.run(120, 40_000).lanes.clone();
    assert_eq!(kept.unwrap(), [AudioPriority, LivePreview, LocationContext, MetadataContext]);
    let kept = world.run(120, 5_000).lanes.clone();
    assert_eq!(kept.unwrap(), [AudioPriority], "sound is never advised against");
    world.run(300, 600_000);
    assert_eq!(world.advice.lanes, None);
}

#[test]
fn sound_stays_on_a_link_that_carries_nothing() {
    assert_eq!(World::new().run(120, 500).lanes.as_deref(), Some(&[AudioPriority][..]));
}

#[test]
fn masters_alone_are_not_held_back() {
    let mut world = World::new();
    for _ in 0..60 {
        world.step(&LIVE[2..], 10_000, EASY);
    }
    assert_eq!(world.advice.lanes, None, "nothing goes before them");
    let mut world = World::new();
    world.run(60, 10_000);
    assert!(world.advice.lanes.is_some());
    for _ in 0..60 {
        world.step(&[], 10_000, EASY);
    }
    world.step(&LIVE[2..], 10_000, EASY);
    world.step(&[], 10_000, EASY);
    for _ in 0..30 {
        world.step(&LIVE[2..], 10_000, EASY);
    }
    assert_eq!(world.advice.lanes, None, "the recording is over, the rest of it may come");
}

#[test]
fn a_client_that_sends_as_it_records_is_not_taken_for_a_thin_link() {
    let mut pace = Pace::default();
    let mut advice = None;
    for chunk in 0..60u64 {
        let start = chunk * 2_000;
        for (variant, per_second) in LIVE {
            pace.offered(start, variant, per_second * 2, 2_000, -2_000);
            pace.opened();
        }
        for at in 0..20 {
            pace.came(start + at * 100, 27_200);
        }
        (0..3).for_each(|_| pace.closed());
        advice = Some(pace.advise(start + 2_000, EASY, false));
    }
    assert_eq!(advice.unwrap().lanes, None, "it does not fall behind");
}

#[test]
fn a_room_that_is_short_holds_lanes_back_until_there_is_some() {
    let mut world = World::new();
    world.step(&LIVE, 1_000_000, [0.1, 0.2, 0.3, 0.95]);
    assert!(!world.advice.lanes.as_ref().unwrap().contains(&EvidenceMaster));
    world.step(&LIVE, 1_000_000, [0.1, 0.2, 0.3, 0.8]);
    assert!(!world.advice.lanes.as_ref().unwrap().contains(&EvidenceMaster), "not yet");
    world.step(&LIVE, 1_000_000, [0.1, 0.2, 0.3, 0.6]);
    assert_eq!(world.advice.lanes, None);
    world.step(&LIVE, 1_000_000, [1.0; 4]);
    assert_eq!(world.advice.lanes.as_deref(), Some(&[AudioPriority][..]));
}

#[test]
fn chunks_get_longer_where_they_cost_too_much() {
    let mut world = World::new();
    assert_eq!(world.run(60, 15_000).chunk_ms, None);
    assert_eq!(world.run(120, 3_200).chunk_ms, Some(4_000));
    assert_eq!(world.run(300, 1_000).chunk_ms, Some(8_000));
    assert_eq!(Pace::default().advise(0, EASY, true).chunk_ms, Some(4_000), "a limited core wants fewer");
}

proptest! {
    #[test]
    fn whatever_comes_sound_is_kept_and_nothing_overflows(
        steps in prop::collection::vec(
            (0u64..100_000, 0usize..LANES, any::<u32>(), 0u64..10_000, any::<i32>(), prop::array::uniform4(0.0f32..1.5)),
            0..200,
        ),
    ) {
        let mut pace = Pace::default();
        let mut now = 0;
        for (passed, lane, bytes, ms, lag, pressure) in steps {
            now += passed;
            pace.offered(now, Variant::ALL[lane], bytes.into(), ms, lag.into());
            pace.opened();
            pace.came(now, bytes.into());
            if bytes % 3 > 0 { pace.closed(); }
            let advice = pace.advise(now, pressure, bytes % 2 == 0);
            if let Some(lanes) = advice.lanes {
                prop_assert_eq!(lanes[0], AudioPriority);
                prop_assert!(lanes.len() < LANES && lanes.is_sorted());
            }
            prop_assert!(advice.chunk_ms.is_none_or(|length| CHUNK_MS.contains(&length)));
        }
    }

    #[test]
    fn advice_does_not_flap_on_a_link_that_wavers(seed in prop::collection::vec(35_000u64..55_000, 150)) {
        // The rate goes up and down by a quarter of what audio and preview need more than once over.
        let mut world = World::new();
        let mut changes = 0;
        for rate in seed {
            let before = world.advice.lanes.clone();
            world.step(&LIVE, rate, EASY);
            changes += usize::from(before != world.advice.lanes);
        }
        prop_assert!(changes <= 2, "{changes} changes in five minutes");
    }
}
