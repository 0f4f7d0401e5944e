use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::testing::*;
use super::*;
use crate::core::Client;
use crate::core::testing::{FakeCore, json as answer};

/// The code of our table for an outcome of the contract's own tests.
fn code_of(error: &Value) -> Option<Code> {
    match error.as_str()? {
        "ErrInvalidSignature" | "ErrInvalidToken" | "ErrInvalidClaims" => Some(Code::CapabilityInvalid),
        "ErrExpired" => Some(Code::CapabilityExpired),
        "ErrWrongRole" => Some(Code::CapabilityWrongUse),
        "ErrWrongBinding" => Some(Code::CapabilityWrongBinding),
        other => panic!("{other}"),
    }
}

fn proofline_vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol/proofline-vectors.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

async fn read_proofline(case: &Value, secret: Option<&str>) -> Result<Trust, Code> {
    let (context, text) = (&case["context"], |value: &Value| value.as_str().unwrap().to_owned());
    let clock = clock(context["now_unix"].as_i64().unwrap());
    let verifier = Verifier::new(&config(None, secret), Fetch::nothing(clock.clone()), clock, Metrics::new()).unwrap();
    let capability = verifier.read(&text(&case["token"])).await?;
    assert_eq!(&*capability.token, case["token"].as_str().unwrap());
    let use_ = if context["role"] == "upload" { Use::Upload } else { Use::Fanout };
    let (session, incident, stream) =
        (text(&context["relay_session_id"]), text(&context["incident_id"]), text(&context["stream_id"]));
    check(&capability.grant, use_, Some(&session), &incident, &stream)?;
    Ok(capability.trust)
}

#[tokio::test]
async fn every_vector_of_the_contract_ends_as_at_the_core() {
    let vectors = proofline_vectors();
    let cases = vectors["capability_checks"].as_array().unwrap();
    assert_eq!(cases.len(), 23);
    for case in cases {
        let got = read_proofline(case, case["secret"].as_str()).await;
        assert_eq!(got.err(), code_of(&case["expect_error"]), "{}", case["name"]);
    }
}

#[tokio::test]
async fn without_the_secret_nothing_is_accepted_and_only_the_hopeless_refused() {
    for case in proofline_vectors()["capability_checks"].as_array().unwrap() {
        let got = read_proofline(case, None).await;
        match code_of(&case["expect_error"]) {
            None => assert_eq!(got, Ok(Trust::Claimed), "{}", case["name"]),
            // A wrong signature can't be seen; whatever else is wrong is.
            Some(code) if case["expect_error"] != "ErrInvalidSignature" => {
                assert_eq!(got, Err(code), "{}", case["name"]);
            }
            Some(_) => assert_ne!(got, Ok(Trust::Verified)),
        }
    }
}

#[tokio::test]
async fn the_contracts_token_pairs_verify() {
    for (name, vector) in proofline_vectors()["capability_vectors"].as_object().unwrap() {
        let claims: Value = serde_json::from_str(vector["payload_json"].as_str().unwrap()).unwrap();
        let clock = clock(claims["iat"].as_i64().unwrap());
        // White space around the secret is not part of it.
        let secret = format!(" {}\n", vector["secret"].as_str().unwrap());
        let verifier =
            Verifier::new(&config(None, Some(&secret)), Fetch::nothing(clock.clone()), clock, Metrics::new()).unwrap();
        let capability = verifier.read(vector["token"].as_str().unwrap()).await.unwrap();
        assert_eq!(capability.trust, Trust::Verified, "{name}");
        assert_eq!(capability.grant.session.as_str(), claims["relay_session_id"]);
        assert!(verifier.verifies_locally());
    }
}

#[tokio::test]
async fn line_breaks_in_a_signature_are_ignored_as_go_ignores_them() {
    let vectors = proofline_vectors();
    let case = &vectors["capability_checks"][0];
    let mut broken = case.clone();
    broken["token"] = format!("{}\r\n", case["token"].as_str().unwrap()).into();
    assert_eq!(read_proofline(&broken, case["secret"].as_str()).await, Ok(Trust::Verified));
}

#[test]
fn a_secret_the_core_would_refuse_is_refused() {
    let short = config(None, Some(" 0123456789abcdef0123456789abcde \n"));
    let built = Verifier::new(&short, Fetch::nothing(clock(NOW)), clock(NOW), Metrics::new());
    assert!(matches!(built.err(), Some(SetupError::ShortSecret)));
    let nowhere = config(Some("/nowhere".as_ref()), None);
    let built = Verifier::new(&nowhere, Fetch::nothing(clock(NOW)), clock(NOW), Metrics::new());
    assert!(matches!(built.err(), Some(SetupError::JwksFile)));
}

