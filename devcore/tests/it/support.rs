//! A core on a free port, a plain HTTP client, and chunks as a relay would bring them.

use std::net::SocketAddr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use waystation_devcore::session::{self, Session};
use waystation_devcore::{Clock, Devcore, Options, Running};

/// 2026-06-10T12:00:00Z.
pub(crate) const NOON_S: i64 = 1_781_092_800;

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap()
    }

    /// `"409 duplicate_chunk"`, or `"201"`. Checks what every answer must have.
    pub(crate) fn said(&self) -> String {
        assert_eq!(self.headers["cache-control"], "no-store");
        assert_eq!(self.headers["x-content-type-options"], "nosniff");
        if self.status < 300 {
            return self.status.to_string();
        }
        assert_eq!(self.headers["content-type"], "application/json");
        let body = self.json();
        assert!(body["error"]["message"].is_string());
        format!("{} {}", self.status, body["error"]["code"].as_str().unwrap())
    }
}

/// One exchange on a connection of its own; `Err` if there is no answer.
pub(crate) async fn exchange(addr: SocketAddr, request: Request<Bytes>) -> Result<Reply, String> {
    let stream = tokio::net::TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request.map(Full::new)).await.map_err(|e| e.to_string())?;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    driver.abort();
    Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, bytes })
}

/// A core with a clock that stands at noon, and its data.
pub(crate) struct Bench {
    pub(crate) core: Running,
    pub(crate) dir: TempDir,
}

impl Bench {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path());
        options.clock = Clock::manual(NOON_S * 1000);
        change(&mut options);
        Self { core: Devcore::start(options).await.unwrap(), dir }
    }

    pub(crate) async fn session(&self) -> Session {
        session::open(&session::Request::new(self.core.url(), self.core.account_token())).await.unwrap()
    }

    /// A call as the account.
    pub(crate) async fn account(&self, method: &str, path: &str, body: Value) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "core")
            .header("authorization", format!("Bearer {}", self.core.account_token()))
            .body(Bytes::from(body.to_string()));
        exchange(self.core.addr(), request.unwrap()).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        let request = Request::get(path).header("host", "core").body(Bytes::new()).unwrap();
        exchange(self.core.addr(), request).await.unwrap()
    }

    /// A JSON call as a relay.
    pub(crate) async fn relay(&self, path: &str, body: &str) -> Reply {
        exchange(self.core.addr(), self.relay_request(path, body)).await.unwrap()
    }

    pub(crate) fn relay_request(&self, path: &str, body: &str) -> Request<Bytes> {
        Request::post(path)
            .header("host", "core")
            .header("x-proofline-relay-service-token", self.core.service_token())
            .body(Bytes::from(body.to_owned()))
            .unwrap()
    }

    pub(crate) async fn preflight(&self, chunk: &Chunk) -> Reply {
        self.relay("/v1/relay/preflight", &chunk.json().to_string()).await
    }

    pub(crate) async fn commit(&self, chunk: &Chunk) -> Reply {
        self.try_commit(chunk).await.unwrap()
    }

    pub(crate) async fn try_commit(&self, chunk: &Chunk) -> Result<Reply, String> {
        exchange(self.core.addr(), self.commit_request(chunk.form().finish())).await
    }

    pub(crate) fn commit_request(&self, body: Vec<u8>) -> Request<Bytes> {
        Request::post("/v1/relay/commit")
            .header("host", "core")
            .header("content-type", "multipart/form-data; boundary=xyz")
            .header("x-proofline-relay-service-token", self.core.service_token())
            .body(body.into())
            .unwrap()
    }
}

/// A chunk and what is said of it.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) fields: Vec<(&'static str, Value)>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) filename: Option<&'static str>,
}

