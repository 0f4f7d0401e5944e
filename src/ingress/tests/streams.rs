//! The HTTP/3 adapter, on a real connection.

use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use http::{Request, Response};

use super::harness::PATIENCE;
use waystation_h3::{BidiStream, Connection, Orders};

type Server = h3::server::RequestStream<BidiStream, Bytes>;
type Client = h3::client::RequestStream<BidiStream, Bytes>;

/// One request on an own connection: both ends of its stream, and what keeps them alive.
async fn pair() -> (Client, Server, impl Sized) {
    let (client, server, _, alive) = pair_and_orders().await;
    (client, server, alive)
}

async fn pair_and_orders() -> (Client, Server, Orders, impl Sized) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h3".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h3".to_vec()];
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let far = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(server)), any).unwrap();
    let mut near = quinn::Endpoint::client(any).unwrap();
    near.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
    let at = far.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let quic = far.accept().await.unwrap().await.unwrap();
        let (streams, sessions, orders) = Connection::with_sessions(quic);
        let mut h3 = h3::server::builder().build::<_, Bytes>(streams).await.unwrap();
        let resolver = h3.accept().await.unwrap().unwrap();
        let (_, stream) = resolver.resolve_request().await.unwrap();
        let driver = tokio::spawn(async move { while let Ok(Some(_)) = h3.accept().await {} });
        (stream, orders, (driver, sessions, far))
    });
    let quic = near.connect(at, "localhost").unwrap().await.unwrap();
    let (mut driver, mut send) = h3::client::new(Connection::new(quic)).await.unwrap();
    let driver = tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
    let request = Request::put("https://localhost/x").body(()).unwrap();
    let client = send.send_request(request).await.unwrap();
    let (server, orders, far) = accepting.await.unwrap();
    (client, server, orders, (driver, far, near, send))
}

#[tokio::test]
async fn an_answer_that_is_dropped_is_reset_not_finished() {
    let (mut client, mut server, _alive) = pair().await;
    server.send_response(Response::new(())).await.unwrap();
    server.send_data(Bytes::from_static(b"half of it")).await.unwrap();
    client.recv_response().await.unwrap();
    assert!(client.recv_data().await.unwrap().is_some());
    drop(server);
    assert!(client.recv_data().await.is_err(), "a truncated body must not look complete");
}

#[tokio::test]
async fn an_answer_that_is_finished_is_whole() {
    let (mut client, mut server, _alive) = pair().await;
    server.send_response(Response::new(())).await.unwrap();
    server.send_data(Bytes::from_static(b"all of it")).await.unwrap();
    server.finish().await.unwrap();
    drop(server);
    client.recv_response().await.unwrap();
    assert_eq!(client.recv_data().await.unwrap().unwrap().remaining(), 9);
    assert!(client.recv_data().await.unwrap().is_none());
}

#[tokio::test]
async fn bytes_that_are_shared_come_once_and_in_their_place() {
    let (mut client, mut server, orders, _alive) = pair_and_orders().await;
    let id = server.id();
    // More than a window, so that writes end in the middle.
    let pieces: Vec<Bytes> = (0..40u8).map(|at| Bytes::from(vec![at; 1 + 2_000 * usize::from(at)])).collect();
    let all = pieces.concat();
    let sending = tokio::spawn(async move {
        server.send_response(Response::new(())).await.unwrap();
        for (at, piece) in pieces.into_iter().enumerate() {
            if at % 3 != 0 {
                orders.share(id, piece.clone());
            }
            server.send_data(piece).await.unwrap();
        }
        server.finish().await.unwrap();
        server
    });
    client.recv_response().await.unwrap();
    let mut came = Vec::new();
    while let Some(mut data) = client.recv_data().await.unwrap() {
        came.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    assert!(came == all, "{} of {} bytes", came.len(), all.len());
    sending.await.unwrap();
}

#[tokio::test]
async fn a_read_that_was_given_up_does_no_harm() {
    let (mut client, mut server, _alive) = pair().await;
    // Nothing has been sent: the read waits, and is dropped.
    let waited = tokio::time::timeout(std::time::Duration::from_millis(20), server.recv_data()).await;
    assert!(waited.is_err());
    client.send_data(Bytes::from_static(b"late")).await.unwrap();
    let got = tokio::time::timeout(PATIENCE, server.recv_data()).await.unwrap().unwrap().unwrap();
    assert_eq!(got.remaining(), 4);
    let waited = tokio::time::timeout(std::time::Duration::from_millis(20), server.recv_data()).await;
    assert!(waited.is_err());
    server.stop_sending(h3::error::Code::H3_NO_ERROR);
}

#[tokio::test]
async fn reads_are_larger_than_packets() {
    let (mut client, mut server, _alive) = pair().await;
    let total = 512 * 1024;
    let sending = tokio::spawn(async move {
        client.send_data(Bytes::from(vec![7; total])).await.unwrap();
        client.finish().await.unwrap();
        client
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let (mut read, mut pieces) = (0, 0);
    while let Some(data) = server.recv_data().await.unwrap() {
        read += data.remaining();
        pieces += 1;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(read, total);
    assert!(read / pieces > 4 * 1400, "{pieces} pieces of {} bytes", read / pieces);
    sending.await.unwrap();
}
