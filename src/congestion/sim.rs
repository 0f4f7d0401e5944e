//! A link in virtual time: rate, queue, delay, jitter and loss as `netlab` has them, a receiver
//! that acknowledges as quinn does, a sender that paces and finds losses as quinn does. All of it
//! follows from a seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::model::{Micros, Model};
use super::pulse::{Beat, Pulse};

/// Bytes of a packet.
pub(super) const PACKET: u64 = 1400;
/// quinn's delay of acknowledgements.
const ACK_DELAY: Micros = 25_000;
/// How often a sender looks at its timers.
const TICK: Micros = 20_000;

/// One direction's properties; the way back has the same delay and loss and no queue.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// Bits a second.
    pub(super) rate: f64,
    /// Round trip without queue, seconds.
    pub(super) rtt: f64,
    /// Share of packets lost each way.
    pub(super) loss: f64,
    /// Packets in a burst of losses; 1 is independent losses.
    pub(super) burst: f64,
    /// Spread of the delay each way, seconds.
    pub(super) jitter: f64,
    /// The queue, seconds at the link's rate; 16 kB at least.
    pub(super) queue: f64,
}

/// splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Losses of one direction.
#[derive(Default)]
struct Losses {
    bad: bool,
}

impl Losses {
    fn next(&mut self, link: &Link, random: &mut Random) -> bool {
        let drawn = random.unit();
        if link.burst <= 1.0 {
            return drawn < link.loss;
        }
        let recover = 1.0 / link.burst;
        let begin = recover * link.loss / (1.0 - link.loss);
        self.bad = if self.bad { drawn >= recover } else { drawn < begin };
        self.bad
    }
}

/// Who decides how much may be in flight.
pub(super) enum Control {
    /// The model under test.
    Ours(Box<Model>),
    /// What other people's traffic uses (RFC 9438, without its refinements).
    Cubic(Cubic),
}

/// Cubic's window.
pub(super) struct Cubic {
    window: f64,
    threshold: f64,
    peak: f64,
    epoch: Option<Micros>,
    recovered: Micros,
}

impl Cubic {
    pub(super) fn new() -> Self {
        Self { window: 10.0 * PACKET as f64, threshold: f64::MAX, peak: 0.0, epoch: None, recovered: 0 }
    }

    fn acked(&mut self, now: Micros, bytes: f64, rtt: f64) {
        if self.window < self.threshold {
            self.window += bytes;
            return;
        }
        let packet = PACKET as f64;
        let time = (now - *self.epoch.get_or_insert(now)) as f64 / 1e6 + rtt / 1e6;
        let k = (self.peak / packet * 0.3 / 0.4).cbrt();
        let target = (0.4 * (time - k).powi(3) + self.peak / packet) * packet;
        let step = if target > self.window { (target - self.window) / self.window * bytes } else { 0.01 * bytes };
        self.window += step.min(bytes / 2.0);
    }

    fn lost(&mut self, now: Micros, sent: Micros) {
        if sent < self.recovered {
            return;
        }
        self.recovered = now;
        self.peak = self.window;
        self.window = (self.window * 0.7).max(2.0 * PACKET as f64);
        self.threshold = self.window;
        self.epoch = None;
    }
}

/// A sender and its receiver.
pub(super) struct Flow {
    control: Control,
    /// Bytes to bring.
    pub(super) need: u64,
    /// When it begins.
    pub(super) start: Micros,
    /// When all was acknowledged.
    pub(super) done: Option<Micros>,
    /// Bytes acknowledged.
    pub(super) acked: u64,
    /// Bytes sent.
    pub(super) sent_bytes: u64,
    in_flight: u64,
    /// The most there ever was.
    pub(super) most_in_flight: u64,
    sent: BTreeMap<u64, Micros>,
    last_sent: u64,
    largest_acked: u64,
    received: Vec<u64>,
    largest_received: u64,
    srtt: f64,
    variance: f64,
    latest: f64,
    tokens: f64,
    paced: Micros,
    heard: Micros,
    probes: u32,
    pulse: Pulse,
    wake: Micros,
}

impl Flow {
    pub(super) fn new(control: Control, need: u64, start: Micros) -> Self {
        Self {
            control,
            need,
            start,
            done: None,
            acked: 0,
            sent_bytes: 0,
            in_flight: 0,
            most_in_flight: 0,
            sent: BTreeMap::new(),
            last_sent: 0,
            largest_acked: 0,
            received: Vec::new(),
            largest_received: 0,
            srtt: 0.0,
            variance: 0.0,
            latest: 0.0,
            tokens: 10.0 * PACKET as f64,
            paced: start,
            heard: start,
            probes: 0,
            pulse: Pulse::default(),
            wake: start,
        }
    }

