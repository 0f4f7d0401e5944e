//! The body of a commit (contract A.3): the eleven fields of A.2 as text parts in their order,
//! `sig` where the offer carries one, then `file`.
//!
//! The `file` part has no filename. The core falls back to it when `original_filename` is empty,
//! and would store a name that nobody gave; reconciling by the true, empty name then reports a
//! conflict (contract A.8).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};

use super::ChunkFields;

/// What stands before the file, and what after.
pub(super) struct Envelope {
    pub(super) content_type: String,
    pub(super) before: Bytes,
    pub(super) after: Bytes,
}

/// Writes everything but the file. `random` keeps the boundary out of any payload.
pub(super) fn envelope(fields: &ChunkFields<'_>, random: [u8; 24]) -> Envelope {
    let boundary = format!("waystation-{}", URL_SAFE_NO_PAD.encode(random));
    let offer = fields.offer;
    let (index, length, sha256) = (offer.index.to_string(), offer.length.to_string(), offer.sha256.to_hex());
    let texts = [
        ("relay_session_id", fields.session),
        ("capability", fields.capability),
        ("incident_id", offer.incident.as_str()),
        ("stream_id", offer.stream.as_str()),
        ("chunk_index", &index),
        ("media_type", offer.media.as_str()),
        ("started_at", offer.started.as_str()),
        ("ended_at", offer.ended.as_str()),
        ("byte_size", &length),
        ("sha256_hex", &sha256),
        ("original_filename", &offer.name),
    ];
    let mut before = BytesMut::with_capacity(2048 + fields.capability.len());
    for (name, value) in texts {
        part(&mut before, &boundary, name, value);
    }
    if let Some(sig) = &offer.sig {
        part(&mut before, &boundary, "sig", &URL_SAFE_NO_PAD.encode(sig));
    }
    for text in [
        "--",
        &boundary,
        "\r\nContent-Disposition: form-data; name=\"file\"\r\nContent-Type: application/octet-stream\r\n\r\n",
    ] {
        before.put_slice(text.as_bytes());
    }
    Envelope {
        content_type: format!("multipart/form-data; boundary={boundary}"),
        before: before.freeze(),
        after: format!("\r\n--{boundary}--\r\n").into(),
    }
}

fn part(out: &mut BytesMut, boundary: &str, name: &str, value: &str) {
    for text in ["--", boundary, "\r\nContent-Disposition: form-data; name=\"", name, "\"\r\n\r\n", value, "\r\n"] {
        out.put_slice(text.as_bytes());
    }
}
