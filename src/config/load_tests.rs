use secrecy::ExposeSecret as _;

use super::*;

const LEAST: &str = "[listen]\nplain = \"127.0.0.1:0\"\n";

fn mistakes(text: &str) -> Vec<String> {
    Config::parse(text, []).expect_err("no mistake found").0
}

#[test]
fn the_default_file_holds_every_key_and_the_defaults() {
    let text = crate::config::DEFAULT_TOML;
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix("#").filter(|rest| rest.contains(" = ")).unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n");
    let table: Table = uncommented.parse().expect("uncommented, it is TOML");
    for (section, keys) in keys::KEYS {
        for (key, kind) in *keys {
            let there = table.get(*section).and_then(|s| s.get(*key)).is_some();
            assert_eq!(there, *kind != Kind::Secret, "{section}.{key}");
        }
    }
    // Whom it listens to is the operator's to say.
    let listens = ("WAYSTATION_LISTEN__PLAIN".to_owned(), "127.0.0.1:0".to_owned());
    let from_file = Config::parse(text, [listens]).expect("the default file loads");
    let bare = Config::parse(LEAST, []).unwrap();
    assert_eq!(format!("{:?}", from_file.limits), format!("{:?}", bare.limits));
    assert_eq!(format!("{:?}", from_file.fanout), format!("{:?}", bare.fanout));
    assert_eq!(format!("{:?}", from_file.staging), format!("{:?}", bare.staging));
}

#[test]
fn every_mistake_is_named_with_the_nearest_key() {
    let found =
        mistakes("[listn]\nplain = 1\n[staging]\nquotta = \"1GiB\"\nkeep_for = \"soon\"\n[limits]\nconnections = 0\n");
    for wanted in [
        "`listen`",
        "did you mean `staging.quota`?",
        "`staging.keep_for`",
        "`limits.connections`",
        "nobody could reach",
    ] {
        assert!(found.iter().any(|line| line.contains(wanted)), "{wanted} in {found:?}");
    }
}

#[test]
fn variables_override_the_file_and_are_checked_alike() {
    let env = [
        ("WAYSTATION_LISTEN__ALLOWED_ORIGINS", "https://a.example, https://b.example"),
        ("WAYSTATION_LIMITS__CONNECTIONS", "7"),
        ("WAYSTATION_RELAY__READY", "false"),
        ("WAYSTATION_LOG", "debug"),
    ];
    let env = env.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let config = Config::parse(LEAST, env).unwrap();
    assert_eq!(config.listen.allowed_origins.len(), 2);
    assert_eq!((config.limits.connections, config.relay.ready), (7, false));
    let wrong = [("WAYSTATION_CORE__URRL".to_owned(), "x".to_owned())];
    assert!(Config::parse(LEAST, wrong).unwrap_err().0[0].contains("did you mean `core.url`?"));
}

#[test]
fn a_variable_that_is_no_key_is_a_mistake_and_not_silence() {
    let of = |name: &str| Config::parse(LEAST, [(name.to_owned(), "http://canary".to_owned())]);
    for (wrong, nearest) in [
        ("WAYSTATION_CORE_URL", "did you mean `WAYSTATION_CORE__URL`?"),
        ("WAYSTATION_LIMITS_CONNECTIONS", "did you mean `WAYSTATION_LIMITS__CONNECTIONS`?"),
        ("WAYSTATION_LOGS", "did you mean `WAYSTATION_LOG`?"),
        ("WAYSTATION_", "unknown variable"),
    ] {
        let found = of(wrong).unwrap_err().0;
        assert!(found[0].contains(wrong) && found[0].contains(nearest), "{found:?}");
        assert!(!found.join("").contains("canary"));
    }
    for fine in
        ["WAYSTATION_LOG", "WAYSTATION_SERVICE_PORT_HTTPS", "WAYSTATION_PORT_443_TCP_ADDR", "WAYSTATIONS", "HOME"]
    {
        assert!(of(fine).is_ok(), "{fine}");
    }
}

