//! Ten chunks of 128 KiB, all there at the start.

use std::path::Path;
use std::time::Duration;

use waystation_netlab::Profile;
use waystation_proto::Variant;

use super::handset::Handset;
use super::output::{Line, median, percentile};
use super::phone::Recorded;
use super::plot::{self, Curve, Over, Panel, Way};
use super::site::Site;
use super::transport::Transport;
use super::{Args, Rebind, bars};
use crate::Failure;

/// The lane. Any would do: the link is theirs alone.
const LANE: Variant = Variant::EvidenceMaster;
const CHUNKS: u64 = 10;
const CHUNK_BYTES: u64 = 128 * 1024;
/// All of them.
const PAYLOAD: u64 = CHUNKS * CHUNK_BYTES;
/// Between two looks at how much the relay has, where a plot is wanted.
const SAMPLE: Duration = Duration::from_millis(100);

/// What one seed gave. Times are seconds from when the phone began, before it connected.
struct Run {
    seed: u64,
    /// Until the phone knew all confirmed.
    seconds: Option<f64>,
    /// Until all were whole at the relay.
    held_s: Option<f64>,
    /// Until the phone knew the first one confirmed.
    chunk1_s: Option<f64>,
    wire_ratio: f64,
    lost: u64,
    curve: Curve,
    way: Way,
}

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let floor = bars::floor_s(profile, PAYLOAD);
    if let Some(dir) = &args.plots {
        draw(dir, profile, args, &runs, floor)?;
    }
    let all = |figure: fn(&Run) -> Option<f64>| runs.iter().map(figure).collect::<Vec<_>>();
    let seconds = all(|run| run.seconds);
    let (middle, chunk1) = (median(&seconds), median(&all(|run| run.chunk1_s)));
    let ratio = middle.filter(|_| floor > 0.0).map(|middle| middle / floor);
    let wire = median(&all(|run| Some(run.wire_ratio)));
    let lost = runs.iter().map(|run| run.lost).sum();
    let dropped = args.rebind_tcp == Rebind::Drop;
    let line = Line::default()
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .figure("median_s", middle)
        .figure("floor_s", floor)
        .figure("ratio", ratio)
        .bar("ratio_bar", ratio, bars::bulk(profile, args.transport, dropped))
        .figure("chunk1_s", chunk1)
        .bar("chunk1_bar", chunk1, bars::first_chunk_s(profile, args.transport, CHUNK_BYTES))
        .figure("wire_ratio", wire)
        .bar("wire_bar", wire, bars::wire_ratio(profile, args.transport))
        .count("lost", lost)
        .figure("p95_s", percentile(&seconds, 95))
        .figure("held_s", median(&all(|run| run.held_s)))
        .all("all_s", &seconds);
    let line = if dropped { line.word("rebind_tcp", "drop") } else { line };
    Ok(line.failing(lost > 0 || seconds.contains(&None)))
}

/// Bytes at the relay; and where the phone knows its path, what it knew of it.
fn draw(dir: &Path, profile: &Profile, args: &Args, runs: &[Run], floor_s: f64) -> Result<(), Failure> {
    let name = format!("{} over {}", profile.name, args.transport.as_str());
    let panel = |title: &str, unit, figure: fn(&Run) -> &Curve, dashed| {
        let curves = runs.iter().map(|run| (run.seed, figure(run))).collect();
        Panel { title: format!("{name}: {title}"), unit, curves, dashed }
    };
    let floor = [(0.0, 0.0), (floor_s, PAYLOAD as f64)];
    let bytes = panel("bytes at the relay; dashed: the floor", ("kB", 1000.0), |run| &run.curve, floor);
    plot::write(dir, &name, Over::Seconds, &[bytes])?;
    if !matches!(args.transport, Transport::H3) {
        return Ok(());
    }
    let longest = runs.iter().filter_map(|run| run.seconds).fold(floor_s, f64::max);
    let level = |value: f64| [(0.0, value), (longest, value)];
    let (rate, rtt) = (profile.up.rate / 8.0, profile.rtt().as_secs_f64() * 1000.0);
    let loss = profile.up.loss.share() * 1000.0;
    let panels = [
        panel("rate; dashed: the link's", ("kB/s", 1000.0), |run| &run.way.rate, level(rate)),
        panel("round trip; dashed: the link's without a queue", ("ms", 1.0), |run| &run.way.rtt_ms, level(rtt)),
        panel("loss; dashed: the link's", ("%", 10.0), |run| &run.way.loss_permille, level(loss)),
    ];
    plot::write(dir, &format!("{name} path"), Over::Seconds, &panels)
}

async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<Run, Failure> {
    let site = Site::start(args.setup(profile, seed), &[LANE]).await?;
    let lanes = [Recorded { variant: LANE, bytes: CHUNK_BYTES as usize, every_ms: 0, from: 0, to: CHUNKS }];
    let limit = Duration::from_secs_f64(10.0 * bars::floor_s(profile, PAYLOAD) + 60.0);
    let mut phone = Handset::start(&site, &site.plan(&lanes, limit)).await?;
    let began_ms = phone.began_ms;
    let mut curve = Curve::default();
    let all_confirmed = |phone: &Handset| phone.all_confirmed_ms(LANE, CHUNKS).is_some();
    tokio::select! {
        ended = phone.until(limit, all_confirmed) => drop(ended?),
        failed = follow(&site, began_ms, &mut curve), if args.plots.is_some() => return Err(failed),
    }
    // Before the phone says goodbye.
    let wire = site.link.stats().up.sent_bytes;
    let (confirmed_ms, chunk1_ms) = (phone.all_confirmed_ms(LANE, CHUNKS), phone.all_confirmed_ms(LANE, 1));
    let (told, way) = (phone.confirmed_ms.clone(), std::mem::take(&mut phone.way));
    match confirmed_ms {
        Some(_) => phone.leave().await,
        None => phone.kill().await?,
    }
    let (commits, held) = (site.commits().await?, site.held(&lanes).await?);
    let since = |at_ms: f64| (at_ms - began_ms) / 1000.0;
    let at_relay = (0..CHUNKS).map(|seq| commits.get(&(LANE, seq)).map(|commit| commit.arrived_ms));
    let at_relay = at_relay.collect::<Option<Vec<f64>>>().and_then(|times| times.into_iter().reduce(f64::max));
    if let Some(seconds) = confirmed_ms.map(since) {
        curve.end(seconds, PAYLOAD as f64);
    }
    Ok(Run {
        seed,
        seconds: confirmed_ms.map(since),
        held_s: at_relay.map(since),
        chunk1_s: chunk1_ms.map(since),
        wire_ratio: wire as f64 / PAYLOAD as f64,
        lost: held.lost(&told, CHUNKS),
        curve,
        way,
    })
}

/// Looks again and again how much the relay has. Ends only when it can't be asked.
async fn follow(site: &Site, began_ms: f64, curve: &mut Curve) -> Failure {
    loop {
        match site.received().await {
            Ok(bytes) => curve.add((super::phone::unix_ms() - began_ms) / 1000.0, bytes as f64),
            Err(failure) => return failure,
        }
        tokio::time::sleep(SAMPLE).await;
    }
}