impl Chunk {
    /// Chunk `index` of the session's lane `lane`, under its JWT.
    pub(crate) fn of(session: &Session, lane: usize, index: u64) -> Self {
        let stream = &session.streams[lane];
        let bytes = frame(&session.incident, &stream.stream, stream.media.as_str(), index, &[index as u8; 40]);
        let fields = vec![
            ("relay_session_id", session.sid.clone().unwrap_or_default().into()),
            ("capability", session.upload_capability.clone().unwrap_or_default().into()),
            ("incident_id", session.incident.clone().into()),
            ("stream_id", stream.stream.clone().into()),
            ("chunk_index", index.into()),
            ("media_type", stream.media.as_str().into()),
            ("started_at", "2026-06-10T12:00:00.123456789Z".into()),
            ("ended_at", "2026-06-10T12:00:02Z".into()),
            ("byte_size", bytes.len().into()),
            ("sha256_hex", sha256(&bytes).into()),
            ("original_filename", "".into()),
        ];
        Self { fields, bytes, filename: None }
    }

    /// The same, under the stream's Proofline token.
    pub(crate) fn under_proofline(session: &Session, lane: usize, index: u64) -> Self {
        let tokens = session.streams[lane].proofline.as_ref().unwrap();
        Self::of(session, lane, index)
            .with("relay_session_id", tokens.relay_session_id.as_str())
            .with("capability", tokens.upload.as_str())
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        let value = value.into();
        match self.fields.iter_mut().find(|(known, _)| *known == name) {
            Some(field) => field.1 = value,
            None => self.fields.push((name, value)),
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// Other bytes, with their size and hash.
    pub(crate) fn carrying(self, bytes: Vec<u8>) -> Self {
        let (size, hash) = (bytes.len(), sha256(&bytes));
        Self { bytes, ..self.with("byte_size", size).with("sha256_hex", hash) }
    }

    pub(crate) fn text(&self, name: &str) -> String {
        match self.fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        self.fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    pub(crate) fn form(&self) -> Form {
        let mut form = Form::default();
        for (name, _) in &self.fields {
            form = form.field(name, &self.text(name));
        }
        form.file(self.filename, &self.bytes)
    }
}

/// A multipart body.
#[derive(Default)]
pub(crate) struct Form(Vec<u8>);

impl Form {
    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        let head = format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        self.0.extend_from_slice(head.as_bytes());
        self
    }

    pub(crate) fn file(mut self, filename: Option<&str>, bytes: &[u8]) -> Self {
        let filename = filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let head = format!("--xyz\r\nContent-Disposition: form-data; name=\"file\"{filename}\r\n\r\n");
        self.0.extend_from_slice(head.as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.extend_from_slice(b"\r\n");
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"--xyz--\r\n");
        self.0
    }
}

/// The smallest frame the core takes (contract A.7), with `body` behind its header.
pub(crate) fn frame(incident: &str, stream: &str, media: &str, index: u64, body: &[u8]) -> Vec<u8> {
    let index = index.to_string();
    let fields: [(&str, &[u8]); 11] = [
        ("scheme", b"proofline-pq-envelope-v1"),
        ("suite_id", b"proofline-pq-mlkem768-hkdfsha384-aes256gcm-v1"),
        ("digest", b"SHA-384"),
        ("envelope_id", b"e"),
        ("incident_id", incident.as_bytes()),
        ("stream_id", stream.as_bytes()),
        ("media_type", media.as_bytes()),
        ("chunk_index", index.as_bytes()),
        ("payload_type", b"chunk"),
        ("payload_aead", b"AES-256-GCM"),
        ("payload_nonce", &[0; 12]),
    ];
    let mut header = Vec::new();
    for (name, value) in fields {
        header.extend_from_slice(&u16::try_from(name.len()).unwrap().to_be_bytes());
        header.extend_from_slice(name.as_bytes());
        header.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        header.extend_from_slice(value);
    }
    let mut frame = b"PLPQENC1\n\x01".to_vec();
    frame.extend_from_slice(&u32::try_from(header.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(body);
    frame
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// A Proofline token of any claims, made here so that the core's own maker is not its judge.
pub(crate) fn token(secret: &str, claims: &Value) -> String {
    let signed = format!("proofline-relay-capability-v1.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Claims that hold for a minute from noon on.
pub(crate) fn claims(role: &str, incident: &str, stream: &str) -> Value {
    json!({
        "version": "proofline.relay-capability.v1", "relay_session_id": "s", "role": role,
        "incident_id": incident, "stream_id": stream, "iat": NOON_S, "exp": NOON_S + 60,
        "max_chunk_bytes": 100_000, "max_chunks": 3, "allowed_media_types": ["audio"],
    })
}
