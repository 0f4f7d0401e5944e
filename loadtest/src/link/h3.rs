//! HTTP/3: one QUIC connection with a socket of its own, as each client has.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use h3::client::{RequestStream, SendRequest};
use http::{Request, Response};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::task::JoinHandle;
use waystation_h3::Opener;

use super::Verdict;
use crate::Failure;
use crate::chunks::Chunk;
use crate::rig::Rig;

/// Bytes under way in one direction: this program shall not be what is slow.
const WINDOW: u32 = 8 * 1024 * 1024;
/// Bytes handed to the stream at once.
const PIECE_BYTES: usize = 64 * 1024;

const BROKEN: Failure = Failure::Wire("the QUIC connection broke");

/// The half of a request that receives.
pub type ReceiveHalf = RequestStream<waystation_h3::RecvStream, Bytes>;

/// A connection that takes requests; ends when dropped.
pub struct Connection {
    requests: SendRequest<Opener, Bytes>,
    authority: String,
    driver: JoinHandle<()>,
    _socket: quinn::Endpoint,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn connect(rig: &Rig) -> Result<Self, Failure> {
        let (socket, connection) = quic(rig).await?;
        let mut builder = h3::client::builder();
        let built = builder.send_grease(false).build(waystation_h3::Connection::new(connection)).await;
        let (mut driver, requests) = built.map_err(|_| BROKEN)?;
        let driver = tokio::spawn(async move {
            driver.wait_idle().await;
        });
        Ok(Self { requests, authority: rig.public.to_string(), driver, _socket: socket })
    }

    pub(super) async fn put(&mut self, chunk: &Chunk, token: &str) -> Result<Verdict, Failure> {
        let uri = format!("https://{}{}", self.authority, super::path(chunk));
        let request = super::request(chunk, token).uri(uri).body(()).map_err(|_| BROKEN)?;
        let (mut send, mut receive) = self.requests.send_request(request).await.map_err(|_| BROKEN)?.split();
        let mut left = chunk.bytes.clone();
        while !left.is_empty() {
            let piece = left.split_to(left.len().min(PIECE_BYTES));
            // A relay that refuses stops the body: then its answer is what counts.
            if send.send_data(piece).await.is_err() {
                break;
            }
        }
        let sent = Instant::now();
        let _ = send.finish().await;
        let status = receive.recv_response().await.map_err(|_| BROKEN)?.status();
        let mut body = Vec::new();
        while let Some(mut data) = receive.recv_data().await.map_err(|_| BROKEN)? {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        Ok(super::verdict(sent, status, &body))
    }

    /// A request without a body; the answer is read as it comes.
    ///
    /// # Errors
    /// [`Failure::Wire`].
    pub async fn get(
        &mut self,
        path: &str,
        request: http::request::Builder,
    ) -> Result<(Response<()>, ReceiveHalf), Failure> {
        let mut receive = self.ask(path, request).await?;
        let answer = receive.recv_response().await.map_err(|_| BROKEN)?;
        Ok((answer, receive))
    }

    /// A request without a body, whose answer is not waited for.
    ///
    /// # Errors
    /// [`Failure::Wire`].
    pub async fn ask(&mut self, path: &str, request: http::request::Builder) -> Result<ReceiveHalf, Failure> {
        let uri = format!("https://{}{path}", self.authority);
        let request: Request<()> = request.uri(uri).body(()).map_err(|_| BROKEN)?;
        let (mut send, receive) = self.requests.send_request(request).await.map_err(|_| BROKEN)?.split();
        send.finish().await.map_err(|_| BROKEN)?;
        Ok(receive)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A QUIC connection to the relay, and the socket that keeps it.
///
/// # Errors
/// [`Failure`].
pub async fn quic(rig: &Rig) -> Result<(quinn::Endpoint, quinn::Connection), Failure> {
    let mut socket = quinn::Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into()).map_err(Failure::io("UDP"))?;
    socket.set_default_client_config(config(rig)?);
    let connecting = socket.connect(rig.public, "localhost").map_err(|_| BROKEN)?;
    let connection = connecting.await.map_err(|_| BROKEN)?;
    Ok((socket, connection))
}

fn config(rig: &Rig) -> Result<quinn::ClientConfig, Failure> {
    let tls = QuicClientConfig::try_from(rig.trust.tls(&[b"h3"])).map_err(|_| BROKEN)?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .send_window(WINDOW.into())
        .stream_receive_window(WINDOW.into())
        .receive_window(WINDOW.into());
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
