//! Which packets the air loses.

use crate::profile::Loss;
use crate::rng::Rng;

/// Nanoseconds of a second.
const SECOND: f64 = 1e9;

/// A loss model with its state.
#[derive(Debug)]
pub struct Losses {
    model: Loss,
    bad: bool,
    /// Chance of fades, apart from that of packets.
    fades: Rng,
    /// When the state changes next; for fades only.
    flips_at: Option<u64>,
}

impl Losses {
    /// Begins in the good state.
    #[must_use]
    pub const fn new(model: Loss, seed: u64) -> Self {
        Self { model, bad: false, fades: Rng::new(seed), flips_at: None }
    }

    /// Whether the packet that goes on the air at `at` (nanoseconds) is lost. The two draws are the
    /// packet's own; they are made whatever the model is, so that the next packet's do not move.
    pub fn takes(&mut self, at: u64, first: f64, second: f64) -> bool {
        match self.model {
            Loss::Random(share) => first < share,
            Loss::Bursts { share, packets } => {
                let leave = 1.0 / packets;
                let enter = leave * share / (1.0 - share);
                if second < if self.bad { leave } else { enter } {
                    self.bad = !self.bad;
                }
                self.bad
            }
            Loss::Fades { share, seconds } => self.faded(at, share, seconds),
        }
    }

    /// Dead periods of mean length `seconds` make up `share` of the time.
    fn faded(&mut self, at: u64, share: f64, seconds: f64) -> bool {
        let good = seconds * (1.0 - share) / share;
        let mut flips = match self.flips_at {
            Some(flips) => flips,
            None => at.saturating_add((self.fades.exponential(good) * SECOND) as u64),
        };
        while flips <= at {
            self.bad = !self.bad;
            let mean = if self.bad { seconds } else { good };
            flips = flips.saturating_add((self.fades.exponential(mean) * SECOND) as u64 + 1);
        }
        self.flips_at = Some(flips);
        self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(model: Loss, seed: u64, packets: usize, apart: u64) -> Vec<bool> {
        let (mut losses, mut rng) = (Losses::new(model, seed), Rng::new(seed));
        (0..packets).map(|n| losses.takes(n as u64 * apart, rng.fraction(), rng.fraction())).collect()
    }

    fn share(lost: &[bool]) -> f64 {
        lost.iter().filter(|lost| **lost).count() as f64 / lost.len() as f64
    }

    fn mean_burst(lost: &[bool]) -> f64 {
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        lost.iter().filter(|lost| **lost).count() as f64 / bursts as f64
    }

    #[test]
    fn random_loss_meets_its_share_and_has_no_memory() {
        let lost = run(Loss::Random(0.15), 3, 50_000, 1);
        assert!((share(&lost) - 0.15).abs() < 0.01, "{}", share(&lost));
        assert!((mean_burst(&lost) - 1.0 / 0.85).abs() < 0.05, "{}", mean_burst(&lost));
        assert!(run(Loss::Random(0.0), 3, 1000, 1).iter().all(|lost| !lost));
    }

    #[test]
    fn bursts_meet_their_share_and_length() {
        let lost = run(Loss::Bursts { share: 0.08, packets: 5.0 }, 4, 200_000, 1);
        assert!((share(&lost) - 0.08).abs() < 0.01, "{}", share(&lost));
        assert!((mean_burst(&lost) - 5.0).abs() < 0.5, "{}", mean_burst(&lost));
    }

    #[test]
    fn fades_are_measured_in_time_and_not_in_packets() {
        let model = Loss::Fades { share: 0.08, seconds: 0.3 };
        let (often, seldom) = (run(model, 5, 400_000, 5_000_000), run(model, 5, 40_000, 50_000_000));
        assert!((share(&often) - 0.08).abs() < 0.02, "{}", share(&often));
        assert!((share(&seldom) - share(&often)).abs() < 0.02, "{}", share(&seldom));
        // 300 ms at a packet every 5 ms.
        assert!((mean_burst(&often) - 60.0).abs() < 12.0, "{}", mean_burst(&often));
    }

    #[test]
    fn a_seed_decides_every_loss() {
        for model in
            [Loss::Random(0.2), Loss::Bursts { share: 0.1, packets: 3.0 }, Loss::Fades { share: 0.1, seconds: 0.1 }]
        {
            assert_eq!(run(model, 9, 5000, 1_000_000), run(model, 9, 5000, 1_000_000));
            assert_ne!(run(model, 9, 5000, 1_000_000), run(model, 10, 5000, 1_000_000));
        }
    }
}
