//! The book says what the code does: codes, keys, tests that are named, the first screen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use waystation::config::DEFAULT_TOML;
use waystation::proto::{Code, Fault};

use crate::{source, table};

/// The groups of the error table, as the comments in `code.rs` name them.
fn code_groups() -> Vec<(String, Vec<Code>)> {
    let text = source::read("src/proto/code.rs");
    let list = text.split_once("\ncodes! {\n").unwrap().1.split_once("\n}\n").unwrap().0;
    let mut groups: Vec<(String, Vec<Code>)> = Vec::new();
    for line in list.lines().map(str::trim) {
        if let Some(title) = line.strip_prefix("// ") {
            groups.push((title.trim_end_matches('.').to_owned(), Vec::new()));
        } else if let Some(name) = line.split('"').nth(1) {
            groups.last_mut().unwrap().1.push(Code::parse(name).unwrap());
        }
    }
    groups
}

#[test]
fn every_code_is_in_the_book() {
    let mut page = String::new();
    let mut seen = 0;
    for (title, codes) in code_groups() {
        let _ = write!(page, "\n## {title}\n\n| code | status | `retry` | whose | means |\n|---|---|---|---|---|\n");
        for code in codes {
            seen += 1;
            let spec = code.spec();
            let whose = match spec.fault {
                Fault::Client => "client",
                Fault::Relay => "relay",
                Fault::Core => "core",
            };
            let _ = writeln!(
                page,
                "| `{}` | {} | `{}` | {whose} | {} |",
                spec.name,
                spec.status,
                spec.retry.as_str(),
                spec.message
            );
        }
    }
    assert_eq!(seen, Code::ALL.len(), "the list in code.rs was not read whole");
    page.push('\n');
    table::generated("docs/errors.md", "codes", &page);
}

/// Keys of the default file with their defaults; `none` where it only shows an example.
pub(crate) fn defaults() -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut found = BTreeMap::new();
    for line in DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            continue;
        }
        let (shown, example) = line.strip_prefix('#').map_or((line, false), |rest| (rest, true));
        let Some((key, value)) = shown.split_once(" = ") else { continue };
        if key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !section.is_empty() {
            found.insert(format!("{section}.{key}"), if example { "none".to_owned() } else { format!("`{value}`") });
        }
    }
    assert!(found.len() > 30, "{found:?}");
    found
}

#[test]
fn every_key_is_in_the_book_with_its_default() {
    let page = source::read("docs/configuration.md");
    let told: BTreeMap<String, String> =
        table::named(&page).into_iter().map(|(key, cells)| (key, cells[0].clone())).collect();
    assert_eq!(told, defaults());
    // The keys that the reader takes are those of the default file; secrets come from elsewhere.
    let keys = source::read("src/config/keys.rs");
    let text: String = keys.split_once(" = &[").unwrap().1.split_once("\n];").unwrap().0.split_whitespace().collect();
    let mut taken = BTreeSet::new();
    for section in text.split("\",&[").collect::<Vec<_>>().windows(2) {
        let name = section[0].rsplit_once('"').unwrap().1;
        let list = section[1].split(']').next().unwrap();
        for pair in list.split("(\"").skip(1) {
            let (key, kind) = pair.split_once("\",").unwrap();
            if !kind.starts_with("Secret") {
                taken.insert(format!("{name}.{key}"));
            }
        }
    }
    assert_eq!(taken, defaults().into_keys().collect());
}

/// Names of every test there is.
pub(crate) fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["src", "client", "devcore", "loadtest", "tests"] {
        for (_, text) in source::rust_files(folder) {
            for line in text.lines().map(str::trim) {
                let rest = line.strip_prefix("async ").unwrap_or(line);
                if let Some(name) = rest.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
                    found.insert(name.to_owned());
                }
            }
        }
    }
    found
}

#[test]
fn promises_name_tests_that_exist() {
    let tests = tests();
    let page = source::read("docs/threat-model.md");
    let promises = page.split_once("## Promises").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = table::rows(promises);
    assert!(rows.len() > 10);
    for cells in &rows[2..] {
        let named = table::code(&cells[1]);
        assert!(!named.is_empty(), "no test is named for: {}", cells[0]);
        for test in named.into_iter().filter(|name| name.contains('_')) {
            assert!(tests.contains(test), "docs/threat-model.md names the test `{test}`, which is not there");
        }
    }
}

#[test]
fn the_first_screen_says_what_it_is_and_how_to_try_it() {
    let readme = source::read("README.md");
    let screen: Vec<&str> = readme.lines().take(40).collect();
    let text = screen.join("\n");
    for needed in ["./demo", "./test", "**not**", "can and cannot see", "cannot see |", "docs/"] {
        assert!(text.contains(needed), "the first screen of README.md does not show {needed}");
    }
    for option in ["--transport", "--core-down", "--relay-restart", "--seconds", "## With an unchanged Proofline core"]
    {
        assert!(readme.contains(option), "README.md does not tell {option}");
    }
    for folder in ["src/", "client/", "devcore/", "loadtest/", "tests/", "deploy/", "docs/"] {
        assert!(readme.contains(&format!("| `{folder}` |")), "README.md does not say what {folder} is");
    }
}

#[test]
fn every_variable_of_the_tests_is_in_the_book() {
    let page = source::read("docs/testing.md");
    let mut missing = BTreeSet::new();
    for folder in ["src", "client", "devcore", "loadtest", "tests"] {
        for (path, text) in source::rust_files(folder) {
            for (at, call) in ["env::var(\"", "env::var_os(\""].iter().flat_map(|call| text.match_indices(call)) {
                let name = text[at + call.len()..].split('"').next().unwrap_or_default();
                let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
                if is_name && name != "PATH" && !page.contains(&format!("`{name}")) {
                    missing.insert(format!("{path}: {name}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "docs/testing.md does not tell {missing:#?}");
}

#[test]
fn every_stage_of_the_check_is_in_the_book() {
    let script = source::read("test");
    let page = source::read("docs/testing.md");
    let stages = script.lines().find_map(|line| line.strip_prefix("stages=(")?.strip_suffix(')')).unwrap();
    for stage in stages.split(' ') {
        assert!(page.contains(&format!("`{stage}`")), "docs/testing.md does not tell the stage {stage}");
    }
}

#[test]
fn bans_name_ring() {
    let deny: toml::Table = source::read("deny.toml").parse().unwrap();
    let bans = deny["bans"]["deny"].as_array().unwrap();
    for name in ["ring", "openssl-sys", "native-tls"] {
        let ban = bans
            .iter()
            .find(|ban| ban["crate"].as_str() == Some(name))
            .unwrap_or_else(|| panic!("{name} is not banned"));
        assert!(ban["reason"].as_str().is_some_and(|reason| reason.len() > 10));
    }
    assert!(bans.iter().all(|ban| ban.get("reason").is_some()), "a ban says why");
}
