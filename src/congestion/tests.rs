//! The model over simulated links, in virtual time. `SIM_SEED` replays one seed.

use proptest::prelude::*;

use super::model::{Micros, Model};
use super::sim::{Control, Cubic, Flow, Link, PACKET, World};

const BULK: u64 = 10 * 128 * 1024;
/// Payload in a packet, as a share.
const PAYLOAD: f64 = 1350.0 / 1400.0;

const GOOD_4G: Link = Link { rate: 10e6, rtt: 0.05, loss: 0.001, burst: 1.0, jitter: 0.0, queue: 0.5 };
const POOR_3G: Link = Link { rate: 256e3, rtt: 0.3, loss: 0.02, burst: 1.0, jitter: 0.05, queue: 0.5 };
const EDGE_2G: Link = Link { rate: 100e3, rtt: 0.7, loss: 0.05, burst: 1.0, jitter: 0.15, queue: 0.5 };
const LOSSY: Link = Link { rate: 2e6, rtt: 0.2, loss: 0.15, burst: 1.0, jitter: 0.0, queue: 0.5 };
const BURST: Link = Link { rate: 1e6, rtt: 0.15, loss: 0.08, burst: 5.0, jitter: 0.0, queue: 0.5 };
const JITTERY: Link = Link { rate: 10e6, rtt: 0.05, loss: 0.001, burst: 1.0, jitter: 0.02, queue: 0.5 };
const CONGESTED: Link = Link { rate: 1e6, rtt: 0.08, loss: 0.0, burst: 1.0, jitter: 0.0, queue: 2.0 };

fn ours(need: u64, start: Micros) -> Flow {
    Flow::new(Control::Ours(Box::new(Model::new(PACKET))), need, start)
}

fn cubic(start: Micros) -> Flow {
    Flow::new(Control::Cubic(Cubic::new()), u64::MAX / 2, start)
}

