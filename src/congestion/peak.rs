//! The best delivery rate of the last rounds.

use std::collections::VecDeque;

/// Bytes a second.
pub(super) type Rate = f64;

/// A maximum over a sliding number of rounds. Holds at most one rate for each of them.
#[derive(Clone, Debug)]
pub(super) struct Peak {
    /// Round and rate; rates fall from front to back.
    best: VecDeque<(u64, Rate)>,
    rounds: u64,
}

impl Peak {
    /// A maximum over `rounds` rounds.
    pub(super) fn over(rounds: u64) -> Self {
        Self { best: VecDeque::new(), rounds }
    }

    /// The best rate; 0 before the first.
    pub(super) fn get(&self) -> Rate {
        self.best.front().map_or(0.0, |&(_, rate)| rate)
    }

    /// A rate seen in a round. Rounds never go back.
    pub(super) fn note(&mut self, round: u64, rate: Rate) {
        while self.best.back().is_some_and(|&(_, known)| known <= rate) {
            self.best.pop_back();
        }
        match self.best.back_mut() {
            Some((known, _)) if *known == round => {}
            _ => self.best.push_back((round, rate)),
        }
    }

    /// Forgets what is too old at `round`; the newest always stays.
    pub(super) fn expire(&mut self, round: u64) {
        while self.best.len() > 1 && self.best.front().is_some_and(|&(seen, _)| seen + self.rounds < round) {
            self.best.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_maximum_of_the_last_rounds(rates in prop::collection::vec(1u32..1000, 1..60)) {
            let mut peak = Peak::over(10);
            for (round, &rate) in rates.iter().enumerate() {
                peak.note(round as u64, rate.into());
                peak.expire(round as u64);
                let from = round.saturating_sub(10);
                let expected = rates[from..=round].iter().max().copied().unwrap_or(0);
                prop_assert_eq!(peak.get(), Rate::from(expected));
                prop_assert!(peak.best.len() <= 11);
            }
        }
    }
}
