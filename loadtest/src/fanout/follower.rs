//! What a contact makes of the frames it gets: a chunk counts once it is whole and equal to what
//! was sent. Comparing bytes with those that were sent proves more than a hash and costs less.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use waystation_proto::Media;
use waystation_proto::frame::{self, Frame, kind};
use waystation_proto::message::{ChunkBegins, Complete, Omitted, Withdrawn};

use crate::Failure;

const BROKEN: Failure = Failure::Wire("a contact got a frame that is none");

/// What was sent, and how much of it has arrived, over all contacts.
#[derive(Default)]
pub(super) struct Published {
    chunks: Mutex<HashMap<u64, (Bytes, Option<Instant>)>>,
    delivered: AtomicU64,
    news: Notify,
}

impl Published {
    /// Before a chunk's first byte is sent.
    pub(super) fn announce(&self, index: u64, bytes: Bytes) {
        self.lock().insert(index, (bytes, None));
    }

    /// When its last byte was.
    pub(super) fn sent(&self, index: u64, at: Instant) {
        if let Some((_, sent)) = self.lock().get_mut(&index) {
            *sent = Some(at);
        }
    }

    pub(super) fn sent_at(&self, index: u64) -> Option<Instant> {
        self.lock().get(&index)?.1
    }

    pub(super) fn length(&self, index: u64) -> u64 {
        self.lock().get(&index).map_or(0, |(bytes, _)| bytes.len() as u64)
    }

    /// Waits for that many deliveries, or until none comes for `patience`.
    pub(super) async fn until_delivered(&self, wanted: u64, patience: Duration) {
        loop {
            let news = self.news.notified();
            let seen = self.delivered.load(Ordering::Relaxed);
            if seen >= wanted {
                return;
            }
            let waited = tokio::time::timeout(patience, news).await;
            if waited.is_err() && self.delivered.load(Ordering::Relaxed) == seen {
                return;
            }
        }
    }

    fn bytes(&self, index: u64) -> Option<Bytes> {
        self.lock().get(&index).map(|(bytes, _)| bytes.clone())
    }

    fn delivered(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
        self.news.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Bytes, Option<Instant>)>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One contact's side.
pub(super) struct Follower {
    published: Arc<Published>,
    /// Every byte is compared; else only their order and number is looked at.
    compares: bool,
    accepted: bool,
    arriving: HashMap<u64, Arriving>,
    delivered: Vec<(u64, Instant)>,
    omitted: Vec<Omitted>,
}

/// A chunk among those of a session's two lanes: of sound, and of a picture.
pub(super) const fn key(media: Media, index: u64) -> u64 {
    2 * index + matches!(media, Media::Audio) as u64
}

/// A chunk that has begun.
pub(super) struct Arriving {
    key: u64,
    expected: Bytes,
    received: usize,
    equal: bool,
}

impl Follower {
    pub(super) fn new(published: Arc<Published>, compares: bool) -> Self {
        Self {
            published,
            compares,
            accepted: false,
            arriving: HashMap::new(),
            delivered: Vec::new(),
            omitted: Vec::new(),
        }
    }

    /// Whether the relay has accepted the subscription.
    pub(super) const fn accepted(&self) -> bool {
        self.accepted
    }

    /// The relay has accepted the subscription.
    pub(super) const fn accept(&mut self) {
        self.accepted = true;
    }

