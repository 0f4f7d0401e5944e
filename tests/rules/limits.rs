//! Every limit is in `docs/limits.md`, with a code, a metric and a test that exist.

use std::fmt::Write as _;

use waystation::proto::Code;

use crate::source::Source;
use crate::{book, source, table};

#[test]
fn every_limit_setting_has_its_line() {
    let page = source::read("docs/limits.md");
    let settings = page.split_once("## Settings").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = table::named(settings);
    let (defaults, tests) = (book::defaults(), book::tests());
    let needed = defaults.keys().filter(|key| key.starts_with("limits."));
    let sized = [
        "staging.quota",
        "staging.max_chunk",
        "staging.keep_for",
        "fanout.window",
        "fanout.memory",
        "fanout.memory_per_session",
        "fanout.max_chunk",
    ];
    for key in needed.map(String::as_str).chain(sized) {
        assert!(rows.iter().any(|(name, _)| name == key), "docs/limits.md does not tell {key}");
    }
    for (key, cells) in &rows {
        let [default, cost, at_it, metric, test] = &cells[..] else { panic!("{key}: {cells:?}") };
        assert_eq!(defaults.get(key), Some(default), "{key}");
        assert!(cost.len() > 3 && at_it.len() > 10, "{key} says too little");
        for code in table::code(at_it)
            .into_iter()
            .filter(|word| word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        {
            assert!(Code::parse(code).is_some() || code == "too_large", "{key}: {code} is no code");
        }
        assert!(!table::code(metric).is_empty(), "{key}: no metric");
        for name in table::code(test) {
            assert!(tests.contains(name), "{key}: there is no test {name}");
        }
        assert!(!table::code(test).is_empty(), "{key}: no test");
    }
}

#[test]
fn what_a_connection_may_hold_has_its_line() {
    let page = source::read("docs/limits.md");
    let table = page.split_once("## A connection").unwrap().1.split_once("\n## ").unwrap().0;
    let rows: Vec<_> = table::rows(table).into_iter().skip(2).collect();
    let tests = book::tests();
    for bound in ["1024 open offers", "64 capabilities", "32 places", "128 fields"] {
        assert!(rows.iter().any(|row| row[0].contains(bound)), "docs/limits.md does not tell {bound}");
    }
    for row in &rows {
        let [bound, cost, at_it, metric, test] = &row[..] else { panic!("{row:?}") };
        assert!(cost.len() > 3 && at_it.len() > 10 && metric.starts_with("`waystation_"), "{bound} says too little");
        for code in table::code(at_it).into_iter().filter(|word| !word.contains('.')) {
            assert!(Code::parse(code).is_some(), "{bound}: {code} is no code");
        }
        assert!(table::code(test).iter().all(|name| tests.contains(*name)), "{bound}: there is no test {test}");
    }
}

#[test]
fn bounds_of_the_clients_name_tests_that_exist() {
    let page = source::read("docs/limits.md");
    let tests = book::tests();
    for title in ["## The capture client", "## The contact over plain HTTP/3 requests"] {
        let part = page.split_once(title).unwrap().1.split_once("\n## ").unwrap().0;
        let rows: Vec<_> = table::rows(part).into_iter().skip(2).collect();
        assert!(rows.len() > 3, "{title}: {} bounds", rows.len());
        for row in &rows {
            let [bound, value, _, test] = &row[..] else { panic!("{row:?}") };
            assert!(!value.is_empty(), "{bound} has no value");
            for name in table::code(test) {
                assert!(tests.contains(name), "{bound}: there is no test {name}");
            }
        }
    }
}

/// A bound in the code: where, its value as written, what its comment says.
struct Bound {
    name: String,
    value: String,
    says: String,
}

/// A bound is a `MAX_…`; a window, a buffer or a share of memory says by its name what it bounds.
fn is_bound(name: &str) -> bool {
    name.starts_with("MAX") || ["WINDOW", "_BUFFER", "BACKLOG"].iter().any(|word| name.ends_with(word))
}

fn bounds(source: &Source) -> Vec<Bound> {
    let lines: Vec<&str> = source.shown.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let declared = line
            .trim()
            .strip_prefix("pub")
            .map_or(line.trim(), |rest| rest.trim_start_matches("(super)").trim_start_matches("(crate)").trim());
        let Some((name, rest)) = declared.strip_prefix("const ").and_then(|rest| rest.split_once(": ")) else {
            continue;
        };
        let Some(value) = rest.split_once(" = ").and_then(|(_, value)| value.strip_suffix(';')) else { continue };
        if !is_bound(name) {
            continue;
        }
        let doc = lines[..at].iter().rev().take_while(|line| line.trim().starts_with("///"));
        let mut doc: Vec<&str> = doc.map(|line| line.trim().trim_start_matches("///").trim()).collect();
        doc.reverse();
        let module =
            source.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        found.push(Bound {
            name: format!("{module}::{name}"),
            value: value.to_owned(),
            says: doc.join(" ").replace('|', "\\|"),
        });
    }
    found
}

#[test]
fn every_bound_is_in_the_book() {
    let mut text = String::from("| bound | value | |\n|---|---|---|\n");
    let (mut count, mut silent) = (0, Vec::new());
    for source in source::relay() {
        for bound in bounds(&source) {
            count += 1;
            if bound.says.len() < 12 {
                silent.push(bound.name.clone());
            }
            let _ = writeln!(text, "| `{}` | `{}` | {} |", bound.name, bound.value, bound.says);
        }
    }
    assert!(count > 20, "{count} bounds found");
    for name in ["capture::MAX_OFFERS", "capture::tokens::MAX_CAPABILITIES", "gate::MAX_COURTESY", "serve::MAX_STREAMS"]
    {
        assert!(text.contains(&format!("`ingress::{name}`")), "{name} is a bound");
    }
    assert!(silent.is_empty(), "a bound says what it is for: {silent:?}");
    table::generated("docs/limits.md", "bounds", &text);
}