/// A core with keys and a revocation list that a test changes.
struct Rig {
    server: FakeCore,
    jwks: Arc<Mutex<(u16, String)>>,
    revoked: Arc<Mutex<(u16, String)>>,
    fetches: Arc<AtomicUsize>,
    verifier: Verifier,
    clock: Clock,
    metrics: Metrics,
}

async fn rig(jwks_file: bool) -> Rig {
    let jwks_answer = Arc::new(Mutex::new((200, jwks().to_string())));
    let revoked = Arc::new(Mutex::new((404, String::new())));
    let fetches = Arc::new(AtomicUsize::new(0));
    let server = FakeCore::start({
        let (jwks, revoked, fetches) = (Arc::clone(&jwks_answer), Arc::clone(&revoked), Arc::clone(&fetches));
        move |seen| {
            let held = if seen.path == "/jwks" {
                fetches.fetch_add(1, Ordering::SeqCst);
                &jwks
            } else {
                &revoked
            };
            let (status, body) = held.lock().unwrap().clone();
            answer(status, body)
        }
    })
    .await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, jwks().to_string().as_bytes()).unwrap();
    let mut config = config(jwks_file.then(|| file.path()), None);
    config.jwks_url = Some(server.url("/jwks"));
    let core = config::Core {
        url: server.url(""),
        service_token: "x".repeat(32).into(),
        ca_file: None,
        request_timeout: Duration::from_secs(1),
        max_requests_per_minute: 0,
    };
    let (clock, metrics) = (clock(NOW), Metrics::new());
    let fetch = Fetch::new(&Client::new(None).unwrap(), Some(&core), &config, clock.clone()).unwrap();
    let verifier = Verifier::new(&config, fetch, clock.clone(), metrics.clone()).unwrap();
    Rig { server, jwks: jwks_answer, revoked, fetches, verifier, clock, metrics }
}

