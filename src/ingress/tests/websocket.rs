//! WebSocket sessions up to the point where admission would answer.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use super::harness::{Headers, PATIENCE, Relay, limits, start};
use crate::proto::frame::{self, kind, split_message};
use crate::proto::{CAPTURE_SUBPROTOCOL, Code, WATCH_SUBPROTOCOL};

async fn open(relay: &Relay, path: &str, subprotocol: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{}{path}", relay.plain).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
    let tcp = TcpStream::connect(relay.plain).await.unwrap();
    let (socket, answer) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.headers()["sec-websocket-protocol"], subprotocol);
    socket
}

/// The last frame's type and reason, and the close code.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> (u64, String, u16) {
    let hearing = async {
        let mut last = (0, String::new());
        loop {
            match socket.next().await.expect("a close comes").expect("a sound close") {
                Message::Binary(bytes) => {
                    let frame = split_message(bytes).unwrap().pop().unwrap();
                    let body: serde_json::Value = serde_json::from_slice(&frame.body).unwrap();
                    last = (frame.kind, body["reason"].as_str().unwrap().into());
                }
                Message::Close(close) => return (last.0, last.1, close.unwrap().code.into()),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, hearing).await.expect("the relay says goodbye")
}

#[tokio::test]
async fn a_first_message_that_is_none_ends_the_session_by_name() {
    let relay = start(limits()).await;
    let piece = frame::Piece::encode(kind::CAPTURE_PIECE, 1, 0, b"x");
    let early = frame::encode(kind::ALIVE, b"{}");
    let old = frame::encode(kind::HELLO, br#"{"protocol":2,"capabilities":["canary"]}"#);
    let bare = frame::encode(kind::HELLO, br#"{"protocol":1,"capabilities":[]}"#);
    let cut = early.slice(..early.len() - 1);
    let mut large = vec![0x01, 0x80, 0xff, 0xff, 0xff];
    large.extend_from_slice(&[0; 100]);
    let cases: [(Message, Code); 7] = [
        (Message::text("hello"), Code::ProtocolError),
        (Message::Binary(piece), Code::ProtocolError),
        (Message::Binary(cut), Code::ProtocolError),
        (Message::Binary(old), Code::UnsupportedProtocol),
        (Message::Binary(bare), Code::CapabilityMissing),
        (Message::Binary(large.into()), Code::FrameTooLarge),
        (Message::Binary(vec![0; 600 * 1024].into()), Code::FrameTooLarge),
    ];
    for (message, code) in cases {
        let mut socket = open(&relay, "/capture", CAPTURE_SUBPROTOCOL).await;
        let _ = socket.send(message).await;
        assert_eq!(farewell(&mut socket).await, (kind::BYE, code.name().into(), code.close()));
    }
    relay.counted("waystation_websocket_sessions_ended_total{route=\"capture\",code=\"protocol_error\"} 3").await;
    relay.counted("waystation_received_bytes_total{transport=\"ws\"}").await;

    let mut socket = open(&relay, "/watch", WATCH_SUBPROTOCOL).await;
    socket.send(Message::Binary(frame::encode(kind::WATCH, br#"{"protocol":7,"capability":"canary"}"#))).await.unwrap();
    let code = Code::UnsupportedProtocol;
    assert_eq!(farewell(&mut socket).await, (kind::ENDING, code.name().into(), code.close()));
    assert!(relay.metrics.text().contains("waystation_websocket_sessions{route=\"watch\"}"));
}

#[tokio::test]
async fn a_peer_that_closes_first_hears_the_echo() {
    let relay = start(limits()).await;
    for (path, subprotocol) in [("/capture", CAPTURE_SUBPROTOCOL), ("/watch", WATCH_SUBPROTOCOL)] {
        let mut socket = open(&relay, path, subprotocol).await;
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        socket.send(Message::Close(Some(close.clone()))).await.unwrap();
        let echo = tokio::time::timeout(PATIENCE, socket.next()).await.expect("the relay answers");
        assert_eq!(echo.expect("not cut").unwrap(), Message::Close(Some(close)));
    }
}

#[tokio::test]
async fn a_first_message_that_does_not_come_is_not_waited_for() {
    let relay = start(limits()).await;
    let began = std::time::Instant::now();
    let mut socket = open(&relay, "/watch", WATCH_SUBPROTOCOL).await;
    let code = Code::FirstMessageTimeout;
    assert_eq!(farewell(&mut socket).await, (kind::ENDING, code.name().into(), code.close()));
    assert!(began.elapsed() >= Duration::from_secs(5));
}

#[tokio::test]
async fn upgrades_that_are_not_sound_are_refused() {
    let relay = start(limits()).await;
    let cases: [(&str, Headers, u16, &str); 5] = [
        ("/capture", &[("sec-websocket-protocol", WATCH_SUBPROTOCOL)], 400, "unsupported_protocol"),
        ("/watch", &[], 400, "unsupported_protocol"),
        (
            "/watch",
            &[("sec-websocket-protocol", WATCH_SUBPROTOCOL), ("origin", "https://other.example")],
            403,
            "origin_not_allowed",
        ),
        ("/watch", &[("sec-websocket-version", "12")], 400, "bad_request"),
        ("/health/live", &[], 200, ""),
    ];
    for (path, headers, status, code) in cases {
        let mut all = vec![
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        if !headers.iter().any(|(name, _)| *name == "sec-websocket-version") {
            all.push(("sec-websocket-version", "13"));
        }
        all.extend_from_slice(headers);
        let request = super::harness::request(Method::GET, path, &all);
        let answer = relay.ask(super::harness::Via::Plain, request, "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{path} {headers:?}");
    }
    let plain = relay.ask(super::harness::Via::Plain, super::harness::get("/capture"), "").await;
    assert_eq!((plain.status, plain.headers["upgrade"].to_str().unwrap()), (StatusCode::UPGRADE_REQUIRED, "websocket"));
}

#[tokio::test]
async fn a_page_that_is_allowed_may_open_one() {
    let relay = start(limits()).await;
    let mut request = format!("ws://{}/watch", relay.plain).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", format!("x, {WATCH_SUBPROTOCOL}").parse().unwrap());
    request.headers_mut().insert("origin", "https://page.example".parse().unwrap());
    let tcp = TcpStream::connect(relay.plain).await.unwrap();
    assert_eq!(tokio_tungstenite::client_async(request, tcp).await.unwrap().1.status(), 101);
}

#[tokio::test]
async fn extended_connect_opens_one_over_http2() {
    let relay = start(limits()).await;
    let io = TokioIo::new(relay.tls(b"h2").await);
    let (mut send, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(conn);
    // The peer must have said in its SETTINGS that it takes extended CONNECT.
    send.ready().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let request = Request::connect("https://localhost/capture")
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", CAPTURE_SUBPROTOCOL)
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let upgraded = hyper::upgrade::on(answer).await.unwrap();
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    socket.send(Message::text("hello")).await.unwrap();
    let code = Code::ProtocolError;
    assert_eq!(farewell(&mut socket).await, (kind::BYE, code.name().into(), code.close()));
}
