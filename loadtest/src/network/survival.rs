//! A live recording from a cold start; the phone is destroyed at a random instant, and its link
//! with it. What was recorded and is not at the relay by then is gone.

use std::time::Duration;

use waystation_netlab::Profile;
use waystation_netlab::rng::Rng;
use waystation_proto::Variant;

use super::handset::Handset;
use super::output::{Line, percentile};
use super::phone::{Recorded, unix_ms};
use super::site::Site;
use super::{Args, bars};
use crate::Failure;

/// The phone lives at least so long, in seconds.
const SHORTEST_S: f64 = 5.0;
/// And at most so long.
const LONGEST_S: u64 = 120;
/// Recorded seconds of a chunk of sound.
pub(super) const SOUND_S: f64 = 2.0;

/// What one seed gave, in seconds.
struct Run {
    /// When the phone was destroyed, after its recording began.
    kill_s: f64,
    /// Sound that is gone with it.
    gone_s: f64,
    /// From when the first chunk of sound was recorded to when it was at the relay.
    first_s: Option<f64>,
    /// Chunks that the relay had said to hold and the core has not, or has otherwise.
    lost: u64,
}

/// Sound, picture and master as a phone records them, `seconds` of each.
pub(super) fn live(seconds: u64) -> [Recorded; 3] {
    let lane = |variant, kbit_s: usize, every_s: u64| Recorded {
        variant,
        bytes: kbit_s * 125 * every_s as usize,
        every_ms: every_s * 1000,
        from: 0,
        to: seconds / every_s,
    };
    [lane(Variant::AudioPriority, 24, 2), lane(Variant::LivePreview, 150, 2), lane(Variant::EvidenceMaster, 2000, 5)]
}

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let gone: Vec<_> = runs.iter().map(|run| Some(run.gone_s)).collect();
    // A phone that was destroyed before its first chunk could have come says nothing of that.
    let bar = bars::first_sound_s(profile);
    let judged = runs.iter().filter(|run| run.first_s.is_some() || run.kill_s > SOUND_S + bar);
    let first: Vec<_> = judged.map(|run| run.first_s).collect();
    let (p95, slowest) = (percentile(&gone, 95), percentile(&first, 100));
    let lost = runs.iter().map(|run| run.lost).sum();
    let line = Line::default()
        .word("scenario", "survival")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .count("seeds", runs.len() as u64)
        .figure("gone_p50_s", percentile(&gone, 50))
        .figure("gone_p95_s", p95)
        .bar("gone_bar", p95, Some(bars::survival_s(profile)))
        .figure("first_p50_s", percentile(&first, 50))
        .figure("first_max_s", slowest)
        .bar("first_bar", slowest, Some(bar))
        .count("lost", lost)
        .all("all_gone_s", &gone)
        .all("all_first_s", &first)
        .all("all_kill_s", &runs.iter().map(|run| Some(run.kill_s)).collect::<Vec<_>>());
    Ok(line.failing(lost > 0))
}

async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<Run, Failure> {
    let longest = args.seconds.unwrap_or(LONGEST_S);
    let kill_s = SHORTEST_S + Rng::new(seed).fraction() * (longest as f64 - SHORTEST_S);
    let lanes = live(longest + 10);
    let site = Site::start(args.setup(profile, seed), &lanes.map(|lane| lane.variant)).await?;
    let mut phone = Handset::start(&site, &site.plan(&lanes, Duration::ZERO)).await?;
    phone.until(Duration::from_secs_f64(kill_s), |_| false).await?;
    if phone.gone {
        return Err(Failure::Wire("a phone ended before it was destroyed"));
    }
    let killed_ms = unix_ms();
    site.link.cut();
    phone.kill().await?;
    // What it said before it died.
    while phone.next().await?.is_some() {}
    site.forwarded().await?;
    let (commits, held) = (site.commits().await?, site.held(&lanes).await?);
    let sound = |seq| commits.get(&(Variant::AudioPriority, seq)).map(|commit| commit.arrived_ms);
    let at_relay = (0..lanes[0].to).filter(|seq| sound(*seq).is_some_and(|at_ms| at_ms <= killed_ms)).count();
    let recorded_s = (killed_ms - phone.began_ms) / 1000.0;
    let missing = phone.held_ms.keys().filter(|key| !held.equal.contains(key)).count() as u64;
    Ok(Run {
        kill_s: recorded_s,
        gone_s: recorded_s - at_relay as f64 * SOUND_S,
        first_s: sound(0).map(|at_ms| (at_ms - phone.began_ms) / 1000.0 - SOUND_S),
        lost: missing + held.other + site.ended_badly().await?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_have_the_rates_that_phones_have() {
        let [sound, picture, master] = live(120);
        assert_eq!((sound.bytes, picture.bytes, master.bytes), (6_000, 37_500, 1_250_000));
        assert_eq!((sound.to, picture.to, master.to), (60, 60, 24));
    }
}
