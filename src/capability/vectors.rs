//! The vectors of `docs/protocol/capability-vectors.json`: made here, compared with the file, and
//! each run against the code. `UPDATE_VECTORS=1` writes the file.

use bytes::Bytes;
use serde_json::{Value, json};

use super::testing::*;
use super::*;
use crate::proto::dictionary::{parse_digest, parse_offer, parse_watch, write_digest, write_offer};
use crate::proto::frame::{self, Piece, kind};
use crate::proto::message::{self, StartAt, StartWord};
use crate::proto::{ChunkRef, Digest, IncidentId, StreamId};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol/capability-vectors.json");

#[tokio::test]
async fn the_file_is_what_the_code_makes_and_does() {
    let vectors = json!({
        "about": "Vectors for docs/protocol.md. All keys and identifiers are for tests only. Tokens are read at `now` unless a case has its own.",
        "now": NOW,
        "audience": AUDIENCE,
        "core_key": {"seed_hex": "11".repeat(32), "jwks": jwks()},
        "client_key": {"seed_hex": "22".repeat(32), "jwk": jwk(&CLIENT_SEED, None)},
        "revocations": {"revoked": ["jti_revoked"]},
        "capability_checks": capability_checks(),
        "signed_offers": signed_offers(),
        "chunk_refs": chunk_refs(),
        "dictionaries": dictionaries(),
        "frames": frames(),
    });
    let text = format!("{}\n", serde_json::to_string_pretty(&vectors).unwrap());
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let held = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        held == text,
        "docs/protocol/capability-vectors.json is not what the code makes; UPDATE_VECTORS=1 writes it"
    );
    run_capability_checks(&vectors).await;
    run_signed_offers(&vectors);
    run_frames(&vectors);
}

/// The prose has every frame, state and word that the code has.
#[test]
fn the_protocol_names_what_is_on_the_wire() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md")).unwrap();
    for (name, kind, body) in bodies() {
        let name = name.split(' ').next().unwrap();
        let row = text.lines().find(|line| line.starts_with(&format!("| `{kind:#04x}` | `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} {kind:#04x}"));
        let offered = if name == "OFFER" { text.as_str() } else { row };
        for member in body.as_object().unwrap().keys() {
            assert!(offered.contains(member.as_str()), "{name}: {member}");
        }
    }
    let states = crate::proto::ChunkState::ALL.iter().map(|state| state.as_str());
    let seen = crate::proto::ContactState::ALL.iter().map(|state| state.as_str());
    let variants = crate::proto::Variant::ALL.iter().map(|variant| variant.as_str());
    let retries = crate::proto::Retry::ALL.iter().map(|retry| retry.as_str());
    for word in states.chain(seen).chain(variants).chain(retries) {
        assert!(text.contains(&format!("`{word}`")), "{word}");
    }
}

fn case(name: &str, token: String, expect: Option<Code>) -> Value {
    let context = json!({"use": "upload", "sid": "sid_1", "incident": "incident_1", "stream": "stream_1"});
    json!({"name": name, "token": token, "context": context, "now": NOW, "expect_error": expect.map(Code::name)})
}

fn edit(base: &Value, member: &str, value: Value) -> Value {
    let mut edited = base.clone();
    edited[member] = value;
    edited
}

fn without(base: &Value, member: &str) -> Value {
    let mut edited = base.clone();
    edited.as_object_mut().unwrap().remove(member);
    edited
}

fn at(mut case: Value, now: i64) -> Value {
    case["now"] = now.into();
    case
}

fn asking(mut case: Value, member: &str, value: &str) -> Value {
    case["context"][member] = value.into();
    case
}

fn capability_checks() -> Vec<Value> {
    let mut cases = accepted();
    cases.extend(headers_and_signatures());
    cases.extend(claims());
    cases.extend(contexts());
    cases
}

