//! The unchanged core's relay routes, written for these tests from section A of the contract: its
//! order of checks, its strictness, its words. It shares no code with the relay or with devcore.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

mod checks;

pub use checks::mint;
use checks::{capability, is_frame};

/// The core's settings of the same names.
pub const SERVICE_TOKEN: &str = "service-token-canary-0123456789abcdef";
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A core that runs until the test ends.
#[derive(Clone)]
pub struct Core(Arc<Inner>);

struct Inner {
    at: SocketAddr,
    state: Mutex<State>,
    /// Commits wait here while the gate is shut.
    gate: Semaphore,
}

#[derive(Default)]
struct State {
    /// Every request, in its order.
    seen: Vec<Seen>,
    stored: HashMap<(String, String, u64), Bytes>,
    /// Answers given instead of the true ones, by path.
    forced: HashMap<String, Forced>,
    closed: HashSet<String>,
}

/// What the relay sent.
#[derive(Clone)]
pub struct Seen {
    pub path: String,
    pub headers: Vec<(String, String)>,
    /// JSON members or multipart fields, with the file left out.
    pub fields: Vec<(String, String)>,
    pub file: Option<Bytes>,
}

impl Seen {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An answer instead of the true one.
#[derive(Clone)]
pub enum Forced {
    /// This status and body, with these headers.
    Answer(u16, String, Vec<(&'static str, String)>),
    /// The connection is cut, after the request was read and before anything is said.
    Cut,
}

impl Forced {
    pub fn error(status: u16, code: &str) -> Self {
        Self::Answer(status, json!({"error": {"code": code, "message": "no"}}).to_string(), Vec::new())
    }
}

type Refused = (u16, &'static str);

impl Core {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let core = Self(Arc::new(Inner { at, state: Mutex::default(), gate: Semaphore::new(Semaphore::MAX_PERMITS) }));
        let accepting = core.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let core = accepting.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let core = core.clone();
                        async move { core.answer(request).await }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        core
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.0.at)
    }

    pub fn force(&self, path: &str, forced: Forced) {
        self.state().forced.insert(path.into(), forced);
    }

    pub fn relent(&self) {
        self.state().forced.clear();
    }

    pub fn close_incident(&self, incident: &str) {
        self.state().closed.insert(incident.into());
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    pub fn calls(&self, path: &str) -> usize {
        self.state().seen.iter().filter(|seen| seen.path == path).count()
    }

    pub fn stored(&self, incident: &str, stream: &str, index: u64) -> Option<Bytes> {
        self.state().stored.get(&(incident.into(), stream.into(), index)).cloned()
    }

    pub fn stored_chunks(&self) -> usize {
        self.state().stored.len()
    }

    /// Commits wait, after their bytes were read, until [`Core::open_gate`].
    pub fn shut_gate(&self) {
        let _ = self.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn open_gate(&self) {
        self.0.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.to_string();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers: Vec<_> =
            parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        let Ok(body) = body.collect().await else { return Err(std::io::ErrorKind::ConnectionAborted.into()) };
        let body = body.to_bytes();
        let (fields, file) = match path.as_str() {
            "/v1/relay/commit" => multipart(&headers, body).await,
            _ => (json_members(&body), None),
        };
        let seen = Seen { path: path.clone(), headers, fields, file };
        self.state().seen.push(seen.clone());
        if path == "/v1/relay/commit" {
            let _waited = self.0.gate.acquire().await.unwrap();
        }
        let forced = self.state().forced.get(&path).cloned();
        let (status, body, extra) = match forced {
            Some(Forced::Cut) => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            Some(Forced::Answer(status, body, extra)) => (status, body, extra),
            None => match self.decide(&parts.method, &seen) {
                Ok((status, body)) => (status, body.to_string(), Vec::new()),
                Err((status, code)) => {
                    (status, json!({"error": {"code": code, "message": "refused"}}).to_string(), Vec::new())
                }
            },
        };
        let mut response = Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .header("cache-control", "no-store")
            .header("x-content-type-options", "nosniff");
        for (name, value) in extra {
            response = response.header(name, value);
        }
        Ok(response.body(Full::new(body.into())).unwrap())
    }

    fn decide(&self, method: &http::Method, seen: &Seen) -> Result<(u16, Value), Refused> {
        if method != http::Method::POST {
            return Err((404, "not_found"));
        }
        match seen.path.as_str() {
            "/v1/relay/preflight" => self.preflight(seen),
            "/v1/relay/commit" => self.commit(seen),
            "/v1/relay/fanout-authorize" => self.fanout(seen),
            _ => Err((404, "not_found")),
        }
    }

    /// A.2, rows 3 to 18.
    fn preflight(&self, seen: &Seen) -> Result<(u16, Value), Refused> {
        service_token(seen)?;
        known_names(seen, &FIELDS)?;
        let chunk = Chunk::read(seen)?;
        self.authorize_chunk(&chunk)?;
        if self.state().stored.contains_key(&chunk.identity()) {
            return Err((409, "duplicate_chunk"));
        }
        let member = json!({"status": "accepted", "incident_id": chunk.incident, "stream_id": chunk.stream,
            "chunk_index": chunk.index, "media_type": chunk.media, "max_chunk_bytes": 1 << 20, "max_chunks": 64});
        Ok((200, json!({"relay_preflight": member})))
    }

    /// A.3, rows 2 to 18.
    fn commit(&self, seen: &Seen) -> Result<(u16, Value), Refused> {
        service_token(seen)?;
        let file = seen.file.clone().ok_or((400, "missing_file"))?;
        let chunk = Chunk::read(seen)?;
        self.authorize_chunk(&chunk)?;
        if file.len() as u64 != chunk.length {
            return Err((400, "byte_size_mismatch"));
        }
        if sha256_hex(&file) != chunk.sha256 {
            return Err((400, "hash_mismatch"));
        }
        if !is_frame(&file, &chunk) {
            return Err((400, "invalid_envelope"));
        }
        let mut state = self.state();
        if state.stored.insert(chunk.identity(), file).is_some() {
            return Err((409, "duplicate_chunk"));
        }
        let member = json!({"status": "committed", "chunk_id": "chk_1", "incident_id": chunk.incident,
            "stream_id": chunk.stream, "chunk_index": chunk.index, "media_type": chunk.media,
            "byte_size": chunk.length, "sha256_hex": chunk.sha256, "created_at": "2026-06-10T12:00:03Z",
            "stored_path": "/blobs/path-canary", "object_key": "object-canary"});
        Ok((201, json!({"relay_commit": member})))
    }

    /// A.4.
    fn fanout(&self, seen: &Seen) -> Result<(u16, Value), Refused> {
        service_token(seen)?;
        known_names(seen, &FIELDS[..4])?;
        let [session, token, incident, stream] = ids(seen, "invalid_relay_fanout_request")?;
        capability(token, "fanout", session, incident, stream)?;
        self.open_incident(incident)?;
        Ok((200, json!({"relay_fanout": {"status": "authorized", "incident_id": incident, "stream_id": stream}})))
    }

    fn authorize_chunk(&self, chunk: &Chunk) -> Result<(), Refused> {
        let claims = capability(&chunk.token, "upload", &chunk.session, &chunk.incident, &chunk.stream)?;
        let media = claims["allowed_media_types"].as_array().unwrap();
        if chunk.length > claims["max_chunk_bytes"].as_u64().unwrap()
            || chunk.index > claims["max_chunks"].as_u64().unwrap()
            || !media.contains(&json!(chunk.media))
        {
            return Err((403, "relay_capability_limit_exceeded"));
        }
        self.open_incident(&chunk.incident)
    }

    fn open_incident(&self, incident: &str) -> Result<(), Refused> {
        if self.state().closed.contains(incident) { Err((409, "incident_closed")) } else { Ok(()) }
    }
}

const FIELDS: [&str; 11] = [
    "relay_session_id",
    "capability",
    "incident_id",
    "stream_id",
    "chunk_index",
    "media_type",
    "started_at",
    "ended_at",
    "byte_size",
    "sha256_hex",
    "original_filename",
];

struct Chunk {
    session: String,
    token: String,
    incident: String,
    stream: String,
    index: u64,
    media: String,
    length: u64,
    sha256: String,
}

impl Chunk {
    /// A.2, rows 5 to 10.
    fn read(seen: &Seen) -> Result<Self, Refused> {
        let [session, token, incident, stream] = ids(seen, "invalid_relay_request")?.map(str::to_owned);
        let field = |name: &str| seen.field(name).unwrap_or_default().to_owned();
        let number = |name: &str| field(name).parse::<u64>().ok().filter(|number| *number > 0);
        let index = number("chunk_index").ok_or((400, "invalid_chunk_index"))?;
        let media = field("media_type");
        if !["audio", "video", "location", "metadata"].contains(&media.as_str()) {
            return Err((400, "invalid_media_type"));
        }
        let rfc3339 = &time::format_description::well_known::Rfc3339;
        let at = |name: &str| time::OffsetDateTime::parse(&field(name), rfc3339);
        let started = at("started_at").map_err(|_| (400, "invalid_started_at"))?;
        let ended = at("ended_at").map_err(|_| (400, "invalid_ended_at"))?;
        if ended < started {
            return Err((400, "invalid_time_range"));
        }
        let length = number("byte_size").ok_or((400, "invalid_byte_size"))?;
        let sha256 = field("sha256_hex");
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if sha256.len() != 64 || !sha256.bytes().all(hex) {
            return Err((400, "invalid_sha256_hex"));
        }
        Ok(Self { session, token, incident, stream, index, media, length, sha256 })
    }

    fn identity(&self) -> (String, String, u64) {
        (self.incident.clone(), self.stream.clone(), self.index)
    }
}

fn ids<'a>(seen: &'a Seen, code: &'static str) -> Result<[&'a str; 4], Refused> {
    let mut ids = [""; 4];
    for (id, name) in ids.iter_mut().zip(FIELDS) {
        *id = seen.field(name).map(str::trim).filter(|text| !text.is_empty()).ok_or((400, code))?;
    }
    Ok(ids)
}

fn known_names(seen: &Seen, names: &[&str]) -> Result<(), Refused> {
    let known = seen.fields.iter().all(|(name, _)| names.contains(&name.as_str()));
    if known { Ok(()) } else { Err((400, "invalid_json")) }
}

fn service_token(seen: &Seen) -> Result<(), Refused> {
    let tokens: Vec<_> =
        seen.headers.iter().filter(|(name, _)| name == "x-proofline-relay-service-token").map(|(_, v)| v).collect();
    if tokens == [SERVICE_TOKEN] { Ok(()) } else { Err((401, "relay_service_auth_required")) }
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json_members(body: &[u8]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let object: serde_json::Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    object.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

async fn multipart(headers: &[(String, String)], body: Bytes) -> (Vec<(String, String)>, Option<Bytes>) {
    let content_type = headers.iter().find(|(name, _)| name == "content-type").map_or("", |(_, value)| value);
    let Ok(boundary) = multer::parse_boundary(content_type) else { return (Vec::new(), None) };
    let stream = futures_util::stream::iter([Ok::<_, Infallible>(body)]);
    let mut form = multer::Multipart::new(stream, boundary);
    let (mut fields, mut file) = (Vec::new(), None);
    while let Ok(Some(part)) = form.next_field().await {
        let name = part.name().unwrap_or_default().to_owned();
        let filename = part.file_name().map(str::to_owned);
        let bytes = part.bytes().await.unwrap_or_default();
        if name == "file" {
            // The fall-back that stores a name nobody gave (A.3).
            if let Some(filename) = filename {
                fields.push(("file.filename".into(), filename));
            }
            file = Some(bytes);
        } else {
            fields.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    (fields, file)
}
