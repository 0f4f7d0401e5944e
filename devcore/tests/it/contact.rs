//! Contacts: grants, the capabilities made of them, and what they may read.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use waystation_devcore::session::Session;
use waystation_devcore::{Clock, Devcore, Options};
use waystation_proto::{ChunkRef, IncidentId, StreamId};

use crate::restart::Program;
use crate::support::{Bench, Chunk, NOON_S, Reply, exchange, sha256};

/// A grant for the session's group, and what belongs to it.
struct Granted {
    id: String,
    secret: String,
}

async fn grant(bench: &Bench, session: &Session) -> Granted {
    let made = bench.account("POST", &grants(session), json!({})).await;
    assert_eq!(made.said(), "201");
    let made = made.json()["grant"].clone();
    Granted { id: made["id"].as_str().unwrap().into(), secret: made["secret"].as_str().unwrap().into() }
}

fn grants(session: &Session) -> String {
    format!("/v1/incidents/{}/groups/{}/grants", session.incident, session.group)
}

async fn revoke(bench: &Bench, session: &Session, granted: &Granted) -> String {
    let path = format!("{}/{}/revoke", grants(session), granted.id);
    bench.account("POST", &path, json!({})).await.said()
}

/// A call as the contact's page makes it. Every answer may be read by any page.
async fn page(bench: &Bench, method: &str, path: &str, secret: &str) -> Reply {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "core")
        .header("origin", "http://page.example")
        .header("authorization", format!("Bearer {secret}"))
        .body(Bytes::from(if method == "POST" { "{}" } else { "" }));
    let reply = exchange(bench.core.addr(), request.unwrap()).await.unwrap();
    assert_eq!(reply.headers["access-control-allow-origin"], "*");
    assert!(!reply.headers.contains_key("access-control-allow-credentials"));
    reply
}

async fn capability(bench: &Bench, secret: &str) -> Reply {
    page(bench, "POST", "/v1/contact/capability", secret).await
}

async fn list(bench: &Bench, secret: &str, query: &str) -> Reply {
    page(bench, "GET", &format!("/v1/contact/chunks{query}"), secret).await
}

fn name(session: &Session, lane: usize, index: u64) -> String {
    let incident = IncidentId::new(&session.incident).unwrap();
    ChunkRef::of(&incident, &StreamId::new(&session.streams[lane].stream).unwrap(), index).to_string()
}

fn payload(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Whether the core lets a relay show the session's first lane under this capability.
async fn shown(bench: &Bench, session: &Session, capability: &str) -> String {
    let body = json!({
        "relay_session_id": payload(capability)["sid"], "capability": capability,
        "incident_id": session.incident, "stream_id": session.streams[0].stream,
    });
    bench.relay("/v1/relay/fanout-authorize", &body.to_string()).await.said()
}

#[tokio::test]
async fn a_grant_becomes_short_capabilities_to_watch_its_group() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let path = grants(&session);
    assert_eq!(bench.relay(&path, "{}").await.said(), "401 authentication_required");
    let nowhere = path.replace(&session.group, "none");
    assert_eq!(bench.account("POST", &nowhere, json!({})).await.said(), "404 group_not_found");
    let made = bench.account("POST", &path, json!({})).await.json()["grant"].clone();
    assert_eq!((&made["created_at"], &made["expires_at"]), (&NOON_S.into(), &(NOON_S + 7 * 24 * 3600).into()));
    let secret = made["secret"].as_str().unwrap();
    assert_eq!(secret.len(), 43);
    for file in std::fs::read_dir(bench.dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        let kept = if file.is_file() { std::fs::read(&file).unwrap() } else { Vec::new() };
        assert!(!kept.windows(43).any(|part| part == secret.as_bytes()), "the secret itself is kept nowhere");
    }

    let first = capability(&bench, secret).await;
    assert_eq!(first.said(), "200");
    let first = first.json();
    assert_eq!((&first["incident"], &first["group"]), (&json!(session.incident), &json!(session.group)));
    assert_eq!((&first["expires_at"], &first["signs_receipts"]), (&(NOON_S + 300).into(), &true.into()));
    let token = first["capability"].as_str().unwrap();
    assert_eq!(shown(&bench, &session, token).await, "200");
    let claims = payload(token);
    assert_eq!(
        (&claims["use"], &claims["lanes"], &claims["exp"]),
        (&"fanout".into(), &json!([]), &first["expires_at"])
    );
    let again = capability(&bench, secret).await.json();
    let renewed = payload(again["capability"].as_str().unwrap());
    assert_eq!(renewed["sid"], claims["sid"], "one relay session for all");
    assert_ne!(renewed["jti"], claims["jti"]);
    let other = grant(&bench, &session).await;
    let other = capability(&bench, &other.secret).await.json();
    assert_ne!(payload(other["capability"].as_str().unwrap())["sid"], claims["sid"], "one for each contact");
}

