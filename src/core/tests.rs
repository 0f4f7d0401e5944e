use std::convert::Infallible;
use std::io::Write as _;
use std::sync::atomic::Ordering;

use futures_util::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::testing::{FakeCore, Seen, json};
use super::*;
use crate::proto::Digest;
use crate::proto::dictionary::parse_offer;

const TOKEN: &str = "canary-service-token-0123456789abcdef";
const CAPABILITY: &str = "canary.capability.token";

fn offer(length: u64) -> Offer {
    let header = r#"incident="inc_1", stream="str_1", index=7, media="audio", started="2026-06-10T14:00:00.000000001+02:00", ended="2026-06-10T12:00:02Z", name=%"caf%c3%a9 \"1.enc""#;
    parse_offer(&header.replace("\\\"", "%22"), Digest([0xa5; 32]), Some(length)).unwrap()
}

fn fields(offer: &Offer) -> ChunkFields<'_> {
    ChunkFields { session: "sid_1", capability: CAPABILITY, offer }
}

fn config(url: String, per_minute: u32) -> config::Core {
    config::Core {
        url,
        service_token: TOKEN.into(),
        ca_file: None,
        request_timeout: Duration::from_secs(30),
        max_requests_per_minute: per_minute,
    }
}

struct Rig {
    core: CoreApi,
    clock: Clock,
    metrics: Metrics,
}

fn rig_for(url: String, per_minute: u32) -> Rig {
    let (clock, metrics) = (Clock::at_unix_ms(0), Metrics::new());
    let client = Client::new(None).unwrap();
    let core = CoreApi::new(&config(url, per_minute), &client, clock.clone(), metrics.clone()).unwrap();
    Rig { core, clock, metrics }
}

impl Rig {
    async fn preflight(&self, offer: &Offer) -> Outcome {
        let permit = self.core.permit(Call::Preflight).await;
        self.core.preflight(permit, fields(offer)).await
    }

    async fn commit(&self, offer: &Offer, bytes: &[u8]) -> Outcome {
        let permit = self.core.permit(Call::Commit).await;
        self.core.commit(permit, fields(offer), Full::from(bytes.to_vec())).await
    }

    fn counts(&self, line: &str) -> bool {
        self.metrics.text().lines().any(|one| one == line)
    }
}

fn committed(_: &Seen) -> http::Response<Full<Bytes>> {
    json(201, r#"{"relay_commit":{"status":"committed","chunk_index":7}}"#)
}

const ACCEPTED: &str = r#"{"relay_preflight":{"status":"accepted"}}"#;

fn only<'a>(seen: &'a Seen, name: &str) -> &'a str {
    let values: Vec<_> = seen.headers.get_all(name).iter().collect();
    assert_eq!(values.len(), 1, "{name}");
    values[0].to_str().unwrap()
}

