//! The whole link without its devices: packets and times go in, packets and times come out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Side;
use crate::direction::{Direction, Passage};
use crate::nat::{self, Nat};
use crate::profile::Profile;
use crate::stats::{LinkStats, Stats};

/// A packet on its way. The first two members are the order in which packets arrive.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    arrives: u64,
    number: u64,
    departs: u64,
    to: Side,
    bytes: Vec<u8>,
}

/// The link between two devices. All times are nanoseconds of one clock.
#[derive(Debug)]
pub struct Emulator {
    up: Direction,
    down: Direction,
    nat: Nat,
    /// Outages and new addresses of the profile, from the client's first packet on.
    outages: Vec<(u64, u64)>,
    rebinds: Vec<u64>,
    /// When the client's first packet came.
    began: Option<u64>,
    /// Outages that were asked for, in the clock's time.
    asked: Vec<(u64, u64)>,
    is_cut: bool,
    flying: BinaryHeap<Reverse<Flying>>,
    number: u64,
}

impl Emulator {
    /// A quiet link.
    #[must_use]
    pub fn new(profile: &Profile, seed: u64) -> Self {
        let seed = seed.wrapping_mul(0x0100_0193);
        let nanos = |time: &std::time::Duration| time.as_nanos() as u64;
        Self {
            up: Direction::new(profile.up, seed ^ 0xA5A5),
            down: Direction::new(profile.down, seed ^ 0x5A_5A5A),
            nat: Nat::new(profile.rebind_tcp),
            outages: profile.outages.iter().map(|(from, to)| (nanos(from), nanos(to))).collect(),
            rebinds: profile.rebinds.iter().map(nanos).collect(),
            began: None,
            asked: Vec::new(),
            is_cut: false,
            flying: BinaryHeap::new(),
            number: 0,
        }
    }

    /// Takes a packet that `from` sent at `now`. Anything but IPv4 is not carried, nor counted.
    pub fn take(&mut self, from: Side, packet: &mut [u8], now: u64) {
        if !nat::is_ipv4(packet) {
            return;
        }
        if from == Side::Client {
            self.began.get_or_insert(now);
        }
        let since = self.began.map(|began| now.saturating_sub(began));
        let moves = since.map_or(0, |since| self.rebinds.iter().filter(|at| **at <= since).count());
        self.nat.moved(u8::try_from(moves).unwrap_or(u8::MAX));
        let passes = match from {
            Side::Client => self.nat.up(packet),
            Side::Server => self.nat.down(packet),
        };
        let size = packet.len() as u64;
        if !passes {
            let stats = self.stats_from(from);
            stats.sent_packets += 1;
            stats.sent_bytes += size;
            stats.stale_packets += 1;
            return;
        }
        if let Some(passage) = self.admit(from, size, now) {
            self.number += 1;
            let Passage { departs, arrives } = passage;
            let flying = Flying { arrives, number: self.number, departs, to: from.other(), bytes: packet.to_vec() };
            self.flying.push(Reverse(flying));
        }
    }

    fn admit(&mut self, from: Side, size: u64, now: u64) -> Option<Passage> {
        let Self { began, outages, asked, is_cut, .. } = self;
        let is_out = |at: u64| {
            let since = began.map(|began| at.saturating_sub(began));
            let planned = since.is_some_and(|since| within(outages, since));
            *is_cut || planned || within(asked, at)
        };
        match from {
            Side::Client => self.up.admit(now, size, is_out),
            Side::Server => self.down.admit(now, size, is_out),
        }
    }

    /// The next packet that has arrived by `now`, and where.
    pub fn arrived(&mut self, now: u64) -> Option<(Side, Vec<u8>)> {
        if self.flying.peek()?.0.arrives > now {
            return None;
        }
        self.flying.pop().map(|Reverse(packet)| (packet.to, packet.bytes))
    }

    /// When the next packet arrives.
    #[must_use]
    pub fn next_arrival(&self) -> Option<u64> {
        self.flying.peek().map(|Reverse(packet)| packet.arrives)
    }

    /// A packet of `size` bytes was handed over to `to`, or its device refused it.
    pub const fn handed_over(&mut self, to: Side, size: u64, taken: bool) {
        let stats = self.stats_from(to.other());
        if taken {
            stats.delivered_packets += 1;
            stats.delivered_bytes += size;
        } else {
            stats.refused_packets += 1;
        }
    }

    /// Nothing goes on the air from `from` until `to`; what waits in a queue then is lost.
    pub fn outage(&mut self, from: u64, to: u64) {
        self.asked.push((from, to));
        self.lose(|packet| (from..to).contains(&packet.departs));
    }

    /// Nothing passes from now on; what is on its way is lost.
    pub fn cut(&mut self) {
        self.is_cut = true;
        self.lose(|_| true);
    }

    /// After [`Self::cut`].
    pub const fn mend(&mut self) {
        self.is_cut = false;
    }

    fn lose(&mut self, is_lost: impl Fn(&Flying) -> bool) {
        let packets = std::mem::take(&mut self.flying).into_vec();
        let (lost, kept): (Vec<_>, Vec<_>) = packets.into_iter().partition(|Reverse(packet)| is_lost(packet));
        self.flying = kept.into();
        for Reverse(packet) in lost {
            let stats = self.stats_from(packet.to.other());
            stats.outage_packets += 1;
            stats.outage_bytes += packet.bytes.len() as u64;
        }
    }

