//! The project's Rust sources as the rules see them: without tests, comments and texts.

use std::path::{Path, PathBuf};

/// Where the repository is.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A file of the repository.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A source file.
pub(crate) struct Source {
    /// From the repository's root.
    pub(crate) path: String,
    /// Without its tests; comments and the insides of texts are blank. Lines are those of `shown`.
    pub(crate) code: String,
    /// Without its tests, otherwise as written.
    pub(crate) shown: String,
}

impl Source {
    /// The top-level module below `src/`: `ingress` of `src/ingress/ws.rs`, `relay` of `src/relay.rs`.
    pub(crate) fn module(&self) -> &str {
        let below = self.path.split_once("src/").unwrap().1;
        below.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// Lines with their numbers in the file without its tests.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(at, line)| (at + 1, line))
    }
}

/// The sources below these folders that are no tests.
pub(crate) fn sources(folders: &[&str]) -> Vec<Source> {
    let mut all = Vec::new();
    let mut tests = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut all, &mut tests);
    }
    all.retain(|source| {
        !tests.iter().any(|test| source.path == format!("{test}.rs") || source.path.starts_with(&format!("{test}/")))
    });
    assert!(!all.is_empty(), "no sources below {folders:?}");
    all
}

/// The relay's sources.
pub(crate) fn relay() -> Vec<Source> {
    sources(&["src"])
}

/// Every crate's.
pub(crate) fn every() -> Vec<Source> {
    sources(&["src", "client/src", "devcore/src", "loadtest/src", "loadtest/netlab/src"])
}

/// Every Rust file below a folder, tests too: path and text.
pub(crate) fn rust_files(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in files(&root().join(folder)) {
        if path.extension().is_some_and(|e| e == "rs") {
            found.push((relative(&path), std::fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// Every file below a folder, sorted; none that a tool made.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    let made = |path: &Path| {
        path.file_name().is_some_and(|n| n == "target" || n == "node_modules" || n == "corpus" || n == "__pycache__")
    };
    let mut out = Vec::new();
    for path in entries.into_iter().filter(|path| !made(path)) {
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out
}

/// A path from the repository's root.
pub(crate) fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn walk(folder: &Path, all: &mut Vec<Source>, tests: &mut Vec<String>) {
    for path in files(folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let path = relative(&path);
        let (shown, modules) = without_tests(&text);
        tests.extend(modules.iter().map(|name| match name.strip_prefix("./") {
            Some(beside) => format!("{}/{beside}", path.rsplit_once('/').unwrap().0),
            None => format!("{}/{name}", children(&path)),
        }));
        all.push(Source { code: blank(&shown), path, shown });
    }
}

/// Where a file's modules lie.
fn children(path: &str) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap();
    match file {
        "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
        _ => path.trim_end_matches(".rs").to_owned(),
    }
}

/// The text without items that only tests see, and the names of the modules among them that are
/// files; `./name` for one that a `#[path]` puts beside this file. rustfmt's layout is relied on: a block's end stands at its item's column.
fn without_tests(text: &str) -> (String, Vec<String>) {
    let (mut out, mut modules) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if trimmed != "#[cfg(test)]" {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        let indent = &line[..line.len() - trimmed.len()];
        let mut item = lines.next().unwrap_or_default();
        let mut elsewhere = None;
        while item.trim_start().starts_with("#[") {
            elsewhere =
                item.trim().strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix(".rs\"]")).or(elsewhere);
            item = lines.next().unwrap_or_default();
        }
        if let Some(name) = item.trim_end().strip_suffix(';').and_then(|item| item.split("mod ").nth(1)) {
            modules.push(elsewhere.map_or_else(|| name.to_owned(), |beside| format!("./{beside}")));
        } else if !item.trim_end().ends_with([';', '}', ',']) {
            let end = format!("{indent}}}");
            lines
                .by_ref()
                .find(|line| line.starts_with(&end) || line.starts_with(&format!("{indent})")) && line.ends_with(';'));
        }
    }
    (out, modules)
}

/// Blanks comments and what stands in texts, so that words in prose are no code. Keeps lines.
pub(crate) fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// Where the comment, text or character that begins here ends; `at` if none does.
fn skipped(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let before_is_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match rest {
        ['/', '/', ..] => at + rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => at + 2 + find(&rest[2..], &['*', '/']).map_or(rest.len() - 2, |n| n + 2),
        ['r', '"', ..] if !before_is_word => at + 2 + find(&rest[2..], &['"']).map_or(rest.len() - 2, |n| n + 1),
        ['r', '#', ..] if !before_is_word => raw(chars, at),
        ['"', ..] => at + closing(rest, '"'),
        ['\'', '\\', ..] => at + closing(rest, '\''),
        ['\'', _, '\'', ..] => at + 3,
        _ => at,
    }
}

fn raw(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let mut end = vec!['"'];
    end.resize(1 + hashes, '#');
    let begin = at + 2 + hashes;
    begin + find(&chars[begin..], &end).map_or(chars.len() - begin, |n| n + end.len())
}

fn closing(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn find(chars: &[char], what: &[char]) -> Option<usize> {
    chars.windows(what.len()).position(|window| window == what)
}

/// Whether `word` stands in `line` by itself, not as part of a longer name.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let longer = |edge: bool, next: Option<char>| edge && next.is_some_and(part);
        !longer(word.starts_with(part), before) && !longer(word.ends_with(part), after)
    })
}

#[test]
fn tests_comments_and_texts_are_not_code() {
    let text = "fn a() {\n    b(\"tokio \\\" //\"); // tokio\n    let c = 'x'; let d: &'static str = r#\"to\"kio\"#;\n}\n\
                #[cfg(test)]\nmod tests {\n    tokio();\n}\n#[cfg(test)]\npub(crate) mod testing;\n\
                #[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod other;\nfn e() {}\n";
    let (shown, modules) = without_tests(text);
    assert_eq!(modules, ["testing", "./x_tests"]);
    let code = blank(&shown);
    assert!(!code.contains("tokio") && !code.contains("to\"kio") && code.contains("fn e() {}"), "{code}");
    assert!(code.contains("let d: &'static str ="), "{code}");
    assert_eq!(code.lines().count(), 5);
    assert!(has_word("a(tokio::x)", "tokio") && !has_word("tokio_util", "tokio"));
}

#[test]
fn sources_are_found_and_tests_are_not() {
    let relay = relay();
    let has = |path: &str| relay.iter().any(|source| source.path == path);
    assert!(has("src/relay.rs") && has("src/proto/ledger.rs") && has("src/staging/store.rs"));
    for test in
        ["src/staging/sim.rs", "src/proto/window/tests.rs", "src/proto/ledger_tests.rs", "src/ingress/tests/harness.rs"]
    {
        assert!(root().join(test).exists() && !has(test), "{test} is a test");
    }
}
