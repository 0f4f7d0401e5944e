//! Our own capability, its keys, revocations, receipts and signed chunks.

use std::time::Duration;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use waystation_devcore::session::{self, Session};
use waystation_proto::claims::{Jwk, JwtClaims};
use waystation_proto::receipt::{RECEIPT_TYP, Receipt};

use crate::support::{Bench, Chunk, NOON_S};

/// Header and payload of a JWS, verified with the core's published keys.
async fn verified(bench: &Bench, jws: &str) -> (Value, Vec<u8>) {
    let (signed, signature) = jws.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let header: Value = serde_json::from_slice(&decode(header)).unwrap();
    let keys = bench.get("/v1/relay/jwks").await.json();
    let keys: Vec<Jwk> = serde_json::from_value(keys["keys"].clone()).unwrap();
    let key = keys.iter().find(|key| key.kid.as_deref() == header["kid"].as_str()).unwrap();
    UnparsedPublicKey::new(&ED25519, key.ed25519().unwrap()).verify(signed.as_bytes(), &decode(signature)).unwrap();
    (header, decode(payload))
}

async fn fanout(bench: &Bench, session: &Session, capability: &str, sid: &str, stream: &str) -> String {
    let body = json!({
        "relay_session_id": sid, "capability": capability, "incident_id": session.incident, "stream_id": stream,
    });
    bench.relay("/v1/relay/fanout-authorize", &body.to_string()).await.said()
}

#[tokio::test]
async fn a_capability_says_what_was_asked() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let (header, payload) = verified(&bench, session.upload_capability.as_ref().unwrap()).await;
    assert_eq!((header["typ"].as_str(), header["alg"].as_str()), (Some("waystation-capability+jwt"), Some("Ed25519")));
    let claims: JwtClaims = serde_json::from_slice(&payload).unwrap();
    assert_eq!((claims.iat, claims.exp, claims.commit_exp), (NOON_S, NOON_S + 300, Some(NOON_S + 300 + 24 * 3600)));
    assert_eq!(claims.sid.as_str(), session.sid.as_deref().unwrap());
    let grant = claims.into_grant(bench.core.audience(), NOON_S).unwrap();
    let lanes: Vec<_> = grant.lanes.iter().map(|lane| lane.stream.as_str().to_owned()).collect();
    assert_eq!(lanes, session.streams.iter().map(|stream| stream.stream.clone()).collect::<Vec<_>>());
    let (_, payload) = verified(&bench, session.fanout_capability.as_ref().unwrap()).await;
    let claims: JwtClaims = serde_json::from_slice(&payload).unwrap();
    assert!(claims.lanes.is_empty(), "the whole group");
}

#[tokio::test]
async fn checks_have_the_order_and_codes_of_the_contract() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    assert_eq!(bench.preflight(&chunk).await.said(), "200");
    let watch = session.fanout_capability.clone().unwrap();
    assert_eq!(
        bench.preflight(&chunk.clone().with("capability", watch)).await.said(),
        "403 relay_capability_wrong_role"
    );
    let binding = "403 relay_capability_wrong_binding";
    for (name, value) in [("relay_session_id", "other"), ("incident_id", "other"), ("stream_id", "other")] {
        assert_eq!(bench.preflight(&chunk.clone().with(name, value)).await.said(), binding);
        assert_eq!(bench.commit(&chunk.clone().with(name, value)).await.said(), binding);
    }
    let limit = "403 relay_capability_limit_exceeded";
    assert_eq!(bench.preflight(&Chunk::of(&session, 0, 65)).await.said(), limit);
    assert_eq!(bench.preflight(&chunk.clone().with("media_type", "video")).await.said(), limit);
    let mut altered = session.upload_capability.clone().unwrap();
    let last = altered.pop().unwrap();
    let before = altered.pop().unwrap();
    altered.push(if before == 'A' { 'B' } else { 'A' });
    altered.push(last);
    assert_eq!(bench.commit(&chunk.clone().with("capability", altered)).await.said(), "401 relay_capability_invalid");
}

#[tokio::test]
async fn commits_of_accepted_bytes_are_taken_after_exp() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let watch = session.fanout_capability.clone().unwrap();
    let sid = session.sid.clone().unwrap();
    bench.core.clock().advance(Duration::from_secs(300));
    assert_eq!(bench.preflight(&Chunk::of(&session, 0, 1)).await.said(), "401 relay_capability_expired");
    assert_eq!(
        fanout(&bench, &session, &watch, &sid, &session.streams[0].stream).await,
        "401 relay_capability_expired"
    );
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 1)).await.said(), "201");
    let proofline = Chunk::under_proofline(&session, 0, 2);
    assert_eq!(bench.commit(&proofline).await.said(), "401 relay_capability_expired", "its format has no such grace");
    bench.core.clock().advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 2)).await.said(), "201");
    bench.core.clock().advance(Duration::from_secs(1));
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 3)).await.said(), "401 relay_capability_expired");
}

