//! A NAT that gives the client another address and other ports: packets are rewritten on their way,
//! checksums included.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use crate::CLIENT;
use crate::profile::RebindTcp;

/// Shortest IPv4 header.
const HEADER: usize = 20;
/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Last byte of the address before the first one the NAT gives.
const FIRST: u8 = 100;
/// Ports below are left as they are.
const RESERVED: u32 = 1024;
/// Ports that are mapped.
const PORTS: u32 = 65536 - RESERVED;
/// How far ports move with each new address.
const STEP: u32 = 7777;

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// What the NAT knows.
#[derive(Debug)]
pub struct Nat {
    rebind_tcp: RebindTcp,
    /// How often the client has got another address.
    addresses: u8,
    /// TCP ports whose flow began under the present address.
    fresh: HashSet<u16>,
}

impl Nat {
    /// With the client under its own address.
    #[must_use]
    pub fn new(rebind_tcp: RebindTcp) -> Self {
        Self { rebind_tcp, addresses: 0, fresh: HashSet::new() }
    }

    /// The client has had `addresses` other addresses by now.
    pub fn moved(&mut self, addresses: u8) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.fresh.clear();
        }
    }

    /// Rewrites a packet of the client. False: the NAT swallows it.
    pub fn up(&mut self, packet: &mut [u8]) -> bool {
        if self.addresses == 0 || address(packet, End::Source) != CLIENT {
            return true;
        }
        if self.rebind_tcp == RebindTcp::Drop && !self.knows(packet) {
            return false;
        }
        let given = given(self.addresses);
        let port = port(packet, End::Source).map(|port| moved(port, self.addresses));
        rewrite(packet, End::Source, given, port);
        true
    }

    /// Rewrites a packet of the server. False: it is for an address that is gone.
    pub fn down(&self, packet: &mut [u8]) -> bool {
        let to = address(packet, End::Destination);
        if self.addresses == 0 {
            return to == CLIENT;
        }
        if to != given(self.addresses) {
            return false;
        }
        let port = port(packet, End::Destination).map(|port| moved_back(port, self.addresses));
        rewrite(packet, End::Destination, CLIENT, port);
        true
    }

    /// TCP only where its first packet came by under the present address.
    fn knows(&mut self, packet: &[u8]) -> bool {
        let at = header_length(packet);
        if packet[9] != TCP || packet.len() < at + HEADER {
            return true;
        }
        let from = word(packet, at);
        let is_first = packet[at + 13] & 0x12 == 0x02;
        if is_first {
            self.fresh.insert(from);
        }
        self.fresh.contains(&from)
    }
}

/// Whether these bytes are an IPv4 packet with a whole header.
#[must_use]
pub fn is_ipv4(packet: &[u8]) -> bool {
    packet.len() >= HEADER && packet[0] >> 4 == 4 && (HEADER..=packet.len()).contains(&header_length(packet))
}

fn given(addresses: u8) -> Ipv4Addr {
    let [a, b, c, _] = CLIENT.octets();
    Ipv4Addr::new(a, b, c, FIRST.saturating_add(addresses))
}

fn moved(port: u16, addresses: u8) -> u16 {
    shifted(port, STEP * u32::from(addresses) % PORTS)
}

fn moved_back(port: u16, addresses: u8) -> u16 {
    shifted(port, PORTS - STEP * u32::from(addresses) % PORTS)
}

fn shifted(port: u16, by: u32) -> u16 {
    match u32::from(port).checked_sub(RESERVED) {
        // Below 65536 by construction.
        Some(above) => ((above + by) % PORTS + RESERVED) as u16,
        None => port,
    }
}

