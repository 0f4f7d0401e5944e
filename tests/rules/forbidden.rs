//! Names that may not stand in the code, each with its reason.

use crate::source::{self, Source, has_word};

/// A name, why it is not used, and the files that may.
struct Ban {
    word: &'static str,
    why: &'static str,
    but: &'static [&'static str],
}

/// In the relay.
const RELAY: &[Ban] = &[
    Ban {
        word: "Instant::now",
        why: "time is an input: clock.rs reads it",
        but: &["src/clock.rs", "src/ingress/io.rs", "src/congestion/gauge.rs"],
    },
    Ban { word: "SystemTime::now", why: "time is an input: clock.rs reads it", but: &["src/clock.rs"] },
    Ban { word: "now_utc", why: "time is an input: clock.rs reads it", but: &[] },
    Ban {
        word: ".elapsed",
        why: "time is an input: clock.rs reads it",
        but: &["src/clock.rs", "src/congestion/gauge.rs"],
    },
    Ban { word: "rand::fill", why: "randomness is an input: clock.rs draws it", but: &["src/clock.rs"] },
    Ban { word: "SystemRandom", why: "randomness is an input: clock.rs draws it", but: &[] },
];

/// In every crate.
const ALL: &[Ban] = &[
    Ban { word: "unbounded_channel", why: "every queue has a bound", but: &[] },
    Ban { word: "UnboundedSender", why: "every queue has a bound", but: &[] },
    Ban { word: "unbounded()", why: "every queue has a bound", but: &[] },
    Ban { word: "mpsc::channel()", why: "std's has no bound", but: &[] },
    Ban { word: "println!", why: "output goes through one place that survives a reader who left", but: &[] },
    Ban { word: "eprintln!", why: "the log is the only other voice", but: &[] },
    Ban { word: "print!", why: "output goes through one place that survives a reader who left", but: &[] },
    Ban { word: "dbg!", why: "it could print what must not be printed", but: &[] },
    Ban { word: "todo!", why: "a half-made way is no way", but: &[] },
    Ban { word: "unimplemented!", why: "a half-made way is no way", but: &[] },
    // One ioctl of the link emulator: no library makes a TUN device without it.
    Ban { word: "unsafe", why: "forbidden in every crate", but: &["loadtest/netlab/src/tun.rs"] },
    Ban { word: "process::exit", why: "nothing would be drained; return an ExitCode", but: &[] },
];

fn offences(sources: &[Source], bans: &[Ban]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (line, code) in source.lines() {
            for ban in bans.iter().filter(|ban| has_word(code, ban.word) && !ban.but.contains(&source.path.as_str())) {
                found.push(format!("{}:{line}: `{}`: {}", source.path, ban.word, ban.why));
            }
        }
    }
    found
}

#[test]
fn time_and_randomness_are_read_in_one_place() {
    // src/ingress/io.rs re-arms a socket's timer, which runs on the runtime's clock; the gauge is the
    // client's side of a connection, and reads quinn's clock.
    let found = offences(&source::relay(), RELAY);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn queues_are_bounded_and_nothing_prints() {
    let found = offences(&source::every(), ALL);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn an_offence_is_seen() {
    let code =
        "let (a, b) = tokio::sync::mpsc::unbounded_channel();\nprintln!();\nlet t = Instant::now();\n".to_owned();
    let source = [Source { path: "src/x.rs".into(), shown: code.clone(), code }];
    assert_eq!(offences(&source, ALL).len(), 2);
    assert_eq!(offences(&source, RELAY).len(), 1);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut found = Vec::new();
    for folder in ["src", "client", "devcore", "loadtest", "tests", "docs", "deploy"] {
        for path in source::files(&source::root().join(folder)) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let marked = text.lines().filter(|line| marks.iter().any(|mark| has_word(line, mark)));
            found.extend(marked.map(|line| format!("{}: {line}", source::relative(&path))));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// A register call takes its name from `telemetry::names`; nothing else in the relay spells one.
#[test]
fn metrics_are_named_in_one_place() {
    let mut wrong = Vec::new();
    for source in source::relay().iter().filter(|source| source.path != "src/telemetry/names.rs") {
        for (at, _) in source.shown.match_indices(".register").chain(source.shown.match_indices("register_with_unit")) {
            let call = &source.shown[at..];
            let Some(arguments) = call.split_once('(').map(|(_, rest)| rest.trim_start()) else { continue };
            if arguments.starts_with('"') {
                wrong.push(format!("{}: {}", source.path, arguments.lines().next().unwrap_or_default()));
            }
        }
        let spelled = source
            .code
            .lines()
            .zip(source.shown.lines())
            .filter(|(code, shown)| !code.trim().is_empty() && shown.contains("\"waystation_"));
        wrong.extend(spelled.map(|(_, shown)| format!("{}: {shown}", source.path)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
