//! Each scenario once, short, with the real programs: the line of JSON is whole and nothing is
//! lost. Figures are not looked at: a debug build on a busy machine has none worth a look.

#![allow(clippy::unwrap_used)] // a failed test says where

mod programs;

use std::process::{Command, Output};

use programs::LOADTEST;
use serde_json::Value;

fn run(args: &[&str]) -> Output {
    programs::build();
    Command::new(LOADTEST).args(args).output().unwrap()
}

/// Runs a scenario, and returns its line.
fn line(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaints}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let line: Value = serde_json::from_str(&said).unwrap();
    for key in ["mb_s", "chunks_s", "cpu_s_per_gb", "p50_ms", "p99_ms", "max_rss_mb"] {
        assert!(line[key].as_f64().unwrap() > 0.0, "{key} of {line}");
    }
    assert_eq!(line["lost"], 0);
    line
}

#[test]
fn uploads_over_every_transport_are_confirmed() {
    for transport in ["h1", "h2", "h3", "ws"] {
        let ask = ["upload", "--transport", transport, "--sessions", "3", "--size", "300KiB", "--chunks", "30"];
        let line = line(&ask);
        assert_eq!((&line["chunks"], &line["transport"]), (&30.into(), &transport.into()));
    }
}

#[test]
fn every_contact_gets_every_chunk() {
    for transport in ["wss", "h3", "h3-chunks", "wt"] {
        let ask = ["fanout", "--transport", transport, "--contacts", "5", "--size", "100KiB", "--chunks", "6"];
        let line = line(&[&ask[..], &["--rate", "0"]].concat());
        assert_eq!((&line["chunks"], &line["transport"]), (&30.into(), &transport.into()));
    }
}

/// Whether the healthy notice anything in their delays is for a quiet machine to say.
#[test]
fn a_thin_link_hears_everything_and_is_told_of_what_it_does_not_see() {
    let output = run(&["fanout", "--troubled", "--contacts", "10", "--seconds", "24", "--unpinned", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["lost"], 0, "of the healthy: {found}");
    let thin = &found["thin"];
    assert_eq!((&thin["audio_sent"], &thin["audio_whole"]), (&6.into(), &6.into()), "{found}");
    assert!(thin["video_omitted"].as_u64().unwrap() >= 1, "it is thin: {found}");
    assert!(thin["video_untold"].as_u64().unwrap() <= 1, "the one on its way: {found}");
    let [alone, beside] = [0, 1].map(|at| found["rss_mb"][at].as_f64().unwrap());
    assert!(beside <= alone + 8.0, "what they cost in memory: {found}");
}

#[test]
fn the_disk_is_measured_in_syncs() {
    let line = line(&["disk", "--seconds", "1", "--threads", "2", "--size", "4KiB"]);
    assert_eq!(line["syncs_s"], line["chunks_s"]);
}

#[test]
fn without_json_there_is_a_table() {
    let output = run(&["upload", "--sessions", "1", "--size", "1KiB", "--chunks", "2"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("CPU s/GB") && said.contains("lost"), "{said}");
}

#[test]
fn loss_fails_the_run() {
    // Larger than the relay takes: each one is refused.
    let output = run(&["upload", "--sessions", "1", "--size", "251MiB", "--chunks", "1", "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&line["lost"], output.status.code()), (&1.into(), Some(1)));
}