fn header_length(packet: &[u8]) -> usize {
    usize::from(packet[0] & 15) * 4
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn set_word(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

const fn address_at(end: End) -> usize {
    match end {
        End::Source => 12,
        End::Destination => 16,
    }
}

fn address(packet: &[u8], end: End) -> Ipv4Addr {
    let at = address_at(end);
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

/// Where a port stands; none in a later fragment, and in what has no ports.
fn port_at(packet: &[u8], end: End) -> Option<usize> {
    let (at, is_first) = (header_length(packet), word(packet, 6) & 0x1fff == 0);
    let has_ports = is_first && matches!(packet[9], TCP | UDP) && packet.len() >= at + 4;
    has_ports.then_some(if end == End::Source { at } else { at + 2 })
}

fn port(packet: &[u8], end: End) -> Option<u16> {
    port_at(packet, end).map(|at| word(packet, at))
}

/// Where the checksum over addresses and ports stands; none if it is not used.
fn checksum_at(packet: &[u8]) -> Option<usize> {
    let at = header_length(packet);
    if word(packet, 6) & 0x1fff != 0 {
        return None;
    }
    match packet[9] {
        TCP if packet.len() >= at + HEADER => Some(at + 16),
        UDP if packet.len() >= at + 8 && word(packet, at + 6) != 0 => Some(at + 6),
        _ => None,
    }
}

/// Puts another address, and another port, into a packet of [`is_ipv4`].
pub fn rewrite(packet: &mut [u8], end: End, to: Ipv4Addr, port: Option<u16>) {
    let checksum = checksum_at(packet);
    let (at, [a, b, c, d]) = (address_at(end), to.octets());
    for (at, value) in [(at, u16::from_be_bytes([a, b])), (at + 2, u16::from_be_bytes([c, d]))] {
        let before = word(packet, at);
        amend(packet, 10, before, value);
        if let Some(checksum) = checksum {
            amend(packet, checksum, before, value);
        }
        set_word(packet, at, value);
    }
    if let (Some(at), Some(value)) = (port_at(packet, end), port) {
        if let Some(checksum) = checksum {
            amend(packet, checksum, word(packet, at), value);
        }
        set_word(packet, at, value);
    }
    // In UDP a zero says that there is no checksum.
    if let Some(checksum) = checksum.filter(|at| packet[9] == UDP && word(packet, *at) == 0) {
        set_word(packet, checksum, 0xffff);
    }
}

/// RFC 1624: the checksum at `at`, after a word it covers went from `before` to `after`.
fn amend(packet: &mut [u8], at: usize, before: u16, after: u16) {
    let mut sum = u32::from(!word(packet, at)) + u32::from(!before) + u32::from(after);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    set_word(packet, at, !(sum as u16));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SERVER;

    fn sum(words: impl Iterator<Item = u16>) -> u16 {
        let mut sum: u32 = words.map(u32::from).sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
        bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
    }

    /// The sum over pseudo header and transport; all ones if its checksum is right.
    fn transport_sum(packet: &[u8]) -> u16 {
        let at = header_length(packet);
        let length = (packet.len() - at) as u16;
        sum(words(&packet[12..20]).chain([u16::from(packet[9]), length]).chain(words(&packet[at..])))
    }

    fn packet(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
        let header = if protocol == TCP { 20 } else { 8 };
        let mut p = vec![0; 20 + header];
        p[0] = 0x45;
        p[8] = 64;
        p[9] = protocol;
        p[12..16].copy_from_slice(&from.0.octets());
        p[16..20].copy_from_slice(&to.0.octets());
        set_word(&mut p, 20, from.1);
        set_word(&mut p, 22, to.1);
        if protocol == TCP {
            p[32] = 0x50;
            p[33] = 0x10;
        }
        p.extend_from_slice(payload);
        let (length, rest) = (p.len() as u16, (p.len() - 20) as u16);
        set_word(&mut p, 2, length);
        if protocol == UDP {
            set_word(&mut p, 24, rest);
        }
        let ip = !sum(words(&p[..20]));
        set_word(&mut p, 10, ip);
        let at = if protocol == TCP { 36 } else { 26 };
        let transport = !transport_sum(&p);
        set_word(&mut p, at, if protocol == UDP && transport == 0 { 0xffff } else { transport });
        p
    }

    fn is_right(p: &[u8]) -> bool {
        sum(words(&p[..20])) == 0xffff && transport_sum(p) == 0xffff
    }

    fn tcp(flags: u8, port: u16) -> Vec<u8> {
        let mut p = packet(TCP, (CLIENT, port), (SERVER, 443), b"x");
        p[33] = flags;
        p
    }

    proptest! {
        #[test]
        fn checksums_are_right_after_there_and_back(
            is_tcp: bool, port: u16, payload in prop::collection::vec(any::<u8>(), 0..64), addresses in 1u8..20,
        ) {
            let protocol = if is_tcp { TCP } else { UDP };
            let original = packet(protocol, (CLIENT, port), (SERVER, 443), &payload);
            prop_assert!(is_ipv4(&original) && is_right(&original));
            let mut nat = Nat::new(RebindTcp::Reset);
            nat.moved(addresses);
            let mut up = original.clone();
            prop_assert!(nat.up(&mut up));
            prop_assert!(is_right(&up));
            prop_assert_eq!(address(&up, End::Source).octets()[3], 100 + addresses);
            prop_assert_eq!(word(&up, 20) == port, port < 1024);
            let seen = (address(&up, End::Source), word(&up, 20));
            let mut down = packet(protocol, (SERVER, 443), seen, &payload);
            prop_assert!(nat.down(&mut down));
            prop_assert!(is_right(&down));
            prop_assert_eq!((address(&down, End::Destination), word(&down, 22)), (CLIENT, port));
        }
    }

    #[test]
    fn an_address_that_is_gone_gets_nothing() {
        let mut nat = Nat::new(RebindTcp::Reset);
        let to = |address| packet(UDP, (SERVER, 443), (address, 5000), b"late");
        assert!(nat.down(&mut to(CLIENT)));
        nat.moved(1);
        assert!(!nat.down(&mut to(CLIENT)));
        assert!(nat.down(&mut to(given(1))));
        nat.moved(2);
        assert!(!nat.down(&mut to(given(1))));
    }

    #[test]
    fn a_silent_nat_swallows_old_tcp_flows_and_lets_new_ones_pass() {
        let (ack, syn) = (0x10, 0x02);
        let mut nat = Nat::new(RebindTcp::Drop);
        assert!(nat.up(&mut tcp(ack, 5000)), "before the address changed");
        nat.moved(1);
        assert!(!nat.up(&mut tcp(ack, 5000)));
        assert!(nat.up(&mut tcp(syn, 5001)) && nat.up(&mut tcp(ack, 5001)));
        assert!(nat.up(&mut packet(UDP, (CLIENT, 5000), (SERVER, 443), b"quic")), "UDP is mapped anew");
        nat.moved(2);
        assert!(!nat.up(&mut tcp(ack, 5001)), "a flow of the address before");
    }

    #[test]
    fn a_packet_cut_short_is_left_in_peace() {
        for length in 0..40 {
            let mut short = tcp(0x10, 5000);
            short.truncate(length);
            if is_ipv4(&short) {
                let mut nat = Nat::new(RebindTcp::Drop);
                nat.moved(1);
                nat.up(&mut short);
                nat.down(&mut short);
            }
        }
        assert!(!is_ipv4(&[0x60; 40]) && !is_ipv4(&[0x4f; 40]));
    }
}