#[tokio::test]
async fn a_preflight_carries_the_fields_of_the_contract_and_no_other() {
    let server = FakeCore::start(|_| json(200, ACCEPTED)).await;
    let rig = rig_for(server.url("/prefix"), 0);
    assert_eq!(rig.preflight(&offer(336)).await, Outcome::Accepted);
    let mut nameless = offer(336);
    nameless.name.clear();
    nameless.sig = Some([1; 64]);
    assert_eq!(rig.preflight(&nameless).await, Outcome::Accepted);

    let seen = server.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/prefix/v1/relay/preflight"));
    assert_eq!(only(&seen[0], "x-proofline-relay-service-token"), TOKEN);
    assert_eq!(only(&seen[0], "content-type"), "application/json");
    assert_eq!(only(&seen[0], "user-agent"), "waystation");
    let body: serde_json::Value = serde_json::from_slice(&seen[0].body).unwrap();
    let expected = serde_json::json!({
        "relay_session_id": "sid_1", "capability": CAPABILITY, "incident_id": "inc_1", "stream_id": "str_1",
        "chunk_index": 7, "media_type": "audio", "started_at": "2026-06-10T14:00:00.000000001+02:00",
        "ended_at": "2026-06-10T12:00:02Z", "byte_size": 336, "sha256_hex": "a5".repeat(32),
        "original_filename": "café \"1.enc",
    });
    assert_eq!(body, expected);
    let second: serde_json::Value = serde_json::from_slice(&seen[1].body).unwrap();
    assert_eq!(second.as_object().unwrap().len(), 10, "neither an empty name nor a signature");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "the connection is used again");
    assert!(rig.counts(r#"waystation_core_requests_total{route="preflight",outcome="accepted"} 2"#));
    assert!(rig.counts(r#"waystation_core_request_seconds_count{route="preflight"} 2"#));
}

#[tokio::test]
async fn an_authorisation_carries_four_fields() {
    let server = FakeCore::start(|_| json(200, r#"{"relay_fanout":{"status":"authorized"}}"#)).await;
    let rig = rig_for(server.url(""), 0);
    let permit = rig.core.permit(Call::Authorize).await;
    let fields = FanoutFields { session: "s", capability: "c", incident: "i", stream: "t" };
    assert_eq!(rig.core.fanout_authorize(permit, fields).await, Outcome::Accepted);
    let seen = &server.seen()[0];
    assert_eq!(seen.path, "/v1/relay/fanout-authorize");
    let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    let expected =
        serde_json::json!({"relay_session_id": "s", "capability": "c", "incident_id": "i", "stream_id": "t"});
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_commit_is_the_eleven_fields_the_signature_and_the_exact_bytes() {
    let server = FakeCore::start(committed).await;
    let rig = rig_for(server.url(""), 0);
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    let mut signed = offer(bytes.len() as u64);
    signed.sig = Some([9; 64]);
    assert!(matches!(rig.commit(&signed, &bytes).await, Outcome::Confirmed(_)));

    let seen = server.seen().remove(0);
    assert_eq!(seen.path, "/v1/relay/commit");
    assert_eq!(only(&seen, "x-proofline-relay-service-token"), TOKEN);
    assert_eq!(only(&seen, "content-length"), seen.body.len().to_string());
    assert!(seen.headers.get("transfer-encoding").is_none());
    let boundary = multer::parse_boundary(only(&seen, "content-type")).unwrap();
    let body = seen.body.clone();
    let mut parts = multer::Multipart::new(stream::once(async move { Ok::<_, Infallible>(body) }), boundary);
    let mut got = Vec::new();
    while let Some(part) = parts.next_field().await.unwrap() {
        assert_eq!(part.file_name(), None, "no part has a filename");
        got.push((part.name().unwrap().to_owned(), part.bytes().await.unwrap()));
    }
    let sig = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, [9; 64]);
    let texts = [
        ("relay_session_id", "sid_1".to_owned()),
        ("capability", CAPABILITY.to_owned()),
        ("incident_id", "inc_1".to_owned()),
        ("stream_id", "str_1".to_owned()),
        ("chunk_index", "7".to_owned()),
        ("media_type", "audio".to_owned()),
        ("started_at", "2026-06-10T14:00:00.000000001+02:00".to_owned()),
        ("ended_at", "2026-06-10T12:00:02Z".to_owned()),
        ("byte_size", "100000".to_owned()),
        ("sha256_hex", "a5".repeat(32)),
        ("original_filename", "café \"1.enc".to_owned()),
        ("sig", sig),
    ];
    for ((name, value), (wanted, text)) in got.iter().zip(&texts) {
        assert_eq!((name.as_str(), &value[..]), (*wanted, text.as_bytes()));
    }
    assert_eq!(got.len(), 13);
    assert_eq!((got[12].0.as_str(), &got[12].1[..]), ("file", &bytes[..]));
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_the_token_stays_at_home() {
    let elsewhere = FakeCore::start(committed).await;
    let target = elsewhere.url("/v1/relay/commit");
    let server = FakeCore::start(move |_| {
        http::Response::builder().status(307).header("location", &target).body(Full::default()).unwrap()
    })
    .await;
    let rig = rig_for(server.url(""), 0);
    let outcome = rig.commit(&offer(3), b"abc").await;
    assert!(matches!(outcome, Outcome::Ambiguous(Doubt::Foreign(_))), "{outcome:?}");
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn a_slow_body_is_never_cut_while_it_moves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig_for(format!("http://{}", listener.local_addr().unwrap()), 0);
    let (pieces, body) = mpsc::channel::<Bytes>(1);
    let body = stream::unfold(body, |mut body| async { body.recv().await.map(|piece| (piece, body)) });
    let body = StreamBody::new(body.map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
    let call = tokio::spawn({
        let core = rig.core.clone();
        async move {
            let permit = core.permit(Call::Commit).await;
            core.commit(permit, fields(&offer(5 * 1000)), body).await
        }
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut arrived, mut buffer) = (0, vec![0; 4096]);
    for part in 1..=5 {
        pieces.send(vec![0xff; 1000].into()).await.unwrap();
        // Once the piece has arrived its progress is on record. No text around it has this byte.
        while arrived < part * 1000 {
            let read = stream.read(&mut buffer).await.unwrap();
            arrived += buffer[..read].iter().filter(|byte| **byte == 0xff).count();
        }
        rig.clock.advance(Duration::from_secs(29));
    }
    assert!(!call.is_finished());
    stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    assert!(matches!(call.await.unwrap(), Outcome::Confirmed(_)));
}

/// Reads until the whole request is there, then does as told.
async fn one_request(listener: &TcpListener, until: &[u8]) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut got = Vec::new();
    while !got.windows(until.len()).any(|part| part == until) {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0);
        got.extend_from_slice(&buffer[..read]);
    }
    stream
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_a_lost_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig_for(format!("http://{}", listener.local_addr().unwrap()), 0);
    let three = offer(3);
    let call = rig.commit(&three, b"abc");
    let silence = async {
        let stream = one_request(&listener, b"--\r\n").await;
        rig.clock.advance(Duration::from_secs(30));
        stream
    };
    let (outcome, _stream) = tokio::join!(call, silence);
    assert_eq!(outcome, Outcome::Ambiguous(Doubt::Lost));
    assert!(matches!(*rig.core.reach().borrow(), Reach::Away { .. }));
    assert!(rig.counts("waystation_core_reachable 0"));
    assert!(rig.counts(r#"waystation_core_requests_total{route="commit",outcome="lost"} 1"#));
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_body_brought_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig_for(format!("http://{}", listener.local_addr().unwrap()), 0);
    let big = vec![7; 32 << 20];
    let offer = offer(big.len() as u64);
    let breaking = async { drop(one_request(&listener, b"name=\"file\"").await) };
    let (outcome, ()) = tokio::join!(rig.commit(&offer, &big), breaking);
    assert_eq!(outcome, Outcome::Ambiguous(Doubt::NotSent));
}

#[tokio::test]
async fn an_answer_before_the_bodys_end_is_heard() {
    for closes in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = rig_for(format!("http://{}", listener.local_addr().unwrap()), 0);
        let big = vec![7; 32 << 20];
        let offer = offer(big.len() as u64);
        let early = async {
            let mut stream = one_request(&listener, b"name=\"file\"").await;
            let body = r#"{"error":{"code":"relay_capability_expired","message":""}}"#;
            let head = format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            // A close with bytes unread resets the connection under the client that still sends.
            (!closes).then_some(stream)
        };
        let (outcome, _stream) = tokio::join!(rig.commit(&offer, &big), early);
        assert!(matches!(outcome, Outcome::Renew(_)), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_source_that_fails_or_lies_is_not_the_cores_fault() {
    let server = FakeCore::start(committed).await;
    let rig = rig_for(server.url(""), 0);
    for bytes in [&b"ab"[..], b"abcd"] {
        assert_eq!(rig.commit(&offer(3), bytes).await, Outcome::Ambiguous(Doubt::Source));
    }
    let failing = stream::iter([Ok(Frame::data(Bytes::from_static(b"ab"))), Err(std::io::Error::other("disk"))]);
    let permit = rig.core.permit(Call::Commit).await;
    let three = offer(3);
    let outcome = rig.core.commit(permit, fields(&three), StreamBody::new(failing)).await;
    assert_eq!(outcome, Outcome::Ambiguous(Doubt::Source));
    assert_eq!(rig.core.away_for(), None);
    assert!(server.seen().is_empty(), "nothing whole arrived");
}

#[tokio::test]
async fn an_endless_answer_is_no_answer() {
    let server = FakeCore::start(|_| json(201, format!("{{\"a\":{{}}}}{}", " ".repeat(MAX_ANSWER)))).await;
    let rig = rig_for(server.url(""), 0);
    assert_eq!(rig.commit(&offer(3), b"abc").await, Outcome::Ambiguous(Doubt::Unreadable));
}

#[tokio::test]
async fn a_core_that_is_away_is_tried_once_each_back_off() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig_for(format!("http://{}", closed.local_addr().unwrap()), 0);
    drop(closed);
    assert_eq!(*rig.core.reach().borrow(), Reach::Unknown);
    assert_eq!(rig.preflight(&offer(3)).await, Outcome::Ambiguous(Doubt::NotSent));
    let wait = rig.core.away_for().unwrap();
    assert!((500..=1000).contains(&wait.as_millis()), "{wait:?}");

    let core = rig.core.clone();
    let mut waiting = tokio::spawn(async move { core.permit(Call::Commit).await });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    rig.clock.advance(wait);
    let permit = (&mut waiting).await.unwrap();
    let wait = rig.core.away_for().unwrap();
    assert!((1000..=2000).contains(&wait.as_millis()), "the next one waits longer: {wait:?}");
    drop(permit);
}

#[tokio::test]
async fn calls_that_fail_together_are_one_failure() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig_for(format!("http://{}", closed.local_addr().unwrap()), 0);
    drop(closed);
    let three = offer(3);
    let many = futures_util::future::join_all((0..20).map(|_| rig.preflight(&three))).await;
    assert_eq!(many.len(), 20);
    let wait = rig.core.away_for().unwrap();
    assert!(wait.as_millis() <= 1000, "{wait:?}");
}

#[tokio::test]
async fn a_core_that_comes_back_is_called_freely_again() {
    let away = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let server = FakeCore::start({
        let away = std::sync::Arc::clone(&away);
        move |_| if away.load(Ordering::SeqCst) { json(502, "<html>") } else { json(200, ACCEPTED) }
    })
    .await;
    let rig = rig_for(server.url(""), 0);
    assert!(rig.preflight(&offer(3)).await.away());
    away.store(false, Ordering::SeqCst);
    rig.clock.advance(rig.core.away_for().unwrap());
    for _ in 0..5 {
        assert_eq!(rig.preflight(&offer(3)).await, Outcome::Accepted);
    }
    assert_eq!((rig.core.away_for(), *rig.core.reach().borrow()), (None, Reach::Answers));
    assert!(rig.counts("waystation_core_reachable 1"));
}

#[tokio::test]
async fn a_429_pauses_its_class_and_a_drop_gives_the_permit_back() {
    let server = FakeCore::start(|_| {
        let mut answer = json(429, r#"{"error":{"code":"rate_limited","message":""}}"#);
        answer.headers_mut().insert("retry-after", HeaderValue::from_static("60"));
        answer
    })
    .await;
    let rig = rig_for(server.url(""), 10);
    assert_eq!(rig.core.limited_for(Limiter::Upload), None);
    let outcome = rig.commit(&offer(3), b"abc").await;
    assert_eq!(outcome.refusal().unwrap().retry_after_s, Some(60));
    assert_eq!(rig.core.limited_for(Limiter::Upload), Some(Duration::from_secs(60)));
    assert_eq!(rig.core.limited_for(Limiter::Stream), None);
    assert_eq!(*rig.core.reach().borrow(), Reach::Answers);
    assert!(rig.counts(r#"waystation_core_limited_seconds_total{limiter="upload"} 60.0"#));
    assert!(rig.counts(r#"waystation_core_budget_per_minute{limiter="upload"} 10"#));

    let permit = rig.core.permit(Call::Preflight).await;
    let core = rig.core.clone();
    let second = tokio::spawn(async move { core.permit(Call::Preflight).await });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!second.is_finished(), "the burst is one call");
    drop(permit);
    assert_eq!(second.await.unwrap().call(), Call::Preflight);
}

#[tokio::test]
async fn permits_go_by_mercy_and_a_waiter_that_leaves_blocks_nobody() {
    let rig = rig_for("http://127.0.0.1:1".into(), 10);
    let _spent = rig.core.permit(Call::Preflight).await;
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let wait = |rank: u8| {
        let (core, order) = (rig.core.clone(), Arc::clone(&order));
        tokio::spawn(async move {
            let permit = core.permit_ranked(Call::Preflight, rank).await;
            order.lock().unwrap().push(rank);
            permit.spend();
        })
    };
    let waiters = [wait(7), wait(3), wait(0), wait(0)];
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    waiters[2].abort();
    for _ in 0..3 {
        // Nine a minute after the first.
        rig.clock.advance(Duration::from_millis(6_667));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(*order.lock().unwrap(), [0, 3, 7]);
}

#[tokio::test]
async fn over_tls_the_named_anchor_is_trusted_and_alpn_chooses_h2() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&server_key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], server_key.into())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let server = FakeCore::start_tls(tokio_rustls::TlsAcceptor::from(Arc::new(tls)), committed).await;
    let url = format!("https://{}", server.address);

    let mut ca_file = tempfile::NamedTempFile::new().unwrap();
    ca_file.write_all(authority.pem().as_bytes()).unwrap();
    let client = Client::new(Some(ca_file.path())).unwrap();
    let clock = Clock::at_unix_ms(0);
    let core = CoreApi::new(&config(url.clone(), 0), &client, clock, Metrics::new()).unwrap();
    let (permit, big) = (core.permit(Call::Commit).await, vec![3; 1 << 20]);
    let one = offer(big.len() as u64);
    let outcome = core.commit(permit, fields(&one), Full::from(big)).await;
    assert!(matches!(outcome, Outcome::Confirmed(_)), "{outcome:?}");
    assert_eq!(server.seen()[0].version, http::Version::HTTP_2);
    assert_eq!(only(&server.seen()[0], "x-proofline-relay-service-token"), TOKEN);

    let (other, _) = (KeyPair::generate().unwrap(), ());
    let stranger = CertificateParams::new(Vec::new()).unwrap().self_signed(&other).unwrap();
    let mut wrong = tempfile::NamedTempFile::new().unwrap();
    wrong.write_all(stranger.pem().as_bytes()).unwrap();
    let client = Client::new(Some(wrong.path())).unwrap();
    let core = CoreApi::new(&config(url, 0), &client, Clock::at_unix_ms(0), Metrics::new()).unwrap();
    let permit = core.permit(Call::Commit).await;
    let three = offer(3);
    let outcome = core.commit(permit, fields(&three), Full::from("abc")).await;
    assert_eq!(outcome, Outcome::Ambiguous(Doubt::NotSent));
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn what_cannot_be_called_is_said_at_the_start() {
    let client = Client::new(None).unwrap();
    for url in ["ftp://core", "core", "http://user@core", "https://user:pw@core", ""] {
        let built = CoreApi::new(&config(url.into(), 0), &client, Clock::at_unix_ms(0), Metrics::new());
        assert!(matches!(built.err(), Some(BuildError::Url)), "{url}");
    }
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Client::new(Some(empty.path())).err(), Some(BuildError::CaFile)));
    assert!(matches!(Client::new(Some("/nowhere".as_ref())).err(), Some(BuildError::CaFile)));
}

#[tokio::test]
async fn keys_and_revocations_are_fetched_without_the_service_token() {
    let server = FakeCore::start(|seen| match seen.path.as_str() {
        "/keys" => json(200, "{}"),
        "/long" => json(200, " ".repeat(65 * 1024)),
        _ => json(404, ""),
    })
    .await;
    let client = Client::new(None).unwrap();
    let capability = |path: &str| config::Capability {
        jwks_url: Some(server.url(path)),
        jwks_file: None,
        audience: "a".into(),
        proofline_secret: None,
    };
    let core = config(server.url("/prefix"), 0);
    let fetch = |path: &str| Fetch::new(&client, Some(&core), &capability(path), Clock::at_unix_ms(0)).unwrap();
    assert_eq!(fetch("/keys").jwks().await.unwrap(), "{}");
    assert_eq!(fetch("/long").jwks().await, Err(FetchError::NoAnswer));
    assert_eq!(fetch("/keys").revocations().await, Err(FetchError::Absent));
    assert_eq!(Fetch::nothing(Clock::at_unix_ms(0)).jwks().await, Err(FetchError::NotConfigured));
    let seen = server.seen();
    assert!(seen.iter().any(|one| one.path == "/prefix/v1/relay/revocations"));
    for one in seen {
        assert!(one.headers.get(SERVICE_TOKEN).is_none());
        assert_eq!(one.method, "GET");
    }
}

#[tokio::test]
async fn a_core_that_does_nothing_for_anybody_is_left_alone() {
    let well = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let server = FakeCore::start({
        let well = Arc::clone(&well);
        move |seen| match (well.load(Ordering::SeqCst), seen.path.ends_with("commit")) {
            (true, true) => committed(seen),
            (true, false) => json(200, ACCEPTED),
            (false, _) => json(500, r#"{"error":{"code":"internal_error"}}"#),
        }
    })
    .await;
    let (rig, offer) = (rig_for(server.url(""), 0), offer(3));
    let confirmed = |outcome| matches!(outcome, Outcome::Confirmed(_));
    for _ in 0..20 {
        assert!(!matches!(rig.preflight(&offer).await, Outcome::Accepted), "cheap ones are asked on");
    }
    for _ in 0..2 {
        for _ in 0..7 {
            assert!(!confirmed(rig.commit(&offer, b"abc").await));
            assert!(!rig.core.troubled(), "one chunk that it can't take is not the core");
        }
        well.store(true, Ordering::SeqCst);
        assert!(confirmed(rig.commit(&offer, b"abc").await));
        well.store(false, Ordering::SeqCst);
    }
    for _ in 0..8 {
        rig.commit(&offer, b"abc").await;
    }
    for _ in 0..8 {
        assert!(rig.core.troubled(), "eight in a row");
        let mut next = Box::pin(rig.core.permit(Call::Commit));
        assert!(futures_util::poll!(&mut next).is_pending(), "a back-off goes before each");
        rig.clock.advance(Duration::from_secs(30));
        let permit = next.await;
        let mut beside = Box::pin(rig.core.permit(Call::Commit));
        assert!(futures_util::poll!(&mut beside).is_pending(), "and one goes alone");
        drop(beside);
        rig.core.commit(permit, fields(&offer), Full::from("abc")).await;
    }
    well.store(true, Ordering::SeqCst);
    rig.clock.advance(Duration::from_secs(30));
    assert!(confirmed(rig.commit(&offer, b"abc").await));
    assert!(!rig.core.troubled());
    assert!(confirmed(rig.commit(&offer, b"abc").await), "nobody waits any more");
}
