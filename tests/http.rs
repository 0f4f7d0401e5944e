//! Plain HTTP/1.1, for the plain and the ops listener.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use waystation_proto::{dictionary, message};

use crate::Chunk;

/// An answer.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body of a native answer.
    pub fn native(&self) -> message::Answer {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The error's code; empty if there is none.
    pub fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// One request on a connection of its own.
pub async fn send(at: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// `GET`: status and text.
pub async fn get(at: SocketAddr, path: &str) -> (StatusCode, String) {
    let answer = send(at, Request::get(path).header("host", "test").body(Full::default()).unwrap()).await;
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

/// The request that brings a chunk.
pub fn put(chunk: &Chunk, capability: &str, wait_s: u32) -> http::request::Builder {
    Request::put(format!("/chunks/{}", chunk.chunk_ref()))
        .header("host", "test")
        .header("authorization", format!("Bearer {capability}"))
        .header("repr-digest", dictionary::write_digest(&chunk.offer.sha256))
        .header("waystation-chunk", dictionary::write_offer(&chunk.offer))
        .header("prefer", format!("wait={wait_s}"))
}

/// Brings a chunk over the plain listener.
pub async fn upload(at: SocketAddr, chunk: &Chunk, capability: &str, wait_s: u32) -> Answer {
    send(at, put(chunk, capability, wait_s).body(Full::new(chunk.bytes.clone())).unwrap()).await
}

/// `HEAD` or `DELETE` of a chunk.
pub async fn ask(at: SocketAddr, method: Method, chunk: &Chunk, capability: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(format!("/chunks/{}", chunk.chunk_ref()))
        .header("host", "test")
        .header("authorization", format!("Bearer {capability}"));
    send(at, request.body(Full::default()).unwrap()).await
}
