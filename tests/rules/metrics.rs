//! Every metric is in the book and every name in the book and in the alerts is a metric.

use std::collections::BTreeSet;

use waystation_tests::World;

use crate::{source, table};

/// Names that `telemetry::names` has, without the prefix.
fn names() -> BTreeSet<String> {
    let text = source::read("src/telemetry/names.rs");
    let mut found = BTreeSet::new();
    let mut in_list = false;
    for line in text.lines().map(str::trim) {
        in_list = line.starts_with("names! {") || (in_list && line != "}");
        let constant =
            line.strip_prefix("pub const ").filter(|rest| !rest.starts_with("PREFIX") && rest.contains(": &str = \""));
        if let Some(name) = constant.or(in_list.then_some(line)).and_then(|line| line.split('"').nth(1)) {
            found.insert(name.to_owned());
        }
    }
    assert!(found.len() > 30, "{found:?}");
    found
}

/// The name of the family that a sample or a page's name belongs to.
fn family<'a>(names: &'a BTreeSet<String>, sample: &str) -> Option<&'a String> {
    let bare = sample.strip_prefix("waystation_")?;
    let endings = ["", "_total", "_bytes", "_bucket", "_sum", "_count"];
    endings.iter().find_map(|ending| names.get(bare.strip_suffix(ending)?))
}

#[test]
fn every_metric_is_in_the_book_and_the_other_way_round() {
    let names = names();
    let page = source::read("docs/metrics.md");
    let told: Vec<String> = table::named(&page).into_iter().map(|(name, _)| name).collect();
    let mut known = BTreeSet::new();
    for name in &told {
        known
            .insert(family(&names, name).unwrap_or_else(|| panic!("docs/metrics.md tells {name}, which is no metric")));
    }
    let missing: Vec<_> = names.iter().filter(|name| !known.contains(name)).collect();
    assert!(missing.is_empty(), "docs/metrics.md does not tell {missing:?}");
    let registered: String =
        source::relay().iter().filter(|s| s.path.starts_with("src/telemetry/")).map(|s| s.shown.as_str()).collect();
    for page in [
        "docs/operations.md",
        "docs/limits.md",
        "deploy/alerts.yaml",
        "deploy/dashboard.json",
        "deploy/README.md",
        "README.md",
    ] {
        for word in source::read(page).split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')) {
            let metric = word.starts_with("waystation_") && !word.starts_with("waystation_proto") && word.len() > 11;
            assert!(!metric || family(&names, word).is_some(), "{page} names {word}, which is no metric");
        }
    }
    assert!(registered.contains("names::"), "families are registered under names of the list");
}

/// What a running relay shows is in the book, kind and labels too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_shows_is_what_the_book_says() {
    let world = World::new().await;
    let text = world.metrics().await;
    let page = source::read("docs/metrics.md");
    let rows = table::named(&page);
    let names = names();
    let mut seen = 0;
    for line in text.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else { continue };
        seen += 1;
        let family = family(&names, name).unwrap_or_else(|| panic!("{name} is not in telemetry::names"));
        let (_, cells) = rows.iter().find(|(told, _)| crate::metrics::family(&names, told) == Some(family)).unwrap();
        assert!(cells[0].starts_with(kind), "{name} is a {kind}, docs/metrics.md says: {}", cells[0]);
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let family = family(&names, name).unwrap();
        let (_, cells) = rows.iter().find(|(told, _)| crate::metrics::family(&names, told) == Some(family)).unwrap();
        for label in rest.split('}').next().unwrap().split("\",").filter_map(|pair| pair.split('=').next()) {
            let label = label.trim_start_matches(',');
            assert!(label == "le" || cells[1].contains(&format!("`{label}`")), "{name}: label {label} is not told");
        }
    }
    assert!(seen >= 10, "{seen} families shown");
}

/// The counters whose increase an alert watches: name and label of each selector.
fn watched(alerts: &str) -> Vec<(String, String)> {
    let selectors = alerts.match_indices("increase(").map(|(at, begin)| {
        let rest = &alerts[at + begin.len()..];
        let selector = rest.split('[').next().unwrap();
        let (name, label) = selector.split_once('{').unwrap_or((selector, ""));
        (name.to_owned(), label.trim_end_matches('}').to_owned())
    });
    selectors.collect()
}

/// Prometheus sees no increase where a series appears: one that alerts watch begins at 0.
#[test]
fn what_alerts_watch_is_there_from_the_start() {
    use waystation::telemetry::names::{CoreLimiter, CoreRoute, DiskStep};
    let text = waystation::telemetry::Metrics::new().text();
    let zeros = |name: &str, label: &str| {
        let begin = format!("{name}{{");
        text.lines()
            .filter(|line| {
                line.starts_with(&begin)
                    && line.contains(label)
                    && line.rsplit(' ').next().is_some_and(|value| value.parse() == Ok(0.0))
            })
            .count()
    };
    let watched = watched(&source::read("deploy/alerts.yaml"));
    assert!(watched.len() >= 5, "{watched:?}");
    for (name, label) in &watched {
        let all = match name.as_str() {
            "waystation_disk_errors_total" => DiskStep::ALL.len(),
            "waystation_chunk_endings_total" => waystation::proto::Class::ALL.len(),
            "waystation_core_requests_total" => CoreRoute::ALL.len(),
            "waystation_core_limited_seconds_total" => CoreLimiter::ALL.len(),
            _ => 1,
        };
        let there = text.lines().filter(|line| line.starts_with(name.as_str())).collect::<Vec<_>>();
        assert_eq!(zeros(name, label), all, "{name}{{{label}}}: {there:?}");
    }
}
