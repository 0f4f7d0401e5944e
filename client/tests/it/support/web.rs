//! The relay's native HTTP side, over HTTP/1.1 and HTTP/3.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use waystation_proto::dictionary::{parse_digest, parse_offer, parse_watch, write_digest};
use waystation_proto::frame::{self, Piece, kind};
use waystation_proto::message::{Answer, Chunk, ChunkBegins, Complete, Watching, Withdrawn};
use waystation_proto::{ChunkRef, ChunkState, Code, Offer};

use super::relay::{Open, Shared, State};

/// Bytes of a request, and of an answer that has no end of its own.
type BodyIn = mpsc::Receiver<Bytes>;

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: mpsc::Receiver<Bytes>,
}

/// The connection is to be cut without an answer.
struct Cut;

fn reply(status: u16, headers: &[(&'static str, String)], body: Bytes) -> Reply {
    let (tx, rx) = mpsc::channel(1);
    tx.try_send(body).unwrap();
    let headers = headers.iter().map(|(k, v)| ((*k).try_into().unwrap(), v.parse().unwrap())).collect();
    Reply { status: StatusCode::from_u16(status).unwrap(), headers, body: rx }
}

async fn handle(shared: Arc<Shared>, head: http::request::Parts, body: BodyIn) -> Result<Reply, Cut> {
    assert!(head.headers["authorization"].to_str().unwrap().starts_with("Bearer e30."));
    if head.uri.path() == "/watch" {
        return Ok(watch(shared, &head.headers));
    }
    let name = ChunkRef::parse(head.uri.path().strip_prefix("/chunks/").unwrap()).unwrap();
    let portal = shared.with(|state| state.knobs.portal).filter(|_| head.method == Method::PUT);
    if let Some(status) = portal {
        shared.with(|state| state.turned_away += 1);
        return Ok(reply(status, &[], Bytes::from_static(b"<html>log in</html>")));
    }
    match head.method {
        Method::GET => Ok(read(shared, name).await),
        Method::HEAD => Ok(held(&shared, name)),
        Method::PUT => put(shared, name, &head.headers, body).await,
        other => panic!("{other}"),
    }
}

fn held(shared: &Shared, name: ChunkRef) -> Reply {
    shared.with(|state| match state.chunks.get(&name) {
        None => reply(404, &[], Bytes::new()),
        Some(held) => {
            let headers =
                [("upload-offset", held.bytes.len().to_string()), ("waystation-state", held.state.as_str().to_owned())];
            reply(200, &headers, Bytes::new())
        }
    })
}

async fn put(shared: Arc<Shared>, name: ChunkRef, headers: &HeaderMap, mut body: BodyIn) -> Result<Reply, Cut> {
    let text = |key: &str| headers.get(key).map(|value| value.to_str().unwrap());
    let digest = parse_digest(text("repr-digest").unwrap()).unwrap();
    let offer: Offer = parse_offer(text("waystation-chunk").unwrap(), digest, None).unwrap();
    assert_eq!(offer.chunk_ref(), name);
    let mut offset: u64 = text("upload-offset").map_or(0, |value| value.parse().unwrap());
    let length: u64 = text("content-length").unwrap().parse().unwrap();
    assert_eq!(offset + length, offer.length);
    match shared.with(|state| state.offered(&offer)) {
        Err(code) => return Ok(refusal(code, None)),
        Ok(have) if have != offset => return Ok(refusal(Code::OffsetMismatch, Some(chunk(&offer, have)))),
        Ok(_) => {}
    }
    while let Some(bytes) = body.recv().await {
        let cut = shared.with(|state| state.bytes(name, offset, &bytes));
        offset += bytes.len() as u64;
        if cut {
            return Err(Cut);
        }
        if shared.with(|state| std::mem::take(&mut state.knobs.late)) {
            return Ok(refusal(Code::OffsetMismatch, Some(chunk(&offer, offset))));
        }
    }
    shared.with(|state| state.settle(name));
    Ok(verdict(&shared, name, &offer, text("prefer").unwrap()).await)
}

async fn verdict(shared: &Shared, name: ChunkRef, offer: &Offer, prefer: &str) -> Reply {
    let asked: u64 = prefer.strip_prefix("wait=").unwrap().parse().unwrap();
    let patient = shared.with(|state| {
        state.waits.push(asked);
        state.knobs.patient
    });
    let wait = if patient { asked } else { asked.min(1) };
    let mut changed = shared.changed.subscribe();
    let confirmed = async {
        while shared.state.lock().unwrap().chunks[&name].state != ChunkState::Confirmed {
            changed.changed().await.unwrap();
        }
    };
    let mut chunk = chunk(offer, offer.length);
    if tokio::time::timeout(Duration::from_secs(wait), confirmed).await.is_err() {
        chunk.state = ChunkState::Staged;
        return refusal(Code::ConfirmationPending, Some(chunk));
    }
    chunk.state = ChunkState::Confirmed;
    chunk.receipt = shared.with(|state| state.receipt(name));
    let answer = Answer { chunk: Some(chunk), error: None };
    reply(201, &[], serde_json::to_vec(&answer).unwrap().into())
}

fn chunk(offer: &Offer, offset: u64) -> Chunk {
    Chunk { chunk_ref: offer.chunk_ref(), state: ChunkState::Receiving, offset, length: offer.length, receipt: None }
}

fn refusal(code: Code, chunk: Option<Chunk>) -> Reply {
    let answer = Answer { chunk, error: Some(code.into()) };
    reply(code.status(), &[("retry-after", "1".into())], serde_json::to_vec(&answer).unwrap().into())
}

fn watch(shared: Arc<Shared>, headers: &HeaderMap) -> Reply {
    let wish = parse_watch(headers["waystation-watch"].to_str().unwrap()).unwrap();
    shared.with(|state| state.watches.push(wish.cursor.clone().unwrap_or_default()));
    let (tx, body) = mpsc::channel(1);
    let mut at: usize = wish.cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    tokio::spawn(async move {
        let mut changed = shared.changed.subscribe();
        let watching = frame::encode_json(kind::WATCHING, &Watching { node: "n".into(), window_start: None });
        let _ = tx.send(watching).await;
        loop {
            let news: Vec<Bytes> = shared.state.lock().unwrap().log.get(at..).unwrap_or_default().to_vec();
            for frame in news {
                at += 1;
                // Odd cuts: a contact must not depend on how frames fall into reads.
                for part in frame.chunks(777) {
                    if tx.send(Bytes::copy_from_slice(part)).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = tx.closed() => return,
            }
        }
    });
    Reply { status: StatusCode::OK, headers: HeaderMap::new(), body }
}

/// What the log has of a chunk: how it begins, its bytes so far, and whether that is all there will be.
fn logged(log: &[Bytes], name: ChunkRef) -> Option<(ChunkBegins, Vec<u8>, bool)> {
    let frames = log.iter().flat_map(|frame| frame::split_message(frame.clone()).unwrap());
    let mut found: Option<(ChunkBegins, Vec<u8>, bool)> = None;
    for frame in frames {
        match (frame.kind, &mut found) {
            (kind::CHUNK, found) => {
                let begins: ChunkBegins = frame::control(&frame).unwrap();
                if ChunkRef::of(&super::incident(), &begins.stream, begins.index) == name {
                    *found = Some((begins, Vec::new(), false));
                }
            }
            (kind::PIECE, Some((begins, bytes, _))) => {
                let piece = Piece::decode(frame.body).unwrap();
                if piece.handle == begins.handle {
                    bytes.extend_from_slice(&piece.bytes);
                }
            }
            (kind::COMPLETE, Some((begins, _, over))) => {
                *over |= frame::control::<Complete>(&frame).unwrap().handle == begins.handle;
            }
            (kind::WITHDRAWN, Some((begins, _, over))) => {
                *over |= frame::control::<Withdrawn>(&frame).unwrap().handle == begins.handle;
            }
            _ => {}
        }
    }
    found
}

/// One chunk, which the answer waits for.
async fn read(shared: Arc<Shared>, name: ChunkRef) -> Reply {
    if shared.with(|state| {
        let crowded = state.knobs.crowded_until.is_some_and(|until| Instant::now() < until);
        state.unseated += usize::from(crowded);
        crowded
    }) {
        return refusal(Code::TooManyContacts, None);
    }
    let mut changed = shared.changed.subscribe();
    let begins = loop {
        let found = logged(&shared.state.lock().unwrap().log, name);
        match found {
            Some((begins, ..)) => break begins,
            None => changed.changed().await.unwrap(),
        }
    };
    let of = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let json = serde_json::to_value(&begins).unwrap();
    let chunk = format!(
        r#"incident="{}", stream="{}", index={}, media="{}", started="{}", ended="{}", length={}, role="{}""#,
        super::incident().as_str(),
        begins.stream.as_str(),
        begins.index,
        of(&json["media"]),
        of(&json["started"]),
        of(&json["ended"]),
        begins.length,
        of(&json["variant"]),
    );
    let headers = [("repr-digest", write_digest(&begins.sha256)), ("waystation-chunk", chunk)];
    let headers = headers.into_iter().map(|(name, value)| (name.try_into().unwrap(), value.parse().unwrap()));
    let (tx, body) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut sent = 0;
        loop {
            let Some((_, bytes, over)) = logged(&shared.state.lock().unwrap().log, name) else { return };
            if bytes.len() > sent && tx.send(Bytes::copy_from_slice(&bytes[sent..])).await.is_err() || over {
                return;
            }
            sent = bytes.len();
            tokio::select! {
                _ = changed.changed() => {}
                () = tx.closed() => return,
            }
        }
    });
    Reply { status: StatusCode::OK, headers: headers.collect(), body }
}

// === HTTP/1.1 ===

pub async fn h1(stream: TcpStream, shared: &Arc<Shared>) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let shared = Arc::clone(shared);
        async move {
            let (head, mut incoming) = request.into_parts();
            let (tx, rx) = mpsc::channel(1);
            let feeding = async move {
                while let Some(Ok(frame)) = incoming.frame().await {
                    if let Ok(data) = frame.into_data()
                        && tx.send(data).await.is_err()
                    {
                        return;
                    }
                }
            };
            let (answer, ()) = tokio::join!(handle(shared, head, rx), feeding);
            let answer = answer.map_err(|Cut| std::io::Error::other("cut"))?;
            let stream = futures_util::stream::unfold(answer.body, |mut body| async move {
                body.recv().await.map(|bytes| (Ok::<_, Infallible>(Frame::data(bytes)), body))
            });
            let mut response = Response::new(http_body_util::StreamBody::new(Box::pin(stream)));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            Ok::<_, std::io::Error>(response)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Advice that a session was not told yet.
pub fn advice(state: &State, told: &mut usize) -> Vec<Bytes> {
    let new = &state.hints[*told..];
    *told = state.hints.len();
    new.iter().map(|hint| frame::encode_json(kind::HINT, hint)).collect()
}

// === HTTP/3 ===

pub fn tls(certificate: &CertificateDer<'static>, key: &PrivateKeyDer<'static>, alpn: &[u8]) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.clone_key())
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls
}

