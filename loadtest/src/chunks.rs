//! Chunks to bring: sealed as a capture client seals them, so that the core's checks pass.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use waystation_client::GroupKey;
use waystation_client::envelope::{self, Identity};
use waystation_client::keys::StreamKey;
use waystation_client::session::Session;
use waystation_proto::offer::Timestamp;
use waystation_proto::{Digest, Offer};

use crate::Failure;

/// When the made-up recording began, in milliseconds since the Unix epoch.
const BEGAN_MS: i64 = 1_781_092_800_000;
/// Recorded time of a chunk, in milliseconds.
const LENGTH_MS: i64 = 2_000;

/// A sealed chunk with its offer.
#[derive(Clone)]
pub struct Chunk {
    /// What is said of it.
    pub offer: Offer,
    /// Its ciphertext.
    pub bytes: Bytes,
}

/// Makes the chunks of one stream, one after the other.
pub struct Maker {
    identity: Identity,
    key: StreamKey,
    plaintext: Vec<u8>,
}

impl Maker {
    /// Of the session's first stream, `size` bytes of plaintext each.
    ///
    /// # Errors
    /// [`Failure::Wire`] if the session has no stream.
    pub fn new(session: &Session, size: usize) -> Result<Self, Failure> {
        Self::of(session, 0, size)
    }

    /// Of the stream at `place` among the session's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(session: &Session, place: usize, size: usize) -> Result<Self, Failure> {
        let stream = session.streams.get(place).ok_or(Failure::Wire("a session without a stream"))?;
        let identity = Identity {
            incident: session.incident.clone(),
            stream: stream.stream.clone(),
            media: stream.media,
            index: 0,
        };
        let key = GroupKey::new([7; 32]).stream_key(&stream.stream).ok_or(Failure::Wire("no stream key"))?;
        Ok(Self { identity, key, plaintext: vec![0x5a; size] })
    }

    /// The next chunk.
    ///
    /// # Errors
    /// [`Failure::Wire`] if the envelope can't be sealed.
    pub fn next_chunk(&mut self) -> Result<Chunk, Failure> {
        self.identity.index += 1;
        let index = self.identity.index;
        let mut nonce = [0; envelope::NONCE_BYTES];
        nonce[..8].copy_from_slice(&index.to_be_bytes());
        let bytes = envelope::seal(&self.key, &self.identity, "load", nonce, &self.plaintext)
            .map_err(|_| Failure::Wire("a chunk can't be sealed"))?;
        Ok(Chunk { offer: self.offer(index, &bytes), bytes })
    }

    fn offer(&self, index: u64, bytes: &Bytes) -> Offer {
        let mut sha256 = Digest([0; 32]);
        sha256.0.copy_from_slice(digest(&SHA256, bytes).as_ref());
        let started = BEGAN_MS + i64::try_from(index - 1).unwrap_or(0) * LENGTH_MS;
        Offer {
            incident: self.identity.incident.clone(),
            stream: self.identity.stream.clone(),
            index,
            media: self.identity.media,
            started: Timestamp::from_unix_ms(started),
            ended: Timestamp::from_unix_ms(started + LENGTH_MS),
            length: bytes.len() as u64,
            sha256,
            name: String::new(),
            role: None,
            group: None,
            segment: None,
            sequence: None,
            source: None,
            clock: None,
            profile: None,
            priority: None,
            attempt: 1,
            sig: None,
        }
    }
}