#[tokio::test]
async fn a_capability_ends_with_its_grant() {
    let bench = Bench::with(|options| options.grant_ttl = Duration::from_secs(400)).await;
    let session = bench.session().await;
    let granted = grant(&bench, &session).await;
    bench.core.clock().advance(Duration::from_secs(200));
    assert_eq!(capability(&bench, &granted.secret).await.json()["expires_at"], NOON_S + 400);
    bench.core.clock().advance(Duration::from_secs(199));
    assert_eq!(list(&bench, &granted.secret, "").await.said(), "200");
    bench.core.clock().advance(Duration::from_secs(1));
    assert_eq!(list(&bench, &granted.secret, "").await.said(), "403 grant_expired");
    assert_eq!(capability(&bench, &granted.secret).await.said(), "403 grant_expired");
}

#[tokio::test]
async fn a_secret_that_is_none_is_unknown() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let granted = grant(&bench, &session).await;
    let other = "A".repeat(43);
    let longer = format!("{}A", granted.secret);
    for secret in ["", "x", &granted.secret[1..], &longer, &other, bench.core.account_token(), &granted.id] {
        for (method, path) in
            [("POST", "/v1/contact/capability"), ("GET", "/v1/contact/chunks"), ("GET", "/v1/contact/chunks/x")]
        {
            assert_eq!(page(&bench, method, path, secret).await.said(), "401 grant_unknown", "{path}");
        }
    }
    assert_eq!(bench.get("/v1/contact/chunks").await.said(), "401 grant_unknown");
    let misused = Request::post(grants(&session)).header("host", "core");
    let misused = misused.header("authorization", format!("Bearer {}", granted.secret)).body(Bytes::new()).unwrap();
    let misused = exchange(bench.core.addr(), misused).await.unwrap();
    assert_eq!(misused.said(), "401 authentication_required", "a contact grants nothing");
}

#[tokio::test]
async fn revoking_reaches_every_capability_of_that_contact_alone() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let (gone, stays) = (grant(&bench, &session).await, grant(&bench, &session).await);
    let token = async |granted: &Granted| {
        capability(&bench, &granted.secret).await.json()["capability"].as_str().unwrap().to_owned()
    };
    let old = token(&gone).await;
    bench.core.clock().advance(Duration::from_secs(200));
    let (new, other) = (token(&gone).await, token(&stays).await);
    assert_eq!(revoke(&bench, &session, &gone).await, "200");
    assert_eq!(revoke(&bench, &session, &gone).await, "200", "twice is once");
    let listed = async || bench.get("/v1/relay/revocations").await.json()["revoked"].clone();
    let mut wanted = [payload(&old)["jti"].clone(), payload(&new)["jti"].clone()];
    wanted.sort_by_key(ToString::to_string);
    assert_eq!(listed().await, json!(wanted));
    for token in [&old, &new] {
        assert_eq!(shown(&bench, &session, token).await, "403 relay_capability_revoked");
    }
    assert_eq!(shown(&bench, &session, &other).await, "200");
    assert_eq!(capability(&bench, &gone.secret).await.said(), "403 grant_revoked");
    assert_eq!(list(&bench, &gone.secret, "").await.said(), "403 grant_revoked");
    assert_eq!(list(&bench, &stays.secret, "").await.said(), "200");
    bench.core.clock().advance(Duration::from_secs(100));
    assert_eq!(listed().await, json!([payload(&new)["jti"]]), "what is over need not be listed");

    let nobody = Granted { id: "none".into(), secret: String::new() };
    assert_eq!(revoke(&bench, &session, &nobody).await, "404 grant_not_found");
    let elsewhere = bench.session().await;
    assert_eq!(revoke(&bench, &elsewhere, &stays).await, "404 grant_not_found", "of another group");
    let unasked = Request::post(format!("{}/{}/revoke", grants(&session), stays.id)).header("host", "core");
    let unasked = exchange(bench.core.addr(), unasked.body(Bytes::new()).unwrap()).await.unwrap();
    assert_eq!(unasked.said(), "401 authentication_required");
    assert_eq!(list(&bench, &stays.secret, "").await.said(), "200");
}

