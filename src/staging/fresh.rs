//! Small chunks that were staged just now, still in memory: forwarding needs no disk for them.
//! A convenience only: whatever is not here is read back, and the disk alone is what counts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use super::gathered::Gathered;
use crate::proto::ChunkRef;

/// Largest chunk kept, in bytes.
const MAX_FRESH_CHUNK: usize = 256 * 1024;
/// Bytes kept in all, which is what it costs. A core that is away fills it once; later chunks are
/// read from the disk when their turn comes.
pub const MAX_FRESH_BYTES: usize = 32 * 1024 * 1024;

/// The chunks, and how many bytes they are.
pub(super) struct Fresh {
    chunks: Mutex<(HashMap<ChunkRef, Bytes>, usize)>,
    bytes: Gauge,
}

impl Fresh {
    /// `bytes` shows how much is kept.
    pub(super) fn new(bytes: Gauge) -> Self {
        Self { chunks: Mutex::default(), bytes }
    }

    /// A copy of a chunk's bytes, if it is worth keeping: its own memory, so that the bound holds
    /// whatever larger buffer the bytes lie in.
    pub(super) fn copy(gathered: &Gathered) -> Option<Bytes> {
        if gathered.len() > MAX_FRESH_CHUNK {
            return None;
        }
        let mut out = Vec::with_capacity(gathered.len());
        gathered.copy_to(&mut out);
        Some(out.into())
    }

    /// Keeps a whole chunk while there is room.
    pub(super) fn put(&self, chunk: ChunkRef, bytes: Bytes) {
        self.with(|chunks, held| {
            if *held + bytes.len() <= MAX_FRESH_BYTES {
                *held += bytes.len();
                *held -= chunks.insert(chunk, bytes).map_or(0, |before| before.len());
            }
        });
    }

    /// Takes a chunk out, whoever wants it.
    pub(super) fn take(&self, chunk: ChunkRef) -> Option<Bytes> {
        self.with(|chunks, held| {
            let bytes = chunks.remove(&chunk)?;
            *held -= bytes.len();
            Some(bytes)
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<ChunkRef, Bytes>, &mut usize) -> T) -> T {
        let mut guard = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunks, held) = &mut *guard;
        let out = change(chunks, held);
        self.bytes.set(*held as i64);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(len: usize) -> Option<Bytes> {
        let mut gathered = Gathered::default();
        gathered.push(vec![1; len].into());
        Fresh::copy(&gathered)
    }

    fn name(number: u8) -> ChunkRef {
        ChunkRef([number; 16])
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_what_is_taken_makes_room() {
        let gauge = Gauge::default();
        let fresh = Fresh::new(gauge.clone());
        let places = MAX_FRESH_BYTES / MAX_FRESH_CHUNK;
        for number in 0..=places {
            fresh.put(name(number as u8), copy(MAX_FRESH_CHUNK).unwrap());
        }
        assert_eq!(gauge.get(), MAX_FRESH_BYTES as i64);
        assert_eq!(fresh.take(name(places as u8)), None, "there was no room for it");
        assert_eq!(fresh.take(name(0)).unwrap().len(), MAX_FRESH_CHUNK);
        assert_eq!(fresh.take(name(0)), None);
        fresh.put(name(1), Bytes::from_static(b"again"));
        assert_eq!(gauge.get(), (MAX_FRESH_BYTES - 2 * MAX_FRESH_CHUNK + 5) as i64);
        assert_eq!(copy(MAX_FRESH_CHUNK + 1), None);
    }
}
