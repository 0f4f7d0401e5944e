//! Links of the book lead somewhere.

use std::path::{Path, PathBuf};

use crate::source;

fn pages() -> Vec<PathBuf> {
    let root = source::root();
    let mut pages = vec![root.join("README.md")];
    for folder in ["docs", "deploy", ".github", "devcore", "tests", "client"] {
        pages.extend(
            source::files(&root.join(folder)).into_iter().filter(|path| path.extension().is_some_and(|e| e == "md")),
        );
    }
    pages
}

/// Targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        found.extend(prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
    }
    found
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            seen += 1;
            let (path, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            if !target.exists() || (!fragment.is_empty() && !has_anchor(&target, fragment)) {
                wrong.push(format!("{}: {link}", source::relative(&page)));
            }
        }
    }
    assert!(seen > 40, "{seen} links found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn has_anchor(page: &Path, wanted: &str) -> bool {
    let text = std::fs::read_to_string(page).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix('#'))
        .any(|rest| anchor(rest.trim_start_matches('#').trim()) == wanted)
}

#[test]
fn every_page_is_in_the_index() {
    let index = source::read("docs/README.md");
    for page in
        source::files(&source::root().join("docs")).iter().filter(|path| path.extension().is_some_and(|e| e == "md"))
    {
        let path = source::relative(page);
        let path = path.trim_start_matches("docs/");
        assert!(path == "README.md" || index.contains(&format!("({path})")), "docs/README.md does not lead to {path}");
    }
}

#[test]
fn anchors_are_made_as_pages_show_them() {
    assert_eq!(anchor("5. Native HTTP"), "5-native-http");
    assert_eq!(links("a [b](c.md#d) `[x](y)` e"), ["c.md#d"]);
}
