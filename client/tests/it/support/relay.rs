//! The relay's side of the wire, small: chunks by reference, knobs to misbehave, a log of frames
//! for contacts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2_of::sha256;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use waystation_client::connect::{Endpoint, Transport, Trust};
use waystation_proto::frame::{self, Piece, kind};
use waystation_proto::message::{ChunkBegins, Complete, ContactChunkState, Hint};
use waystation_proto::{ChunkRef, ChunkState, Code, ContactState, Offer};

use super::{web, ws};

/// How the relay behaves.
#[derive(Default)]
pub struct Knobs {
    /// Cut the connection once this many bytes of one chunk have come; then behave.
    pub cut_at: Option<usize>,
    /// The next `PUT` is answered in the middle of its body: what came of it is kept, and it is
    /// told to be elsewhere.
    pub late: bool,
    /// An answer waits as long as it was asked to, and not just a second.
    pub patient: bool,
    /// Something on the way answers every `PUT` with this status.
    pub portal: Option<u16>,
    /// The core is away: nothing is confirmed.
    pub hold: bool,
    /// Answers to the next offers.
    pub refuse: VecDeque<Code>,
    /// Key id of receipts; none: no receipts.
    pub receipts: Option<String>,
    /// Bytes of credit at a time.
    pub credit: u64,
    /// Time before a `CREDIT`.
    pub credit_after: Duration,
    /// Bytes that may come before their `SEND`.
    pub early: u64,
    /// `SEND` is not said.
    pub quiet: bool,
    /// The next `HELLO` is not answered, and no more is read there.
    pub mute: bool,
    /// How long `HELLO` waits for its answer.
    pub greets_after: Duration,
    /// No chunk is read until then: there is no seat.
    pub crowded_until: Option<Instant>,
}

/// One chunk.
pub struct Held {
    pub offer: Offer,
    pub bytes: Vec<u8>,
    pub state: ChunkState,
}

#[derive(Default)]
pub struct State {
    pub knobs: Knobs,
    pub chunks: HashMap<ChunkRef, Held>,
    /// Lane and index of each chunk in the order its first byte came, and was whole.
    pub begun: Vec<(String, u64)>,
    pub whole: Vec<(String, u64)>,
    /// Bytes of bodies received in all.
    pub received: usize,
    /// Seconds that answers were asked to wait for the core.
    pub waits: Vec<u64>,
    /// Ports that requests over QUIC came from.
    pub ports: HashSet<u16>,
    pub hellos: usize,
    /// What is advised in every session.
    pub hints: Vec<Hint>,
    /// WebSockets and QUIC connections of capture clients that are open.
    pub open: usize,
    /// The same, with those that are not any more.
    pub opened: usize,
    /// `PUT`s that something on the way answered.
    pub turned_away: usize,
    pub capabilities: usize,
    pub alive: usize,
    pub ends: usize,
    pub offers: Vec<Offer>,
    /// What contacts get.
    pub log: Vec<Bytes>,
    pub watches: Vec<String>,
    pub renewals: usize,
    /// Chunks that were not read for want of a seat.
    pub unseated: usize,
    /// Answers with a chunk that the contact did not take to the end.
    pub stopped: usize,
    handles: HashMap<ChunkRef, u64>,
}

pub struct Shared {
    pub state: Mutex<State>,
    /// Counts changes; everyone who waits looks again.
    pub changed: watch::Sender<u64>,
    /// Connections of an earlier generation end.
    pub generation: watch::Sender<u64>,
}

pub struct Relay {
    pub shared: Arc<Shared>,
    plain: SocketAddr,
    tls: SocketAddr,
    wss: SocketAddr,
    certificate: CertificateDer<'static>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

pub mod sha2_of {
    use waystation_proto::Digest;

