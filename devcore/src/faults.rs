//! Faults on request: what a real core, its proxy or the network does on a bad day.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use waystation_proto::Media;

/// Faults that may wait at once.
const MAX_FAULTS: usize = 256;

/// A route that can be told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultRoute {
    /// `POST /v1/relay/preflight`.
    Preflight,
    /// `POST /v1/relay/commit`.
    Commit,
    /// `POST /v1/relay/fanout-authorize`.
    FanoutAuthorize,
    /// `GET /v1/relay/jwks`.
    Jwks,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// Answer with this status and code.
    Refuse {
        /// HTTP status, 400 to 599.
        status: u16,
        /// Error code.
        code: String,
        /// `Retry-After`, seconds.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// Wait before anything else; then go on, or with the next fault.
    Delay {
        /// Milliseconds, at most ten minutes.
        ms: u64,
    },
    /// Close the connection before anything is stored.
    Cut,
    /// Do the work, then close the connection without an answer.
    CutAfterCommit,
    /// Do the work, then answer 2xx with a body that can't be read.
    InvalidResponse,
}

/// A fault, how often, and for what.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Where.
    pub route: FaultRoute,
    /// What.
    #[serde(flatten)]
    pub effect: Effect,
    /// How often; `None`: until cleared.
    #[serde(default)]
    pub times: Option<u32>,
    /// Only for chunks of this media type.
    #[serde(default)]
    pub media: Option<Media>,
    /// Only for this stream.
    #[serde(default)]
    pub stream: Option<String>,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fault").field("route", &self.route).field("effect", &self.effect).finish_non_exhaustive()
    }
}

impl Fault {
    /// A fault that happens at every call of `route` until cleared.
    #[must_use]
    pub const fn new(route: FaultRoute, effect: Effect) -> Self {
        Self { route, effect, times: None, media: None, stream: None }
    }

    /// A refusal with `status` and `code` at every call of `route` until cleared.
    #[must_use]
    pub fn refuse(route: FaultRoute, status: u16, code: &str) -> Self {
        Self::new(route, Effect::Refuse { status, code: code.into(), retry_after_s: None })
    }

    /// Only `times` times.
    #[must_use]
    pub const fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only for this media type.
    #[must_use]
    pub const fn for_media(mut self, media: Media) -> Self {
        self.media = Some(media);
        self
    }

    /// Only for this stream.
    #[must_use]
    pub fn for_stream(mut self, stream: &str) -> Self {
        self.stream = Some(stream.to_owned());
        self
    }

    fn unfiltered(&self) -> bool {
        self.media.is_none() && self.stream.is_none()
    }

    fn fits(&self, subject: Subject<'_>) -> bool {
        let Subject::Chunk { media, stream } = subject else { return self.unfiltered() };
        let media_fits = self.media.is_none_or(|wanted| media == Some(wanted));
        let stream_fits = self.stream.as_deref().is_none_or(|wanted| wanted == stream);
        !self.unfiltered() && media_fits && stream_fits
    }

    pub(crate) fn sound(&self) -> bool {
        match &self.effect {
            Effect::Refuse { status, .. } => (400..=599).contains(status),
            Effect::Delay { ms } => *ms <= 600_000,
            Effect::Cut | Effect::CutAfterCommit | Effect::InvalidResponse => true,
        }
    }
}

/// At which point of a call faults are looked for.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// Before anything is read: faults for every call.
    Any,
    /// The chunk is known: faults for one media type or stream.
    Chunk { media: Option<Media>, stream: &'a str },
}

/// What a call has to do, by the faults that hit it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) delay_ms: u64,
    pub(crate) effect: Option<Effect>,
}

/// The faults of one core.
pub struct Faults {
    waiting: Mutex<Vec<Fault>>,
    /// Spares calls the lock while there are none.
    any: AtomicBool,
    away: watch::Sender<bool>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults").field("away", &*self.away.borrow()).finish_non_exhaustive()
    }
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::default(), any: AtomicBool::new(false), away: watch::Sender::new(false) }
    }

    /// Adds one; beyond 256 the oldest goes.
    pub fn add(&self, fault: Fault) {
        let mut waiting = self.lock();
        if waiting.len() >= MAX_FAULTS {
            waiting.remove(0);
        }
        waiting.push(fault);
        self.any.store(true, Ordering::Release);
    }

    /// Puts these in place of all others; only the first 256 count.
    pub fn set(&self, mut faults: Vec<Fault>) {
        faults.truncate(MAX_FAULTS);
        self.any.store(!faults.is_empty(), Ordering::Release);
        *self.lock() = faults;
    }

    /// Ends all of them; `away` stays as it is.
    pub fn clear(&self) {
        self.set(Vec::new());
    }

    /// While away, connections are cut as they come and those there are cut at once; the port stays bound.
    pub fn set_away(&self, away: bool) {
        self.away.send_replace(away);
    }

    /// The faults that still wait.
    #[must_use]
    pub fn waiting(&self) -> Vec<Fault> {
        self.lock().clone()
    }

    pub(crate) fn away(&self) -> watch::Receiver<bool> {
        self.away.subscribe()
    }

    /// Every delay that fits, and the first other effect that fits; each is counted down.
    pub(crate) fn take(&self, route: FaultRoute, subject: Subject<'_>) -> Hit {
        let mut hit = Hit::default();
        if !self.any.load(Ordering::Acquire) {
            return hit;
        }
        let mut waiting = self.lock();
        waiting.retain_mut(|fault| {
            if fault.route != route || !fault.fits(subject) || fault.times == Some(0) {
                return fault.times != Some(0);
            }
            match &fault.effect {
                Effect::Delay { ms } => hit.delay_ms = hit.delay_ms.saturating_add(*ms),
                _ if hit.effect.is_some() => return true,
                effect => hit.effect = Some(effect.clone()),
            }
            fault.times = fault.times.map(|times| times - 1);
            fault.times != Some(0)
        });
        self.any.store(!waiting.is_empty(), Ordering::Release);
        hit
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_counted_down_and_filtered() {
        let faults = Faults::new();
        faults.add(Fault::new(FaultRoute::Commit, Effect::Delay { ms: 5 }).times(1));
        faults.add(Fault::new(FaultRoute::Commit, Effect::Cut).times(1));
        faults.add(Fault::refuse(FaultRoute::Commit, 503, "x"));
        faults.add(
            Fault::new(FaultRoute::Commit, Effect::CutAfterCommit).times(1).for_media(Media::Audio).for_stream("a"),
        );
        let take = |subject| faults.take(FaultRoute::Commit, subject);
        assert_eq!(take(Subject::Any), Hit { delay_ms: 5, effect: Some(Effect::Cut) });
        assert!(matches!(take(Subject::Any).effect, Some(Effect::Refuse { status: 503, .. })));
        assert_eq!(faults.take(FaultRoute::Preflight, Subject::Any), Hit::default());
        let chunk = |media, stream| Subject::Chunk { media: Some(media), stream };
        assert_eq!(take(chunk(Media::Video, "a")), Hit::default());
        assert_eq!(take(chunk(Media::Audio, "b")), Hit::default());
        assert_eq!(take(chunk(Media::Audio, "a")).effect, Some(Effect::CutAfterCommit));
        assert_eq!(take(chunk(Media::Audio, "a")), Hit::default());
        faults.clear();
        assert_eq!(take(Subject::Any), Hit::default());
    }
}
