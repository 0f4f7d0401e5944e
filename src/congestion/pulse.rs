//! Whether a path is alive, seen from its acknowledgements; and when to poke it. Pure.
//!
//! During an outage QUIC's own probes come ever more rarely, twice as long apart each time. What
//! is sent every 0.1 to 0.3 s finds the path again soon after its return, also where packets are lost one after the
//! other.

use std::time::Duration;

/// Nothing is acknowledged for this long, and twice the round trip: the path is poked.
const QUIET: Duration = Duration::from_millis(300);
/// So many pokes come soon after each other, [`SOON`] apart: a burst of losses is over after a
/// few packets, whenever they are sent.
const MANY: u32 = 5;
const SOON: Duration = Duration::from_millis(200);
/// Those after them, for a link that is away: three eighths of a round trip apart, but no less and no more than this. A
/// burst of losses swallows so many packets, however small they are; where the way is long more of them would only fill
/// its queue. Whoever looks every 0.1 s shall not find it a moment too early.
const LATER: (Duration, Duration) = (Duration::from_millis(90), Duration::from_millis(300));
/// All others only ask but one in this time: bytes that are sent in vain are paid for.
const BYTES: Duration = Duration::from_millis(590);
/// Where only a sign of life is owed QUIC's own probes bring it soon enough, unless they come ever more rarely:
/// it is asked after so much silence, or three round trips, and again.
const SIGN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(1500));
/// What a path has been good for, and so how long its silence is borne before it is given up for
/// another, unless it is heard first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owes {
    /// It was never heard: what was sent goes with the handshake, or on another network, on trust.
    Trust,
    /// Bytes of chunks.
    Bytes,
    /// A sign of life: a new handshake costs more than it would bring.
    Sign,
}

impl Owes {
    /// Some round trips are always borne.
    fn patience(self, rtt: Duration) -> Duration {
        match self {
            // No round trip is known where requests go with the handshake.
            Self::Trust if rtt.is_zero() => Duration::from_secs(1),
            Self::Trust => Duration::from_millis(500).max(3 * rtt),
            Self::Bytes => Duration::from_secs(2).max(6 * rtt),
            Self::Sign => Duration::from_secs(6).max(6 * rtt),
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// All is well, or it is too early to say.
    Rest,
    /// Send a packet of bytes, though the window is full.
    Poke,
    /// Send something small that asks for an acknowledgement, though the window is full.
    Ask,
    /// The same, and look for another way.
    Stalls,
    /// What stalled goes on.
    Flows,
}

/// The pulse of one path.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    /// Silence at which the next poke is due.
    due: Option<Duration>,
    pokes: u32,
    /// Silence at which bytes went last.
    bytes: Duration,
    stalled: bool,
}

impl Pulse {
    /// Nothing comes through.
    pub const fn stalls(&self) -> bool {
        self.stalled
    }

    /// `silence`: how long nothing was acknowledged; none while nothing is owed. `rtt`: the round
    /// trip of late.
    pub fn look(&mut self, silence: Option<Duration>, rtt: Duration, owes: Owes) -> Beat {
        let Some(silence) = silence.filter(|silence| *silence > QUIET.max(2 * rtt)) else {
            return if std::mem::take(self).stalled { Beat::Flows } else { Beat::Rest };
        };
        if !self.stalled && silence > owes.patience(rtt) {
            self.stalled = true;
            return Beat::Stalls;
        }
        if owes == Owes::Sign {
            let due = self.due.unwrap_or_else(|| SIGN.0.max(3 * rtt));
            self.due = Some(if silence < due { due } else { silence + SIGN.1 });
            return if silence < due { Beat::Rest } else { Beat::Ask };
        }
        if self.due.is_some_and(|due| silence < due) {
            return Beat::Rest;
        }
        self.pokes += 1;
        self.due = Some(silence + if self.pokes < MANY { SOON } else { (rtt * 3 / 8).clamp(LATER.0, LATER.1) });
        if self.pokes > MANY && silence < self.bytes + BYTES {
            return Beat::Ask;
        }
        self.bytes = silence;
        Beat::Poke
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pulse: &mut Pulse, ms: u64) -> Beat {
        pulse.look(Some(Duration::from_millis(ms)), Duration::from_millis(100), Owes::Bytes)
    }

