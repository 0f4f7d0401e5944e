//! A contact over the streaming `GET /watch`, and what it was told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use waystation_proto::ContactState;
use waystation_proto::frame::{Decoder, Frame, control, kind};
use waystation_proto::message::{ChunkBegins, ContactChunkState};
use waystation_tests::Chunk;
use waystation_tests::world::PATIENCE;

/// A watching contact. Dropped, it hangs up.
pub struct Contact {
    told: Arc<Mutex<Vec<ContactChunkState>>>,
    reading: JoinHandle<()>,
}

impl Contact {
    /// Watches from the oldest chunk on; `Err` holds the status of a refusal and its code.
    pub async fn try_watch(at: SocketAddr, capability: &str) -> Result<Self, (u16, String)> {
        let stream = TcpStream::connect(at).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/watch")
            .header("host", "test")
            .header("authorization", format!("Bearer {capability}"))
            .header("waystation-watch", "from=\"oldest\"")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        if answer.status() != 200 {
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            return Err((status, json["error"]["code"].as_str().unwrap().to_owned()));
        }
        let told = Arc::new(Mutex::new(Vec::new()));
        let reading = tokio::spawn({
            let (told, mut body) = (Arc::clone(&told), answer.into_body());
            async move {
                let mut decoder = Decoder::default();
                while let Some(Ok(piece)) = body.frame().await {
                    decoder.push(&piece.into_data().unwrap_or_default());
                    while let Some(frame) = decoder.next_frame().unwrap() {
                        told.lock().unwrap().extend(state(&frame));
                    }
                }
                drop(sender);
            }
        });
        Ok(Self { told, reading })
    }

    /// Watches from the oldest chunk on.
    pub async fn watch(at: SocketAddr, capability: &str) -> Self {
        Self::try_watch(at, capability).await.unwrap()
    }

    /// What it was told of a chunk, in order, without repetitions.
    pub fn told(&self, chunk: &Chunk) -> Vec<ContactChunkState> {
        let mut told = self.told.lock().unwrap().clone();
        told.retain(|one| one.stream == chunk.offer.stream && one.index == chunk.offer.index);
        told.dedup_by(|later, earlier| later.state == earlier.state);
        told
    }

    /// Waits until it is told that the chunk is in `state`; returns all states in order.
    pub async fn until(&self, chunk: &Chunk, state: ContactState) -> Vec<ContactChunkState> {
        let waiting = async {
            loop {
                let told = self.told(chunk);
                if told.iter().any(|one| one.state == state) {
                    return told;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let told = tokio::time::timeout(PATIENCE, waiting).await;
        told.unwrap_or_else(|_| panic!("the contact is never told {state:?}, but {:?}", self.told(chunk)))
    }

    /// The states alone.
    pub async fn states_until(&self, chunk: &Chunk, state: ContactState) -> Vec<ContactState> {
        self.until(chunk, state).await.into_iter().map(|one| one.state).collect()
    }
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

fn state(frame: &Frame) -> Option<ContactChunkState> {
    match frame.kind {
        kind::STATE => Some(control(frame).unwrap()),
        kind::CHUNK => {
            let begins: ChunkBegins = control(frame).unwrap();
            let (stream, index, state) = (begins.stream, begins.index, begins.state);
            Some(ContactChunkState { stream, index, state, receipt: None, error: None })
        }
        _ => None,
    }
}