    pub fn sha256(bytes: &[u8]) -> Digest {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        Digest(digest.as_ref().try_into().unwrap())
    }
}

impl Relay {
    pub async fn start() -> Self {
        let state = State { knobs: Knobs { credit: 64 * 1024, ..Knobs::default() }, ..State::default() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            generation: watch::Sender::new(0),
        });
        // Self-signed and marked as CA, for another name: what webpki refuses as an end entity.
        let mut parameters = rcgen::CertificateParams::new(["relay.invalid".to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&pair).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = listener.local_addr().unwrap();
        let tcp = spawn(accept(listener, Arc::clone(&shared)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wss = listener.local_addr().unwrap();
        let secure = spawn(ws::accept_tls(listener, web::tls(&certificate, &key, b"http/1.1"), Arc::clone(&shared)));
        let (tls, quic) = web::h3(Arc::clone(&shared), web::tls(&certificate, &key, b"h3"));
        Self { shared, plain, tls, wss, certificate, _tasks: vec![tcp, secure, spawn(quic)] }
    }

    pub fn endpoint(&self, transport: Transport) -> Endpoint {
        let trust = Trust::certificates(vec![self.certificate.clone()]).unwrap();
        Endpoint::parse(&self.url(transport), trust).unwrap()
    }

    /// HTTP/3 here, with the certificate of another relay expected.
    pub fn endpoint_believing(&self, other: &Self) -> Endpoint {
        let trust = Trust::certificates(vec![other.certificate.clone()]).unwrap();
        Endpoint::parse(&self.url(Transport::H3), trust).unwrap()
    }

    /// Where WebSockets over TLS are served.
    pub fn secure(&self) -> SocketAddr {
        self.wss
    }

    /// Where QUIC is served.
    pub fn quic(&self) -> SocketAddr {
        self.tls
    }

    /// Where `/capture` is served over TLS.
    pub fn secure_endpoint(&self, trust: Trust) -> Endpoint {
        Endpoint::parse(&format!("https://127.0.0.1:{}", self.wss.port()), trust).unwrap()
    }

    pub fn url(&self, transport: Transport) -> String {
        match transport {
            Transport::H3 => format!("https://127.0.0.1:{}", self.tls.port()),
            _ => format!("http://{}", self.plain),
        }
    }

    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        self.shared.with(look)
    }

    /// Cuts every connection, as a restart does.
    pub fn cut(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Waits until something is so.
    pub async fn until(&self, is_so: impl Fn(&State) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            while !self.with(|state| is_so(state)) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(super::LIMIT, wait).await.expect("it does not come to be");
    }

    /// Confirms what is held.
    pub fn release(&self) {
        self.with(|state| {
            state.knobs.hold = false;
            let held: Vec<ChunkRef> = state.chunks.iter().filter(|(_, h)| h.state.held()).map(|(r, _)| *r).collect();
            held.into_iter().for_each(|chunk| state.confirm(chunk));
        });
    }
}

/// Counts a connection as long as it is there.
pub struct Open(Arc<Shared>);

impl Open {
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.with(|state| (state.open += 1, state.opened += 1));
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.with(|state| state.open -= 1);
    }
}

impl Shared {
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let out = look(&mut self.state.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
        out
    }
}

impl State {
    /// Takes an offer; the offset to send from, or a refusal.
    pub fn offered(&mut self, offer: &Offer) -> Result<u64, Code> {
        self.offers.push(offer.clone());
        if let Some(code) = self.knobs.refuse.pop_front() {
            return Err(code);
        }
        let name = offer.chunk_ref();
        if let Some(held) = self.chunks.get(&name) {
            return if held.offer.sha256 == offer.sha256 {
                Ok(held.bytes.len() as u64)
            } else {
                Err(Code::ChunkConflict)
            };
        }
        let handle = self.handles.len() as u64;
        self.handles.insert(name, handle);
        let variant = offer.role.unwrap();
        if variant.watchable() {
            self.publish(kind::CHUNK, &begins(offer, handle));
        }
        let held = Held { offer: offer.clone(), bytes: Vec::new(), state: ChunkState::Receiving };
        self.chunks.insert(name, held);
        Ok(0)
    }