#[tokio::test]
async fn a_group_is_watched_in_its_watchable_streams() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let watch = session.fanout_capability.clone().unwrap();
    let sid = session.sid.clone().unwrap();
    let stream = |lane: usize| session.streams[lane].stream.clone();
    let binding = "403 relay_capability_wrong_binding";
    for (lane, said) in [(0, "200"), (1, "200"), (2, binding), (3, binding)] {
        assert_eq!(fanout(&bench, &session, &watch, &sid, &stream(lane)).await, said, "lane {lane}");
    }
    // A stream opened later is one of the group; one of another group, or of none, is not.
    let groups = format!("/v1/incidents/{}/groups", session.incident);
    let lane = json!({ "variant": "audio_priority", "media": "audio", "follows": stream(0) });
    let later = bench.account("POST", &format!("{groups}/{}/streams", session.group), lane).await.json();
    assert_eq!(later["stream"]["follows"], stream(0));
    assert_eq!(fanout(&bench, &session, &watch, &sid, later["stream"]["id"].as_str().unwrap()).await, "200");
    let other = bench.account("POST", &groups, json!({})).await.json()["group"]["id"].as_str().unwrap().to_owned();
    let lane = json!({ "variant": "audio_priority", "media": "audio" });
    let foreign = bench.account("POST", &format!("{groups}/{other}/streams"), lane).await.json();
    assert_eq!(fanout(&bench, &session, &watch, &sid, foreign["stream"]["id"].as_str().unwrap()).await, binding);
    assert_eq!(fanout(&bench, &session, &watch, &sid, "none").await, "404 stream_not_found");

    // A capability for one stream reaches that one.
    let ask = json!({ "use": "fanout", "streams": [stream(1)], "sid": sid });
    let made = bench.account("POST", &format!("{groups}/{}/capabilities", session.group), ask).await.json();
    assert_eq!(made["sid"], sid.as_str());
    let one = made["capability"].as_str().unwrap();
    assert_eq!(fanout(&bench, &session, one, &sid, &stream(1)).await, "200");
    assert_eq!(fanout(&bench, &session, one, &sid, &stream(0)).await, binding);
}

#[tokio::test]
async fn capability_requests_are_checked() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let path = format!("/v1/incidents/{}/groups/{}/capabilities", session.incident, session.group);
    let stream = session.streams[0].stream.as_str();
    let master = session.streams[2].stream.as_str();
    for (body, said) in [
        (json!({ "use": "other", "streams": [stream] }), "400 invalid_capability_request"),
        (json!({ "use": "upload", "streams": [] }), "400 invalid_capability_request"),
        (json!({ "use": "upload", "streams": [stream], "ttl_s": 0 }), "400 invalid_capability_request"),
        (json!({ "use": "upload", "streams": [stream], "max_chunks": 0 }), "400 invalid_capability_request"),
        (json!({ "use": "upload", "streams": [stream], "client_key": "abc" }), "400 invalid_capability_request"),
        (json!({ "use": "upload", "streams": [stream], "sid": "a b" }), "400 invalid_capability_request"),
        (json!({ "use": "fanout", "streams": [master] }), "400 invalid_capability_request"),
        (json!({ "use": "upload", "streams": ["none"] }), "404 stream_not_found"),
        (json!({ "use": "upload", "streams": [stream], "more": 1 }), "400 invalid_json"),
        (json!({ "use": "upload", "streams": [stream], "ttl_s": 20, "max_chunks": 8 }), "201"),
    ] {
        assert_eq!(bench.account("POST", &path, body.clone()).await.said(), said, "{body}");
    }
    let nowhere = path.replace(&session.group, "none");
    let body = json!({ "use": "upload", "streams": [stream] });
    assert_eq!(bench.account("POST", &nowhere, body).await.said(), "404 group_not_found");
}