#[test]
fn variables_that_are_no_text_stop_nobody_but_their_own_key() {
    use std::os::unix::ffi::OsStringExt as _;
    let broken = || OsString::from_vec(vec![0xff, 0xfe]);
    assert!(Config::read(LEAST, [("OF_SOMEBODY_ELSE".into(), broken()), (broken(), broken())]).is_ok());
    let found = Config::read(LEAST, [("WAYSTATION_RELAY__ID".into(), broken())]).unwrap_err().0;
    assert_eq!(found, ["`WAYSTATION_RELAY__ID` can't be read"]);
}

#[test]
fn secrets_come_from_files_or_the_environment_and_are_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "canary-canary-canary-canary-canary\n").unwrap();
    let text = format!("{LEAST}[core]\nurl = \"http://core.example/base/\"\nservice_token_file = {file:?}\n");
    let config = Config::parse(&text, []).unwrap();
    let core = config.core.as_ref().unwrap();
    assert_eq!(core.url, "http://core.example/base");
    assert_eq!(core.service_token.expose_secret(), "canary-canary-canary-canary-canary");
    assert!(!format!("{config:?}").contains("canary"));

    let inline = format!("{LEAST}[core]\nservice_token = \"canary-canary-canary-canary-canary\"\n");
    let found = mistakes(&inline);
    assert!(found[0].contains("may not stand in the file") && !found[0].contains("canary"));
    std::fs::write(&file, "canary").unwrap();
    let found = mistakes(&text);
    assert!(found.iter().any(|line| line.contains("shorter than 32")) && !found.join("").contains("canary"));
}

#[test]
fn a_core_that_is_reached_without_tls_is_named() {
    for (url, told) in [
        ("http://core.example:8080", true),
        ("http://10.0.0.1", true),
        ("http://[fd00::1]:8080", true),
        ("https://core.example", false),
        ("http://127.0.0.1:8080", false),
        ("http://localhost", false),
        ("http://[::1]:8080/prefix", false),
    ] {
        let env = [("WAYSTATION_CORE__SERVICE_TOKEN".to_owned(), "t".repeat(32))];
        let text = format!("{LEAST}[core]\nurl = \"{url}\"\n[capability]\njwks_url = \"{url}/keys\"\n");
        let config = Config::parse(&text, env).unwrap();
        let wanted: &[&str] = if told { &["core.url", "capability.jwks_url"] } else { &[] };
        assert_eq!(config.without_tls().collect::<Vec<_>>(), wanted, "{url}");
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (text, wanted) in [
        ("[listen]\npublic = \"127.0.0.1:0\"\n", "needs `tls.certificate`"),
        ("[listen]\nplain = \"127.0.0.1:0\"\n[tls]\ncertificate = \"c\"\n", "come together"),
        (
            "[listen]\nplain = \"127.0.0.1:0\"\n[staging]\ndirectory = \"/s\"\nseal_key_file = \"/s/key\"\n",
            "lies inside",
        ),
        ("[listen]\nplain = \"127.0.0.1:0\"\n[core]\nurl = \"http://u:p@h\"\n", "without user"),
        ("[listen]\nplain = \"127.0.0.1:0\"\n[core]\nurl = \"http://h\"\n", "needs `core.service_token_file`"),
        ("[listen]\nplain = \"127.0.0.1:0\"\nallowed_origins = [\"*\"]\n", "no origin"),
        ("[listen]\nplain = \"127.0.0.1:0\"\n[staging]\nquota = \"1MiB\"\n", "over half"),
        ("[listen]\nplain = \"127.0.0.1:0\"\n[fanout]\nmax_chunk = \"1GiB\"\n", "does not hold"),
    ] {
        let found = mistakes(text);
        assert!(found.iter().any(|line| line.contains(wanted)), "{wanted} in {found:?}");
    }
}
