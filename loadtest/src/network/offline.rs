//! A recording made without any network; then the network comes.

use std::time::Duration;

use waystation_netlab::Profile;

use super::handset::Handset;
use super::output::Line;
use super::phone::unix_ms;
use super::site::Site;
use super::survival::live;
use super::{Args, bars};
use crate::Failure;

/// Seconds recorded.
const SECONDS: u64 = 300;
/// Beside ten times what the bytes take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let seconds: Vec<_> = runs.iter().map(|run| run.0).collect();
    let lost = runs.iter().map(|run| run.1).sum();
    let line = Line::default()
        .word("scenario", "offline")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .count("recorded_s", args.seconds.unwrap_or(SECONDS))
        .figure("confirmed_s", super::output::median(&seconds))
        .count("lost", lost)
        .all("all_s", &seconds);
    Ok(line.failing(lost > 0 || seconds.contains(&None)))
}

/// Seconds from when the network came to when all was confirmed, and what was lost.
async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<(Option<f64>, u64), Failure> {
    let lanes = live(args.seconds.unwrap_or(SECONDS));
    let wanted: u64 = lanes.iter().map(|lane| lane.to).sum();
    let bytes = lanes.iter().map(|lane| lane.to * lane.bytes as u64).sum();
    let site = Site::start(args.setup(profile, seed), &lanes.map(|lane| lane.variant)).await?;
    site.link.cut();
    let recording = Duration::from_secs(args.seconds.unwrap_or(SECONDS)) + PATIENCE;
    let sending = Duration::from_secs_f64(10.0 * bars::floor_s(profile, bytes)) + PATIENCE;
    let mut plan = site.plan(&lanes, recording + sending);
    plan.keep = Some(site.file("phone"));
    let mut phone = Handset::start(&site, &plan).await?;
    phone.until(recording, |phone| phone.cut_ms.len() as u64 + phone.refused >= wanted).await?;
    phone = phone.again(&site, &mut plan).await?;
    let returned_ms = unix_ms();
    site.link.mend();
    phone.until(sending, |phone| phone.confirmed_ms.len() as u64 >= wanted).await?;
    let last = phone.confirmed_ms.values().copied().reduce(f64::max);
    let held = site.held(&lanes).await?;
    phone.kill().await?;
    let lost = held.lost(&phone.confirmed_ms, wanted);
    Ok((last.filter(|_| lost == 0).map(|last| (last - returned_ms) / 1000.0), lost))
}
