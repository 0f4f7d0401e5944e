//! What a contact makes of the frames it gets: a chunk counts once it is whole and equal to what
//! was sent. Comparing bytes with those that were sent proves more than a hash and costs less.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use waystation_proto::frame::{self, Frame, Piece, kind};
use waystation_proto::message::{ChunkBegins, Complete, Withdrawn};

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
    arriving: HashMap<u64, Arriving>,
    delivered: Vec<(u64, Instant)>,
}

/// A chunk that has begun.
struct Arriving {
    index: u64,
    expected: Bytes,
    received: usize,
    equal: bool,
}

impl Follower {
    pub(super) fn new(published: Arc<Published>) -> Self {
        Self { published, arriving: HashMap::new(), delivered: Vec::new() }
    }

    /// Takes a frame. Returns whether the subscription goes on.
    pub(super) fn frame(&mut self, frame: Frame) -> Result<bool, Failure> {
        match frame.kind {
            kind::CHUNK => {
                let begins: ChunkBegins = frame::control(&frame).map_err(|_| BROKEN)?;
                let expected = self.published.bytes(begins.index).unwrap_or_default();
                let equal = begins.length == expected.len() as u64;
                let arriving = Arriving { index: begins.index, expected, received: 0, equal };
                self.arriving.insert(begins.handle, arriving);
            }
            kind::PIECE => self.piece(&Piece::decode(frame.body).map_err(|_| BROKEN)?)?,
            kind::COMPLETE => self.complete(frame::control(&frame).map_err(|_| BROKEN)?),
            kind::WITHDRAWN => {
                let gone: Withdrawn = frame::control(&frame).map_err(|_| BROKEN)?;
                self.arriving.remove(&gone.handle);
            }
            kind::ENDING => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    pub(super) fn into_delivered(self) -> Vec<(u64, Instant)> {
        self.delivered
    }

    fn piece(&mut self, piece: &Piece) -> Result<(), Failure> {
        let arriving = self.arriving.get_mut(&piece.handle).ok_or(BROKEN)?;
        let at = usize::try_from(piece.offset).map_err(|_| BROKEN)?;
        let expected = arriving.expected.get(at..at.saturating_add(piece.bytes.len()));
        arriving.equal &= at == arriving.received && expected == Some(&piece.bytes[..]);
        arriving.received += piece.bytes.len();
        Ok(())
    }

    fn complete(&mut self, complete: Complete) {
        let Some(arriving) = self.arriving.remove(&complete.handle) else { return };
        if arriving.equal && arriving.received == arriving.expected.len() {
            self.delivered.push((arriving.index, Instant::now()));
            self.published.delivered();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn begins(index: u64, length: usize) -> Frame {
        let body = json!({"handle": 9, "stream": "s", "variant": "live_preview", "media": "video", "index": index,
            "length": length, "sha256": "00".repeat(32), "started": "2026-01-01T00:00:00Z",
            "ended": "2026-01-01T00:00:02Z", "state": "arriving", "replay": false});
        control(kind::CHUNK, &body)
    }

    fn control(kind: u64, body: &serde_json::Value) -> Frame {
        Frame { kind, body: body.to_string().into() }
    }

    fn piece(offset: u64, bytes: &[u8]) -> Frame {
        let mut whole = frame::split_message(Piece::encode(kind::PIECE, 9, offset, bytes)).unwrap();
        whole.pop().unwrap()
    }

    fn delivered(frames: Vec<Frame>) -> usize {
        let published = Arc::new(Published::default());
        published.announce(1, Bytes::from_static(b"abcdef"));
        let mut follower = Follower::new(published);
        for frame in frames {
            assert!(follower.frame(frame).unwrap());
        }
        follower.into_delivered().len()
    }

    #[test]
    fn only_a_whole_and_equal_chunk_counts() {
        let end = || control(kind::COMPLETE, &json!({"handle": 9}));
        assert_eq!(delivered(vec![begins(1, 6), piece(0, b"abc"), piece(3, b"def"), end()]), 1);
        assert_eq!(delivered(vec![begins(1, 6), piece(0, b"abc"), end()]), 0, "short");
        assert_eq!(delivered(vec![begins(1, 6), piece(0, b"abcdeX"), end()]), 0, "altered");
        assert_eq!(delivered(vec![begins(1, 6), piece(3, b"def"), piece(0, b"abc"), end()]), 0, "out of order");
        assert_eq!(delivered(vec![begins(1, 6), piece(0, b"abcdef"), piece(0, b"abcdef"), end()]), 0, "twice");
        assert_eq!(delivered(vec![begins(2, 6), piece(0, b"abcdef"), end()]), 0, "never sent");
        assert_eq!(delivered(vec![begins(1, 6), piece(0, b"abcdef")]), 0, "not ended");
        let withdrawn = control(kind::WITHDRAWN, &json!({"handle": 9, "reason": "stalled"}));
        assert_eq!(delivered(vec![begins(1, 6), piece(0, b"abcdef"), withdrawn, end()]), 0, "withdrawn");
    }

    #[tokio::test]
    async fn waiting_ends_with_the_last_delivery_or_with_patience() {
        let published = Arc::new(Published::default());
        let waiting = tokio::spawn({
            let published = Arc::clone(&published);
            async move { published.until_delivered(2, Duration::from_secs(3600)).await }
        });
        published.delivered();
        published.delivered();
        // Whoever waited before the second delivery is woken by it, whoever comes later sees it.
        published.news.notify_waiters();
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
        published.until_delivered(3, Duration::from_millis(1)).await;
    }
}
