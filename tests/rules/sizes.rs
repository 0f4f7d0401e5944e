//! How long files and functions may be. A list entry says why; one that is no longer needed must go.

use crate::source;

/// Lines of a file without its tests that need no reason.
const FILE: usize = 400;
/// Lines of a file that a reason can't buy, unless it stands in [`OVER_600`].
const FILE_CEILING: usize = 600;
/// Lines of a function that need no reason.
const FUNCTION: usize = 80;

/// Files over [`FILE`] lines, and why each is one.
const LONG: &[(&str, &str)] = &[
    ("src/proto/message.rs", "one struct for each frame and nothing else: a list, read by looking up"),
    (
        "src/staging/store.rs",
        "the one lock over ledger, quota and disk: what it guards can't be split without sharing it",
    ),
    ("src/telemetry/names.rs", "every metric and label in one list: a second place would be a second truth"),
];

/// Files over [`FILE_CEILING`] lines.
const OVER_600: &[(&str, &str)] = &[];

/// Functions over [`FUNCTION`] lines: file, name, why.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

#[test]
fn files_are_short_or_say_why_not() {
    let mut wrong = Vec::new();
    let (mut long, mut over) = (Vec::new(), Vec::new());
    for source in source::every() {
        let lines = source.shown.lines().count();
        if lines > FILE {
            long.push(source.path.clone());
        }
        if lines > FILE_CEILING {
            over.push(source.path.clone());
        }
        let listed = |list: &[(&str, &str)]| list.iter().any(|(path, _)| *path == source.path);
        if lines > FILE_CEILING && !listed(OVER_600) {
            wrong.push(format!("{}: {lines} lines, over {FILE_CEILING}: split it", source.path));
        } else if lines > FILE && !listed(LONG) {
            wrong.push(format!("{}: {lines} lines, over {FILE}: split it, or say in LONG why not", source.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (path, _) in LONG {
        assert!(long.iter().any(|name| name == path), "{path} is short now: take it off LONG");
    }
    for (path, _) in OVER_600 {
        assert!(over.iter().any(|name| name == path), "{path} is under {FILE_CEILING} lines now: take it off OVER_600");
    }
}

#[test]
fn functions_are_short_or_say_why_not() {
    let (mut wrong, mut long, mut seen) = (Vec::new(), Vec::new(), 0);
    for source in source::every() {
        for (name, lines) in functions(&source.code) {
            seen += 1;
            if lines <= FUNCTION {
                continue;
            }
            long.push((source.path.clone(), name.clone()));
            if !LONG_FUNCTIONS.iter().any(|(path, function, _)| *path == source.path && *function == name) {
                wrong.push(format!("{}: fn {name} has {lines} lines, over {FUNCTION}", source.path));
            }
        }
    }
    assert!(seen > 500, "{seen} functions found: the search is broken");
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (path, name, _) in LONG_FUNCTIONS {
        assert!(long.iter().any(|(p, n)| p == path && n == name), "{path}: fn {name} is short now: take it off");
    }
}

#[test]
fn main_is_the_story() {
    assert!(source::read("src/main.rs").lines().count() <= 100);
}

/// Names and lengths of the functions with a body, as rustfmt lays them out.
fn functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = lines[at..].iter().position(|other| {
            let closes = other.starts_with(&format!("{indent}}}"));
            let declares =
                (*other == *line || other.starts_with(&format!("{indent})"))) && other.trim_end().ends_with(';');
            closes || declares || (*other == *line && other.trim_end().ends_with('}'))
        });
        found.push((name, end.map_or(lines.len() - at, |end| end + 1)));
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut rest = line.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix("fn ") {
            return Some(after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
        let (word, after) = rest.split_once(' ')?;
        let modifier = matches!(word, "pub" | "const" | "async" | "unsafe" | "extern") || word.starts_with("pub(");
        rest = modifier.then_some(after)?;
    }
}

#[test]
fn lengths_are_counted() {
    let code = "impl X {\n    pub(crate) const fn a(\n        b: u8,\n    ) -> u8 {\n        b\n    }\n    fn c() {}\n    fn d(\n    );\n}\n";
    assert_eq!(functions(code), [("a".to_owned(), 5), ("c".to_owned(), 1), ("d".to_owned(), 2)]);
}
