//! Limits, each reached once, and the end of the relay.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::harness::{ALL, PATIENCE, Relay, Via, get, limits, request, start};

/// Sends bytes as they are and reads what comes until the relay closes.
async fn raw(relay: &Relay, bytes: &[u8]) -> String {
    let mut tcp = TcpStream::connect(relay.plain).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    read_all(&mut tcp).await
}

/// The same where the relay may close before everything is sent.
async fn raw_some(relay: &Relay, bytes: &[u8]) -> String {
    let (mut read, mut write) = TcpStream::connect(relay.plain).await.unwrap().into_split();
    let sending = async {
        let _ = write.write_all(bytes).await;
        std::future::pending::<()>().await;
    };
    let mut head = [0; 13];
    tokio::select! {
        () = sending => unreachable!(),
        got = tokio::time::timeout(PATIENCE, read.read_exact(&mut head)) => { got.unwrap().unwrap(); }
    }
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, read.read_to_end(&mut rest)).await.expect("the relay closes");
    format!("{}{}", String::from_utf8_lossy(&head), String::from_utf8_lossy(&rest))
}

async fn read_all(tcp: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut read)).await.expect("the relay closes");
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn requests_that_two_readers_may_read_differently_are_refused() {
    let relay = start(limits()).await;
    let head = "GET /health/live HTTP/1.1\r\nConnection: close\r\n";
    assert!(raw(&relay, format!("{head}Host: a\r\n\r\n").as_bytes()).await.starts_with("HTTP/1.1 200"));
    for bad in [
        "\r\n",
        "Host: a\r\nHost: a\r\n\r\n",
        "Host: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = raw(&relay, format!("{head}{bad}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{bad:?}: {answer}");
    }
    let answer = raw(&relay, format!("{head}\r\n").as_bytes()).await;
    assert!(answer.contains("\"bad_request\"") && answer.contains("no-store"), "{answer}");
}

#[tokio::test]
async fn who_asks_first_is_refused_before_the_body() {
    let relay = start(limits()).await;
    let head = "PUT /chunks/AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\
                Expect: 100-continue\r\nConnection: close\r\n\r\n";
    let answer = raw(&relay, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "no 100 Continue for a body that nobody wants: {answer}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_told_so() {
    let relay = start(limits()).await;
    let long = "x".repeat(40 * 1024);
    for via in ALL {
        let answer = relay.ask(via, request(http::Method::GET, "/health/live", &[("x-long", &long)]), "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (431, "headers_too_large"), "{via:?}");
    }
}

#[tokio::test]
async fn a_head_may_have_so_many_fields_on_every_version() {
    let relay = start(limits()).await;
    let names: Vec<String> = (0..1000).map(|at| format!("x-{at}")).collect();
    let fields = |count: usize| names[..count].iter().map(|name| (name.as_str(), "1")).collect::<Vec<_>>();
    for via in ALL {
        // `Host` is one more on HTTP/1.1.
        let fits = relay.ask(via, request(http::Method::GET, "/health/live", &fields(127)), "").await;
        assert_eq!(fits.status, 200, "{via:?}");
        for count in [129, 300, 1000] {
            let answer = relay.ask(via, request(http::Method::GET, "/health/live", &fields(count)), "").await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (431, "headers_too_large"), "{via:?}");
            assert!(
                answer.headers["cache-control"] == "no-store" && answer.headers["x-content-type-options"] == "nosniff"
            );
        }
    }
}

/// What hyper answers by itself is bare; docs/errors.md says so.
#[tokio::test]
async fn a_head_that_can_not_be_read_gets_a_bare_answer_and_the_end() {
    let relay = start(limits()).await;
    let many: String = (0..1100).map(|at| format!("x-{at}: 1\r\n")).collect();
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(200 * 1024));
    for (head, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nno field\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
        (long, 431),
    ] {
        let answer = raw_some(&relay, head.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && !answer.contains("error"), "{answer}");
    }
}