    pub(super) fn model(&self) -> Option<&Model> {
        match &self.control {
            Control::Ours(model) => Some(model),
            Control::Cubic(_) => None,
        }
    }

    fn window(&self) -> u64 {
        match &self.control {
            Control::Ours(model) => model.window(),
            Control::Cubic(cubic) => cubic.window as u64,
        }
    }

    fn acknowledged(&mut self, now: Micros, packets: Vec<u64>) {
        let app_limited = self.acked + self.in_flight >= self.need;
        let mut newest = None;
        for number in packets {
            let Some(sent) = self.sent.remove(&number) else { continue };
            self.in_flight -= PACKET;
            self.acked += PACKET;
            if number > self.largest_acked {
                self.largest_acked = number;
                newest = Some(sent);
            }
            match &mut self.control {
                Control::Ours(model) => model.handle_acked(sent, PACKET),
                Control::Cubic(cubic) => cubic.acked(now, PACKET as f64, self.srtt),
            }
        }
        (self.heard, self.probes) = (now, 0);
        if let Some(sent) = newest {
            self.measured((now - sent) as f64);
        }
        if let Control::Ours(model) = &mut self.control {
            model.handle_batch_end(now, app_limited);
        }
    }

    fn measured(&mut self, rtt: f64) {
        self.latest = rtt;
        if self.srtt == 0.0 {
            (self.srtt, self.variance) = (rtt, rtt / 2.0);
        } else {
            self.variance = 0.75 * self.variance + 0.25 * (self.srtt - rtt).abs();
            self.srtt = 0.875 * self.srtt + 0.125 * rtt;
        }
    }

    /// RFC 9002 §6.1: three packets or 9/8 round trips later.
    fn find_losses(&mut self, now: Micros) {
        let patience = (self.srtt.max(self.latest) * 9.0 / 8.0).max(1000.0) as Micros;
        let largest = self.largest_acked;
        let given_up = |number: u64, sent: Micros| largest >= number + 3 || now - sent >= patience;
        let lost: Vec<_> = self.sent.range(..largest).filter(|&(n, s)| given_up(*n, *s)).map(|(n, _)| *n).collect();
        for number in &lost {
            let Some(sent) = self.sent.remove(number) else { continue };
            self.in_flight -= PACKET;
            if let Control::Cubic(cubic) = &mut self.control {
                cubic.lost(now, sent);
            }
        }
        if let (false, Control::Ours(model)) = (lost.is_empty(), &mut self.control) {
            model.handle_lost(lost.len() as u64 * PACKET);
        }
    }

    /// RFC 9002 §6.2.
    fn probe_due(&mut self, now: Micros) -> bool {
        let Some(last) = self.sent.values().max() else { return false };
        let base = if self.srtt > 0.0 { self.srtt + 4.0 * self.variance + ACK_DELAY as f64 } else { 999_000.0 };
        let due = now >= self.heard.max(*last) + base as Micros * (1 << self.probes.min(10));
        self.probes += u32::from(due);
        due
    }

    /// What the client's own pulse says.
    fn is_poked(&mut self, now: Micros) -> bool {
        let Control::Ours(model) = &self.control else { return false };
        let rtt = Duration::from_micros(model.recent_rtt());
        let silence = (self.in_flight > 0).then(|| Duration::from_micros(now - self.heard));
        matches!(self.pulse.look(silence, rtt, super::Owes::Bytes), Beat::Poke | Beat::Ask | Beat::Stalls)
    }

    /// Whether a packet may go now; else when to ask again.
    fn may_send(&mut self, now: Micros) -> Result<(), Option<Micros>> {
        let window = self.window();
        if self.need <= self.acked + self.in_flight || self.in_flight + PACKET >= window {
            return Err(None);
        }
        if self.srtt == 0.0 || matches!(self.control, Control::Cubic(_)) {
            return Ok(());
        }
        // quinn's pacer: 1.25 windows in a round trip, bursts of 2 ms and ten packets at least.
        let rate = window as f64 * 1.25 / self.srtt;
        let burst = (rate * 2000.0).clamp(10.0 * PACKET as f64, 256.0 * PACKET as f64);
        self.tokens = (self.tokens + rate * (now - self.paced) as f64).min(burst);
        self.paced = now;
        if self.tokens < PACKET as f64 {
            return Err(Some(now + ((PACKET as f64 - self.tokens) / rate) as Micros + 1));
        }
        self.tokens -= PACKET as f64;
        Ok(())
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize, u64),
    Acknowledge(usize),
    Acknowledged(usize, Vec<u64>),
    Wake(usize),
}

