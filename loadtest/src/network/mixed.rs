//! Sound beside a long master chunk that is being sent: how late is each piece of it.

use std::time::Duration;

use waystation_netlab::Profile;
use waystation_proto::Variant;

use super::handset::Handset;
use super::output::{Line, percentile};
use super::phone::Recorded;
use super::site::Site;
use super::survival::{SOUND_S, live};
use super::{Args, bars};
use crate::Failure;

/// Seconds of sound.
const SECONDS: u64 = 120;
/// Bytes of the long chunk.
const LONG: usize = 5 << 20;
/// After the last cut nothing may be later than this.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let delays: Vec<Option<f64>> = runs.iter().flatten().copied().collect();
    let longest = percentile(&delays, 100);
    let line = Line::default()
        .word("scenario", "mixed")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .count("chunks", delays.len() as u64)
        .figure("delay_p50_s", percentile(&delays, 50))
        .figure("delay_p95_s", percentile(&delays, 95))
        .figure("delay_max_s", longest)
        .bar("delay_bar", longest, bars::mixed_s(profile))
        .count("lost", delays.iter().filter(|delay| delay.is_none()).count() as u64)
        .all("all_delays_s", &delays);
    Ok(line.failing(delays.contains(&None)))
}

/// Seconds from when each chunk of sound was cut to when it was whole at the relay.
async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<Vec<Option<f64>>, Failure> {
    let [sound, ..] = live(args.seconds.unwrap_or(SECONDS));
    let long = Recorded { variant: Variant::EvidenceMaster, bytes: LONG, every_ms: 0, from: 0, to: 1 };
    let lanes = [long, sound];
    let site = Site::start(args.setup(profile, seed), &lanes.map(|lane| lane.variant)).await?;
    let limit = Duration::from_secs_f64(sound.to as f64 * SOUND_S) + PATIENCE;
    let mut phone = Handset::start(&site, &site.plan(&lanes, limit)).await?;
    phone.until(limit, |phone| phone.all_confirmed_ms(sound.variant, sound.to).is_some()).await?;
    phone.kill().await?;
    let (commits, held) = (site.commits().await?, site.held(&lanes).await?);
    let delay = |seq| {
        let key = (sound.variant, seq);
        let (cut_ms, commit) = (phone.cut_ms.get(&key)?, commits.get(&key)?);
        held.equal.contains(&key).then(|| (commit.arrived_ms - cut_ms) / 1000.0)
    };
    Ok((0..sound.to).map(delay).collect())
}