#[tokio::test]
async fn silence_before_a_request_is_cut_at_the_header_timeout() {
    let mut short = limits();
    short.header_timeout = Duration::from_millis(150);
    let relay = start(short).await;
    assert_eq!(raw(&relay, b"").await, "", "before the version of HTTP is known");
    let answer = raw(&relay, b"GET /health/live HTTP/1.1\r\nHos").await;
    for part in ["HTTP/1.1 408 ", "connection: close", "no-store", "nosniff", "\"header_timeout\""] {
        assert!(answer.contains(part), "within the head: {part} in {answer:?}");
    }
    assert!(raw(&relay, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.len() < 100, "after HTTP/2's preface");
    relay.counted("waystation_connections_refused_total{reason=\"header_timeout\"} 3").await;
    let mut tls = TcpStream::connect(relay.public).await.unwrap();
    assert_eq!(read_all(&mut tls).await, "");
    relay.counted("waystation_handshakes_failed_total{handshake=\"tls\",class=\"timeout\"} 1").await;
    let mut tls = TcpStream::connect(relay.public).await.unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    relay.counted("waystation_handshakes_failed_total{handshake=\"tls\",class=\"protocol\"} 1").await;
    drop(TcpStream::connect(relay.public).await.unwrap());
    relay.counted("waystation_handshakes_failed_total{handshake=\"tls\",class=\"closed\"} 1").await;
    assert!(relay.try_quic(b"h2").await.is_err());
    relay.counted("waystation_handshakes_failed_total{handshake=\"quic\",class=\"protocol\"} 1").await;
}

#[tokio::test]
async fn an_idle_connection_is_let_go_and_a_busy_one_is_not() {
    let mut short = limits();
    short.idle_timeout = Duration::from_millis(200);
    let relay = start(short).await;
    let mut tcp = TcpStream::connect(relay.plain).await.unwrap();
    tcp.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_all(&mut tcp).await.starts_with("HTTP/1.1 200"));
    relay.counted("waystation_connections_refused_total{reason=\"idle\"} 1").await;
}

#[tokio::test]
async fn a_dead_sender_is_cut_and_told_and_a_slow_one_is_not() {
    let mut short = limits();
    short.idle_timeout = Duration::from_millis(400);
    let relay = start(short).await;
    let head = "POST /upload/complete-chunk HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 1000\r\n\r\n";
    let mut tcp = TcpStream::connect(relay.plain).await.unwrap();
    tcp.write_all(head.as_bytes()).await.unwrap();
    // Far slower than the limit in all, never silent for it.
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(80)).await;
        tcp.write_all(b"x").await.unwrap();
    }
    let answer = read_all(&mut tcp).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_stalled"), "{answer}");
    relay.counted("waystation_requests_total{route=\"upload\",status=\"4xx\",code=\"body_stalled\"} 1").await;
}

#[tokio::test]
async fn a_full_relay_says_so_on_every_transport() {
    let mut one = limits();
    one.connections = 1;
    let relay = start(one).await;
    let mut held = TcpStream::connect(relay.plain).await.unwrap();
    held.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 12];
    held.read_exact(&mut some).await.unwrap();
    for via in ALL {
        let answer = relay.ask(via, get("/health/live"), "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "too_many_connections"), "{via:?}");
        assert!(answer.headers.contains_key("retry-after"));
    }
    relay.counted("waystation_connections_refused_total{reason=\"full\"} 4").await;
}

#[tokio::test]
async fn handshakes_have_a_rate() {
    let mut slow = limits();
    slow.handshakes_per_second = 1;
    let relay = start(slow).await;
    let _first = relay.tls(b"http/1.1").await;
    assert!(relay.try_quic(b"h3").await.is_err());
    relay.counted("waystation_connections_refused_total{reason=\"handshake_rate\"} 1").await;
    let mut tcp = TcpStream::connect(relay.public).await.unwrap();
    assert_eq!(read_all(&mut tcp).await, "");
    assert_eq!(relay.ask(Via::Plain, get("/health/live"), "").await.status, 200, "plain shakes no hands");
}