#[tokio::test]
async fn a_revoked_capability_is_refused() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    assert_eq!(bench.preflight(&chunk).await.said(), "200");
    let (_, payload) = verified(&bench, session.upload_capability.as_ref().unwrap()).await;
    let jti = serde_json::from_slice::<JwtClaims>(&payload).unwrap().jti;
    let refused = bench.relay("/v1/relay/revocations", &json!({ "jti": jti }).to_string()).await;
    assert_eq!(refused.said(), "401 authentication_required");
    for _ in 0..2 {
        assert_eq!(bench.account("POST", "/v1/relay/revocations", json!({ "jti": jti })).await.said(), "201");
    }
    assert_eq!(bench.get("/v1/relay/revocations").await.json(), json!({ "revoked": [jti] }));
    assert_eq!(bench.preflight(&chunk).await.said(), "403 relay_capability_revoked");
    assert_eq!(bench.commit(&chunk).await.said(), "403 relay_capability_revoked");
    let watch = session.fanout_capability.clone().unwrap();
    let said = fanout(&bench, &session, &watch, session.sid.as_deref().unwrap(), &session.streams[0].stream).await;
    assert_eq!(said, "200", "another jti");
}

#[tokio::test]
async fn receipts_name_exactly_the_chunk() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    let body = bench.commit(&chunk).await.json();
    let (header, payload) = verified(&bench, body["relay_commit"]["receipt"].as_str().unwrap()).await;
    assert_eq!(header["typ"], RECEIPT_TYP);
    assert_eq!(header["alg"], "Ed25519");
    let receipt: Receipt = serde_json::from_slice(&payload).unwrap();
    assert_eq!((receipt.iat, receipt.index, receipt.length), (NOON_S, 1, chunk.bytes.len() as u64));
    assert_eq!(receipt.incident.as_str(), session.incident);
    assert_eq!(receipt.stream.as_str(), session.streams[0].stream);
    assert_eq!(receipt.sha256.to_hex(), chunk.text("sha256_hex"));

    let bench = Bench::with(|options| options.receipts = false).await;
    let session = bench.session().await;
    assert!(bench.commit(&Chunk::of(&session, 0, 1)).await.json()["relay_commit"]["receipt"].is_null());
}

#[tokio::test]
async fn a_new_key_signs_and_the_old_one_still_verifies() {
    let bench = Bench::start().await;
    let old = bench.session().await;
    let made = bench.account("POST", "/devcore/signing-keys", json!({})).await;
    assert_eq!(made.said(), "201");
    let new = bench.session().await;
    let (header, _) = verified(&bench, new.upload_capability.as_ref().unwrap()).await;
    assert_eq!(header["kid"], made.json()["kid"]);
    let (before, _) = verified(&bench, old.upload_capability.as_ref().unwrap()).await;
    assert_ne!(before["kid"], header["kid"]);
    assert_eq!(bench.commit(&Chunk::of(&old, 0, 1)).await.said(), "201");
    assert_eq!(bench.commit(&Chunk::of(&new, 0, 1)).await.said(), "201");
}

#[tokio::test]
async fn a_bound_key_must_sign_every_commit() {
    let bench = Bench::start().await;
    let pair = Ed25519KeyPair::generate().unwrap();
    let mut request = session::Request::new(bench.core.url(), bench.core.account_token());
    request.client_key = Some(pair.public_key().as_ref().try_into().unwrap());
    let session = session::open(&request).await.unwrap();
    let chunk = Chunk::of(&session, 0, 1);
    assert_eq!(bench.preflight(&chunk).await.said(), "200", "a preflight can't carry one");
    let refused = "403 relay_capability_signature_invalid";
    assert_eq!(bench.commit(&chunk).await.said(), refused);
    let header = format!(
        r#"incident="{}", stream="{}", index=1, media="audio", started="{}", ended="{}""#,
        session.incident,
        session.streams[0].stream,
        chunk.text("started_at"),
        chunk.text("ended_at")
    );
    let digest = waystation_proto::Digest::from_hex(&chunk.text("sha256_hex")).unwrap();
    let offer = waystation_proto::dictionary::parse_offer(&header, digest, Some(chunk.bytes.len() as u64)).unwrap();
    let sig = URL_SAFE_NO_PAD.encode(pair.sign(&offer.signed_bytes()));
    let other = URL_SAFE_NO_PAD.encode(Ed25519KeyPair::generate().unwrap().sign(&offer.signed_bytes()));
    assert_eq!(bench.commit(&chunk.clone().with("sig", other)).await.said(), refused);
    let shifted = chunk.clone().with("sig", sig.as_str()).with("ended_at", "2026-06-10T12:00:03Z");
    assert_eq!(bench.commit(&shifted).await.said(), refused, "times are signed as written");
    assert_eq!(bench.commit(&chunk.with("sig", sig)).await.said(), "201");
}
