//! Chunks that were staged just now, still in memory: forwarding needs no disk for them. A
//! convenience only: whatever is not here is read back, and the disk alone is what counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use prometheus_client::metrics::gauge::Gauge;

use crate::proto::ChunkRef;

/// Largest chunk kept, in bytes: two seconds at 5 Mbit/s and the envelope.
const MAX_FRESH_CHUNK: u64 = 1280 * 1024;
/// Bytes kept in all, which is what it costs. A core that is away fills it once; later chunks are
/// read from the disk when their turn comes.
pub const MAX_FRESH_BYTES: usize = 64 * 1024 * 1024;

/// The chunks, and how many bytes are kept.
pub(super) struct Fresh {
    chunks: Mutex<HashMap<ChunkRef, (Bytes, Room)>>,
    budget: Arc<Budget>,
}

struct Budget {
    held: AtomicUsize,
    shown: Gauge,
}

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= MAX_FRESH_BYTES);
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        self.show();
        taken
    }

    fn show(&self) {
        self.shown.set(self.held.load(Ordering::Relaxed) as i64);
    }
}

/// Room that was taken; given back when dropped.
struct Room {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.show();
    }
}

/// A chunk's bytes from its start, copied as they come: their own memory, so that the bound holds
/// whatever larger buffer they came in.
pub(super) struct Keeping {
    bytes: BytesMut,
    room: Room,
}

impl Keeping {
    /// Takes the next bytes; `false` when there is no room, and the chunk is not worth keeping any
    /// more.
    #[must_use]
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = self.room.budget.take(bytes.len());
        if fits {
            self.room.bytes += bytes.len();
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }
}

impl Fresh {
    /// `shown` shows how much is kept.
    pub(super) fn new(shown: Gauge) -> Self {
        Self { chunks: Mutex::default(), budget: Arc::new(Budget { held: AtomicUsize::new(0), shown }) }
    }

    /// Begins to keep a chunk of this length, if it is one to keep.
    pub(super) fn begin(&self, length: u64) -> Option<Keeping> {
        let length = usize::try_from(length).ok().filter(|_| length <= MAX_FRESH_CHUNK)?;
        let room = Room { budget: Arc::clone(&self.budget), bytes: 0 };
        Some(Keeping { bytes: BytesMut::with_capacity(length), room })
    }

    /// Keeps a whole chunk.
    pub(super) fn put(&self, chunk: ChunkRef, kept: Keeping) {
        self.chunks().insert(chunk, (kept.bytes.freeze(), kept.room));
    }

    /// Takes a chunk out, whoever wants it.
    pub(super) fn take(&self, chunk: ChunkRef) -> Option<Bytes> {
        self.chunks().remove(&chunk).map(|(bytes, _room)| bytes)
    }

    fn chunks(&self) -> MutexGuard<'_, HashMap<ChunkRef, (Bytes, Room)>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u8) -> ChunkRef {
        ChunkRef([number; 16])
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_what_is_taken_makes_room() {
        let gauge = Gauge::default();
        let fresh = Fresh::new(gauge.clone());
        let largest = vec![1; MAX_FRESH_CHUNK as usize];
        let places = MAX_FRESH_BYTES / largest.len();
        for number in 0..places {
            let mut keeping = fresh.begin(MAX_FRESH_CHUNK).unwrap();
            let (first, rest) = largest.split_at(1000);
            assert!(keeping.push(first) && keeping.push(rest));
            fresh.put(name(number as u8), keeping);
        }
        assert_eq!(gauge.get(), (places * largest.len()) as i64);
        assert!(!fresh.begin(MAX_FRESH_CHUNK).unwrap().push(&largest), "there is no room for it");
        assert_eq!(fresh.take(name(0)).unwrap(), largest);
        assert_eq!(fresh.take(name(0)), None);
        let mut keeping = fresh.begin(10).unwrap();
        assert!(keeping.push(b"again"));
        assert_eq!(gauge.get(), ((places - 1) * largest.len() + 5) as i64);
        drop(keeping);
        assert_eq!(gauge.get(), ((places - 1) * largest.len()) as i64);
        assert!(fresh.begin(MAX_FRESH_CHUNK + 1).is_none());
    }
}
