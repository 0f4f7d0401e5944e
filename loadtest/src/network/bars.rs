//! The floor that arithmetic sets, and the bars above it. Pure.

use waystation_netlab::Profile;

use super::transport::Transport;

/// What headers cost at least.
const HEADERS: f64 = 1.04;
/// The same, as far as the bar for wire bytes allows.
const WIRE_HEADERS: f64 = 1.05;
/// Handshakes, acknowledgements and repairs beside that.
const WIRE_MORE: f64 = 0.03;
/// What an outage may cost on top.
const WIRE_OUTAGE: f64 = 0.07;

/// What a WebSocket may take longer to bring sound to a contact, in seconds.
const WEBSOCKET_MORE_S: f64 = 2.0;

/// What a relay may hold of a chunk before it writes it down, in bytes.
const WRITE_BUFFER: f64 = 262_144.0;

/// Seconds that `bytes` take upwards if nothing is ever idle or sent in vain.
#[must_use]
pub(super) fn sending_s(profile: &Profile, bytes: u64) -> f64 {
    let carried = profile.up.rate * (1.0 - profile.up.loss.share());
    if carried > 0.0 { HEADERS * bytes as f64 * 8.0 / carried } else { 0.0 }
}

/// The least time in which `bytes` can be known to have arrived.
#[must_use]
pub(super) fn floor_s(profile: &Profile, bytes: u64) -> f64 {
    sending_s(profile, bytes) + profile.outage().as_secs_f64() + profile.rtt().as_secs_f64()
}

/// How many times the floor a bulk upload may take; none where nothing is promised.
#[must_use]
pub(super) fn bulk(profile: &Profile, transport: Transport, tcp_is_dropped: bool) -> Option<f64> {
    match (profile.name, transport) {
        ("good4g", Transport::H3) => Some(1.20),
        ("good4g", Transport::Ws) => Some(1.25),
        ("congested" | "poor3g" | "edge2g", Transport::H3) => Some(1.05),
        ("congested", Transport::Ws) => Some(1.08),
        ("poor3g" | "edge2g", Transport::Ws) => Some(1.10),
        ("lossy", Transport::H3) => Some(1.15),
        ("lossy", Transport::Ws) => Some(1.6),
        ("lossy", Transport::WsCubic) => Some(6.0),
        ("burst", Transport::H3) => Some(1.25),
        ("burst", Transport::Ws) => Some(5.0),
        ("handover", Transport::H3) => Some(1.15),
        ("handover", Transport::Ws) if tcp_is_dropped => Some(1.8),
        ("handover", Transport::Ws) => Some(1.7),
        _ => None,
    }
}

/// Seconds until a first chunk of `bytes` may be confirmed, cold; none where nothing is promised.
#[must_use]
pub(super) fn first_chunk_s(profile: &Profile, transport: Transport, bytes: u64) -> Option<f64> {
    let round_trips = match transport {
        Transport::H3 => 6.0,
        Transport::Ws => 9.0,
        Transport::WsCubic => return None,
    };
    let promised = bulk(profile, transport, false).is_some() && profile.name != "burst";
    promised.then(|| sending_s(profile, bytes) + round_trips * profile.rtt().as_secs_f64())
}

/// Wire bytes for each byte of payload that may be spent; none where nothing is promised.
#[must_use]
pub(super) fn wire_ratio(profile: &Profile, transport: Transport) -> Option<f64> {
    let outage = if profile.outages.is_empty() { 0.0 } else { WIRE_OUTAGE };
    (transport == Transport::H3).then(|| WIRE_HEADERS / (1.0 - profile.up.loss.share()) + WIRE_MORE + outage)
}

/// Seconds of sound that may be gone with the phone, in 95 of 100 cases.
#[must_use]
pub(super) fn survival_s(profile: &Profile) -> f64 {
    match profile.name {
        "edge2g" => 6.0,
        _ => 4.0 + profile.outage().as_secs_f64(),
    }
}

/// Seconds from when the first two seconds of sound are recorded to when they are at the relay.
#[must_use]
pub(super) fn first_sound_s(profile: &Profile) -> f64 {
    if profile.name == "poor3g" { 3.0 } else { 5.0 }
}

