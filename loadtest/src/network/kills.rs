//! Relay and phone are killed at random while chunks are on their way: nothing is lost or altered,
//! and little is sent twice.

use std::time::Duration;

use tokio::time::Instant;
use waystation_netlab::Profile;
use waystation_netlab::rng::Rng;
use waystation_proto::Variant;

use super::handset::Handset;
use super::output::Line;
use super::phone::Recorded;
use super::site::Site;
use super::{Args, bars};
use crate::Failure;

const LANE: Variant = Variant::EvidenceMaster;
const CHUNK_BYTES: u64 = 128 * 1024;
/// Between two kills, in seconds.
const SHORTEST_S: f64 = 1.0;
const LONGEST_S: f64 = 4.0;
/// Beside ten times what the bytes take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Run {
    kills: u64,
    phones: u64,
    /// Bytes of bodies and messages that relays received, over all their lives.
    received: u64,
    payload: u64,
    wire: u64,
    lost: u64,
}

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>();
    let (kills, lost) = (sum(|run| run.kills), sum(|run| run.lost));
    let again = sum(|run| run.received).saturating_sub(sum(|run| run.payload)) as f64 / kills.max(1) as f64;
    let line = Line::default()
        .word("scenario", "kills")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .count("kills", kills)
        .count("phone_kills", sum(|run| run.phones))
        .count("payload_bytes", sum(|run| run.payload))
        .count("wire_bytes", sum(|run| run.wire))
        .figure("again_bytes_per_kill", again)
        .bar("again_bar", Some(again), Some(bars::again_bytes(profile)))
        .count("lost", lost);
    Ok(line.failing(lost > 0))
}

async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<Run, Failure> {
    let mut rng = Rng::new(seed);
    // Enough to be busy until the last kill.
    let carried = profile.up.rate * (1.0 - profile.up.loss.share()) / 8.0;
    let bytes = carried * args.kills as f64 * (SHORTEST_S + LONGEST_S) / 2.0;
    let chunks = ((bytes / CHUNK_BYTES as f64) as u64).clamp(10, 4000);
    let every_ms = (CHUNK_BYTES as f64 / carried * 1000.0) as u64;
    let lanes = [Recorded { variant: LANE, bytes: CHUNK_BYTES as usize, every_ms, from: 0, to: chunks }];
    let mut site = Site::start(args.setup(profile, seed), &[LANE]).await?;
    let payload = chunks * CHUNK_BYTES;
    let limit = Duration::from_secs_f64(10.0 * bars::floor_s(profile, payload)) + PATIENCE;
    let mut plan = site.plan(&lanes, limit);
    plan.keep = Some(site.file("phone"));
    let mut phone = Handset::start(&site, &plan).await?;
    let (mut received, mut phones) = (0, 0);
    for kill in 0..args.kills {
        let pause = Duration::from_secs_f64(SHORTEST_S + rng.fraction() * (LONGEST_S - SHORTEST_S));
        let next = Instant::now() + pause;
        phone.until(pause, |_| false).await?;
        // A phone that has brought everything, or failed, is gone before its time.
        tokio::time::sleep_until(next).await;
        if kill % 2 == 1 {
            phone = phone.again(&site, &mut plan).await?;
            phones += 1;
        } else {
            received += site.received().await?;
            site.kill_relay().await?;
            site.start_relay().await?;
        }
    }
    // It ends by itself when all is confirmed.
    phone.until(limit, |_| false).await?;
    let wire = site.link.stats().up.sent_bytes;
    received += site.received().await?;
    let held = site.held(&lanes).await?;
    phone.kill().await?;
    let lost = held.missing(chunks);
    Ok(Run { kills: args.kills, phones, received, payload, wire, lost })
}
