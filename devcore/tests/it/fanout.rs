//! Contract A.4.

use serde_json::json;
use waystation_devcore::Secret;

use crate::support::{Bench, Chunk, NOON_S, claims, token};

const PATH: &str = "/v1/relay/fanout-authorize";

#[tokio::test]
async fn every_check_in_its_order() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let (incident, stream) = (session.incident.as_str(), session.streams[0].stream.as_str());
    let secret = bench.core.capability_secret();
    let ask = async |capability: &str, incident: &str, stream: &str| {
        let body =
            json!({ "relay_session_id": "s", "capability": capability, "incident_id": incident, "stream_id": stream });
        bench.relay(PATH, &body.to_string()).await.said()
    };
    let long = format!("{{\"capability\":\"{}\"", "a".repeat(65_536));
    assert_eq!(bench.relay(PATH, &long).await.said(), "413 request_too_large");
    assert_eq!(bench.relay(PATH, r#"{"chunk_index":1}"#).await.said(), "400 invalid_json", "exactly four names");
    assert_eq!(bench.relay(PATH, r#"{"capability":"x"}"#).await.said(), "400 invalid_relay_fanout_request");
    assert_eq!(ask("x", "none", "none").await, "401 relay_capability_invalid");
    let mut expired = claims("upload", "other", "none");
    expired["iat"] = (NOON_S - 60).into();
    expired["exp"] = NOON_S.into();
    assert_eq!(ask(&token(secret, &expired), "none", "none").await, "401 relay_capability_expired");
    let upload = token(secret, &claims("upload", "other", "none"));
    assert_eq!(ask(&upload, "none", "none").await, "403 relay_capability_wrong_role");
    let elsewhere = token(secret, &claims("fanout", "other", "none"));
    assert_eq!(ask(&elsewhere, "none", "none").await, "403 relay_capability_wrong_binding");
    assert_eq!(ask(&token(secret, &claims("fanout", "none", "none")), "none", "none").await, "404 incident_not_found");
    let right = token(secret, &claims("fanout", incident, stream));
    assert_eq!(
        ask(&token(secret, &claims("fanout", incident, "none")), incident, "none").await,
        "404 stream_not_found"
    );
    for (state, said) in [("deleting", "409 incident_deleting"), ("closed", "409 incident_closed"), ("open", "200")] {
        bench.account("PUT", &format!("/devcore/incidents/{incident}"), json!({ "state": state })).await;
        assert_eq!(ask(&right, incident, stream).await, said);
    }
    bench.account("POST", &format!("/v1/incidents/{incident}/streams/{stream}/fail"), json!({})).await;
    assert_eq!(ask(&right, incident, stream).await, "409 stream_not_open");
}

#[tokio::test]
async fn the_gates_and_the_answer() {
    let bench = Bench::with(|options| (options.capability_secret, options.hmac_only) = (Secret::Unset, true)).await;
    let body = json!({ "relay_session_id": "s", "capability": "c", "incident_id": "i", "stream_id": "s" }).to_string();
    assert_eq!(bench.relay(PATH, &body).await.said(), "503 relay_capability_not_configured");

    let bench = Bench::start().await;
    let session = bench.session().await;
    let tokens = session.streams[0].proofline.as_ref().unwrap();
    let body = json!({
        "relay_session_id": tokens.relay_session_id, "capability": tokens.fanout,
        "incident_id": session.incident, "stream_id": session.streams[0].stream,
    });
    let reply = bench.relay(PATH, &body.to_string()).await;
    let expected =
        json!({ "status": "authorized", "incident_id": session.incident, "stream_id": session.streams[0].stream });
    assert_eq!(reply.json(), json!({ "relay_fanout": expected }));
    let upload = Chunk::under_proofline(&session, 0, 1);
    assert_eq!(
        bench.commit(&upload.with("capability", tokens.fanout.as_str())).await.said(),
        "403 relay_capability_wrong_role"
    );
}
