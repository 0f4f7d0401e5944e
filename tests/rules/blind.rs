//! The relay can't open what it carries and can't print what it is trusted with.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};
use waystation::capability::{Capability, Trust};
use waystation::config::Config;
use waystation::proto::claims::{Grant, JwtClaims};
use waystation::proto::{Digest, Offer, Variant, dictionary};
use waystation::staging::{Meta, SealKey, StreamCapability};

use crate::source::{self, has_word};

/// Every package the relay is built of, tests aside, by `cargo metadata`.
fn built_of(package: &str) -> Vec<String> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"])
        .current_dir(source::root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let mut found = vec![*names.iter().find(|(_, name)| **name == package).unwrap().0];
    let mut at = 0;
    while let Some(id) = found.get(at).copied() {
        let node = nodes.iter().find(|node| node["id"] == id).unwrap();
        for dependency in node["deps"].as_array().unwrap() {
            let kinds = dependency["dep_kinds"].as_array().unwrap();
            let id = dependency["pkg"].as_str().unwrap();
            if kinds.iter().any(|kind| kind["kind"] != "dev") && !found.contains(&id) {
                found.push(id);
            }
        }
        at += 1;
    }
    found.iter().skip(1).map(|id| names[id].to_owned()).collect()
}

#[test]
fn the_relay_is_built_of_neither_client_nor_core() {
    let relay = built_of("waystation");
    let ours: Vec<&String> = relay.iter().filter(|name| name.starts_with("waystation")).collect();
    let known = ["waystation-congestion", "waystation-h3", "waystation-proto"];
    assert_eq!(ours, known, "of ours the relay knows the wire formats alone, and how to send");
    assert!(built_of("waystation-proto").iter().all(|name| !name.starts_with("waystation") && name != "tokio"));
    let client = built_of("waystation-client");
    assert!(client.iter().all(|name| name != "waystation" && name != "waystation-devcore"), "the client stands alone");
    let devcore = built_of("waystation-devcore");
    assert!(devcore.iter().all(|name| name != "waystation" && name != "waystation-client"), "the core stands alone");
}

