//! Contacts in trouble beside a hundred healthy ones, who shall not notice: a link of 48 kbit/s, one that
//! stops reading, one that connects anew every second. The recording has sound of 24 kbit/s and a picture
//! of 150 kbit/s, in chunks of two seconds.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use waystation_client::session::Session;
use waystation_proto::message::Omitted;
use waystation_proto::{Media, Variant};

use super::contact::Contact;
use super::follower::{Follower, Published, key};
use super::uploader::{Pace, Uploader};
use super::{Args, Transport, connect, limits};
use crate::Failure;
use crate::chunks::Maker;
use crate::link::Reading;
use crate::rig::{Cores, Rig, Setup};

/// Bytes of two seconds of sound and of a picture.
const AUDIO_BYTES: usize = 6_000;
const VIDEO_BYTES: usize = 37_500;
/// Chunks a second.
const RATE: f64 = 0.5;
/// Bytes a second of the thin link.
const THIN: u32 = 6_000;
/// How often the restless one connects.
const RESTLESS: Duration = Duration::from_secs(1);
/// The thin link has brought what waits for it within this after the last chunk: a picture that has begun, sound
/// beside it, and the newest picture.
const AFTER: Duration = Duration::from_secs(30);
/// The worst delays of the healthy may differ by this much, or by this factor, and it is none: in
/// milliseconds. A timer is no finer.
const ALIKE: (f64, f64) = (5.0, 1.5);
/// What those in trouble may cost the relay in memory, in megabytes.
const MEMORY: f64 = 4.0;

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    scenario: &'static str,
    contacts: u16,
    /// Of a chunk to the healthy ones: alone, and beside those in trouble.
    p50_ms: [f64; 2],
    p99_ms: [f64; 2],
    /// Deliveries to healthy ones that are missing.
    lost: u64,
    thin: Thin,
    /// Memory of the relay before anybody was in trouble, and at the end.
    rss_mb: [f64; 2],
    /// How often the restless one was accepted.
    connected_anew: u64,
}

/// What the contact at 48 kbit/s got.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Thin {
    audio_sent: u64,
    audio_whole: u64,
    video_sent: u64,
    video_whole: u64,
    /// Left out, and named.
    video_omitted: u64,
    /// Neither: only the one on its way at the end may be.
    video_untold: u64,
}

impl Found {
    fn good(&self) -> bool {
        let [alone, beside] = self.p99_ms;
        let alike = beside <= (alone * ALIKE.1).max(alone + ALIKE.0);
        let heard = self.thin.audio_whole == self.thin.audio_sent && self.thin.video_untold <= 1;
        alike && self.lost == 0 && heard && self.rss_mb[1] <= self.rss_mb[0] + MEMORY
    }
}

