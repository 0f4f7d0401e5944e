//! Who may import whom, and what the pure rules may touch.

use std::collections::BTreeSet;

use crate::source::{self, Source, has_word};

/// A module of the relay and what of ours it may import; `src/lib.rs` shows it as a picture.
const LAYERS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("congestion", &[]),
    ("h3", &["proto"]),
    ("clock", &[]),
    ("rare", &[]),
    ("config", &["proto"]),
    ("telemetry", &["proto"]),
    ("core", &["clock", "config", "proto", "telemetry"]),
    ("capability", &["clock", "config", "core", "proto", "telemetry"]),
    ("staging", &["clock", "config", "proto", "telemetry"]),
    ("fanout", &["clock", "config", "proto", "rare", "telemetry"]),
    ("forwarding", &["clock", "config", "core", "proto", "staging", "telemetry"]),
    ("admission", &["capability", "clock", "config", "core", "fanout", "proto", "staging", "telemetry"]),
    ("ingress", &["admission", "capability", "clock", "config", "fanout", "proto", "rare", "telemetry"]),
    ("admin", &["clock", "proto", "telemetry"]),
    // The relay put together.
    ("readiness", &["admin", "capability", "config", "core", "ingress", "proto", "staging", "telemetry"]),
    (
        "relay",
        &[
            "admin",
            "admission",
            "capability",
            "clock",
            "config",
            "core",
            "fanout",
            "forwarding",
            "ingress",
            "proto",
            "readiness",
            "staging",
            "telemetry",
        ],
    ),
    // The program: what the library shows.
    ("lib", &["*"]),
    ("main", &["cli"]),
    ("cli", &["clock", "config", "relay"]),
];

/// One file that may import one more module, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in source::relay() {
        let module = source.module();
        let (_, allowed) = LAYERS.iter().find(|(name, _)| *name == module).unwrap_or_else(|| {
            panic!("{} belongs to no layer: add `{module}` to LAYERS and to src/lib.rs", source.path)
        });
        for imported in imports(&source) {
            let exception = EXCEPTIONS.iter().find(|(path, name, _)| *path == source.path && *name == imported);
            used.extend(exception.map(|(path, name, _)| (*path, *name)));
            let fine = imported == module || allowed.contains(&imported.as_str()) || allowed.contains(&"*");
            if !fine && exception.is_none() {
                wrong.push(format!("{} imports {imported}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(used.len(), EXCEPTIONS.len(), "an exception is no longer needed: remove it");
}

/// Modules of ours that a file names.
fn imports(source: &Source) -> BTreeSet<String> {
    let crates: &[&str] = match source.module() {
        "proto" => &["waystation::"],
        "main" | "cli" => &["waystation::", "crate::"],
        _ => &["crate::", "waystation::"],
    };
    let mut found = BTreeSet::new();
    for prefix in crates {
        for (at, _) in source.code.match_indices(prefix) {
            if source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            found.extend(heads(&source.code[at + prefix.len()..]));
        }
    }
    let known = |name: &String| LAYERS.iter().any(|(layer, _)| layer == name);
    found.into_iter().filter(known).collect()
}

/// The first names of a path: `a` of `a::b`, `a` and `c` of `{a::b, c}`.
fn heads(path: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut out, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                out.push(name(&group[begin..at]));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    out
}

#[test]
fn groups_of_imports_are_seen() {
    assert_eq!(heads("{admin::{Ops, Shows}, clock}; x"), ["admin", "clock"]);
    assert_eq!(heads("core::CoreApi"), ["core"]);
}

#[test]
fn the_rules_are_pure() {
    const IMPURE: &[(&str, &str)] = &[
        ("tokio", "an async runtime"),
        ("async", "waiting"),
        ("std::net", "sockets"),
        ("TcpStream", "sockets"),
        ("UdpSocket", "sockets"),
        ("std::fs", "files"),
        ("std::io", "files"),
        ("std::env", "the environment"),
        ("std::process", "processes"),
        ("std::thread", "threads"),
        ("Instant", "a clock"),
        ("SystemTime", "a clock"),
        ("now_utc", "a clock"),
        ("rand", "randomness"),
        ("getrandom", "randomness"),
        ("RandomState", "randomness"),
        ("Mutex", "a lock"),
        ("RwLock", "a lock"),
        ("Condvar", "a lock"),
        ("OnceLock", "a lock"),
        ("LazyLock", "a lock"),
        ("static mut", "state"),
        ("thread_local!", "state"),
        ("tracing", "the log"),
    ];
    let mut wrong = Vec::new();
    for source in source::sources(&["src/proto"]) {
        for (line, code) in source.lines() {
            for (word, what) in IMPURE.iter().filter(|(word, _)| has_word(code, word)) {
                wrong.push(format!("{}:{line}: `{word}` brings {what} into the rules", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What its dependencies could bring.
    let manifest: toml::Table = source::read("src/proto/Cargo.toml").parse().unwrap();
    let names: Vec<&str> = manifest["dependencies"].as_table().unwrap().keys().map(String::as_str).collect();
    let pure = ["base64", "bytes", "serde", "serde_json", "sfv", "sha2", "thiserror", "time"];
    assert!(names.iter().all(|name| pure.contains(name)), "{names:?}: say here why a new one is pure");
    assert!(!source::read("Cargo.toml").contains("\"local-offset\""), "time would read the environment");
}

#[test]
fn every_crate_forbids_unsafe_code_and_denies_what_would_lose_a_chunk() {
    for manifest in [
        "Cargo.toml",
        "src/congestion/Cargo.toml",
        "src/proto/Cargo.toml",
        "client/Cargo.toml",
        "devcore/Cargo.toml",
        "loadtest/Cargo.toml",
    ] {
        let table: toml::Table = source::read(manifest).parse().unwrap();
        assert_eq!(table["lints"]["workspace"].as_bool(), Some(true), "{manifest}");
    }
    let table: toml::Table = source::read("Cargo.toml").parse().unwrap();
    let lints = &table["workspace"]["lints"];
    assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for lint in ["unwrap_used", "dbg_macro", "print_stdout", "print_stderr", "await_holding_lock"] {
        assert_eq!(lints["clippy"][lint].as_str(), Some("deny"), "{lint}");
    }
    // The link emulator needs one ioctl, so it only denies `unsafe`; all else is as everywhere.
    let netlab: toml::Table = source::read("loadtest/netlab/Cargo.toml").parse().unwrap();
    let own = &netlab["lints"];
    assert_eq!(own["rust"]["unsafe_code"].as_str(), Some("deny"));
    assert_eq!(own["clippy"]["undocumented_unsafe_blocks"].as_str(), Some("deny"));
    for group in ["rust", "clippy"] {
        for (lint, level) in lints[group].as_table().unwrap().iter().filter(|(lint, _)| *lint != "unsafe_code") {
            assert_eq!(own[group].get(lint), Some(level), "{lint} of loadtest/netlab");
        }
    }
}