fn accepted() -> Vec<Value> {
    let upload = upload_claims();
    let fanout = asking(case("fan-out, every lane of the group", mint(&fanout_claims()), None), "use", "fanout");
    let some = edit(&edit(&upload, "use", json!("fanout")), "jti", json!("jti_3"));
    let many = edit(&upload, "aud", json!(["other", AUDIENCE]));
    let eddsa = edit(&header(), "alg", json!("EdDSA"));
    let padded = edit(&edit(&header(), "cty", json!("x")), "jwk", jwk(&CLIENT_SEED, None));
    let bound = edit(&upload, "cnf", json!({"jwk": jwk(&CLIENT_SEED, None)}));
    vec![
        case("upload", mint(&upload), None),
        asking(fanout, "stream", "a stream opened later"),
        asking(case("fan-out, named lanes", mint(&some), None), "use", "fanout"),
        case("alg EdDSA", sign(&eddsa, &upload, &CORE_SEED), None),
        case("aud is a list", mint(&many), None),
        case("unknown claims are ignored", mint(&edit(&upload, "later", json!({"a": 1}))), None),
        case("other header members, even a key, are ignored", sign(&padded, &upload, &CORE_SEED), None),
        case("bound to a client key", mint(&bound), None),
        case("commit_exp after exp", mint(&edit(&upload, "commit_exp", json!(EXP + 60))), None),
        at(case("last second before exp", mint(&upload), None), EXP - 1),
        at(case("iat 60 s ahead", mint(&upload), None), IAT - 60),
    ]
}

fn headers_and_signatures() -> Vec<Value> {
    let (upload, good) = (upload_claims(), mint(&upload_claims()));
    let invalid = Some(Code::CapabilityInvalid);
    let signed = |member: &str, value: Value| sign(&edit(&header(), member, value), &upload, &CORE_SEED);
    let (rest, signature) = good.rsplit_once('.').unwrap();
    let (head, body) = rest.split_once('.').unwrap();
    let none = b64(edit(&header(), "alg", json!("none")).to_string().as_bytes());
    let hs256_head = b64(edit(&header(), "alg", json!("HS256")).to_string().as_bytes());
    let hs256_signed = format!("{hs256_head}.{body}");
    let public = aws_lc_rs::signature::KeyPair::public_key(&pair(&CORE_SEED)).as_ref().to_vec();
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public), hs256_signed.as_bytes());
    let other_body = b64(edit(&upload, "sid", json!("sid_2")).to_string().as_bytes());
    let flipped = format!("{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]);
    // 64 bytes are 86 characters, and four bits of the last are spare.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let spare = alphabet.chars().nth(alphabet.find(last).unwrap() | 1).unwrap();
    let respelled = format!("{rest}.{}{spare}", &signature[..signature.len() - 1]);
    vec![
        case("typ JWT", signed("typ", json!("JWT")), invalid),
        case("typ in capitals", signed("typ", json!("WAYSTATION-CAPABILITY+JWT")), invalid),
        case("no typ", sign(&without(&header(), "typ"), &upload, &CORE_SEED), invalid),
        case("no kid", sign(&without(&header(), "kid"), &upload, &CORE_SEED), invalid),
        case("unknown kid", signed("kid", json!("test-9")), invalid),
        case("alg none", format!("{none}.{body}."), invalid),
        case("alg HS256 under the public key", format!("{hs256_signed}.{}", b64(mac.as_ref())), invalid),
        case("alg ed25519 in small letters", signed("alg", json!("ed25519")), invalid),
        case("alg ES256", signed("alg", json!("ES256")), invalid),
        case("crit", signed("crit", json!(["exp"])), invalid),
        case("signed by another key", sign(&header(), &upload, &CLIENT_SEED), invalid),
        case("tampered signature", format!("{rest}.{flipped}"), invalid),
        case("tampered claims", format!("{head}.{other_body}.{signature}"), invalid),
        case("short signature", format!("{rest}.{}", &signature[..84]), invalid),
        case("no signature", format!("{rest}."), invalid),
        case("padded signature", format!("{good}=="), invalid),
        case("another spelling of the signature", respelled, invalid),
        case("line break after the signature", format!("{good}\n"), invalid),
        case("two parts", rest.into(), invalid),
        case("four parts", format!("{good}.x"), invalid),
        case("empty", String::new(), invalid),
        case("header is no JSON", format!("{}.{body}.{signature}", b64(b"{")), invalid),
        at(case("a bad signature wins over expiry", format!("{rest}.{flipped}"), invalid), EXP),
    ]
}

