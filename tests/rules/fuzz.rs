//! The fuzz targets compile and run on stable: each is called with bent examples of what it reads.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use bytes::Bytes;
use waystation_proto::frame::{self, kind};

use crate::source;

/// A target, its name, and examples to bend.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    examples: Vec<Vec<u8>>,
}

const OFFER: &str = "incident=\"inc\", stream=\"str\", index=1, media=\"video\", started=\"2026-06-10T12:00:00Z\", \
                     ended=\"2026-06-10T12:00:02Z\", length=131072, name=%\"a%c3%a4\", role=\"live_preview\", attempt=2";

const METADATA: &str = "incident aW5j,stream c3Ry,index MQ==,media dmlkZW8=,started MjAyNi0wNi0xMFQxMjowMDowMFo=,\
                        ended MjAyNi0wNi0xMFQxMjowMDowMlo=,name YcOk,attempt Mg==,filename eA==,\
                        sha256 MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNw==";

fn targets() -> Vec<Target> {
    let offer = r#"{"handle":1,"incident":"i","stream":"s","index":1,"media":"audio","started":"2026-06-10T12:00:00Z","ended":"2026-06-10T12:00:02Z","length":5,"sha256":"0707070707070707070707070707070707070707070707070707070707070707"}"#;
    let claims = r#"{"iss":"c","aud":["waystation"],"iat":1781092800,"exp":1781093100,"jti":"j","sid":"s","use":"upload","incident":"i","group":"g","lanes":[{"stream":"s","variant":"audio_priority","media":"audio","max_chunk_bytes":9,"max_chunks":5}]}"#;
    let form = "3--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n1\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nbytes\r\n--b--\r\n";
    let confirmed =
        r#"{"relay_commit":{"committed":true,"chunk":{"incident_id":"i","stream_id":"s","chunk_index":1}}}"#;
    let mut frames = vec![3];
    frames.extend_from_slice(&frame::encode(kind::OFFER, offer.as_bytes()));
    frames.extend_from_slice(&frame::Piece::encode(kind::PIECE, 1, 0, b"bytes"));
    let text = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let tokens = vectors();
    vec![
        Target { name: "frame", run: targets::frame, examples: vec![frames] },
        Target {
            name: "dictionary",
            run: targets::dictionary,
            examples: text(&[
                OFFER,
                "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:",
                "lanes=(\"audio_priority\"), from=\"oldest\", cursor=\"x\"",
            ]),
        },
        Target { name: "tus", run: targets::tus, examples: text(&[METADATA, "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="]) },
        Target {
            name: "message",
            run: targets::message,
            examples: text(&[
                &format!("\u{2}{offer}"),
                "\u{1}{\"protocol\":1,\"capabilities\":[\"a.b.c\"]}",
                "\u{21}{\"protocol\":1,\"capability\":\"c\",\"from\":{\"stream\":\"s\",\"index\":1}}",
            ]),
        },
        Target { name: "claims", run: targets::claims, examples: [text(&[claims]), tokens.clone()].concat() },
        Target { name: "proofline", run: targets::proofline, examples: [text(&["e30.AAAA"]), tokens].concat() },
        Target {
            name: "multipart",
            run: targets::multipart,
            examples: text(&[form, "\u{1}multipart/form-data; boundary=\"b\""]),
        },
        Target {
            name: "sealed",
            run: targets::sealed,
            examples: vec![[&b"WAYCHNK\x01\0\0\0\x20"[..], &[9; 60]].concat(), offer.as_bytes().to_vec()],
        },
        Target { name: "cursor", run: targets::cursor, examples: text(&["AQAB", "AQEAAAAAAAAAAAAA"]) },
        Target {
            name: "answer",
            run: targets::answer,
            examples: vec![
                [&[0, 101][..], confirmed.as_bytes()].concat(),
                [&[1, 53][..], b"{\"error\":{\"code\":\"duplicate_chunk\"}}"].concat(),
            ],
        },
    ]
}