pub fn h3(shared: Arc<Shared>, tls: rustls::ServerConfig) -> (SocketAddr, impl Future<Output = ()>) {
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.local_addr().unwrap();
    let serve = async move {
        let mut running = tokio::task::JoinSet::new();
        while let Some(incoming) = endpoint.accept().await {
            let shared = Arc::clone(&shared);
            running.spawn(async move {
                let Ok(connection) = incoming.await else { return };
                let _open = Open::new(&shared);
                let mut generation = shared.generation.subscribe();
                generation.mark_unchanged();
                tokio::select! {
                    () = requests(connection.clone(), &shared) => {}
                    _ = generation.changed() => {}
                }
                connection.close(0u32.into(), b"");
            });
        }
    };
    (address, serve)
}

async fn requests(connection: quinn::Connection, shared: &Arc<Shared>) {
    let Ok(mut h3) = h3::server::Connection::<_, Bytes>::new(waystation_h3::Connection::new(connection.clone())).await
    else {
        return;
    };
    let mut running = tokio::task::JoinSet::new();
    while let Ok(Some(resolver)) = h3.accept().await {
        let (shared, connection) = (Arc::clone(shared), connection.clone());
        running.spawn(async move {
            let Ok((request, stream)) = resolver.resolve_request().await else { return };
            shared.with(|state| state.ports.insert(connection.remote_address().port()));
            let (mut send, mut receive) = stream.split();
            let (tx, rx) = mpsc::channel(1);
            let feeding = async move {
                while let Ok(Some(mut data)) = receive.recv_data().await {
                    let length = data.remaining();
                    if tx.send(data.copy_to_bytes(length)).await.is_err() {
                        return;
                    }
                }
            };
            let (head, ()) = request.into_parts();
            if head.uri.path() == "/capture" {
                let _ = send.send_response(Response::new(())).await;
                let (mut changed, mut told) = (shared.changed.subscribe(), 0);
                let advising = async {
                    loop {
                        let hints: Vec<Bytes> = advice(&shared.state.lock().unwrap(), &mut told);
                        for hint in hints {
                            let _ = send.send_data(hint).await;
                        }
                        changed.changed().await.unwrap();
                    }
                };
                tokio::select! {
                    () = feeding => return,
                    () = advising => return,
                }
            }
            let reads = head.method == Method::GET && head.uri.path() != "/watch";
            let (answer, ()) = tokio::join!(handle(Arc::clone(&shared), head, rx), feeding);
            let Ok(mut answer) = answer else { return connection.close(0u32.into(), b"") };
            let mut response = Response::new(());
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            if send.send_response(response).await.is_err() {
                return;
            }
            while let Some(bytes) = answer.body.recv().await {
                if send.send_data(bytes).await.is_err() {
                    shared.with(|state| state.stopped += usize::from(reads));
                    return;
                }
            }
            let _ = send.finish().await;
        });
    }
}