fn claims() -> Vec<Value> {
    let upload = upload_claims();
    let invalid = Some(Code::CapabilityInvalid);
    let with = |name: &str, member: &str, value: Value| case(name, mint(&edit(&upload, member, value)), invalid);
    let lane = |member: &str, value: Value| {
        let mut edited = upload.clone();
        edited["lanes"][0][member] = value;
        mint(&edited)
    };
    let revoked = mint(&edit(&upload, "jti", json!("jti_revoked")));
    let mut cases: Vec<Value> = ["iss", "aud", "iat", "exp", "jti", "sid", "use", "incident", "group", "lanes"]
        .iter()
        .map(|member| case(&format!("no {member}"), mint(&without(&upload, member)), invalid))
        .collect();
    cases.extend([
        with("another audience", "aud", json!("other")),
        with("no audience in the list", "aud", json!([])),
        with("exp equals iat", "exp", json!(IAT)),
        with("exp is a text", "exp", json!(EXP.to_string())),
        with("empty jti", "jti", json!("")),
        with("a use that is none", "use", json!("admin")),
        with("upload without lanes", "lanes", json!([])),
        with("commit_exp before exp", "commit_exp", json!(EXP - 1)),
        with("cnf with a key of another kind", "cnf", json!({"jwk": {"kty": "EC", "crv": "P-256"}})),
        with("identifier with a space", "incident", json!("incident 1")),
        case("max_chunks 0", lane("max_chunks", json!(0)), invalid),
        case("max_chunk_bytes 0", lane("max_chunk_bytes", json!(0)), invalid),
        case("a role refused by name", lane("variant", json!("preview_only")), invalid),
        case("media that is none", lane("media", json!("film")), invalid),
        at(case("iat 61 s ahead", mint(&upload), invalid), IAT - 61),
        at(case("exactly at exp is expired", mint(&upload), Some(Code::CapabilityExpired)), EXP),
        case("revoked", revoked.clone(), Some(Code::CapabilityRevoked)),
        at(case("expiry wins over revocation", revoked, Some(Code::CapabilityExpired)), EXP),
    ]);
    cases
}

fn contexts() -> Vec<Value> {
    let (upload, fanout) = (mint(&upload_claims()), mint(&fanout_claims()));
    let (wrong_use, binding) = (Some(Code::CapabilityWrongUse), Some(Code::CapabilityWrongBinding));
    let other_incident = asking(case("wrong use wins over wrong binding", fanout.clone(), wrong_use), "incident", "i");
    let some = edit(&upload_claims(), "use", json!("fanout"));
    let unnamed = asking(case("fan-out, a lane that is not named", mint(&some), binding), "use", "fanout");
    vec![
        case("fan-out used to upload", fanout, wrong_use),
        asking(case("upload used to watch", upload.clone(), wrong_use), "use", "fanout"),
        other_incident,
        asking(case("wrong session", upload.clone(), binding), "sid", "sid_9"),
        asking(case("wrong incident", upload.clone(), binding), "incident", "incident_9"),
        asking(case("wrong stream", upload, binding), "stream", "stream_9"),
        asking(unnamed, "stream", "stream_9"),
    ]
}

async fn run_capability_checks(vectors: &Value) {
    for case in vectors["capability_checks"].as_array().unwrap() {
        let clock = clock(case["now"].as_i64().unwrap());
        let verifier = verifier(&clock, &Metrics::new());
        assert!(verifier.0.revocations.adopt(vectors["revocations"].to_string().as_bytes()));
        let context = |member: &str| case["context"][member].as_str().unwrap();
        let use_ = if context("use") == "upload" { Use::Upload } else { Use::Fanout };
        // Read twice: what is remembered must end the same.
        for _ in 0..2 {
            let read = verifier.read(case["token"].as_str().unwrap()).await;
            let got = read.and_then(|capability| {
                assert_eq!(capability.trust, Trust::Verified);
                check(&capability.grant, use_, Some(context("sid")), context("incident"), context("stream"))
            });
            assert_eq!(got.err().map(Code::name), case["expect_error"].as_str(), "{}", case["name"]);
        }
    }
}

/// The offer that the vectors are about.
fn offer() -> Offer {
    let header = concat!(
        r#"incident="incident_1", stream="stream_1", index=7, media="audio", started="2026-06-10T12:00:12.000Z", "#,
        r#"ended="2026-06-10T12:00:14.000Z", length=336"#
    );
    parse_offer(header, Digest([0xa5; 32]), None).unwrap()
}