#[tokio::test]
async fn an_address_keeps_to_its_share() {
    let mut slow = limits();
    slow.handshakes_per_second = 20;
    let relay = start(slow).await;
    let here = relay.public.ip();
    let shaking = async {
        // Time gives a handshake back every 50 ms, also between filling the share and this one.
        loop {
            while relay.service.gate.may_shake_hands(Some(here)).is_ok() {}
            if relay.try_quic(b"h3").await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, shaking).await.expect("a refusal");
    relay.counted("waystation_connections_refused_total{reason=\"address_share\"} 1").await;

    let mut places = limits();
    (places.connections, places.handshakes_per_second) = (128, 10_000);
    let relay = start(places).await;
    let held: Vec<_> = (0..64).map(|_| relay.service.gate.enter(Some(here)).unwrap()).collect();
    let mut tcp = TcpStream::connect(relay.public).await.unwrap();
    assert_eq!(read_all(&mut tcp).await, "");
    assert!(relay.try_quic(b"h3").await.is_err());
    relay.counted("waystation_connections_refused_total{reason=\"address_share\"} 2").await;
    assert_eq!(relay.ask(Via::Plain, get("/health/live"), "").await.status, 200, "behind plain is a proxy");
    drop(held);
    assert_eq!(relay.ask(Via::H3, get("/health/live"), "").await.status, 200);
}

#[tokio::test]
async fn in_a_crowd_of_handshakes_an_address_must_show_that_it_is_real() {
    let relay = start(limits()).await;
    let crowd = crate::ingress::quic::RETRY_FROM;
    relay.service.unfinished.store(crowd, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(relay.ask(Via::H3, get("/health/live"), "").await.status, 200);
    relay.counted("waystation_connections_refused_total{reason=\"retried\"} 1").await;
    assert_eq!(relay.service.unfinished.load(std::sync::atomic::Ordering::Relaxed), crowd);
}

#[tokio::test]
async fn a_frame_that_would_have_to_be_held_ends_the_connection() {
    let relay = start(limits()).await;
    // SETTINGS on a control stream, HEADERS and an unknown frame on a request's: 2^40 bytes each.
    let length = [&[0xc0, 0, 1][..], &[0; 5]].concat();
    let heads: [(bool, &[u8]); 3] = [(false, &[0x00, 0x04]), (true, &[0x01]), (true, &[0x21])];
    for (request, head) in heads {
        let quic = relay.quic().await;
        let mut send = if request { quic.open_bi().await.unwrap().0 } else { quic.open_uni().await.unwrap() };
        let sending = async {
            send.write_all(head).await?;
            send.write_all(&length).await?;
            while send.write_all(&[0; 16 * 1024]).await.is_ok() {}
            Ok::<_, quinn::WriteError>(())
        };
        let _ = tokio::time::timeout(PATIENCE, sending).await.expect("the relay takes no end of it");
        let quinn::ConnectionError::ApplicationClosed(closed) = quic.closed().await else { panic!("{head:?}") };
        assert_eq!(closed.error_code.into_inner(), 0x107, "H3_EXCESSIVE_LOAD: {head:?}");
    }
    relay.counted("waystation_connections_refused_total{reason=\"broken\"} 3").await;
    assert_eq!(relay.ask(Via::H3, get("/health/live"), "").await.status, 200);
}

#[tokio::test]
async fn draining_ends_idle_connections_and_is_over_soon() {
    let relay = start(limits()).await;
    let idle = TcpStream::connect(relay.plain).await.unwrap();
    let mut used = TcpStream::connect(relay.plain).await.unwrap();
    used.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let quic = relay.quic().await;
    let (_driver, mut send) = h3::client::new(waystation_h3::Connection::new(quic.clone())).await.unwrap();
    let asked = get("https://localhost/health/live");
    let mut stream = send.send_request(asked).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(stream.recv_response().await.unwrap().status(), 200);
    relay.shutdown.cancel();
    let drained = tokio::time::timeout(PATIENCE, relay.served).await.unwrap().unwrap();
    assert_eq!(drained.cut, 1, "the one that never sent a request is cut at the deadline");
    assert!(read_all(&mut used).await.starts_with("HTTP/1.1 200"));
    quic.closed().await;
    drop(idle);
}