#[tokio::test]
async fn only_watchable_lanes_are_shown_in_the_order_they_were_stored() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let granted = grant(&bench, &session).await;
    let mut bytes = Vec::new();
    for (lane, index) in [(1, 2), (0, 1), (2, 1), (3, 1), (1, 1)] {
        let chunk = Chunk::of(&session, lane, index);
        assert_eq!(bench.commit(&chunk).await.said(), "201");
        bytes.push(chunk.bytes);
    }
    let elsewhere = bench.session().await;
    assert_eq!(bench.commit(&Chunk::of(&elsewhere, 0, 1)).await.said(), "201");
    let same_incident = another_group(&bench, &session).await;
    assert_eq!(bench.commit(&Chunk::of(&same_incident, 0, 1)).await.said(), "201");

    let all = list(&bench, &granted.secret, "").await.json();
    let names: Vec<_> = all["chunks"].as_array().unwrap().iter().map(|chunk| chunk["ref"].clone()).collect();
    assert_eq!(json!(names), json!([name(&session, 1, 2), name(&session, 0, 1), name(&session, 1, 1)]));
    let sound = &all["chunks"][1];
    let receipt = sound["receipt"].as_str().unwrap();
    assert_eq!((&payload(receipt)["index"], &payload(receipt)["sha256"]), (&sound["index"], &sound["sha256"]));
    let mut stated = sound.clone();
    stated.as_object_mut().unwrap().remove("receipt");
    assert_eq!(
        stated,
        json!({
            "ref": name(&session, 0, 1), "stream": session.streams[0].stream, "variant": "audio_priority",
            "media": "audio", "index": 1, "length": bytes[1].len(), "sha256": sha256(&bytes[1]),
            "started": "2026-06-10T12:00:00.123456789Z", "ended": "2026-06-10T12:00:02Z",
        })
    );

    let held = |name: String| {
        let (bench, secret) = (&bench, &granted.secret);
        async move { page(bench, "GET", &format!("/v1/contact/chunks/{name}"), secret).await }
    };
    let reply = held(name(&session, 0, 1)).await;
    assert_eq!(reply.said(), "200");
    assert_eq!(reply.headers["content-type"], "application/octet-stream");
    assert_eq!(reply.headers["content-length"], bytes[1].len().to_string());
    assert_eq!(reply.bytes, bytes[1]);
    for hidden in [
        name(&session, 2, 1),
        name(&session, 3, 1),
        name(&session, 0, 2),
        name(&elsewhere, 0, 1),
        name(&same_incident, 0, 1),
        "x".into(),
    ] {
        assert_eq!(held(hidden).await.said(), "404 not_found");
    }
}

/// Another group in the session's incident, with streams and a capability of its own.
async fn another_group(bench: &Bench, session: &Session) -> Session {
    let groups = format!("/v1/incidents/{}/groups", session.incident);
    let id = |reply: Reply, what: &str| reply.json()[what]["id"].as_str().unwrap().to_owned();
    let group = id(bench.account("POST", &groups, json!({})).await, "group");
    let lane = json!({ "variant": "audio_priority", "media": "audio" });
    let stream = id(bench.account("POST", &format!("{groups}/{group}/streams"), lane).await, "stream");
    let ask = json!({ "use": "upload", "streams": [stream] });
    let made = bench.account("POST", &format!("{groups}/{group}/capabilities"), ask).await.json();
    let mut other = session.clone();
    (other.group, other.streams[0].stream) = (group, stream);
    other.upload_capability = made["capability"].as_str().map(str::to_owned);
    other.sid = made["sid"].as_str().map(str::to_owned);
    other
}

