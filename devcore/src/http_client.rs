//! One HTTP/1.1 request with a JSON body, for the `session` command.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::session::Error;
use crate::tls;

/// Largest answer read, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// A request takes no longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the core is, and who asks.
pub(crate) struct Account {
    pub(crate) core: String,
    pub(crate) token: String,
    /// Certificates that vouch for an `https` core.
    pub(crate) authority: Option<PathBuf>,
}

impl Account {
    /// Posts `body`; the answer's status and JSON.
    pub(crate) async fn post(&self, path: &str, body: &serde_json::Value) -> Result<(u16, serde_json::Value), Error> {
        tokio::time::timeout(PATIENCE, self.exchange(path, body)).await.map_err(|_| Error::Unreachable)?
    }

    async fn exchange(&self, path: &str, body: &serde_json::Value) -> Result<(u16, serde_json::Value), Error> {
        let uri: Uri = format!("{}{path}", self.core.trim_end_matches('/')).parse().map_err(|_| Error::InvalidUrl)?;
        let (host, secure) = (uri.host().ok_or(Error::InvalidUrl)?, uri.scheme_str() == Some("https"));
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let request = Request::post(uri.path())
            .header(HOST, uri.authority().map_or("", |authority| authority.as_str()))
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|_| Error::InvalidUrl)?;
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|_| Error::Unreachable)?;
        if !secure {
            return send(stream, request).await;
        }
        let authority = self.authority.as_ref().ok_or(Error::NoAuthority)?;
        let name = ServerName::try_from(host).map_err(|_| Error::InvalidUrl)?;
        let connector = tls::connector(authority).map_err(|_| Error::NoAuthority)?;
        send(connector.connect(name, stream).await.map_err(|_| Error::Unreachable)?, request).await
    }
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(u16, serde_json::Value), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| Error::Unreachable)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|_| Error::Unreachable)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|_| Error::Unreachable)?.to_bytes();
        Ok((status, serde_json::from_slice(&body).map_err(|_| Error::Unreadable)?))
    };
    let mut exchange = std::pin::pin!(exchange);
    // The connection is driven only as long as the exchange needs it.
    tokio::select! {
        biased;
        done = exchange.as_mut() => done,
        _ = connection => exchange.await,
    }
}