    #[test]
    fn a_sign_of_life_is_borne_longer_and_trust_less() {
        for (owes, patience) in [(Owes::Trust, 500), (Owes::Bytes, 2000), (Owes::Sign, 6000)] {
            let mut pulse = Pulse::default();
            let mut look = |ms| pulse.look(Some(Duration::from_millis(ms)), Duration::from_millis(100), owes);
            let beats: Vec<Beat> = (4..=patience / 100).map(|n| look(n * 100)).collect();
            assert!(!beats.contains(&Beat::Stalls), "{owes:?}");
            assert_eq!(beats.contains(&Beat::Poke), owes != Owes::Sign, "{owes:?}");
            assert_eq!(beats.iter().filter(|beat| **beat == Beat::Ask).count() == 3, owes == Owes::Sign, "{owes:?}");
            assert_eq!(look(patience + 100), Beat::Stalls, "{owes:?}");
        }
    }

    #[test]
    fn a_quiet_path_is_poked_again_and_again_and_stalls_once() {
        let mut pulse = Pulse::default();
        let beats: Vec<(u64, Beat)> =
            (0..60).map(|n| (n * 100, at(&mut pulse, n * 100))).filter(|(_, beat)| *beat != Beat::Rest).collect();
        let at_ms = |which| beats.iter().filter(|(_, beat)| *beat == which).map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(at_ms(Beat::Poke), [400, 600, 800, 1000, 1200, 1800, 2400, 3000, 3600, 4200, 4800, 5400]);
        // Between them it is asked at every look, but for the one that stalls.
        let asked = at_ms(Beat::Ask);
        assert_eq!(asked[..9], [1300, 1400, 1500, 1600, 1700, 1900, 2000, 2200, 2300]);
        assert!(asked.windows(2).all(|two| two[1] - two[0] <= 200), "{asked:?}");
        assert_eq!(beats.iter().filter(|(_, beat)| *beat == Beat::Stalls).count(), 1);
        assert_eq!(at(&mut pulse, 0), Beat::Flows);
        assert_eq!(at(&mut pulse, 0), Beat::Rest);
    }

    #[test]
    fn a_long_way_is_asked_less_often() {
        let (mut pulse, rtt) = (Pulse::default(), Duration::from_millis(800));
        let mut look = |n: u64| pulse.look(Some(Duration::from_millis(n * 100)), rtt, Owes::Bytes);
        let beats: Vec<(u64, Beat)> = (25..48).map(|n| (n, look(n))).filter(|(_, beat)| *beat != Beat::Rest).collect();
        use Beat::{Ask, Poke};
        assert_eq!(beats[4..], [(33, Poke), (36, Ask), (39, Poke), (42, Ask), (45, Poke)]);
        let (mut pulse, rtt) = (Pulse::default(), Duration::from_secs(2));
        let mut look = |n: u64| pulse.look(Some(Duration::from_millis(n * 100)), rtt, Owes::Bytes);
        let asked: Vec<u64> = (60..90).filter(|n| look(*n) == Ask).collect();
        assert!(asked.windows(2).all(|two| two[1] - two[0] == 6), "never less often than every 0.3 s: {asked:?}");
    }

    #[test]
    fn nothing_owed_is_no_silence_and_a_long_way_takes_longer() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.look(None, Duration::ZERO, Owes::Bytes), Beat::Rest);
        assert_eq!(pulse.look(Some(Duration::from_millis(1400)), Duration::from_millis(700), Owes::Bytes), Beat::Rest);
        assert_eq!(pulse.look(Some(Duration::from_millis(1401)), Duration::from_millis(700), Owes::Bytes), Beat::Poke);
    }
}