#[tokio::test]
async fn the_list_goes_on_where_it_ended() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let granted = grant(&bench, &session).await;
    let empty = json!({ "chunks": [], "incident": session.incident, "signs_receipts": true });
    assert_eq!(list(&bench, &granted.secret, "").await.json(), empty);
    let (mut after, mut seen) = (String::new(), Vec::new());
    for index in 1..=7 {
        assert_eq!(bench.commit(&Chunk::of(&session, 0, index)).await.said(), "201");
        if index < 5 {
            continue;
        }
        loop {
            let listed = list(&bench, &granted.secret, &format!("?limit=3{after}")).await.json();
            let chunks = listed["chunks"].as_array().unwrap();
            assert!(chunks.len() <= 3);
            seen.extend(chunks.iter().map(|chunk| chunk["index"].as_u64().unwrap()));
            let Some(next) = listed["next"].as_str() else { break };
            after = format!("&after={next}");
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7], "also over what came in between");
    for bad in ["?limit=0", "?limit=x", "?after=x"] {
        assert_eq!(list(&bench, &granted.secret, bad).await.said(), "400 invalid_page");
    }
}

#[tokio::test]
async fn a_closed_incident_is_still_read_and_no_longer_watched() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let granted = grant(&bench, &session).await;
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 1)).await.said(), "201");
    let one = format!("/v1/contact/chunks/{}", name(&session, 0, 1));
    for (state, watch, read) in [
        ("closed", "403 incident_closed", "200"),
        ("deleting", "403 incident_closed", "404 not_found"),
        ("open", "200", "200"),
    ] {
        bench.account("PUT", &format!("/devcore/incidents/{}", session.incident), json!({ "state": state })).await;
        assert_eq!(capability(&bench, &granted.secret).await.said(), watch);
        assert_eq!(list(&bench, &granted.secret, "").await.said(), read);
        assert_eq!(page(&bench, "GET", &one, &granted.secret).await.said(), read);
    }
}

#[tokio::test]
async fn what_a_contact_can_ask_for_is_bounded() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let granted = grant(&bench, &session).await;
    for _ in 0..32 {
        assert_eq!(capability(&bench, &granted.secret).await.said(), "200");
    }
    bench.core.clock().advance(Duration::from_secs(100));
    let refused = capability(&bench, &granted.secret).await;
    assert_eq!(
        (refused.said().as_str(), &refused.headers["retry-after"]),
        ("429 rate_limited", &"200".parse().unwrap())
    );
    let other = grant(&bench, &session).await;
    assert_eq!(capability(&bench, &other.secret).await.said(), "200", "another contact is not held up");
    bench.core.clock().advance(Duration::from_secs(200));
    assert_eq!(capability(&bench, &granted.secret).await.said(), "200");

    bench.core.set_calls_per_minute(2);
    for said in ["200", "200", "429 rate_limited"] {
        assert_eq!(list(&bench, &granted.secret, "").await.said(), said);
    }
    assert_eq!(list(&bench, &granted.secret, "").await.headers["retry-after"], "60");
    bench.core.set_calls_per_minute(0);

    for _ in 2..1024 {
        grant(&bench, &session).await;
    }
    assert_eq!(bench.account("POST", &grants(&session), json!({})).await.said(), "507 too_many_grants");
    assert_eq!(revoke(&bench, &session, &other).await, "200");
    grant(&bench, &session).await;
}

