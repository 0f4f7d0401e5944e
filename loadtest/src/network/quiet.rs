//! A recording that has nothing to send for a long time: what its signs of life cost, and whether
//! contacts hear that it is silent while it is not.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;
use waystation_netlab::Profile;
use waystation_proto::Variant;
use waystation_proto::frame::{self, Decoder, kind};
use waystation_proto::message::{CaptureEvent, CaptureWord, Sign};

use super::handset::Handset;
use super::output::{Line, median, percentile};
use super::phone::Recorded;
use super::site::Site;
use super::survival::{SOUND_S, live};
use super::{Args, bars};
use crate::Failure;

/// Seconds of quiet.
const SECONDS: u64 = 600;
/// Sound before it, in seconds.
const SOUND: u64 = 6;
/// From then on bytes are counted: all that was recorded is confirmed by then.
const COUNTED_FROM: Duration = Duration::from_secs(40);
/// This long before the end the counting stops.
const COUNTED_TO: Duration = Duration::from_secs(5);
/// From the beginning of an outage to that of the next, where they were asked for.
const AWAY_EVERY: Duration = Duration::from_secs(40);
/// Signs of life are counted for so long.
const EACH_S: f64 = 5.0;

const BROKEN: Failure = Failure::Wire("the contact was let go");

/// What a contact heard.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    silent: u64,
    /// The longest quiet that it was told of, in seconds.
    longest_s: u64,
    /// How often it was told of one.
    signs: u64,
}

struct Run {
    heard: Heard,
    bytes: f64,
}

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let bytes: Vec<_> = runs.iter().map(|run| Some(run.bytes)).collect();
    let most = percentile(&bytes, 100);
    let silent = runs.iter().map(|run| run.heard.silent).sum();
    let line = Line::default()
        .word("scenario", "quiet")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .figure("median_per_5s", median(&bytes))
        .figure("bytes_per_5s", most)
        .bar("bytes_bar", most, Some(bars::SIGN_BYTES))
        .count("false_silent", silent)
        .count("signs", runs.iter().map(|run| run.heard.signs).sum())
        .count("longest_s", runs.iter().map(|run| run.heard.longest_s).max().unwrap_or_default());
    Ok(line.failing(silent > 0))
}

async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<Run, Failure> {
    let seconds = args.seconds.unwrap_or(SECONDS).max(COUNTED_FROM.as_secs() + 10);
    let [sound, ..] = live(SOUND);
    // It is cut at the end, and keeps the recording open until then.
    let end = Recorded { variant: Variant::LocationContext, bytes: 100, every_ms: seconds * 1000, from: 0, to: 1 };
    let lanes = [sound, end];
    let site =
        Site::start(args.setup(&moving(profile, args.moves, seconds), seed), &lanes.map(|lane| lane.variant)).await?;
    let limit = Duration::from_secs_f64(seconds as f64 + SOUND_S) + Duration::from_secs(60);
    let mut phone = Handset::start(&site, &site.plan(&lanes, limit)).await?;
    let contact = contact(&site).await?;
    let counted = Duration::from_secs(seconds) - COUNTED_FROM - COUNTED_TO;
    let sent = || site.link.stats().up.sent_bytes;
    phone.until(COUNTED_FROM, |_| false).await?;
    let before = sent();
    tokio::select! {
        ended = phone.until(counted, |_| false) => drop(ended?),
        () = outages(&site, Duration::from_secs(args.away)) => {}
    }
    let bytes = (sent() - before) as f64 / counted.as_secs_f64() * EACH_S;
    let heard = contact.heard.borrow().ok_or(BROKEN)?;
    phone.kill().await?;
    Ok(Run { heard, bytes })
}

/// The same link, which gives the phone another address every so many seconds from when bytes are counted on.
fn moving(profile: &Profile, every: Option<u64>, seconds: u64) -> Profile {
    let Some(every) = every else { return profile.clone() };
    let from = COUNTED_FROM.as_secs();
    let rebinds = (from..seconds).step_by(every as usize).map(Duration::from_secs).collect();
    Profile { rebinds, ..profile.clone() }
}

/// Lets nothing pass again and again. Does not end.
async fn outages(site: &Site, length: Duration) {
    let mut every = tokio::time::interval_at(tokio::time::Instant::now() + AWAY_EVERY, AWAY_EVERY);
    loop {
        every.tick().await;
        site.link.outage(length);
    }
}

struct Contact {
    /// None: it was let go.
    heard: tokio::sync::watch::Receiver<Option<Heard>>,
    _task: AbortOnDropHandle<()>,
}

/// One that watches at the server's end, where no link is between it and the relay.
async fn contact(site: &Site) -> Result<Contact, Failure> {
    let (at, token): (SocketAddr, String) = site.watching()?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(site.connect(at)?)).await.map_err(|_| BROKEN)?;
    tokio::spawn(connection);
    let request = Request::get("/watch")
        .header(header::HOST, at.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())
        .map_err(|_| BROKEN)?;
    let answer = sender.send_request(request).await.map_err(|_| BROKEN)?;
    if !answer.status().is_success() {
        return Err(BROKEN);
    }
    let (tell, heard) = tokio::sync::watch::channel(Some(Heard::default()));
    let task = tokio::spawn(async move {
        // The connection lives as long as this task.
        let (_sender, mut body) = (sender, answer.into_body());
        let (mut decoder, mut heard) = (Decoder::default(), Heard::default());
        while let Some(Ok(frame)) = body.frame().await {
            decoder.push(frame.data_ref().map_or(&[], |data| data));
            while let Ok(Some(frame)) = decoder.next_frame() {
                hear(&frame, &mut heard);
                tell.send_replace(Some(heard));
            }
        }
        tell.send_replace(None);
    });
    Ok(Contact { heard, _task: AbortOnDropHandle::new(task) })
}

fn hear(frame: &frame::Frame, heard: &mut Heard) {
    match frame.kind {
        kind::CAPTURE => {
            if let Ok(CaptureEvent { event: CaptureWord::Silent, last_sign, .. }) = frame::control(frame) {
                heard.silent += 1;
                heard.longest_s = heard.longest_s.max(last_sign);
            }
        }
        kind::SIGN => {
            if let Ok(Sign { last_sign }) = frame::control(frame) {
                heard.signs += u64::from(last_sign > 0);
                heard.longest_s = heard.longest_s.max(last_sign);
            }
        }
        _ => {}
    }
}
