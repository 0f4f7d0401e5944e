//! Sealed chunks and what is said of them.

use bytes::Bytes;
use waystation_client::envelope::{self, Identity};
use waystation_client::keys::GroupKey;
use waystation_devcore::session::Session;
use waystation_proto::offer::Timestamp;
use waystation_proto::{ChunkRef, Digest, IncidentId, Media, Offer, StreamId, Variant};

/// A sealed chunk with its offer.
#[derive(Clone)]
pub struct Chunk {
    /// What is said of it.
    pub offer: Offer,
    /// Its ciphertext.
    pub bytes: Bytes,
}

impl Chunk {
    /// Chunk `index` of the session's `variant` stream: `length` bytes of plaintext made from
    /// the index, sealed as a capture client does it. It covers two seconds.
    pub fn sealed(session: &Session, variant: Variant, index: u64, length: usize) -> Self {
        let stream = session.streams.iter().find(|stream| stream.variant == variant).unwrap();
        let plaintext: Vec<u8> = (0..length).map(|at| (at as u64 * 31 + index) as u8).collect();
        let identity = Identity {
            incident: IncidentId::new(&session.incident).unwrap(),
            stream: StreamId::new(&stream.stream).unwrap(),
            media: stream.media,
            index,
        };
        let key = GroupKey::new([42; 32]).stream_key(&identity.stream).unwrap();
        let mut nonce = [0; 12];
        aws_lc_rs::rand::fill(&mut nonce).unwrap();
        let bytes = envelope::seal(&key, &identity, "test", nonce, &plaintext).unwrap();
        Self::of(&session.incident, &stream.stream, stream.media, index, bytes)
    }

    /// Any bytes under any identity.
    pub fn of(incident: &str, stream: &str, media: Media, index: u64, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let start = 1_781_092_800_000 + (index.saturating_sub(1) * 2000).cast_signed();
        let mut sha256 = Digest([0; 32]);
        sha256.0.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes).as_ref());
        let offer = Offer {
            incident: IncidentId::new(incident).unwrap(),
            stream: StreamId::new(stream).unwrap(),
            index,
            media,
            started: Timestamp::from_unix_ms(start),
            ended: Timestamp::from_unix_ms(start + 2000),
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
        };
        Self { offer, bytes }
    }

    /// Its name on the wire.
    pub fn chunk_ref(&self) -> ChunkRef {
        self.offer.chunk_ref()
    }
}