/// Tokens of the shipped vectors.
fn vectors() -> Vec<Vec<u8>> {
    fn tokens(value: &serde_json::Value, out: &mut Vec<Vec<u8>>) {
        match value {
            serde_json::Value::String(text) if text.matches('.').count() == 2 && text.len() > 80 => {
                let bare = text.strip_prefix("proofline-relay-capability-v1.").unwrap_or(text);
                out.push(bare.as_bytes().to_vec());
            }
            serde_json::Value::Array(list) => list.iter().for_each(|item| tokens(item, out)),
            serde_json::Value::Object(members) => members.values().for_each(|item| tokens(item, out)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for file in ["docs/protocol/capability-vectors.json", "docs/protocol/proofline-vectors.json"] {
        tokens(&serde_json::from_str(&source::read(file)).unwrap(), &mut found);
    }
    assert!(found.len() > 3, "the vectors hold tokens");
    found.sort();
    found.dedup();
    found.truncate(24);
    found
}

/// A small generator (splitmix64): the same seed bends the same way everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// An example with some of it changed, cut, doubled or made up.
    fn bend(&mut self, example: &[u8]) -> Vec<u8> {
        const ODD: &[&[u8]] = &[
            b"\"",
            b"\\",
            b"\0",
            b"\xff\xff\xff\xff",
            b"{",
            b"[",
            b"-1",
            b"1e999",
            b"\r\n",
            b"--",
            b"=",
            b";",
            b",",
            b".",
            b":",
            b"%",
            b"\xc3\xa4",
            b"18446744073709551616",
        ];
        let mut bytes = example.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 => bytes.truncate(at),
                2 => {
                    let odd = ODD[self.below(ODD.len())];
                    bytes.splice(at..at, odd.iter().copied());
                }
                3 if at < bytes.len() => {
                    let end = (at + 1 + self.below(16)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                4 if at < bytes.len() => {
                    drop(bytes.drain(at..(at + 1 + self.below(8)).min(example.len().max(at + 1)).min(bytes.len())))
                }
                _ => bytes.insert(at, self.next() as u8),
            }
        }
        bytes
    }
}

/// Says how to see a failure again.
struct Replay(&'static str, u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: replay with FUZZ_SEED={} cargo test -p waystation-tests --test rules fuzz", self.0, self.1);
        }
    }
}

#[test]
fn every_fuzz_target_survives_bent_input() {
    const ROUNDS: u64 = 4000;
    let seeds = match std::env::var("FUZZ_SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => 1..=ROUNDS,
    };
    for target in targets() {
        for example in &target.examples {
            (target.run)(example);
        }
        for seed in seeds.clone() {
            let replay = Replay(target.name, seed);
            let mut chance = Chance(seed);
            let example = &target.examples[chance.below(target.examples.len())];
            (target.run)(&chance.bend(example));
            drop(replay);
        }
    }
}

/// What is bent is an example that reads: else the test would only knock at the door.
#[test]
fn the_examples_are_read() {
    let [frames, ..] = &targets()[0].examples[..] else { panic!("no example") };
    assert_eq!(frame::split_message(Bytes::copy_from_slice(&frames[1..])).unwrap().len(), 2);
    assert!(waystation_proto::dictionary::parse_offer(OFFER, waystation_proto::Digest([7; 32]), None).is_ok());
    assert!(waystation_proto::tus::parse_metadata(METADATA, 5).is_ok());
    let form = &targets()[6].examples[0][1..];
    assert_eq!(waystation::ingress::fuzz_multipart("b", form, 3), Some((2, 6)), "two parts, six bytes");
}

/// Each target is a program for cargo-fuzz, and the crate is outside of the workspace.
#[test]
fn every_target_is_a_fuzz_program() {
    let manifest: toml::Table = source::read("tests/fuzz/Cargo.toml").parse().unwrap();
    let bins = manifest["bin"].as_array().unwrap();
    let page = source::read("docs/testing.md");
    for target in targets() {
        let path = format!("fuzz_targets/{}.rs", target.name);
        assert!(bins.iter().any(|bin| bin["path"].as_str() == Some(&path)), "tests/fuzz/Cargo.toml: {path}");
        assert!(
            source::read(&format!("tests/fuzz/{path}")).contains(&format!("waystation_fuzz::{}(data)", target.name))
        );
        assert!(page.contains(&format!("`{}`", target.name)), "docs/testing.md does not name {}", target.name);
    }
    assert_eq!(bins.len(), targets().len());
    let root: toml::Table = source::read("Cargo.toml").parse().unwrap();
    let excluded = root["workspace"]["exclude"].as_array().unwrap();
    assert!(excluded.iter().any(|path| path.as_str() == Some("tests/fuzz")));
}
