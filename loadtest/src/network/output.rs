//! What is said at the end of each profile: a line of JSON, or a row of a table.

use std::io::Write as _;

use serde_json::{Map, Value, json};

use crate::Failure;

/// One profile's result.
#[derive(Debug, Default)]
pub(super) struct Line {
    json: Map<String, Value>,
    columns: Vec<(&'static str, String)>,
    /// Something was lost, or never ended.
    pub(super) failed: bool,
}

impl Line {
    /// A word that says what was measured.
    pub(super) fn word(mut self, name: &'static str, word: &str) -> Self {
        self.json.insert(name.to_owned(), json!(word));
        self.columns.push((name, word.to_owned()));
        self
    }

    /// A figure; none: it never came to that.
    pub(super) fn figure(mut self, name: &'static str, value: impl Into<Option<f64>>) -> Self {
        let value = value.into().map(rounded);
        self.json.insert(name.to_owned(), json!(value));
        self.columns.push((name, shown(value)));
        self
    }

    /// A count.
    pub(super) fn count(mut self, name: &'static str, count: u64) -> Self {
        self.json.insert(name.to_owned(), json!(count));
        self.columns.push((name, count.to_string()));
        self
    }

    /// What a figure may be at most, and whether it is no more.
    pub(super) fn bar(mut self, name: &'static str, figure: Option<f64>, bar: Option<f64>) -> Self {
        self.json.insert(name.to_owned(), json!(bar.map(rounded)));
        let met = bar.map(|bar| figure.is_some_and(|figure| figure <= bar));
        if let Some(met) = met {
            self.json.insert(format!("{name}_met"), json!(met));
        }
        let verdict = match met {
            Some(true) => " met",
            Some(false) => " MISSED",
            None => "",
        };
        self.columns.push((name, format!("{}{verdict}", shown(bar.map(rounded)))));
        self
    }

    /// All figures that others were taken from; in JSON only.
    pub(super) fn all(mut self, name: &'static str, values: &[Option<f64>]) -> Self {
        let values: Vec<Option<f64>> = values.iter().map(|value| value.map(rounded)).collect();
        self.json.insert(name.to_owned(), json!(values));
        self
    }

    /// Whether the run fails.
    pub(super) const fn failing(mut self, failed: bool) -> Self {
        self.failed = failed;
        self
    }
}

/// Prints lines as they come.
pub(super) struct Table {
    json: bool,
    begun: bool,
}

impl Table {
    pub(super) const fn new(json: bool) -> Self {
        Self { json, begun: false }
    }

    pub(super) fn add(&mut self, line: &Line) {
        let text = if self.json { format!("{}\n", Value::Object(line.json.clone())) } else { self.row(line) };
        let mut out = std::io::stdout().lock();
        // A reader that went away is no reason to fail.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn row(&mut self, line: &Line) -> String {
        let width = |name: &str, value: &str| name.len().max(value.len()).max(11) + 2;
        let mut out = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.extend(line.columns.iter().map(|(name, value)| format!("{name:>0$}", width(name, value))));
            out.push('\n');
        }
        out.extend(line.columns.iter().map(|(name, value)| format!("{value:>0$}", width(name, value))));
        out.push('\n');
        out
    }
}

/// Says why nothing was measured.
pub(super) fn complain(failure: &Failure) {
    let _ = writeln!(std::io::stderr().lock(), "{failure}");
}

/// The smallest of `values` that `percent` of them do not exceed. What never came is the largest.
pub(super) fn percentile(values: &[Option<f64>], percent: usize) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().map(|value| value.unwrap_or(f64::INFINITY)).collect();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().filter(|value| value.is_finite())
}

/// The middle one.
pub(super) fn median(values: &[Option<f64>]) -> Option<f64> {
    percentile(values, 50)
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_came_is_the_largest() {
        let of = |list: &[f64]| list.iter().map(|value| Some(*value)).collect::<Vec<_>>();
        assert_eq!(median(&of(&[3.0, 1.0, 2.0])), Some(2.0));
        assert_eq!(median(&[Some(3.0), None, Some(1.0)]), Some(3.0));
        assert_eq!(median(&[Some(3.0), None, None]), None);
        assert_eq!(percentile(&of(&[5.0, 1.0]), 95), Some(5.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_line_has_its_figures_and_whether_bars_are_met() {
        let line = Line::default()
            .word("profile", "lossy")
            .figure("median_s", 7.12345)
            .figure("chunk1_s", None)
            .bar("bar", Some(1.2), Some(1.15))
            .count("lost", 0);
        let json = Value::Object(line.json.clone());
        assert_eq!(json["median_s"], 7.123);
        assert!(json["chunk1_s"].is_null());
        assert_eq!((&json["bar_met"], &json["lost"]), (&json!(false), &json!(0)));
        let text = Table::new(false).row(&line);
        assert!(text.contains("median_s") && text.contains("7.123") && text.contains("1.15 MISSED"), "{text}");
    }
}