/// Runs it and says what it found: 1 if the healthy noticed, or the thin one missed sound or a word.
pub(super) async fn main(args: Args) -> ExitCode {
    use std::io::Write as _;
    let (text, good) = match run(&args).await {
        Ok(found) => (serde_json::to_string(&found).unwrap_or_default(), found.good()),
        Err(failure) => (failure.to_string(), false),
    };
    let _ = writeln!(std::io::stdout().lock(), "{text}");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(args: &Args) -> Result<Found, Failure> {
    if args.transport != Transport::Wss {
        return Err(Failure::Wire("links are made thin over wss alone"));
    }
    let core = if args.unpinned { None } else { Cores::left() };
    let rig = Rig::start(&Setup { directory: args.directory.clone(), toml: limits(args), core }).await?;
    let session = rig.session(&[Variant::AudioPriority, Variant::LivePreview]).await?;
    let published = Arc::new(Published::default());
    let stop = CancellationToken::new();
    let mut watching = JoinSet::new();
    for contact in connect(args, &rig, &session, &published).await? {
        watching.spawn(contact.run(stop.clone()));
    }
    let mut recording = Recording::connect(&rig, &session, &published).await?;
    let time = Duration::from_secs(args.seconds) / 2;
    let first = recording.run(time).await?;
    let before = rig.usage()?;
    let one = |reading| Contact::connect(&rig, (args.transport, reading), &session, Arc::clone(&published), true);
    let thin = tokio::spawn(one(Reading::Late).await?.run_slowly(THIN, stop.clone()));
    let still = tokio::spawn(one(Reading::Late).await?.stand_still(stop.clone()));
    let ended = CancellationToken::new();
    let restless = async {
        let mut times = 0;
        while !ended.is_cancelled() {
            // Who is refused comes again.
            if let Ok(contact) = one(Reading::Ahead).await {
                times += 1;
                let left = CancellationToken::new();
                let _ = tokio::time::timeout(RESTLESS, contact.run(left)).await;
            }
        }
        times
    };
    let recorded = async {
        let second = recording.run(time).await;
        ended.cancel();
        second
    };
    let (second, connected_anew) = tokio::join!(recorded, restless);
    let second = second?;
    tokio::time::sleep(AFTER).await;
    let after = rig.usage()?;
    stop.cancel();
    let thin = thin.await.map_err(|_| Failure::Wire("a contact panicked"))?;
    still.await.map_err(|_| Failure::Wire("a contact panicked"))?;
    let mut deliveries = Vec::new();
    while let Some(ended) = watching.join_next().await {
        deliveries.extend(ended.map_err(|_| Failure::Wire("a contact panicked"))?);
    }
    let delays = [first, second].map(|chunks| Delays::of(&published, &deliveries, chunks));
    let expected = 2 * (second.1 - first.0) * u64::from(args.contacts);
    let megabytes = |bytes: u64| (bytes as f64 / 1e4).round() / 100.0;
    Ok(Found {
        scenario: "troubled",
        contacts: args.contacts,
        p50_ms: [delays[0].at(50), delays[1].at(50)],
        p99_ms: [delays[0].at(99), delays[1].at(99)],
        lost: expected.saturating_sub(deliveries.len() as u64),
        thin: Thin::of(&session, &thin, second),
        rss_mb: [megabytes(before.rss), megabytes(after.rss)],
        connected_anew,
    })
}

/// Both lanes.
struct Recording {
    audio: Uploader,
    video: Uploader,
}

impl Recording {
    async fn connect(rig: &Rig, session: &Session, published: &Arc<Published>) -> Result<Self, Failure> {
        let audio = Maker::of(session, 0, AUDIO_BYTES)?;
        let video = Maker::of(session, 1, VIDEO_BYTES)?;
        Ok(Self {
            audio: Uploader::of(rig, audio, session, Arc::clone(published), 0).await?,
            video: Uploader::of(rig, video, session, Arc::clone(published), 0).await?,
        })
    }

    /// Returns the indexes of what was recorded, which are alike for both.
    async fn run(&mut self, time: Duration) -> Result<(u64, u64), Failure> {
        let chunks = u32::try_from((time.as_secs_f64() * RATE) as u64).ok();
        let pace = Pace { rate: RATE, time, chunks };
        let (audio, video) = tokio::join!(self.audio.run(pace), self.video.run(pace));
        tokio::time::sleep(Duration::from_secs(1)).await;
        audio.and(video)
    }
}

/// Sorted.
struct Delays(Vec<Duration>);

impl Delays {
    fn of(published: &Published, deliveries: &[(u64, Instant)], chunks: (u64, u64)) -> Self {
        let here = deliveries.iter().filter(|(key, _)| (chunks.0..chunks.1).contains(&(key / 2)));
        let took = here.map(|(key, at)| at.saturating_duration_since(published.sent_at(*key).unwrap_or(*at)));
        let mut all: Vec<_> = took.collect();
        all.sort_unstable();
        Self(all)
    }

    fn at(&self, percent: usize) -> f64 {
        crate::report::percentile(&self.0, percent)
    }
}

impl Thin {
    fn of(session: &Session, follower: &Follower, chunks: (u64, u64)) -> Self {
        let of =
            |media: Media| session.streams.iter().find(|stream| stream.media == media).map(|stream| &stream.stream);
        let whole = |media, index| follower.delivered().iter().any(|(found, _)| *found == key(media, index));
        let named = |omitted: &Omitted, index| {
            Some(&omitted.stream) == of(Media::Video) && (omitted.from..=omitted.to).contains(&index)
        };
        let mut thin = Self { audio_sent: chunks.1 - chunks.0, video_sent: chunks.1 - chunks.0, ..Self::default() };
        for index in chunks.0..chunks.1 {
            thin.audio_whole += u64::from(whole(Media::Audio, index));
            if whole(Media::Video, index) {
                thin.video_whole += 1;
            } else if follower.omitted().iter().any(|omitted| named(omitted, index)) {
                thin.video_omitted += 1;
            } else {
                thin.video_untold += 1;
            }
        }
        thin
    }
}