impl Rig {
    async fn read(&self, token: &str) -> Result<Trust, Code> {
        self.verifier.read(token).await.map(|capability| capability.trust)
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn counts(&self, line: &str) -> bool {
        self.metrics.text().lines().any(|one| one == line)
    }
}

fn other_kid() -> String {
    let mut header = header();
    header["kid"] = "test-2".into();
    sign(&header, &upload_claims(), &CLIENT_SEED)
}

#[tokio::test]
async fn the_keys_are_fetched_when_first_needed_and_once_in_thirty_seconds_in_all() {
    let rig = rig(false).await;
    assert!(!rig.verifier.verifies_locally());
    let token = mint(&upload_claims());
    let many = (0..20).map(|_| rig.read(&token));
    for got in futures_util::future::join_all(many).await {
        assert_eq!(got, Ok(Trust::Verified));
    }
    assert_eq!(rig.fetches(), 1, "one fetch for all who waited");
    assert!(rig.verifier.verifies_locally());
    for _ in 0..5 {
        assert_eq!(rig.read(&other_kid()).await, Err(Code::CapabilityInvalid));
    }
    assert_eq!(rig.fetches(), 1);

    *rig.jwks.lock().unwrap() = (200, json!({"keys": [jwk(&CLIENT_SEED, Some("test-2"))]}).to_string());
    rig.clock.advance(Duration::from_secs(30));
    assert_eq!(rig.read(&other_kid()).await, Ok(Trust::Verified), "the core changed its key");
    assert_eq!(rig.fetches(), 2);
    assert_eq!(rig.read(&token).await, Err(Code::CapabilityInvalid), "also what verified under the old one");
    assert!(rig.counts(r#"waystation_capability_fetches_total{source="keys",outcome="ok"} 2"#));
}

#[tokio::test]
async fn a_failed_fetch_keeps_the_last_good_keys() {
    let rig = rig(false).await;
    let token = mint(&upload_claims());
    assert_eq!(rig.read(&token).await, Ok(Trust::Verified));
    for (status, body) in [(500, jwks().to_string()), (200, "{}".into()), (200, r#"{"keys":[]}"#.into())] {
        *rig.jwks.lock().unwrap() = (status, body);
        rig.clock.advance(Duration::from_secs(30));
        assert_eq!(rig.read(&other_kid()).await, Err(Code::CapabilityUnverifiable), "the core did not tell");
        assert_eq!(rig.read(&token).await, Ok(Trust::Verified));
    }
    assert!(rig.counts(r#"waystation_capability_fetches_total{source="keys",outcome="failed"} 1"#));
    assert!(rig.counts(r#"waystation_capability_fetches_total{source="keys",outcome="unreadable"} 2"#));
}

#[tokio::test]
async fn keys_from_a_file_serve_while_the_core_is_away() {
    let mut rig = rig(true).await;
    *rig.jwks.lock().unwrap() = (503, String::new());
    assert_eq!(rig.read(&mint(&upload_claims())).await, Ok(Trust::Verified));
    assert_eq!(rig.fetches(), 0);
    rig.jwks = Arc::default();
    let without = Verifier::new(&config(None, None), Fetch::nothing(clock(NOW)), clock(NOW), Metrics::new()).unwrap();
    let read = without.read(&mint(&upload_claims())).await;
    assert_eq!(read.err(), Some(Code::CapabilityUnverifiable), "no keys were ever there");
}

#[tokio::test]
async fn a_remembered_token_still_expires_and_can_still_be_revoked() {
    let rig = rig(false).await;
    let (upload, fanout) = (mint(&upload_claims()), mint(&fanout_claims()));
    for _ in 0..3 {
        assert_eq!(rig.read(&upload).await, Ok(Trust::Verified));
        assert_eq!(rig.read(&fanout).await, Ok(Trust::Verified));
    }
    assert!(rig.counts("waystation_capability_cache_hits_total 4"));
    let mut changes = rig.verifier.revocations();
    *rig.revoked.lock().unwrap() = (200, r#"{"revoked":["jti_2"],"later":1}"#.into());
    rig.verifier.poll_once().await;
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(rig.read(&fanout).await, Err(Code::CapabilityRevoked));
    assert_eq!(rig.read(&upload).await, Ok(Trust::Verified));
    assert!(rig.counts("waystation_capability_revoked 1"));

    // A core that is away, or talks nonsense, ends nothing and frees nothing.
    for (status, body) in [(503, ""), (200, "{"), (200, r#"{"revoked":[1]}"#)] {
        *rig.revoked.lock().unwrap() = (status, body.into());
        rig.verifier.poll_once().await;
        assert!(!changes.has_changed().unwrap());
        assert_eq!(rig.read(&fanout).await, Err(Code::CapabilityRevoked));
    }
    *rig.revoked.lock().unwrap() = (404, String::new());
    rig.verifier.poll_once().await;
    assert!(changes.has_changed().unwrap());
    assert_eq!(rig.read(&fanout).await, Ok(Trust::Verified));

    rig.clock.advance(Duration::from_secs((EXP - NOW) as u64));
    assert_eq!(rig.read(&upload).await, Err(Code::CapabilityExpired));
    assert!(rig.counts(r#"waystation_capability_reads_total{format="jwt",result="expired"} 1"#));
}

#[tokio::test]
async fn polling_goes_on_and_refreshes_the_keys() {
    let rig = rig(true).await;
    let polling = tokio::spawn({
        let verifier = rig.verifier.clone();
        async move { verifier.poll_revocations(Duration::from_secs(30)).await }
    });
    for round in 1..=41 {
        // Counted and asleep again in one go, so the clock may move as soon as the count shows.
        let line = format!(r#"waystation_capability_fetches_total{{source="revocations",outcome="absent"}} {round}"#);
        while !rig.counts(&line) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Half of the time: the answer takes some of it too.
        rig.clock.advance(Duration::from_secs(15));
    }
    assert_eq!(rig.server.seen().iter().filter(|seen| seen.path == "/v1/relay/revocations").count(), 41);
    assert_eq!(rig.fetches(), 2, "at the start and ten minutes later");
    polling.abort();
}

#[tokio::test]
async fn what_is_too_long_is_not_even_looked_at() {
    let rig = rig(false).await;
    let token = format!("{}.{}", "x".repeat(MAX_TOKEN_BYTES), mint(&upload_claims()));
    assert_eq!(rig.read(&token).await, Err(Code::CapabilityInvalid));
    assert_eq!(rig.fetches(), 0);
    assert!(rig.counts(r#"waystation_capability_reads_total{format="none",result="invalid"} 1"#));
}

#[test]
fn the_cache_is_bounded_and_the_oldest_goes_first() {
    let clock = clock(NOW);
    let cache = Cache::new(&clock);
    let claims: crate::proto::claims::JwtClaims = serde_json::from_value(upload_claims()).unwrap();
    let grant = Arc::new(claims.into_grant(AUDIENCE, NOW).unwrap());
    let name = |i: usize| cache.name(&i.to_string());
    for i in 0..5000 {
        cache.put(name(i), 0, Arc::clone(&grant));
        cache.put(name(i), 0, Arc::clone(&grant));
    }
    assert_eq!(cache.len(), 4096);
    assert!(cache.get(&name(0), 0, NOW).is_none());
    assert!(cache.get(&name(4999), 0, NOW).is_some());
    assert!(cache.get(&name(4999), 1, NOW).is_none(), "other keys");
    assert!(cache.get(&name(4999), 0, EXP).is_none(), "expired");
    assert_ne!(Cache::new(&clock).name("a"), cache.name("a"), "the names mean nothing elsewhere");
}

#[test]
fn key_sets_take_what_is_usable_and_no_more() {
    let good = jwk(&CORE_SEED, Some("a"));
    let with = |member: &str, value: Value| {
        let mut key = good.clone();
        key[member] = value;
        json!({"keys": [key]}).to_string()
    };
    for (member, value) in
        [("use", json!("sig")), ("alg", json!("EdDSA")), ("alg", json!("Ed25519")), ("x5t", json!(1))]
    {
        assert!(KeySet::parse(with(member, value).as_bytes()).is_some(), "{member}");
    }
    for (member, value) in [
        ("use", json!("enc")),
        ("alg", json!("ES256")),
        ("kty", json!("RSA")),
        ("crv", json!("Ed448")),
        ("x", json!("AAAA")),
        ("kid", json!(7)),
        ("kid", json!(null)),
    ] {
        assert!(KeySet::parse(with(member, value).as_bytes()).is_none(), "{member}");
    }
    let mixed = json!({"keys": [{"kty": "RSA", "n": "AQAB"}, 7, good]}).to_string();
    assert!(KeySet::parse(mixed.as_bytes()).is_some());
    let many: Vec<Value> = (0..200).map(|i| jwk(&CORE_SEED, Some(&i.to_string()))).collect();
    assert_eq!(KeySet::parse(json!({"keys": many}).to_string().as_bytes()).map(|set| set.count()), Some(64));
}

proptest::proptest! {
    #[test]
    fn no_text_panics_or_passes(text in ".{0,200}", parts in proptest::collection::vec("[A-Za-z0-9_=.\\-]{0,40}", 0..5)) {
        let key = proofline::key(&"0123456789abcdef0123456789abcdef".into()).unwrap();
        let core: [u8; 32] = aws_lc_rs::signature::KeyPair::public_key(&pair(&CORE_SEED)).as_ref().try_into().unwrap();
        for token in [text.clone(), parts.join("."), format!("proofline-relay-capability-v1.{}", parts.join("."))] {
            proptest::prop_assert!(proofline::read(&token, Some(&key), NOW).is_err());
            let verified = jwt::parse(&token).and_then(|parsed| parsed.verify(&core, AUDIENCE, NOW));
            proptest::prop_assert!(verified.is_err());
        }
        let _ = KeySet::parse(text.as_bytes());
        let _ = Revocations::new().adopt(text.as_bytes());
    }

    #[test]
    fn a_token_changed_anywhere_is_no_token(at in 0usize..600, to in 0x21u8..0x7f) {
        let good = mint(&upload_claims());
        let mut bytes = good.clone().into_bytes();
        let at = at % bytes.len();
        proptest::prop_assume!(bytes[at] != to);
        bytes[at] = to;
        let core: [u8; 32] = aws_lc_rs::signature::KeyPair::public_key(&pair(&CORE_SEED)).as_ref().try_into().unwrap();
        let token = String::from_utf8(bytes).unwrap();
        let verified = jwt::parse(&token).and_then(|parsed| parsed.verify(&core, AUDIENCE, NOW));
        proptest::prop_assert_eq!(verified.err(), Some(Code::CapabilityInvalid));
    }
}

#[tokio::test]
async fn nothing_prints_a_token() {
    let rig = rig(true).await;
    let token = mint(&upload_claims());
    let capability = rig.verifier.read(&token).await.unwrap();
    let text = format!("{capability:?}{}", rig.metrics.text());
    for part in token.split('.').chain(["incident_1", "stream_1", "sid_1", "jti_1", "group_1"]) {
        assert!(!text.contains(part), "{part}");
    }
}
