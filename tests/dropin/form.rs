//! A drop-in upload: its fields, its file, its multipart form. Every word of it is a canary.

use bytes::Bytes;
use http::{Request, request};
use http_body_util::Full;
use serde_json::json;

use crate::core;

pub const SESSION: &str = "session-canary-1";
pub const INCIDENT: &str = "incident-canary-1";
pub const STREAM: &str = "stream-canary-1";
pub const BOUNDARY: &str = "boundary-canary-1";
pub const CLIENT: &str = "203.0.113.77";

/// A token of `role` for the usual session.
pub fn token(role: &str) -> String {
    token_with(role, |_| ())
}

/// The same, with other claims.
pub fn token_with(role: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut claims = json!({"version": "proofline.relay-capability.v1", "relay_session_id": SESSION, "role": role,
        "incident_id": INCIDENT, "stream_id": STREAM, "iat": now, "exp": now + 300, "max_chunk_bytes": 1 << 20,
        "max_chunks": 64, "allowed_media_types": ["audio"], "jti": "claim-canary"});
    change(&mut claims);
    core::mint(&claims)
}

/// Fields and file of one upload.
#[derive(Clone)]
pub struct Form {
    pub fields: Vec<(String, String)>,
    pub file: Bytes,
}

impl Form {
    /// Chunk `index` with `length` bytes of payload.
    pub fn chunk(index: u64, length: usize) -> Self {
        let file = frame(index, length);
        let fields = [
            ("sha256_hex", core::sha256_hex(&file)),
            ("relay_session_id", SESSION.into()),
            ("capability", token("upload")),
            ("incident_id", INCIDENT.into()),
            ("stream_id", STREAM.into()),
            ("chunk_index", index.to_string()),
            ("media_type", "audio".into()),
            ("started_at", "2026-06-10T12:00:00.123456789Z".into()),
            ("ended_at", "2026-06-10T12:00:02.123456789Z".into()),
            ("byte_size", file.len().to_string()),
            ("original_filename", "original-canary.enc".into()),
        ];
        Self { fields: fields.map(|(name, value)| (name.into(), value)).to_vec(), file }
    }

    pub fn field(&self, name: &str) -> &str {
        &self.fields.iter().find(|(known, _)| known == name).unwrap().1
    }

    /// With another value in a field.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let field = self.fields.iter_mut().find(|(known, _)| known == name).unwrap();
        field.1 = value.into();
        self
    }

    /// With one more field.
    pub fn and(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// The form's bytes, in the usual order.
    pub fn bytes(&self) -> Vec<u8> {
        let parts = self.fields.iter().map(|(name, value)| part(name, None, value.as_bytes()));
        let mut out = b"preamble-canary\r\n".to_vec();
        out.extend(parts.flatten());
        out.extend(part("file", Some("part-canary.bin"), &self.file));
        out.extend(closing());
        out.extend(b"epilogue-canary");
        out
    }

    pub fn request(&self) -> Request<Full<Bytes>> {
        post().body(Full::new(self.bytes().into())).unwrap()
    }
}

/// One part.
pub fn part(name: &str, filename: Option<&str>, value: &[u8]) -> Vec<u8> {
    let filename = filename.map(|filename| format!("; filename=\"{filename}\"")).unwrap_or_default();
    let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n");
    [head.as_bytes(), value, b"\r\n"].concat()
}

pub fn closing() -> Vec<u8> {
    format!("--{BOUNDARY}--\r\n").into_bytes()
}

/// The request's head, with a canary wherever one can stand.
pub fn post() -> request::Builder {
    dressed(Request::post("/upload/complete-chunk?query-canary=1"))
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
}

/// Headers that say nothing to the relay and must not come out again.
pub fn dressed(request: request::Builder) -> request::Builder {
    request
        .header("host", "host-canary")
        .header("x-forwarded-for", CLIENT)
        .header("authorization", "Bearer authorization-canary")
        .header("cookie", "session=cookie-canary")
        .header("x-csrf-token", "csrf-canary")
        .header("idempotency-key", "idempotency-canary")
        .header("user-agent", "agent-canary")
        .header("x-header-canary", "header-value-canary")
}

/// A ciphertext frame as A.7 says, with `length` bytes behind its header.
fn frame(index: u64, length: usize) -> Bytes {
    let mut header = Vec::new();
    let index_text = index.to_string();
    for (name, value) in [
        ("scheme", "proofline-pq-envelope-v1"),
        ("suite_id", "proofline-pq-mlkem768-hkdfsha384-aes256gcm-v1"),
        ("digest", "SHA-384"),
        ("envelope_id", "envelope-canary"),
        ("incident_id", INCIDENT),
        ("stream_id", STREAM),
        ("media_type", "audio"),
        ("chunk_index", &index_text),
        ("payload_type", "chunk"),
        ("payload_aead", "AES-256-GCM"),
        ("payload_nonce", "123456789012"),
    ] {
        header.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        header.extend(name.as_bytes());
        header.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        header.extend(value.as_bytes());
    }
    let mut out = b"PLPQENC1\n\x01".to_vec();
    out.extend(u32::try_from(header.len()).unwrap().to_be_bytes());
    out.extend(header);
    out.extend(b"payload-canary".iter().cycle().take(length));
    out.into()
}