    /// What happened so far.
    #[must_use]
    pub const fn stats(&self) -> LinkStats {
        LinkStats { up: self.up.stats, down: self.down.stats }
    }

    const fn stats_from(&mut self, from: Side) -> &mut Stats {
        match from {
            Side::Client => &mut self.up.stats,
            Side::Server => &mut self.down.stats,
        }
    }
}

fn within(spans: &[(u64, u64)], at: u64) -> bool {
    spans.iter().any(|(from, to)| (*from..*to).contains(&at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CLIENT, SERVER};

    const MS: u64 = 1_000_000;

    fn packet(from: Side, size: usize) -> Vec<u8> {
        let mut packet = vec![0; size];
        packet[0] = 0x45;
        let (source, destination) = if from == Side::Client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&destination.octets());
        packet
    }

    fn link(name: &str, seed: u64) -> Emulator {
        Emulator::new(&Profile::named(name).unwrap(), seed)
    }

    /// Sends a packet each millisecond; returns the numbers of those that came, with times.
    fn run(link: &mut Emulator, from: Side, packets: u64) -> Vec<(u64, Side)> {
        for n in 0..packets {
            link.take(from, &mut packet(from, 100), n * MS);
        }
        let mut came = Vec::new();
        while let Some(at) = link.next_arrival() {
            let (to, bytes) = link.arrived(at).unwrap();
            link.handed_over(to, bytes.len() as u64, true);
            came.push((at, to));
        }
        came
    }

    #[test]
    fn packets_cross_in_both_directions_after_half_a_round_trip() {
        let mut link = link("handover", 1);
        link.take(Side::Client, &mut packet(Side::Client, 100), 0);
        link.take(Side::Server, &mut packet(Side::Server, 100), 0);
        assert!(link.arrived(75 * MS - 1).is_none());
        assert_eq!(link.arrived(75 * MS).unwrap().0, Side::Server);
        assert_eq!(link.arrived(75 * MS).unwrap().0, Side::Client);
        assert_eq!(link.next_arrival(), None);
    }

    #[test]
    fn a_seed_decides_what_is_lost() {
        let came = |seed| run(&mut link("lossy", seed), Side::Client, 2000);
        assert_eq!(came(1), came(1));
        assert_ne!(came(1), came(2));
        let mut lossy = link("lossy", 1);
        let share = run(&mut lossy, Side::Client, 2000).len() as f64 / 2000.0;
        assert!((share - 0.85).abs() < 0.03, "{share}");
        let up = lossy.stats().up;
        assert_eq!(up.sent_packets, up.delivered_packets + up.lost_packets);
        assert_eq!(lossy.stats().down.sent_packets, 0);
    }

    #[test]
    fn events_count_from_the_clients_first_packet() {
        let mut link = link("handover", 1);
        let began = 9_000 * MS;
        link.take(Side::Server, &mut packet(Side::Server, 100), 0);
        for at in [0, 2_499, 2_500, 6_499, 6_500] {
            link.take(Side::Client, &mut packet(Side::Client, 100), began + at * MS);
        }
        let up = link.stats().up;
        assert_eq!((up.sent_packets, up.outage_packets), (5, 2));
        // The server still answers to the address that is gone.
        link.take(Side::Server, &mut packet(Side::Server, 100), began + 6_500 * MS);
        assert_eq!(link.stats().down.stale_packets, 1);
    }

    #[test]
    fn an_outage_that_is_asked_for_takes_what_waits_in_the_queue() {
        let mut link = link("edge2g", 1);
        for _ in 0..20 {
            link.take(Side::Client, &mut packet(Side::Client, 1000), 0);
        }
        let before = link.stats().up;
        assert_eq!(before.outage_packets, 0);
        link.outage(MS, 60_000 * MS);
        let after = link.stats().up;
        assert!(after.outage_packets >= 10, "{after:?}");
        assert!(link.next_arrival().is_some(), "what was on the air arrives");
        link.take(Side::Client, &mut packet(Side::Client, 1000), 60_000 * MS);
        assert_eq!(link.stats().up.outage_packets, after.outage_packets);
    }

    #[test]
    fn a_cut_link_carries_nothing_until_it_is_mended() {
        let mut link = link("clean", 1);
        link.take(Side::Client, &mut packet(Side::Client, 100), 0);
        link.cut();
        link.take(Side::Client, &mut packet(Side::Client, 100), 0);
        assert_eq!(link.next_arrival(), None);
        assert_eq!(link.stats().up.outage_packets, 2);
        link.mend();
        link.take(Side::Client, &mut packet(Side::Client, 100), 5);
        assert_eq!(link.next_arrival(), Some(5));
    }

    #[test]
    fn what_is_no_ipv4_is_not_carried() {
        let mut link = link("clean", 1);
        link.take(Side::Client, &mut [0x60; 60], 0);
        link.take(Side::Client, &mut [], 0);
        assert_eq!((link.next_arrival(), link.stats()), (None, LinkStats::default()));
    }
}