/// Seconds from a link's return to the first new byte.
#[must_use]
pub(super) const fn return_s(transport: Transport) -> f64 {
    match transport {
        Transport::H3 => 2.0,
        Transport::Ws | Transport::WsCubic => 4.0,
    }
}

/// Seconds from when sound is cut to when it is at the relay, beside a long chunk; none where
/// nothing is promised.
#[must_use]
pub(super) fn mixed_s(profile: &Profile) -> Option<f64> {
    match profile.name {
        "poor3g" => Some(3.0),
        "edge2g" => Some(5.0),
        _ => None,
    }
}

/// Seconds from when `bytes` of sound are cut to when a contact behind the link has opened them, in 95 of
/// 100 cases: two round trips and what sending them takes; on a WebSocket two seconds more.
#[must_use]
pub(super) fn contact_s(profile: &Profile, transport: Transport, bytes: u64) -> f64 {
    let carried = profile.down.rate * (1.0 - profile.down.loss.share());
    let sending = if carried > 0.0 { HEADERS * bytes as f64 * 8.0 / carried } else { 0.0 };
    let more = if transport == Transport::H3 { 0.0 } else { WEBSOCKET_MORE_S };
    2.0 * profile.rtt().as_secs_f64() + sending + more
}

/// The client's part of a link that one cubic flow fills too.
pub(super) const MOST_BESIDE_CUBIC: f64 = 0.7;
/// The least of it.
pub(super) const LEAST_BESIDE_CUBIC: f64 = 0.15;
/// Wire bytes that signs of life may cost in 5 s.
pub(super) const SIGN_BYTES: f64 = 100.0;

/// Bytes that may be sent again after a kill: those in flight, of which there are about two
/// bandwidth-delay products, and what a relay holds before it writes.
pub(super) fn again_bytes(profile: &Profile) -> f64 {
    2.0 * profile.up.rate / 8.0 * profile.rtt().as_secs_f64() + WRITE_BUFFER
}

#[cfg(test)]
mod tests {
    use waystation_netlab::profile::MEASURED;

    use super::*;

    const BULK: u64 = 10 * 128 * 1024;

    fn named(name: &str) -> Profile {
        Profile::named(name).unwrap()
    }

    #[test]
    fn floors_are_those_of_the_arithmetic() {
        let floor = |name| (floor_s(&named(name), BULK) * 100.0).round() / 100.0;
        assert_eq!(floor("good4g"), 1.14);
        assert_eq!(floor("poor3g"), 43.77);
        assert_eq!(floor("edge2g"), 115.49);
        assert_eq!(floor("lossy"), 6.61);
        assert_eq!(floor("burst"), 12.0);
        assert_eq!(floor("handover"), 9.6);
        assert_eq!(floor("congested"), 10.99);
        assert_eq!(floor("clean"), 0.0);
    }

    #[test]
    fn every_measured_profile_has_its_bars() {
        for profile in MEASURED.map(named) {
            let (h3, ws) = (bulk(&profile, Transport::H3, false), bulk(&profile, Transport::Ws, false));
            assert!(h3.unwrap() >= 1.05 && ws > h3, "{}", profile.name);
        }
        assert_eq!(bulk(&named("handover"), Transport::Ws, true), Some(1.8));
        assert_eq!(bulk(&named("clean"), Transport::H3, false), None);
        assert_eq!(first_chunk_s(&named("burst"), Transport::H3, 131_072), None);
        let lossy = first_chunk_s(&named("lossy"), Transport::H3, 131_072).unwrap();
        assert!((lossy - (0.6415 + 1.2)).abs() < 0.001, "{lossy}");
        let wire = |name| (wire_ratio(&named(name), Transport::H3).unwrap() * 1000.0).round() / 1000.0;
        assert_eq!((wire("lossy"), wire("handover")), (1.265, 1.15));
        assert_eq!(wire_ratio(&named("lossy"), Transport::Ws), None);
        let contact = |transport| (contact_s(&named("lossy"), transport, 6000) * 1000.0).round();
        assert_eq!((contact(Transport::H3), contact(Transport::Ws)), (429.0, 2429.0));
        assert_eq!(again_bytes(&named("lossy")), 100_000.0 + 262_144.0);
        assert_eq!((survival_s(&named("edge2g")), survival_s(&named("handover"))), (6.0, 8.0));
    }
}
