//! The authority against a core of this test's own: its paths, bodies and answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use waystation_client::ClientKey;
use waystation_client::authority::{Authority, AuthorityError, DevcoreAuthority, Reconciled, TokenForm, Wishes};
use waystation_client::connect::{Endpoint, Trust};
use waystation_proto::id::StreamId;
use waystation_proto::{Media, Variant};

#[derive(Default)]
struct Core {
    asked: Mutex<Vec<(String, Value)>>,
    away: AtomicBool,
    /// What it answers whatever it is asked.
    says: Mutex<Option<(u16, Value)>>,
}

fn capability(body: &Value) -> String {
    let claims = json!({"iss": "core", "aud": "relay", "iat": 1000, "exp": 1000 + body["ttl_s"].as_i64().unwrap_or(300),
        "jti": "j", "sid": "sid_1", "use": body["use"], "incident": "i", "group": "g", "lanes": []});
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

async fn answer(core: Arc<Core>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    core.asked.lock().unwrap().push((path.clone(), body.clone()));
    let known = head.headers.get("authorization").is_some_and(|value| value == "Bearer account_1");
    let (status, out) = if core.away.load(Ordering::SeqCst) {
        (503, json!({}))
    } else if let Some(said) = core.says.lock().unwrap().clone() {
        said
    } else if path == "/v1/relay/jwks" {
        let mut jwk = ClientKey::from_seed(&[1; 32]).unwrap().jwk().unwrap();
        jwk.kid = Some("k".into());
        (200, json!({"keys": [jwk]}))
    } else if !known {
        (401, json!({"error": {"code": "unauthorized"}}))
    } else {
        (201, made(&path, &body))
    };
    let mut response = Response::new(Full::new(Bytes::from(out.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn made(path: &str, body: &Value) -> Value {
    match path {
        "/v1/incidents" => json!({"incident": {"id": "i"}}),
        "/v1/incidents/i/groups" => json!({"group": {"id": "g"}}),
        "/v1/incidents/i/groups/g/streams" => json!({"stream": {"id": "str_1"}}),
        "/v1/incidents/i/groups/g/capabilities" => {
            json!({"capability": capability(body), "expires_at": 1300, "sid": "sid_1", "jti": "j"})
        }
        "/v1/incidents/i/chunks/reconcile" => {
            assert_eq!(
                (&body["stream_id"], &body["chunk_index"], &body["byte_size"]),
                (&json!("str_1"), &json!(3), &json!(9))
            );
            json!({"reconciliation": {"status": "matched", "receipt": "a.b.c"}})
        }
        "/v1/incidents/i/streams/str_1/relay-session" => {
            let vectors: Value = serde_json::from_str(include_str!("../../testdata/vectors.json")).unwrap();
            json!({"relay_session": {"relay_session_id": "r", "fanout_capability": "f",
                "capability": vectors["capability_vectors"]["upload_basic"]["token"]}})
        }
        other => panic!("{other}"),
    }
}

async fn start() -> (Arc<Core>, Endpoint, AbortOnDropHandle<()>) {
    let core = Arc::new(Core::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = Arc::clone(&core);
    let task = tokio::spawn(async move {
        let mut running = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let core = Arc::clone(&serving);
            running.spawn(async move {
                let service = hyper::service::service_fn(|request| {
                    let core = Arc::clone(&core);
                    async move { Ok::<_, std::convert::Infallible>(answer(core, request).await) }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let endpoint = Endpoint::parse(&url, Trust::certificates(Vec::new()).unwrap()).unwrap();
    (core, endpoint, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn the_authority_speaks_devcores_client_api() {
    let (core, endpoint, _task) = start().await;
    let key = ClientKey::from_seed(&[2; 32]).unwrap();
    let wishes = Wishes { ttl_s: Some(20), max_chunks: Some(8), client_key: Some(key.clone()), form: TokenForm::Jwt };
    let authority = DevcoreAuthority::new(&endpoint, "account_1".to_owned().into(), wishes);
    let stream = authority.next_stream(Variant::LivePreview, Media::Video, StreamId::new("s").ok()).await.unwrap();
    let tokens = authority.upload_capability(vec![stream.clone()]).await.unwrap();
    assert_eq!(tokens[0].expires, 1020);
    authority.upload_capability(vec![stream.clone()]).await.unwrap();
    authority.fanout_capability().await.unwrap();
    assert!(authority.jwks().await.unwrap().is_some());
    let header = r#"incident="i", stream="str_1", index=3, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;
    let offer = waystation_proto::dictionary::parse_offer(header, waystation_proto::Digest([1; 32]), Some(9)).unwrap();
    let reconciled = authority.reconcile(offer).await;
    assert_eq!(reconciled, Ok(Reconciled::Stored { receipt: Some("a.b.c".into()) }));
    let asked = core.asked.lock().unwrap().clone();
    assert_eq!(asked[2].1, json!({"variant": "live_preview", "media": "video", "follows": "s"}));
    let jwk = key.jwk().unwrap();
    let mut upload = json!({"use": "upload", "streams": ["str_1"], "ttl_s": 20, "max_chunks": 8, "client_key": jwk.x});
    assert_eq!(asked[3].1, upload);
    upload["sid"] = "sid_1".into();
    assert_eq!(asked[4].1, upload, "the relay session stays over renewals");
    assert_eq!(asked[5].1, json!({"use": "fanout", "streams": [], "ttl_s": 20, "max_chunks": 8}));
    let session = authority.session_for_contact("http://core").await.unwrap();
    assert!(session.fanout_capability.is_some() && session.upload_capability.is_none());
}

#[tokio::test]
async fn an_unchanged_cores_tokens_come_from_relay_sessions() {
    let (_core, endpoint, _task) = start().await;
    let wishes = Wishes { form: TokenForm::Proofline, ..Wishes::default() };
    let authority = DevcoreAuthority::new(&endpoint, "account_1".to_owned().into(), wishes);
    let tokens = authority.upload_capability(vec![StreamId::new("str_1").unwrap()]).await.unwrap();
    assert_eq!(tokens[0].max_chunks(&StreamId::new("stream_1").unwrap()), Some(64));
}

#[tokio::test]
async fn a_refusal_is_told_apart_from_absence() {
    let (core, endpoint, _task) = start().await;
    let refused = DevcoreAuthority::new(&endpoint, "other".to_owned().into(), Wishes::default()).ids(None).await;
    assert_eq!(refused.unwrap_err(), AuthorityError::NotNow("unauthorized".into()), "a login can be made again");
    for (status, body, expected) in [
        (403, json!({"error": {"code": "forbidden"}}), AuthorityError::NotNow("forbidden".into())),
        (408, json!({}), AuthorityError::NotNow("http_408".into())),
        (409, json!({"error": {"code": "incident_closed"}}), AuthorityError::Refused("incident_closed".into())),
        (429, json!({"error": {"code": "rate_limited"}}), AuthorityError::Away),
    ] {
        *core.says.lock().unwrap() = Some((status, body));
        let authority = DevcoreAuthority::new(&endpoint, "account_1".to_owned().into(), Wishes::default());
        assert_eq!(authority.ids(None).await.unwrap_err(), expected);
    }
    core.away.store(true, Ordering::SeqCst);
    let away = DevcoreAuthority::new(&endpoint, "account_1".to_owned().into(), Wishes::default()).ids(None).await;
    assert_eq!(away.unwrap_err(), AuthorityError::Away);
}