fn signed_offers() -> Value {
    let offer = offer();
    let sig = b64(pair(&CLIENT_SEED).sign(&offer.signed_bytes()).as_ref());
    let other = b64(pair(&CORE_SEED).sign(&offer.signed_bytes()).as_ref());
    json!({
        "incident": "incident_1", "stream": "stream_1", "index": 7, "length": 336, "sha256": "a5".repeat(32),
        "started": offer.started, "ended": offer.ended,
        "signed_bytes_hex": hex(&offer.signed_bytes()),
        "checks": [
            {"name": "signed", "sig": sig, "bound": true, "expect_error": null},
            {"name": "no signature", "sig": null, "bound": true, "expect_error": "signature_required"},
            {"name": "signed by another key", "sig": other, "bound": true, "expect_error": "signature_invalid"},
            {"name": "nobody asks for one", "sig": null, "bound": false, "expect_error": null},
            {"name": "nobody asks, and it is not looked at", "sig": other, "bound": false, "expect_error": null},
        ],
    })
}

fn run_signed_offers(vectors: &Value) {
    let claims: crate::proto::claims::JwtClaims = serde_json::from_value(upload_claims()).unwrap();
    let mut grant = claims.into_grant(AUDIENCE, NOW).unwrap();
    let key: crate::proto::claims::Jwk = serde_json::from_value(vectors["client_key"]["jwk"].clone()).unwrap();
    for check in vectors["signed_offers"]["checks"].as_array().unwrap() {
        let mut offer = offer();
        offer.sig = check["sig"].as_str().map(|text| unb64(text).try_into().unwrap());
        grant.client_key = if check["bound"] == true { key.ed25519() } else { None };
        let got = verify_offer(&grant, &offer).err().map(Code::name);
        assert_eq!(got, check["expect_error"].as_str(), "{}", check["name"]);
        // Every signed member counts.
        if check["name"] == "signed" {
            for spoil in [
                |offer: &mut Offer| offer.index += 1,
                |offer: &mut Offer| offer.length += 1,
                |offer: &mut Offer| offer.sha256 = Digest([0; 32]),
                |offer: &mut Offer| offer.started = offer.ended.clone(),
                |offer: &mut Offer| offer.stream = StreamId::new("stream_2").unwrap(),
                |offer: &mut Offer| offer.incident = IncidentId::new("incident_2").unwrap(),
            ] {
                let mut spoilt = offer.clone();
                spoil(&mut spoilt);
                assert_eq!(verify_offer(&grant, &spoilt), Err(Code::SignatureInvalid));
            }
        }
    }
}

fn chunk_refs() -> Vec<Value> {
    [("incident_1", "stream_1", 1), ("incident_1", "stream_1", 11), ("incident_1s", "tream_1", 1), ("i", "s", u64::MAX)]
        .into_iter()
        .map(|(incident, stream, index)| {
            let (i, s) = (IncidentId::new(incident).unwrap(), StreamId::new(stream).unwrap());
            json!({"incident": incident, "stream": stream, "index": index.to_string(), "ref": ChunkRef::of(&i, &s, index)})
        })
        .collect()
}