/// The link with its flows.
pub(super) struct World {
    link: Link,
    random: Random,
    pub(super) flows: Vec<Flow>,
    events: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    order: u64,
    busy_until: Micros,
    there: (Losses, Micros),
    back: (Losses, Micros),
    /// Queueing delays met by packets, with the time.
    pub(super) queued: Vec<(Micros, Micros)>,
}

impl World {
    pub(super) fn new(link: Link, seed: u64, flows: Vec<Flow>) -> Self {
        let mut world = Self {
            link,
            random: Random(seed),
            flows,
            events: BinaryHeap::new(),
            order: 0,
            busy_until: 0,
            there: Default::default(),
            back: Default::default(),
            queued: Vec::new(),
        };
        for flow in 0..world.flows.len() {
            world.at(world.flows[flow].start, Event::Wake(flow));
        }
        world
    }

    /// Runs until all is brought or the time is over.
    pub(super) fn run(&mut self, until: Micros) {
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > until {
                return;
            }
            match event {
                Event::Arrives(flow, number) => self.arrives(now, flow, number),
                Event::Acknowledge(flow) => self.acknowledge(now, flow),
                Event::Acknowledged(flow, packets) => {
                    self.flows[flow].acknowledged(now, packets);
                    self.turn(now, flow);
                }
                Event::Wake(flow) if self.flows[flow].wake <= now => self.turn(now, flow),
                Event::Wake(_) => {}
            }
        }
    }

    fn at(&mut self, time: Micros, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, event)));
    }

    fn arrives(&mut self, now: Micros, flow: usize, number: u64) {
        let receiver = &mut self.flows[flow];
        let in_order = number == receiver.largest_received + 1;
        receiver.largest_received = receiver.largest_received.max(number);
        receiver.received.push(number);
        if receiver.received.len() >= 2 || !in_order {
            self.acknowledge(now, flow);
        } else {
            self.at(now + ACK_DELAY, Event::Acknowledge(flow));
        }
    }

    /// An acknowledgement that is lost is made up for by the next: QUIC's name all ranges.
    fn acknowledge(&mut self, now: Micros, flow: usize) {
        if self.flows[flow].received.is_empty() {
            return;
        }
        if self.back.0.next(&self.link, &mut self.random) {
            self.at(now + ACK_DELAY, Event::Acknowledge(flow));
            return;
        }
        let packets = std::mem::take(&mut self.flows[flow].received);
        let there = self.travel(now).max(self.back.1);
        self.back.1 = there;
        self.at(there, Event::Acknowledged(flow, packets));
    }

    fn travel(&mut self, from: Micros) -> Micros {
        let spread = (self.random.unit() - 0.5) * self.link.jitter;
        from + ((self.link.rtt / 2.0 + spread).max(0.0) * 1e6) as Micros
    }

    fn turn(&mut self, now: Micros, index: usize) {
        let flow = &mut self.flows[index];
        if flow.done.is_some() {
            return;
        }
        flow.find_losses(now);
        if flow.acked >= flow.need {
            flow.done = Some(now);
            return;
        }
        let mut wake = now + TICK;
        let (probe, poke) = (flow.probe_due(now), flow.is_poked(now));
        for _ in 0..u32::from(probe) + u32::from(poke) {
            self.send(now, index);
        }
        loop {
            match self.flows[index].may_send(now) {
                Ok(()) => self.send(now, index),
                Err(again) => {
                    wake = again.map_or(wake, |again| wake.min(again));
                    break;
                }
            }
        }
        self.flows[index].wake = wake;
        self.at(wake, Event::Wake(index));
    }

    fn send(&mut self, now: Micros, index: usize) {
        let flow = &mut self.flows[index];
        flow.last_sent += 1;
        let number = flow.last_sent;
        flow.sent.insert(number, now);
        flow.in_flight += PACKET;
        flow.most_in_flight = flow.most_in_flight.max(flow.in_flight);
        flow.sent_bytes += PACKET;
        let waits = self.busy_until.saturating_sub(now);
        self.queued.push((now, waits));
        let bytes = waits as f64 / 1e6 * self.link.rate / 8.0;
        if bytes + PACKET as f64 > (self.link.queue * self.link.rate / 8.0).max(16_000.0) {
            return;
        }
        self.busy_until = now + waits + (PACKET as f64 * 8.0 / self.link.rate * 1e6) as Micros;
        if self.there.0.next(&self.link, &mut self.random) {
            return;
        }
        let there = self.travel(self.busy_until).max(self.there.1);
        self.there.1 = there;
        self.at(there, Event::Arrives(index, number));
    }
}