/// Ciphers live in one file, which seals the relay's own metadata; no other file can call one,
/// and no file knows the envelope of the payload or a content key.
#[test]
fn no_code_opens_an_envelope() {
    const SEALING: &str = "src/staging/seal.rs";
    // `aead` itself may be named elsewhere for the length of a nonce alone.
    const CIPHERS: &[&str] = &[
        "aead::*",
        "open_in_place",
        "seal_in_place",
        "LessSafeKey",
        "UnboundKey",
        "OpeningKey",
        "AES_256_GCM",
        "AES_128_GCM",
        "CHACHA20_POLY1305",
        "cipher",
        "aes_gcm",
        "decrypt",
    ];
    const ENVELOPE: &[&str] = &["PLPQENC", "group_key", "content_key", "plaintext"];
    let (mut wrong, mut sealing) = (Vec::new(), 0);
    for source in source::relay() {
        for ((line, code), shown) in source.lines().zip(source.shown.lines()) {
            if CIPHERS.iter().any(|word| has_word(code, word)) {
                if source.path == SEALING {
                    sealing += 1
                } else {
                    wrong.push(format!("{}:{line}: {shown}", source.path))
                }
            }
            let names_aead = has_word(code, "aead") && source.path != SEALING;
            if names_aead && shown.trim() != "use aws_lc_rs::aead::NONCE_LEN;" {
                wrong.push(format!("{}:{line}: {shown}", source.path));
            }
            // The magic would stand in a text, a key in a name.
            let prose = code.trim().is_empty();
            if !prose
                && ENVELOPE.iter().any(|word| has_word(code, word) || (word.contains("ENC") && shown.contains(word)))
            {
                wrong.push(format!("{}:{line}: {shown}", source.path));
            }
        }
    }
    assert!(sealing > 0, "the sealing of metadata was not found: has it moved?");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const CANARY: &str = "canary-7f3a";

fn canary_config() -> String {
    let dir = std::env::temp_dir();
    format!(
        "[relay]\nid = \"{CANARY}\"\nregion = \"{CANARY}\"\n[listen]\nplain = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\n\
         [core]\nurl = \"http://127.0.0.1:1\"\n[staging]\ndirectory = \"{0}/w-s\"\nseal_key_file = \"{0}/w-k\"\n",
        dir.display()
    )
}

/// What is trusted to the relay says nothing of itself, whichever way it is printed.
#[test]
fn secrets_and_identifiers_are_not_printed() {
    let secret = format!("{CANARY}-{}", "x".repeat(40));
    let env = ["WAYSTATION_CORE__SERVICE_TOKEN", "WAYSTATION_CAPABILITY__PROOFLINE_SECRET"];
    let config = Config::parse(&canary_config(), env.map(|name| (name.to_owned(), secret.clone()))).unwrap();
    let (offer, grant) = (offer(), grant());
    let stream = StreamCapability::new(offer.stream.clone(), secret.clone(), grant.clone());
    let capability = Capability { token: secret.as_str().into(), grant: grant.clone().into(), trust: Trust::Verified };
    let meta = Meta {
        offer: offer.clone(),
        variant: Variant::AudioPriority,
        capability: secret,
        grant: grant.clone(),
        trust_verified: true,
        accepted_unix_ms: 0,
    };
    let key = SealKey::new(*b"canary-7f3a-canary-7f3a-canary-7");
    let printed = [
        format!("{:?} {:?} {:?}", config.relay, config.core.as_ref().map(|c| &c.service_token), config.capability),
        format!("{config:#?}"),
        format!("{offer:?} {:?} {:?} {:?}", offer.incident, offer.stream, offer.group),
        format!("{grant:?} {:?} {:?}", grant.session, grant.lanes),
        format!("{capability:?} {meta:?} {stream:?} {key:?}"),
    ];
    for text in printed {
        assert!(!text.contains("canary"), "{text}");
        assert!(!text.contains("99, 97, 110, 97, 114, 121"), "as a list of bytes: {text}");
    }
}

fn offer() -> Offer {
    let header = format!(
        "incident=\"{CANARY}\", stream=\"{CANARY}\", index=1, media=\"audio\", started=\"2026-06-10T12:00:00Z\", \
         ended=\"2026-06-10T12:00:02Z\", length=5, name=%\"{CANARY}\", group=\"{CANARY}\", segment=\"{CANARY}\", \
         source=\"{CANARY}\", clock=\"{CANARY}\""
    );
    dictionary::parse_offer(&header, Digest::from_hex(&"0a".repeat(32)).unwrap(), None).unwrap()
}

fn grant() -> Grant {
    let claims: JwtClaims = serde_json::from_value(json!({
        "iss": CANARY, "aud": CANARY, "iat": 10, "exp": 20, "jti": CANARY, "sid": CANARY, "use": "upload",
        "incident": CANARY, "group": CANARY,
        "lanes": [{"stream": CANARY, "variant": "audio_priority", "media": "audio", "max_chunk_bytes": 9, "max_chunks": 5}],
    }))
    .unwrap();
    claims.into_grant(CANARY, 10).unwrap()
}

/// A type that holds a token, an identifier or a key and can be printed says how by hand.
#[test]
fn what_holds_a_token_does_not_derive_debug() {
    const HOLDS: &[&str] = &[
        "token: Arc<str>",
        "token: String",
        "capability: String",
        "capability: Arc<str>",
        "jti: Option<String>",
        "jti: String",
        "secret: String",
    ];
    let mut wrong = Vec::new();
    for source in source::relay() {
        let lines: Vec<&str> = source.code.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let held = HOLDS.iter().any(|field| line.contains(field) && line.trim_end().ends_with(','));
            let derived =
                lines[..at].iter().rev().take_while(|l| !l.starts_with('}')).find(|l| l.contains("#[derive("));
            if held && derived.is_some_and(|derive| has_word(derive, "Debug")) {
                wrong.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Collections whose keys are held: a map, a set or a limiter by address would be a list of who came.
const KEYED: [&str; 7] =
    ["HashMap<", "BTreeMap<", "DashMap<", "HashSet<", "BTreeSet<", "KeyedRateLimiter<", "RateLimiter<"];

/// What is keyed by an address, or by a tuple that begins with one.
fn keyed_by_address(code: &str) -> Vec<String> {
    let bare: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    let mut found = Vec::new();
    for keyed in KEYED {
        for (at, _) in bare.match_indices(keyed) {
            let key: String = bare[at + keyed.len()..].chars().take_while(|c| !">".contains(*c)).collect();
            let key = key.split_once("),").map_or(key.as_str(), |(tuple, _)| tuple);
            let key = if key.starts_with('(') { key } else { key.split(',').next().unwrap_or_default() };
            if ["IpAddr", "Ipv4Addr", "Ipv6Addr", "SocketAddr"].iter().any(|address| key.contains(address)) {
                found.push(format!("{keyed}{key}"));
            }
        }
    }
    found
}

#[test]
fn nothing_is_keyed_by_an_address() {
    let mut wrong = Vec::new();
    for source in source::relay() {
        wrong.extend(keyed_by_address(&source.code).into_iter().map(|what| format!("{}: {what}", source.path)));
    }
    assert!(wrong.is_empty(), "use admission/names.rs: {wrong:#?}");
    let code = "a: HashMap<\n std::net::IpAddr, u8>, b: DashMap<(u8, SocketAddr), u8>, c: HashMap<u64, IpAddr>, d: Vec<IpAddr>";
    assert_eq!(keyed_by_address(code), ["HashMap<std::net::IpAddr", "DashMap<(u8,SocketAddr"]);
    assert_eq!(keyed_by_address("DefaultKeyedRateLimiter<IpAddr>").len(), 2);
}
