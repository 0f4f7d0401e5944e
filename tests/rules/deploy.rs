//! What is shipped under `deploy/` is read by the relay's own reader, and the relay starts with it.

use std::path::Path;

use waystation::clock::Clock;
use waystation::config::{Config, DEFAULT_TOML};
use waystation::relay::Relay;
use waystation_devcore::{Devcore, Options, session};
use waystation_proto::Variant;
use waystation_tests::{Chunk, http};

use crate::{book, source};

const EXAMPLE: &str = "deploy/waystation.example.toml";

/// Variables for everything in a shipped file that is of the machine it runs on.
fn variables(dir: &Path, core: &str) -> Vec<(String, String)> {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let values = [
        ("LISTEN__PUBLIC", "127.0.0.1:0".to_owned()),
        ("LISTEN__PLAIN", "127.0.0.1:0".to_owned()),
        ("LISTEN__OPS", "127.0.0.1:0".to_owned()),
        ("TLS__CERTIFICATE", file("certificate.pem")),
        ("CORE__URL", core.to_owned()),
        ("CORE__SERVICE_TOKEN_FILE", file("service-token")),
        ("CAPABILITY__JWKS_URL", format!("{core}/v1/relay/jwks")),
        ("STAGING__DIRECTORY", file("staging")),
        ("STAGING__SEAL_KEY_FILE", file("seal")),
    ];
    values.map(|(key, value)| (format!("WAYSTATION_{key}"), value)).to_vec()
}

/// A certificate and its key, as an operator has them.
fn write_certificate(dir: &Path) -> Vec<(String, String)> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("certificate.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    vec![("WAYSTATION_TLS__PRIVATE_KEY".to_owned(), dir.join("key.pem").to_str().unwrap().to_owned())]
}

#[test]
fn every_shipped_configuration_is_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("service-token"), "s".repeat(40)).unwrap();
    let token = (
        "WAYSTATION_CORE__SERVICE_TOKEN_FILE".to_owned(),
        dir.path().join("service-token").to_str().unwrap().to_owned(),
    );
    let mut read = 0;
    for path in source::files(&source::root().join("deploy")) {
        if path.extension().is_some_and(|e| e == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            Config::parse(&text, [token.clone()]).unwrap_or_else(|mistakes| panic!("{}: {mistakes}", path.display()));
            read += 1;
        }
    }
    assert!(read >= 2, "{read} configurations found");
    let listens = ("WAYSTATION_LISTEN__PLAIN".to_owned(), "127.0.0.1:0".to_owned());
    Config::parse(DEFAULT_TOML, [listens]).unwrap();
}

#[test]
fn the_example_shows_every_key_and_its_default() {
    let mut section = String::new();
    let mut shown = Vec::new();
    for line in source::read(EXAMPLE).lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            continue;
        }
        let (bare, comment) = line.strip_prefix("# ").map_or((line, false), |rest| (rest, true));
        let Some((key, value)) = bare.split_once(" = ") else { continue };
        if section.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            continue;
        }
        let key = format!("{section}.{key}");
        let default = book::defaults().remove(&key).unwrap_or_else(|| panic!("{EXAMPLE}: {key} is no key"));
        // A commented line shows the default, where there is one; a flag that is an alternative shows the other value.
        let value = value.split(" #").next().unwrap().trim();
        let alternative = matches!(key.as_str(), "tls.self_signed" | "listen.plain");
        assert!(
            !comment || alternative || default == "none" || default == format!("`{value}`"),
            "{EXAMPLE}: {key} = {value}, its default is {default}"
        );
        shown.push(key);
    }
    shown.sort();
    assert_eq!(shown, book::defaults().into_keys().collect::<Vec<_>>());
}

/// Variables that unit and compose file set are keys.
#[test]
fn shipped_variables_are_keys() {
    let mut seen = 0;
    for page in ["deploy/waystation.service", "deploy/compose.yaml", "deploy/Dockerfile"] {
        for word in source::read(page).split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
            let Some((section, key)) = word.strip_prefix("WAYSTATION_").and_then(|rest| rest.split_once("__")) else {
                continue;
            };
            let key = format!("{}.{}", section.to_lowercase(), key.to_lowercase());
            assert!(book::defaults().contains_key(&key), "{page} sets {word}, which is no key");
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} variables found");
}

/// The shipped example as it is; what belongs to the machine comes from the environment. It takes a chunk and brings it to the core.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_starts_with_the_shipped_example() {
    let dir = tempfile::tempdir().unwrap();
    let core = Devcore::start(Options::new(dir.path().join("core"))).await.unwrap();
    std::fs::write(dir.path().join("service-token"), core.service_token()).unwrap();
    let mut env = variables(dir.path(), &core.url());
    env.extend(write_certificate(dir.path()));
    let config = Config::parse(&source::read(EXAMPLE), env).unwrap();
    let relay = Relay::bind(config, Clock::system()).await.unwrap();
    let (at, stop) = (relay.addresses(), tokio_util::sync::CancellationToken::new());
    let running = tokio::spawn(relay.run(stop.clone()));

    let (status, text) = http::get(at.ops, "/readyz").await;
    assert_eq!(status, 200, "{text}");
    let session = session::open(&session::Request::new(core.url(), core.account_token())).await.unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let capability = session.upload_capability.clone().unwrap();
    let answer = http::upload(at.plain.unwrap(), &chunk, &capability, 20).await;
    assert_eq!(answer.status, 201, "{:?}", answer.body);
    assert!(at.public.is_some(), "TLS is served with the certificate of the files");
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn the_dashboard_is_json_with_a_query_in_each_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(&source::read("deploy/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(!panels.is_empty());
    for panel in panels {
        let queries = panel["targets"].as_array().unwrap();
        assert!(queries.iter().all(|query| query["expr"].as_str().is_some_and(|expr| expr.contains("waystation_"))));
    }
}

/// Every alert is explained, and every explanation is of an alert.
#[test]
fn every_alert_says_what_to_do() {
    let rules = source::read("deploy/alerts.yaml");
    let mut alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let page = source::read("docs/operations.md");
    let mut told: Vec<String> = crate::table::named(&page)
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("Waystation"))
        .collect();
    alerts.sort_unstable();
    told.sort();
    assert_eq!(alerts, told);
    assert_eq!(rules.matches("action:").count(), alerts.len(), "an alert says what to do");
}