    /// Takes bytes at an offset; true if the connection is to be cut now.
    pub fn bytes(&mut self, name: ChunkRef, offset: u64, bytes: &[u8]) -> bool {
        self.received += bytes.len();
        let held = self.chunks.get_mut(&name).unwrap();
        assert_eq!(offset, held.bytes.len() as u64, "bytes are sent once and in order");
        if offset == 0 && !bytes.is_empty() {
            self.begun.push((held.offer.role.unwrap().as_str().into(), held.offer.index));
        }
        held.bytes.extend_from_slice(bytes);
        let (length, variant) = (held.bytes.len(), held.offer.role.unwrap());
        if variant.watchable() {
            self.log.push(Piece::encode(kind::PIECE, self.handles[&name], offset, bytes));
        }
        let cut = self.knobs.cut_at.is_some_and(|at| length >= at);
        if cut {
            self.knobs.cut_at = None;
        }
        cut
    }

    /// Checks whether a chunk is whole; stages and, unless the core is away, confirms it.
    pub fn settle(&mut self, name: ChunkRef) -> Option<ChunkState> {
        let held = self.chunks.get_mut(&name)?;
        if held.state == ChunkState::Receiving && held.bytes.len() as u64 == held.offer.length {
            assert_eq!(sha256(&held.bytes), held.offer.sha256);
            held.state = ChunkState::Staged;
            let (variant, index) = (held.offer.role.unwrap(), held.offer.index);
            self.whole.push((variant.as_str().into(), index));
            if variant.watchable() {
                let handle = self.handles[&name];
                self.publish(kind::COMPLETE, &Complete { handle });
            }
            if !self.knobs.hold {
                self.confirm(name);
            }
        }
        self.chunks.get(&name).map(|held| held.state)
    }

    pub fn receipt(&self, name: ChunkRef) -> Option<String> {
        let key = self.knobs.receipts.as_ref()?;
        Some(super::authority::receipt(&self.chunks[&name].offer, key))
    }

    fn confirm(&mut self, name: ChunkRef) {
        self.chunks.get_mut(&name).unwrap().state = ChunkState::Confirmed;
        let offer = self.chunks[&name].offer.clone();
        if offer.role.unwrap().watchable() {
            let (state, receipt) = (ContactState::Confirmed, self.receipt(name));
            let told = ContactChunkState { stream: offer.stream, index: offer.index, state, receipt, error: None };
            self.publish(kind::STATE, &told);
        }
    }

    pub fn publish(&mut self, kind: u64, body: &impl serde::Serialize) {
        self.log.push(frame::encode_json(kind, body));
    }
}

pub fn begins(offer: &Offer, handle: u64) -> ChunkBegins {
    ChunkBegins {
        handle,
        stream: offer.stream.clone(),
        variant: offer.role.unwrap(),
        media: offer.media,
        index: offer.index,
        length: offer.length,
        sha256: offer.sha256,
        started: offer.started.clone(),
        ended: offer.ended.clone(),
        state: ContactState::Arriving,
        replay: false,
    }
}

pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(work))
}

/// Cleartext WebSocket and HTTP/1.1 on one port, told apart by the first request's path.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = Arc::clone(&shared);
        running.spawn(async move {
            let mut generation = shared.generation.subscribe();
            generation.mark_unchanged();
            let mut start = [0; 128];
            let serve = async {
                let read = stream.peek(&mut start).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&start[..read]).into_owned();
                if head.starts_with("GET /capture") {
                    ws::capture(stream, &shared).await;
                } else if head.starts_with("GET /watch")
                    && !head.contains("uthorization")
                    && ws::is_upgrade(&stream).await
                {
                    ws::watch(stream, &shared).await;
                } else {
                    web::h1(stream, &shared).await;
                }
            };
            tokio::select! {
                () = serve => {}
                _ = generation.changed() => {}
            }
        });
    }
}