fn seeds(count: u64) -> std::ops::RangeInclusive<u64> {
    match std::env::var("SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => seed..=seed,
        None => 1..=count,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians over nine seeds: time over floor, wire bytes over payload. A handshake's round trip
/// and the way back of the answer are added, as the floor has only one.
fn bulk(link: Link) -> (f64, f64) {
    let floor = 1.04 * BULK as f64 * 8.0 / (link.rate * (1.0 - link.loss)) + link.rtt;
    let runs = seeds(9).map(|seed| {
        let mut world = World::new(link, seed, vec![ours((BULK as f64 / PAYLOAD) as u64, 0)]);
        world.run(400_000_000);
        let done = world.flows[0].done.unwrap_or_else(|| panic!("seed {seed} never ends"));
        ((done as f64 / 1e6 + 1.5 * link.rtt) / floor, world.flows[0].sent_bytes as f64 / BULK as f64)
    });
    let (times, wires) = runs.unzip();
    (median(times), median(wires))
}

#[test]
fn bulk_comes_near_the_floor_and_sends_little_twice() {
    let links = [
        ("good4g", GOOD_4G, 1.2),
        ("poor3g", POOR_3G, 1.05),
        ("edge2g", EDGE_2G, 1.05),
        ("lossy", LOSSY, 1.15),
        ("burst", BURST, 1.25),
        ("congested", CONGESTED, 1.05),
        ("good4g with jitter", JITTERY, 1.35),
    ];
    for (name, link, at_most) in links {
        let (time, wire) = bulk(link);
        println!("{name}: {time:.3} of the floor, wire {wire:.3}");
        assert!(time <= at_most, "{name}: {time:.3} of the floor");
        assert!(wire <= 1.05 / (1.0 - link.loss) + 0.03, "{name}: wire {wire:.3}");
    }
}

#[test]
fn alone_it_keeps_the_queue_short() {
    let mut world = World::new(CONGESTED, 1, vec![ours(u64::MAX / 2, 0)]);
    world.run(60_000_000);
    let worst = world.queued.iter().filter(|(at, _)| *at > 2_000_000).map(|(_, queued)| *queued).max().unwrap();
    assert!(worst < 150_000, "{worst} µs of queue");
    assert!(world.flows[0].acked as f64 * 8.0 / 60.0 > 0.97e6, "the link is not filled");
}

#[test]
fn what_is_in_flight_has_a_hard_cap() {
    for (name, link) in [("lossy", LOSSY), ("burst", BURST), ("congested", CONGESTED), ("poor3g", POOR_3G)] {
        let path = link.rate / 8.0 * link.rtt;
        let packets = |n: u64| (n * PACKET) as f64;
        for seed in seeds(9) {
            let mut world = World::new(link, seed, vec![ours(u64::MAX / 2, 0)]);
            world.run(3_000_000);
            let start = std::mem::take(&mut world.flows[0].most_in_flight) as f64;
            world.run(60_000_000);
            let later = world.flows[0].most_in_flight as f64;
            println!("{name}, seed {seed}: {:.2} of the path, then {:.2}", start / path, later / path);
            assert!(start <= packets(24).max(2.5 * path) + packets(6), "{name}, seed {seed}: {start} at the start");
            assert!(later <= 2.0 * path + packets(4), "{name}, seed {seed}: {later} later");
        }
    }
}

#[test]
fn a_start_that_meets_a_queue_stops_growing() {
    // The fifth round trip and the next: without that, twice what the path holds is in flight.
    let queues = seeds(9).map(|seed| {
        let mut world = World::new(LOSSY, seed, vec![ours(u64::MAX / 2, 0)]);
        world.run(2_000_000);
        let late = world.queued.iter().filter(|(at, _)| (1_000_000..1_400_000).contains(at));
        late.map(|(_, queued)| *queued as f64).fold(0.0, f64::max)
    });
    let most = median(queues.collect());
    assert!(most < 150_000.0, "{most} µs of queue");
}

#[test]
fn a_link_that_is_not_far_starts_with_more() {
    for (rtt, packets) in [(249_000, 24), (251_000, 16)] {
        let mut model = Model::new(PACKET);
        assert_eq!(model.window(), 16 * PACKET);
        model.handle_acked(0, PACKET);
        model.handle_batch_end(rtt, true);
        assert_eq!(model.window(), packets * PACKET, "{rtt} µs");
    }
}

#[test]
fn beside_cubic_it_takes_a_fair_part() {
    for (name, mine, other) in [("first", 0, 10), ("last", 10, 0), ("together", 0, 0)] {
        for seed in seeds(3) {
            let flows = vec![ours(u64::MAX / 2, mine * 1_000_000), cubic(other * 1_000_000)];
            let mut world = World::new(CONGESTED, seed, flows);
            world.run(10_000_000);
            let before: Vec<_> = world.flows.iter().map(|flow| flow.acked).collect();
            world.run(130_000_000);
            let [ours, theirs] = [0, 1].map(|i| (world.flows[i].acked - before[i]) as f64);
            let share = ours / (ours + theirs);
            println!("{name}, seed {seed}: {share:.2}");
            assert!((0.15..=0.7).contains(&share), "{name}, seed {seed}: {share:.2}");
        }
    }
}

#[test]
fn it_finds_rate_round_trip_and_loss() {
    let mut world = World::new(LOSSY, 1, vec![ours(u64::MAX / 2, 0)]);
    world.run(20_000_000);
    let model = world.flows[0].model().unwrap();
    assert!((1.5e6..2.1e6).contains(&(model.rate() * 8.0)), "{} bit/s", model.rate() * 8.0);
    assert!((200_000..230_000).contains(&model.least_rtt().unwrap()));
    assert!((0.1..0.2).contains(&model.loss()), "{}", model.loss());
}

proptest! {
    /// Whatever is told in whatever order: at least four packets may go, and the memory is bounded.
    #[test]
    fn any_history_leaves_a_window(steps in prop::collection::vec((0u8..4, 0u64..2_000_000, 0u64..100_000), 1..400)) {
        let mut model = Model::new(PACKET);
        let mut now = 1;
        for (kind, time, bytes) in steps {
            now += time / 10;
            match kind {
                0 => model.handle_acked(now.saturating_sub(time), bytes),
                1 => model.handle_lost(bytes),
                2 => model.handle_mtu(1200 + bytes % 300),
                _ => model.handle_batch_end(now, bytes % 2 == 0),
            }
            prop_assert!(model.window() >= 4 * 1200);
            prop_assert!(model.window() < 1 << 40);
        }
    }
}

/// The longest queue between 5 and 30 seconds of a near link, in microseconds, and the share of it that was used.
fn near_queue(rate: f64, model: Model) -> (Micros, f64) {
    let link = Link { rate, rtt: 0.004, loss: 0.0, burst: 1.0, jitter: 0.0, queue: 2.0 };
    let flow = Flow::new(Control::Ours(Box::new(model)), u64::MAX / 2, 0);
    let mut world = World::new(link, 1, vec![flow]);
    world.run(30_000_000);
    let worst = world.queued.iter().filter(|(at, _)| *at > 5_000_000).map(|(_, queued)| *queued).max().unwrap();
    (worst, world.flows[0].acked as f64 * 8.0 / 30.0 / rate)
}

#[test]
fn a_thin_link_that_is_near_has_a_short_queue() {
    for rate in [256e3, 1e6, 2e6, 8e6] {
        let (unmetered, used) = near_queue(rate, Model::unmetered(PACKET));
        let (client, _) = near_queue(rate, Model::new(PACKET));
        println!("{rate} bit/s: {unmetered} µs of queue (a client's {client}), {used:.2} used");
        assert!(unmetered < client + 50_000, "{rate} bit/s: {unmetered} µs of queue");
        assert!(used > 0.95, "{rate} bit/s: the link is not filled");
    }
}

/// What an unmetered end and a client may have in flight after a round trip of `rtt` microseconds.
fn after(rtt: u64) -> (u64, u64) {
    let window = |mut model: Model| {
        for packet in 1..40 {
            let sent = packet * rtt;
            model.handle_acked(sent, PACKET);
            model.handle_batch_end(sent + rtt, false);
        }
        model.window()
    };
    (window(Model::unmetered(PACKET)), window(Model::new(PACKET)))
}

#[test]
fn a_near_path_is_not_held_up_by_its_acknowledgements() {
    assert!(matches!(after(1_000), (64_000.., ..60_000)), "{:?}", after(1_000));
    let (unmetered, client) = after(100_000);
    assert_eq!(unmetered, client, "a far path is what it is to both");
}
