//! What a link is like: numbers by name.

use std::time::Duration;

use crate::Error;

/// Smallest queue that is derived from a time.
const MIN_QUEUE: u64 = 16_000;
/// Queue of a direction without a rate: nothing waits there.
const UNLIMITED_QUEUE: u64 = 16 << 20;

/// How much may wait for its turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Queue {
    /// So many bytes.
    Bytes(u64),
    /// As much as the link carries in this time, and at least 16,000 bytes.
    Time(Duration),
}

/// Which packets are lost on the air.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Each with this probability.
    Random(f64),
    /// Gilbert-Elliott: this share, in bursts of this mean length.
    Bursts {
        /// Of all packets, below 1.
        share: f64,
        /// Mean length of a burst.
        packets: f64,
    },
    /// The same in time: everything is lost for a while.
    Fades {
        /// Of the time, below 1.
        share: f64,
        /// Mean length of a fade.
        seconds: f64,
    },
}

impl Loss {
    /// Lost packets of all.
    #[must_use]
    pub const fn share(self) -> f64 {
        match self {
            Self::Random(share) | Self::Bursts { share, .. } | Self::Fades { share, .. } => share,
        }
    }
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lane {
    /// Bits a second; 0: no limit.
    pub rate: f64,
    /// Depth of the token bucket, in bytes.
    pub burst: f64,
    /// What may wait.
    pub queue: Queue,
    /// One way.
    pub delay: Duration,
    /// Delay differs by up to half of this either way; order is kept.
    pub jitter: Duration,
    /// What is lost.
    pub loss: Loss,
}

impl Lane {
    /// Bytes that may wait.
    #[must_use]
    pub fn queue_bytes(&self) -> u64 {
        match self.queue {
            Queue::Bytes(bytes) => bytes,
            Queue::Time(time) if self.rate > 0.0 => ((self.rate / 8.0 * time.as_secs_f64()) as u64).max(MIN_QUEUE),
            Queue::Time(_) => UNLIMITED_QUEUE,
        }
    }
}

/// What the NAT does with TCP after the client's address has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RebindTcp {
    /// It lets old flows through under the new address, so that the server resets them.
    #[default]
    Reset,
    /// It swallows old flows without a word, as real ones do.
    Drop,
}

/// A link. Times of events count from the client's first packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// From the client to the server.
    pub up: Lane,
    /// From the server to the client.
    pub down: Lane,
    /// From when until when nothing passes.
    pub outages: Vec<(Duration, Duration)>,
    /// When the client gets another address and other ports.
    pub rebinds: Vec<Duration>,
    /// What happens to TCP then.
    pub rebind_tcp: RebindTcp,
}

/// Names of those that bars are set for.
pub const MEASURED: [&str; 7] = ["good4g", "poor3g", "edge2g", "lossy", "burst", "handover", "congested"];
/// Names of all.
pub const ALL: [&str; 9] =
    ["good4g", "poor3g", "edge2g", "lossy", "burst", "handover", "congested", "burst_t", "clean"];

impl Profile {
    /// Finds one by name.
    ///
    /// # Errors
    /// [`Error::Profile`]
    pub fn named(name: &str) -> Result<Self, Error> {
        let name = ALL.into_iter().find(|known| *known == name).ok_or_else(|| Error::Profile(name.to_owned()))?;
        // Bits a second up and down, round trip and jitter in milliseconds, loss each way.
        let (up, down, rtt_ms, jitter_ms, loss) = match name {
            "good4g" => (10e6, 20e6, 50, 0, Loss::Random(0.001)),
            "poor3g" => (256e3, 750e3, 300, 50, Loss::Random(0.02)),
            "edge2g" => (100e3, 200e3, 700, 150, Loss::Random(0.05)),
            "lossy" => (2e6, 2e6, 200, 0, Loss::Random(0.15)),
            "burst" => (1e6, 1e6, 150, 0, Loss::Bursts { share: 0.08, packets: 5.0 }),
            "burst_t" => (1e6, 1e6, 150, 0, Loss::Fades { share: 0.08, seconds: 0.3 }),
            "handover" => (2e6, 2e6, 150, 0, Loss::Random(0.0)),
            "congested" => (1e6, 1e6, 80, 0, Loss::Random(0.0)),
            _ => (0.0, 0.0, 0, 0, Loss::Random(0.0)),
        };
        let queue = Queue::Time(Duration::from_millis(if name == "congested" { 2000 } else { 500 }));
        let lane = |rate| Lane {
            rate,
            burst: 3000.0,
            queue,
            delay: Duration::from_micros(rtt_ms * 500),
            jitter: Duration::from_millis(jitter_ms),
            loss,
        };
        let events = name == "handover";
        let (leaves, returns) = (Duration::from_millis(2500), Duration::from_millis(6500));
        Ok(Self {
            name,
            up: lane(up),
            down: lane(down),
            outages: if events { vec![(leaves, returns)] } else { Vec::new() },
            rebinds: if events { vec![returns] } else { Vec::new() },
            rebind_tcp: RebindTcp::Reset,
        })
    }

    /// Both delays together, without jitter.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.up.delay + self.down.delay
    }

    /// How long nothing passes, all outages together.
    #[must_use]
    pub fn outage(&self) -> Duration {
        self.outages.iter().map(|(from, to)| to.saturating_sub(*from)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_profile() {
        for name in ALL {
            assert_eq!(Profile::named(name).unwrap().name, name);
        }
        assert!(MEASURED.iter().all(|name| ALL.contains(name)));
        assert!(matches!(Profile::named("fibre"), Err(Error::Profile(_))));
    }

    #[test]
    fn queues_follow_the_rate() {
        let bytes = |name| Profile::named(name).unwrap().up.queue_bytes();
        assert_eq!(bytes("good4g"), 625_000);
        assert_eq!(bytes("congested"), 250_000);
        assert_eq!(bytes("edge2g"), MIN_QUEUE, "500 ms of it would be 6,250 bytes");
        assert_eq!(bytes("clean"), UNLIMITED_QUEUE);
    }

    #[test]
    fn the_handover_takes_four_seconds_and_gives_another_address() {
        let handover = Profile::named("handover").unwrap();
        assert_eq!((handover.outage(), handover.rtt()), (Duration::from_secs(4), Duration::from_millis(150)));
        assert_eq!(handover.rebinds, [Duration::from_millis(6500)]);
    }
}
