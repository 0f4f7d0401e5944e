//! From a plaintext chunk with a place to a sealed frame with its offer.

use bytes::Bytes;
use waystation_proto::id::Digest;
use waystation_proto::media::{Priority, Profile};
use waystation_proto::offer::Timestamp;
use waystation_proto::{Class, Media, Offer, Variant};

use super::Config;
use super::lane::Place;
use crate::authority::Ids;
use crate::envelope::{self, Identity, NONCE_BYTES};

/// Name of an envelope: lane and running number, so that whoever opens it can tell the lane's
/// order and gaps from what is proven, across streams.
#[must_use]
pub(crate) fn envelope_id(variant: Variant, lane_seq: u64) -> String {
    format!("{variant}.{lane_seq}")
}

/// Reads [`envelope_id`].
pub(crate) fn lane_seq(envelope_id: &str, variant: Variant) -> Option<u64> {
    let (name, seq) = envelope_id.rsplit_once('.')?;
    if name == variant.as_str() { seq.parse().ok() } else { None }
}

/// What is known of a chunk before it is sealed.
pub(crate) struct About {
    pub(crate) variant: Variant,
    pub(crate) media: Media,
    pub(crate) lane_seq: u64,
    pub(crate) sequence: u64,
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: i64,
}

impl About {
    /// With its plaintext.
    pub(crate) const fn of<'a>(&self, plaintext: &'a [u8]) -> Subject<'a> {
        let Self { variant, media, lane_seq, sequence, started_ms, ended_ms } = *self;
        Subject { variant, media, lane_seq, sequence, plaintext, started_ms, ended_ms }
    }
}

/// What is sealed.
pub(crate) struct Subject<'a> {
    pub(crate) variant: Variant,
    pub(crate) media: Media,
    pub(crate) lane_seq: u64,
    pub(crate) sequence: u64,
    pub(crate) plaintext: &'a [u8],
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: i64,
}

/// Seals once. None if the cryptographic library fails.
pub(crate) fn seal(
    config: &Config,
    ids: &Ids,
    place: &Place,
    subject: &Subject<'_>,
    nonce: [u8; NONCE_BYTES],
) -> Option<(Bytes, Offer)> {
    let identity = Identity {
        incident: ids.incident.clone(),
        stream: place.stream.clone(),
        media: subject.media,
        index: place.index,
    };
    let key = config.group_key.stream_key(&place.stream)?;
    let name = envelope_id(subject.variant, subject.lane_seq);
    let frame = envelope::seal(&key, &identity, &name, nonce, subject.plaintext).ok()?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &frame);
    let mut offer = Offer {
        incident: identity.incident,
        stream: identity.stream,
        index: place.index,
        media: subject.media,
        started: Timestamp::from_unix_ms(subject.started_ms),
        ended: Timestamp::from_unix_ms(subject.ended_ms),
        length: frame.len() as u64,
        sha256: Digest(digest.as_ref().try_into().ok()?),
        name: String::new(),
        role: Some(subject.variant),
        group: Some(ids.group.clone()),
        segment: None,
        sequence: Some(subject.sequence),
        source: None,
        clock: None,
        profile: Some(profile(subject.variant)),
        priority: Some(priority(subject.variant)),
        attempt: 1,
        sig: None,
    };
    if let Some(key) = &config.client_key {
        offer.sig = Some(key.sign(&offer.signed_bytes())?);
    }
    Some((frame, offer))
}

const fn profile(variant: Variant) -> Profile {
    match variant {
        Variant::AudioPriority => Profile::AudioPriority,
        Variant::LivePreview => Profile::AdaptiveLowLatency,
        Variant::LocationContext => Profile::LocationContext,
        Variant::MetadataContext => Profile::MetadataContext,
        Variant::EvidenceMaster => Profile::FullQuality,
    }
}

const fn priority(variant: Variant) -> Priority {
    match variant.class() {
        Class::Audio | Class::Preview => Priority::NearLive,
        Class::Context | Class::Master => Priority::Preservation,
    }
}