#[tokio::test]
async fn a_browser_may_ask_from_any_page() {
    let bench = Bench::start().await;
    for path in ["/v1/contact/capability", "/v1/contact/chunks", "/v1/contact/chunks/x", "/v1/relay/jwks"] {
        let ask = Request::options(path)
            .header("host", "core")
            .header("origin", "http://page.example")
            .header("access-control-request-headers", "authorization");
        let reply = exchange(bench.core.addr(), ask.body(Bytes::new()).unwrap()).await.unwrap();
        assert_eq!(reply.said(), "204", "{path}");
        assert!(reply.bytes.is_empty() && !reply.headers.contains_key("content-length"));
        assert_eq!(reply.headers["access-control-allow-origin"], "*");
        assert_eq!(reply.headers["access-control-allow-methods"], "GET, POST");
        assert_eq!(reply.headers["access-control-allow-headers"], "Authorization, Content-Type");
    }
    assert_eq!(bench.get("/v1/relay/jwks").await.headers["access-control-allow-origin"], "*");
    let closed = bench.account("GET", "/devcore/stats", json!({})).await;
    assert!(!closed.headers.contains_key("access-control-allow-origin"), "pages have no business there");

    let bench = Bench::with(|options| options.hmac_only = true).await;
    assert_eq!(capability(&bench, &"A".repeat(43)).await.said(), "404 not_found", "the unchanged core has no grants");
    assert_eq!(bench.account("POST", "/v1/incidents/i/groups/g/grants", json!({})).await.said(), "404 not_found");
}

#[tokio::test]
async fn a_restart_keeps_grants_and_what_was_revoked() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let (stays, gone) = (grant(&bench, &session).await, grant(&bench, &session).await);
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 1)).await.said(), "201");
    let revoked = capability(&bench, &gone.secret).await.json()["capability"].as_str().unwrap().to_owned();
    revoke(&bench, &session, &gone).await;
    let Bench { core, dir } = bench;
    core.stop().await;
    // As a data directory looks that knows no names yet.
    let database = rusqlite::Connection::open(dir.path().join("core.sqlite")).unwrap();
    assert_eq!(database.execute("DELETE FROM refs", []).unwrap(), 1);
    drop(database);
    let options = Options { clock: Clock::manual(NOON_S * 1000), ..Options::new(dir.path()) };
    let bench = Bench { core: Devcore::start(options).await.unwrap(), dir };
    assert_eq!(shown(&bench, &session, &revoked).await, "403 relay_capability_revoked");
    assert_eq!(list(&bench, &gone.secret, "").await.said(), "403 grant_revoked");
    let one = format!("/v1/contact/chunks/{}", name(&session, 0, 1));
    assert_eq!(page(&bench, "GET", &one, &stays.secret).await.said(), "200");
}

#[tokio::test]
async fn the_log_knows_no_contact() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::serve_logging(dir.path(), "trace");
    let request = waystation_devcore::session::Request::new(
        program.line["url"].as_str().unwrap(),
        program.secret("account_token_file"),
    );
    let session = waystation_devcore::session::open(&request).await.unwrap();
    let call = async |method: &str, path: &str, bearer: &str| {
        let call = Request::builder().method(method).uri(path).header("host", "core");
        let call = call.header("authorization", format!("Bearer {bearer}")).body(Bytes::from("{}")).unwrap();
        exchange(program.addr(), call).await.unwrap().json()
    };
    let account = program.secret("account_token_file");
    let made = call("POST", &grants(&session), &account).await["grant"].clone();
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    let watched = call("POST", "/v1/contact/capability", secret).await;
    call("GET", "/v1/contact/chunks?after=1&limit=77", secret).await;
    call("GET", &format!("/v1/contact/chunks/{}", name(&session, 0, 1)), secret).await;
    call("POST", &format!("{}/{id}/revoke", grants(&session)), &account).await;
    call("POST", "/v1/contact/capability", secret).await;
    drop(program.child.kill());
    let mut log = String::new();
    std::io::Read::read_to_string(&mut program.child.stderr.take().unwrap(), &mut log).unwrap();
    assert!(log.contains("contact_capability") && log.contains("grant_revoked"), "what happened is there");
    let capability = watched["capability"].as_str().unwrap();
    let jti = payload(capability)["jti"].as_str().unwrap().to_owned();
    let reference = name(&session, 0, 1);
    for canary in [secret, id, capability, &jti, &session.incident, &session.group, &reference, "limit=77", "127.0.0.1"]
    {
        assert!(!log.contains(canary), "who watches is nobody's business");
    }
}
