//! `kill -9` on the real disk: a writer prints each answer after it has it, is killed at a seeded
//! point, and everything printed must be there. The test binary is its own writer. `KILLS=n` sets
//! how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fixture::{chunk, disk_at, grant, key, meta};
use super::sim::Rng;
use super::{Committer, Meta, Recovered, StreamCapability, Vault};
use crate::clock::Clock;

const KILLS: u64 = 200;
/// Kills after which a new directory is taken, so that recovery stays short.
const KILLS_PER_DIRECTORY: u64 = 10;
const DIRECTORY: &str = "WAYSTATION_KILL_DIRECTORY";
const FIRST_INDEX: &str = "WAYSTATION_KILL_FIRST_INDEX";
const THREADS: u64 = 4;

fn open(root: &Path) -> (Vault, Recovered) {
    Vault::open(Arc::new(disk_at(root)), &key(), Clock::system()).unwrap()
}

fn payload(index: u64) -> Vec<u8> {
    let mut rng = Rng::new(index);
    let length = 1 + rng.below(10_000);
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| rng.next().to_be_bytes()).collect();
    bytes.truncate(length);
    bytes
}

fn meta_of(index: u64) -> Meta {
    meta(index, &payload(index))
}

/// One line, whole or not at all: a pipe takes this much in one piece.
fn say(word: &str, index: u64) {
    let line = format!("\n{word} {index}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    std::io::stdout().lock().flush().unwrap();
}

/// The process that is killed. Without its environment it has nothing to do.
#[test]
fn writer_to_be_killed() {
    let Some(root) = std::env::var_os(DIRECTORY) else { return };
    let next = AtomicU64::new(std::env::var(FIRST_INDEX).unwrap().parse().unwrap());
    let (vault, _) = open(Path::new(&root));
    let committer = Committer::start(&vault).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    write_one(&vault, &committer, next.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
    });
}

fn write_one(vault: &Vault, committer: &Committer, index: u64) {
    let bytes = payload(index);
    let mut part = vault.create(chunk(index), &meta_of(index)).unwrap();
    let cut = bytes.len() / 2;
    part.append(&bytes[..cut]).unwrap();
    if index.is_multiple_of(7) {
        return;
    }
    part.append(&bytes[cut..]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let durable = runtime.block_on(committer.commit(part)).unwrap();
    assert_eq!(durable.chunk(), chunk(index));
    say("durable", index);
    if index.is_multiple_of(5) {
        say("removing", index);
        vault.remove(chunk(index)).unwrap();
    }
    if index.is_multiple_of(11) {
        let record = StreamCapability::new(meta_of(1).offer.stream, index.to_string(), grant());
        vault.put_stream_capability(&record).unwrap();
        say("capability", index);
    }
}

/// What a directory's writers said so far.
#[derive(Default)]
struct Said {
    durable: BTreeSet<u64>,
    removing: BTreeSet<u64>,
    capabilities: BTreeSet<u64>,
}

impl Said {
    /// Takes a line; whether it was an answer.
    fn hear(&mut self, line: &str) -> bool {
        let Some((word, index)) = line.split_once(' ') else { return false };
        let Ok(index) = index.parse() else { return false };
        match word {
            "durable" => self.durable.insert(index),
            "removing" => self.removing.insert(index),
            "capability" => self.capabilities.insert(index),
            _ => false,
        }
    }
}

/// Runs a writer until it is killed; hears everything that it said before.
fn kill_one(root: &Path, first_index: u64, rng: &mut Rng, said: &mut Said) {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "staging::kill_test::writer_to_be_killed", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, root)
        .env(FIRST_INDEX, first_index.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let answers = rng.below(60);
    let mut heard = 0;
    while heard < answers {
        let line = lines.next().expect("the writer ended by itself");
        heard += usize::from(said.hear(&line));
    }
    // Without an answer to wait for the kill falls into start and recovery.
    std::thread::sleep(Duration::from_micros(rng.below(if answers == 0 { 30_000 } else { 3_000 }) as u64));
    writer.kill().unwrap();
    writer.wait().unwrap();
    for line in lines {
        said.hear(&line);
    }
}

/// Holds a directory against what its writers said; how many partials could be gone on with.
fn check(root: &Path, said: &Said) -> usize {
    let (vault, found) = open(root);
    assert_eq!(found.unreadable, 0);
    let staged: BTreeMap<u64, &Meta> = found.staged.iter().map(|(meta, _)| (meta.offer.index, meta)).collect();
    for (index, meta) in &staged {
        assert!(**meta == meta_of(*index), "altered metadata of chunk {index}");
        assert!(vault.verify(chunk(*index)).unwrap(), "altered bytes of chunk {index}");
    }
    let lost = said.durable.iter().find(|index| !staged.contains_key(index) && !said.removing.contains(index));
    assert_eq!(lost, None, "answered durable and lost");
    for (meta, file) in &found.partial {
        let part = vault.reopen(meta.offer.chunk_ref()).unwrap();
        assert_eq!(part.len(), file.len);
    }
    let capability = found.streams.first().map(|record| record.capability.parse().unwrap());
    assert!(said.capabilities.is_empty() || capability.is_some(), "a kept capability is lost");
    let files = |dir: &str| std::fs::read_dir(root.join(dir)).unwrap().count();
    assert_eq!([files("staged"), files("receiving")], [found.staged.len(), found.partial.len()], "leftovers");
    assert!(capability.is_none_or(|index: u64| index.is_multiple_of(11)));
    found.partial.len()
}

#[test]
fn kills_lose_nothing_that_was_answered() {
    let kills: u64 = std::env::var("KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut rng = Rng::new(7);
    let (mut durable, mut partial) = (0, 0);
    for directory in 0..kills.div_ceil(KILLS_PER_DIRECTORY) {
        let temp = tempfile::tempdir().unwrap();
        let mut said = Said::default();
        for kill in 0..KILLS_PER_DIRECTORY.min(kills - directory * KILLS_PER_DIRECTORY) {
            let first_index = (directory * KILLS_PER_DIRECTORY + kill) * 1_000_000 + 1;
            kill_one(temp.path(), first_index, &mut rng, &mut said);
            partial += check(temp.path(), &said);
        }
        durable += said.durable.len();
    }
    println!("{kills} kills, {durable} chunks answered durable, {partial} partials gone on with");
    assert!(
        durable as u64 > kills * 5 && partial as u64 > kills / 2,
        "the writers do not get far: {durable} durable, {partial} partials"
    );
}
