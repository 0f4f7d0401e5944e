//! The real capture client, relay and core over an emulated bad link: nothing is lost, and it ends.
//! How fast is not looked at: a debug build on a busy machine has no figure worth a look.
//!
//! Links need root. Whoever is not root can't run these, and is told so; root needs `ip` and
//! /dev/net/tun, and without them these fail.

#![allow(clippy::unwrap_used)] // a failed test says where

mod programs;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use programs::LOADTEST;
use serde_json::Value;
use waystation_netlab::{Error, Link, Profile, Side};

/// False: not root.
fn links_can_be_made() -> bool {
    match Link::possible() {
        Ok(()) => true,
        Err(Error::NotRoot) => {
            let _ = writeln!(std::io::stderr(), "not run: {}", Error::NotRoot);
            false
        }
        Err(missing) => panic!("{missing}; run ./test install"),
    }
}

fn run(args: &[&str]) -> Output {
    programs::build();
    Command::new(LOADTEST).arg("network").args(args).output().unwrap()
}

/// Runs a scenario that must lose nothing, and returns its line.
fn line(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let line: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(line["lost"], 0, "{line}");
    line
}

#[test]
fn a_link_that_loses_every_seventh_packet_loses_no_chunk() {
    if !links_can_be_made() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let plots = dir.path().to_str().unwrap();
    let line = line(&["--profile", "lossy", "--transport", "h3", "--seeds", "1", "--plots", plots]);
    assert_eq!((&line["profile"], &line["transport"]), (&"lossy".into(), &"h3".into()));
    let figure = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} of {line}"));
    // No client is faster than the arithmetic, nor pays less than its payload over what is lost.
    assert!(figure("median_s") > figure("floor_s") / 1.04 && figure("chunk1_s") > 0.0);
    assert!(figure("held_s") <= figure("median_s"));
    assert!(figure("wire_ratio") > 1.1, "{line}");
    let plot = std::fs::read_to_string(dir.path().join("lossy-over-h3.svg")).unwrap();
    assert!(plot.matches("<polyline").count() == 2, "a curve and the floor: {plot}");
}

#[test]
fn a_contact_behind_a_lossy_link_hears_everything_and_is_told_of_the_rest() {
    if !links_can_be_made() {
        return;
    }
    for transport in ["h3", "ws"] {
        let line = line(&["--scenario", "contact", "--profile", "lossy", "--seconds", "12", "--transport", transport]);
        let count = |name: &str| line[name].as_u64().unwrap_or_else(|| panic!("{name} of {line}"));
        assert_eq!((count("sounds"), count("sounds_missing"), count("previews_untold")), (6, 0, 0), "{line}");
        assert_eq!(count("previews_whole") + count("previews_omitted"), 6, "{line}");
        // Nothing is faster than light, and what takes a minute is not live.
        let p95 = line["delay_p95_s"].as_f64().unwrap();
        assert!((0.1..60.0).contains(&p95), "{line}");
    }
}

#[test]
fn five_kills_over_a_lossy_link_lose_nothing() {
    if links_can_be_made() {
        let line = line(&["--scenario", "kills", "--kills", "5", "--profile", "lossy", "--transport", "ws"]);
        assert_eq!(line["kills"], 5);
        assert_eq!(line["again_bar_met"], true, "{line}");
    }
}

#[test]
fn a_phone_that_is_destroyed_takes_only_its_last_seconds_with_it() {
    if links_can_be_made() {
        let args = ["--scenario", "survival", "--profile", "good4g", "--seeds", "2", "--seconds", "15"];
        let line = line(&args);
        let gone: Vec<f64> = line["all_gone_s"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        let killed: Vec<f64> = line["all_kill_s"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        for (gone, killed) in gone.iter().zip(&killed) {
            // What is being recorded is always gone; something of what was recorded before is not.
            assert!((0.0..*killed).contains(gone), "{line}");
        }
        assert_eq!((gone.len(), &line["seeds"]), (2, &2.into()));
    }
}

#[test]
fn two_links_side_by_side_do_not_meet_and_leave_nothing() {
    if !links_can_be_made() {
        return;
    }
    let start = |seed| Link::start(&Profile::named("clean").unwrap(), seed, &Default::default()).unwrap();
    let (one, other) = (start(1), start(2));
    let listener = one.inside(Side::Server, || std::net::TcpListener::bind((waystation_netlab::SERVER, 0))).unwrap();
    let at = listener.local_addr().unwrap();
    let mut sent = one.inside(Side::Client, || std::net::TcpStream::connect(at)).unwrap();
    let refused = other.inside(Side::Client, || std::net::TcpStream::connect(at));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let (mut received, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), waystation_netlab::CLIENT);
    sent.write_all(&[7; 5000]).unwrap();
    std::io::Read::read_exact(&mut received, &mut [0; 5000]).unwrap();
    let stats = one.stats();
    assert!(stats.up.delivered_bytes > 5000 && stats.down.delivered_packets > 0, "{stats:?}");
    // Nothing passes a link that is cut, and what was not acknowledged passes when it is mended.
    one.cut();
    let before = one.stats().up.delivered_packets;
    sent.write_all(&[8; 100]).unwrap();
    while one.stats().up.outage_packets == 0 {
        std::thread::yield_now();
    }
    assert_eq!(one.stats().up.delivered_packets, before);
    one.mend();
    std::io::Read::read_exact(&mut received, &mut [0; 100]).unwrap();
    let names = [Side::Client, Side::Server].map(|side| one.namespace(side).name().to_owned());
    drop(one);
    for name in names {
        assert!(!Path::new("/var/run/netns").join(name).exists());
    }
}

#[test]
fn an_unknown_profile_is_refused_with_its_name() {
    if links_can_be_made() {
        let output = run(&["--profile", "fibre"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no profile is called fibre"));
    }
}

#[test]
fn a_websocket_that_a_nat_swallows_in_silence_is_given_up_before_contacts_hear_of_it() {
    if !links_can_be_made() {
        return;
    }
    let quiet = ["--profile", "good4g", "--transport", "ws", "--scenario", "quiet", "--seconds", "66", "--json"];
    let output = run(&[&quiet[..], &["--moves", "60", "--rebind-tcp", "drop"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let line: Value = serde_json::from_str(said.trim()).unwrap_or_else(|_| panic!("{said}"));
    // It was away for a while: the NAT did move.
    assert_eq!((&line["false_silent"], line["signs"].as_u64() > Some(0)), (&0.into(), true), "{line}");
}
