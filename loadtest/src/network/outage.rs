//! Nothing passes for 20 s in the middle of an upload: how long after that bytes come again.

use std::time::Duration;

use tokio::time::Instant;
use waystation_netlab::Profile;
use waystation_proto::Variant;

use super::handset::Handset;
use super::output::{Line, median, percentile};
use super::phone::Recorded;
use super::site::Site;
use super::{Args, bars};
use crate::Failure;

const LANE: Variant = Variant::EvidenceMaster;
const CHUNK_BYTES: usize = 128 * 1024;
/// The upload takes about so long without an outage.
const UPLOAD_S: f64 = 40.0;
/// When the outage begins, and how long it lasts.
const BEGINS: Duration = Duration::from_secs(8);
const LASTS: Duration = Duration::from_secs(20);
/// Before its end the relay is asked what it has; nothing can have come since.
const LOOK_BEFORE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// After the return a byte must come within this, and all within ten times as long again.
const PATIENCE: Duration = Duration::from_secs(60);

struct Run {
    /// From the link's return to the first new byte at the relay.
    return_s: Option<f64>,
    lost: u64,
}

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let returns: Vec<_> = runs.iter().map(|run| run.return_s).collect();
    let (middle, longest) = (median(&returns), percentile(&returns, 100));
    let lost = runs.iter().map(|run| run.lost).sum();
    let line = Line::default()
        .word("scenario", "outage")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .figure("return_p50_s", middle)
        .figure("return_max_s", longest)
        .bar("return_bar", longest, Some(bars::return_s(args.transport)))
        .count("lost", lost)
        .all("all_returns_s", &returns);
    Ok(line.failing(lost > 0 || returns.contains(&None)))
}

async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<Run, Failure> {
    // The profile's own outages would be taken for this one.
    let profile = Profile { outages: Vec::new(), rebinds: Vec::new(), ..profile.clone() };
    let chunks = ((profile.up.rate * UPLOAD_S / 8.0 / CHUNK_BYTES as f64) as u64).clamp(3, 400);
    let lanes = [Recorded { variant: LANE, bytes: CHUNK_BYTES, every_ms: 0, from: 0, to: chunks }];
    let site = Site::start(args.setup(&profile, seed), &[LANE]).await?;
    let whole = bars::floor_s(&profile, chunks * CHUNK_BYTES as u64);
    let limit = Duration::from_secs_f64(whole * 10.0) + LASTS + PATIENCE;
    let mut phone = Handset::start(&site, &site.plan(&lanes, limit)).await?;
    let all = |phone: &Handset| phone.all_confirmed_ms(LANE, chunks).is_some();
    let (ended, return_s) = tokio::join!(phone.until(limit, all), watch(&site, chunks));
    let (ended, return_s) = (ended?, return_s?);
    phone.kill().await?;
    let held = site.held(&lanes).await?;
    Ok(Run { return_s, lost: held.lost(&phone.confirmed_ms, chunks) + u64::from(!ended) })
}

/// Makes the outage; returns the seconds from its end to the first new byte of a chunk.
async fn watch(site: &Site, chunks: u64) -> Result<Option<f64>, Failure> {
    tokio::time::sleep(BEGINS).await;
    let returns = Instant::now() + LASTS;
    site.link.outage(LASTS);
    tokio::time::sleep_until(returns - LOOK_BEFORE).await;
    let mut offsets = site.offsets(LANE, chunks).await?;
    let before = offsets.sum().await?;
    tokio::time::sleep_until(returns).await;
    while returns.elapsed() < PATIENCE {
        if offsets.sum().await? > before {
            return Ok(Some(returns.elapsed().as_secs_f64()));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(None)
}