fn dictionaries() -> Value {
    let digest = write_digest(&Digest([0xa5; 32]));
    assert_eq!(parse_digest(&digest), Ok(Digest([0xa5; 32])));
    let mut full = offer();
    full.name = "café \"1\".enc".into();
    full.group = Some(crate::proto::GroupId::new("group_1").unwrap());
    full.role = crate::proto::Variant::parse("evidence_master");
    full.sequence = Some(7);
    full.attempt = 2;
    full.sig = Some([9; 64]);
    let short = r#"incident="i", stream="s", index=1, media="video", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;
    let verdict = |header: &str, content_length: Option<u64>| {
        let got = parse_offer(header, Digest([0xa5; 32]), content_length);
        json!({
            "header": header, "content_length": content_length,
            "expect_error": got.as_ref().err().map(|code| code.name()), "length": got.ok().map(|offer| offer.length),
        })
    };
    let watch = r#"lanes=("audio_priority"), from="oldest", cursor="abc""#;
    assert_eq!(parse_watch(watch).unwrap().from, Some(StartAt::Word(StartWord::Oldest)));
    json!({
        "repr_digest": {"sha256": "a5".repeat(32), "header": digest},
        "waystation_chunk": [
            verdict(&write_offer(&full), None),
            verdict(short, Some(10)),
            verdict(short, None),
            verdict(&format!("{short}, length=9"), Some(10)),
            verdict(&format!("{short}, later=?1"), Some(10)),
            verdict(&short.replace("index=1", "index=0"), Some(10)),
            verdict(&short.replace("\"video\"", "\"film\""), Some(10)),
            verdict(&short.replace("12:00:02Z", "11:00:02Z"), Some(10)),
            verdict(&format!("{short}, role=\"delete_after_master\""), Some(10)),
            verdict(&format!("{short}, role=\"best\""), Some(10)),
            verdict(&format!("{short}, attempt=0"), Some(10)),
            verdict(&format!("{short}, sig=:AAAA:"), Some(10)),
            verdict("incident=", Some(10)),
        ],
        "waystation_watch": [watch, r#"from="stream_1/7""#, r#"from="live""#, ""],
    })
}

fn frames() -> Vec<Value> {
    let mut frames: Vec<Value> = bodies()
        .into_iter()
        .map(|(name, kind, body)| {
            // Members sorted by name; any order is read.
            let wire = frame::encode_json(kind, &body);
            json!({"name": name, "type": kind, "json": body, "wire_hex": hex(&wire)})
        })
        .collect();
    for (name, kind) in [("PIECE (capture)", kind::CAPTURE_PIECE), ("PIECE (watch)", kind::PIECE)] {
        let wire = Piece::encode(kind, 70, 16_384, b"ciphertext");
        let bytes = hex(b"ciphertext");
        frames.push(json!({"name": name, "type": kind, "handle": 70, "offset": 16_384, "bytes_hex": bytes, "wire_hex": hex(&wire)}));
    }
    frames
}

fn bodies() -> Vec<(&'static str, u64, Value)> {
    let fetch = json!({"stream": "stream_1", "index": 7});
    let signed = json!(message::OfferBody::new(7, &offer()));
    let error = json!(message::Error::from(Code::HashMismatch));
    vec![
        ("HELLO", kind::HELLO, json!({"protocol": 1, "capabilities": ["a.b.c"], "network": "cellular"})),
        ("OFFER", kind::OFFER, signed),
        ("CAPABILITY", kind::CAPABILITY, json!({"capability": "a.b.c"})),
        ("ALIVE", kind::ALIVE, json!({})),
        ("END", kind::END, json!({"reason": "stopped"})),
        (
            "WELCOME",
            kind::WELCOME,
            json!({"protocol": 1, "node": "n", "limits": {"max_chunk": 262_144_000, "max_piece": 262_144, "offers": 64, "in_flight": 16, "known": 4}}),
        ),
        ("SEND", kind::SEND, json!({"handle": 7, "offset": 0, "credit": 1_048_576})),
        (
            "STATE (capture)",
            kind::CAPTURE_STATE,
            json!({"handle": 7, "ref": "AAAAAAAAAAAAAAAAAAAAAA", "state": "staged"}),
        ),
        ("STATE (capture, refused)", kind::CAPTURE_STATE, json!({"handle": 7, "error": error})),
        ("CREDIT", kind::CREDIT, json!({"handle": 7, "bytes": 65_536})),
        (
            "HINT",
            kind::HINT,
            json!({"core_limited_s": 60, "core_away": false, "rate": 41200, "chunk_ms": 4000,
            "lanes": ["audio_priority", "live_preview"]}),
        ),
        ("BYE", kind::BYE, json!({"reason": "draining", "retry_after_s": 5})),
        (
            "REFUSED",
            kind::REFUSED,
            json!({"capability": 1, "error": json!(message::Error::from(Code::CapabilityExpired))}),
        ),
        (
            "WATCH",
            kind::WATCH,
            json!({"protocol": 1, "capability": "a.b.c", "lanes": ["audio_priority"], "from": "oldest"}),
        ),
        ("WATCH (from a chunk)", kind::WATCH, json!({"protocol": 1, "capability": "a.b.c", "from": fetch})),
        ("RENEW", kind::RENEW, json!({"capability": "a.b.c"})),
        ("LANES", kind::LANES, json!({"lanes": ["audio_priority", "live_preview"]})),
        ("FETCH", kind::FETCH, fetch.clone()),
        ("WATCHING", kind::WATCHING, json!({"node": "n", "window_start": "2026-06-10T12:00:00Z"})),
        (
            "CHUNK",
            kind::CHUNK,
            json!({
                "handle": 70, "stream": "stream_1", "variant": "audio_priority", "media": "audio", "index": 7, "length": 336,
                "sha256": "a5".repeat(32), "started": "2026-06-10T12:00:12Z", "ended": "2026-06-10T12:00:14Z",
                "state": "arriving", "replay": false,
            }),
        ),
        ("COMPLETE", kind::COMPLETE, json!({"handle": 70})),
        ("WITHDRAWN", kind::WITHDRAWN, json!({"handle": 70, "reason": "hash_mismatch"})),
        (
            "STATE (watch)",
            kind::STATE,
            json!({"stream": "stream_1", "index": 7, "state": "confirmed", "receipt": "a.b.c"}),
        ),
        ("OMITTED", kind::OMITTED, json!({"stream": "stream_1", "from": 3, "to": 5, "reason": "slow"})),
        ("CAPTURE", kind::CAPTURE, json!({"event": "silent", "last_sign": 12, "last_chunk": fetch})),
        ("SIGN", kind::SIGN, json!({"last_sign": 7})),
        ("STREAM", kind::STREAM, json!({"stream": "stream_3", "variant": "audio_priority", "follows": "stream_1"})),
        ("ENDING", kind::ENDING, json!({"reason": "capability_expired"})),
        ("CURSOR", kind::CURSOR, json!({"cursor": "abc"})),
    ]
}

/// Each JSON body is read by the type of its frame, and says the same when it is written again.
fn run_frames(vectors: &Value) {
    fn same<T: serde::de::DeserializeOwned + serde::Serialize>(frame: &frame::Frame) -> Value {
        json!(frame::control::<T>(frame).unwrap())
    }
    for vector in vectors["frames"].as_array().unwrap() {
        let wire = Bytes::from(unhex(vector["wire_hex"].as_str().unwrap()));
        let mut decoder = frame::Decoder::default();
        decoder.push(&wire);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert!(!decoder.pending());
        assert_eq!(frame.kind, vector["type"]);
        let again = match frame.kind {
            kind::HELLO => same::<message::Hello>(&frame),
            kind::OFFER => same::<message::OfferBody>(&frame),
            kind::CAPABILITY | kind::RENEW => same::<message::Capability>(&frame),
            kind::ALIVE => json!({}),
            kind::END => same::<message::End>(&frame),
            kind::WELCOME => same::<message::Welcome>(&frame),
            kind::SEND => same::<message::Send>(&frame),
            kind::CAPTURE_STATE => same::<message::CaptureState>(&frame),
            kind::CREDIT => same::<message::Credit>(&frame),
            kind::HINT => same::<message::Hint>(&frame),
            kind::BYE => same::<message::Bye>(&frame),
            kind::REFUSED => same::<message::Refused>(&frame),
            kind::WATCH => same::<message::Watch>(&frame),
            kind::LANES => same::<message::Lanes>(&frame),
            kind::FETCH => same::<message::Fetch>(&frame),
            kind::WATCHING => same::<message::Watching>(&frame),
            kind::CHUNK => same::<message::ChunkBegins>(&frame),
            kind::COMPLETE => same::<message::Complete>(&frame),
            kind::WITHDRAWN => same::<message::Withdrawn>(&frame),
            kind::STATE => same::<message::ContactChunkState>(&frame),
            kind::OMITTED => same::<message::Omitted>(&frame),
            kind::CAPTURE => same::<message::CaptureEvent>(&frame),
            kind::SIGN => same::<message::Sign>(&frame),
            kind::STREAM => same::<message::StreamJoins>(&frame),
            kind::ENDING => same::<message::Ending>(&frame),
            kind::CURSOR => same::<message::Cursor>(&frame),
            kind::CAPTURE_PIECE | kind::PIECE => {
                let piece = Piece::decode(frame.body).unwrap();
                assert_eq!((piece.handle, piece.offset), (70, 16_384));
                assert_eq!(hex(&piece.bytes), vector["bytes_hex"]);
                continue;
            }
            other => panic!("{other}"),
        };
        assert_eq!(again, vector["json"], "{}", vector["name"]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn unb64(text: &str) -> Vec<u8> {
    base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text).unwrap()
}