    /// Takes a frame that is no piece. Returns whether the subscription goes on.
    pub(super) fn control(&mut self, kind: u64, body: Vec<u8>) -> Result<bool, Failure> {
        let frame = Frame { kind, body: body.into() };
        match kind {
            kind::WATCHING => self.accepted = true,
            kind::CHUNK => {
                let begins: ChunkBegins = frame::control(&frame).map_err(|_| BROKEN)?;
                let arriving = self.begin(begins.handle, key(begins.media, begins.index));
                arriving.equal = begins.length == arriving.expected.len() as u64;
            }
            kind::COMPLETE => {
                let complete: Complete = frame::control(&frame).map_err(|_| BROKEN)?;
                self.end(complete.handle);
            }
            kind::WITHDRAWN => {
                let gone: Withdrawn = frame::control(&frame).map_err(|_| BROKEN)?;
                self.arriving.remove(&gone.handle);
            }
            kind::OMITTED => self.omitted.push(frame::control(&frame).map_err(|_| BROKEN)?),
            kind::ENDING => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    /// A chunk begins.
    pub(super) fn begin(&mut self, handle: u64, key: u64) -> &mut Arriving {
        let expected = self.published.bytes(key).unwrap_or_default();
        let arriving = Arriving { key, expected, received: 0, equal: true };
        self.arriving.entry(handle).insert_entry(arriving).into_mut()
    }

    /// A piece begins. One of a chunk that was withdrawn meanwhile is nothing.
    pub(super) fn piece(&mut self, handle: u64, offset: u64) {
        if let Some(arriving) = self.arriving.get_mut(&handle) {
            arriving.equal &= offset == arriving.received as u64;
        }
    }

    /// Bytes of a piece.
    pub(super) fn bytes(&mut self, handle: u64, bytes: &[u8]) {
        let Some(arriving) = self.arriving.get_mut(&handle) else { return };
        let end = arriving.received.saturating_add(bytes.len());
        if self.compares {
            arriving.equal &= arriving.expected.get(arriving.received..end) == Some(bytes);
        }
        arriving.received = end;
    }

    /// What the relay said that it leaves out.
    pub(super) fn omitted(&self) -> &[Omitted] {
        &self.omitted
    }

    /// What came whole so far.
    pub(super) fn delivered(&self) -> &[(u64, Instant)] {
        &self.delivered
    }

    pub(super) fn into_delivered(self) -> Vec<(u64, Instant)> {
        self.delivered
    }

    /// It is over: it counts if it is whole, and what was sent.
    pub(super) fn end(&mut self, handle: u64) {
        let Some(arriving) = self.arriving.remove(&handle) else { return };
        if arriving.equal && arriving.received == arriving.expected.len() {
            self.delivered.push((arriving.key, Instant::now()));
            self.published.delivered();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::wire::{Came, Messages};
    use super::*;
    use waystation_proto::frame::Piece;

    fn begins(index: u64, length: usize) -> Bytes {
        let body = json!({"handle": 9, "stream": "s", "variant": "live_preview", "media": "video", "index": index,
            "length": length, "sha256": "00".repeat(32), "started": "2026-01-01T00:00:00Z",
            "ended": "2026-01-01T00:00:02Z", "state": "arriving", "replay": false});
        frame::encode_json(kind::CHUNK, &body)
    }

    fn piece(offset: u64, bytes: &[u8]) -> Bytes {
        Piece::encode(kind::PIECE, 9, offset, bytes)
    }

    /// Hands the frames over in messages, cut into steps of so many bytes.
    fn delivered_in(frames: &[Bytes], step: usize) -> usize {
        let published = Arc::new(Published::default());
        published.announce(key(Media::Video, 1), Bytes::from_static(b"abcdef"));
        let mut follower = Follower::new(published, true);
        let (mut messages, mut wire) = (Messages::default(), Vec::new());
        for frame in frames {
            wire.extend_from_slice(&[0x82, u8::try_from(frame.len().min(126)).unwrap()]);
            if frame.len() > 125 {
                wire.extend_from_slice(&u16::try_from(frame.len()).unwrap().to_be_bytes());
            }
            wire.extend_from_slice(frame);
        }
        for step in wire.chunks(step) {
            assert_eq!(messages.take(step, &mut follower).unwrap(), Came::More);
        }
        follower.into_delivered().len()
    }

    fn delivered(frames: &[Bytes]) -> usize {
        let found: Vec<_> = [1, 7, 4096].iter().map(|step| delivered_in(frames, *step)).collect();
        assert!(found.iter().all(|one| *one == found[0]), "however it is cut: {found:?}");
        found[0]
    }

    #[test]
    fn only_a_whole_and_equal_chunk_counts() {
        let end = || frame::encode_json(kind::COMPLETE, &json!({"handle": 9}));
        assert_eq!(delivered(&[begins(1, 6), piece(0, b"abc"), piece(3, b"def"), end()]), 1);
        assert_eq!(delivered(&[begins(1, 6), piece(0, b"abc"), end()]), 0, "short");
        assert_eq!(delivered(&[begins(1, 6), piece(0, b"abcdeX"), end()]), 0, "altered");
        assert_eq!(delivered(&[begins(1, 6), piece(3, b"def"), piece(0, b"abc"), end()]), 0, "out of order");
        assert_eq!(delivered(&[begins(1, 6), piece(0, b"abcdef"), piece(0, b"abcdef"), end()]), 0, "twice");
        assert_eq!(delivered(&[begins(2, 6), piece(0, b"abcdef"), end()]), 0, "never sent");
    }
}
