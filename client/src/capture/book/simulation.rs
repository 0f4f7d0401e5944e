//! A device, its queue and a relay in virtual time, by a seed: the device is killed at any moment,
//! the network goes and comes, the relay gives every kind of answer, messages come late and twice.
//!
//! Nothing is lost, an identity has one content for ever, tries are counted as the rules say,
//! progress never goes back, and once the world is calm everything is confirmed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::capture::queue::Room;
use crate::capture::store::Store;
use crate::capture::store::disk::{Disk, Memory};
use crate::capture::store::record::Record;
use waystation_proto::{Code, Digest, Variant, dictionary};

const ROOM: Room = Room { bodies: 3, asked: 0, ahead: false, probes: 4 };
const LENGTH: u64 = 100;
/// Answers that count, that wait, and that renew.
const FAILURES: [Code; 4] = [Code::StagingFull, Code::InternalError, Code::HashMismatch, Code::NotReady];
const WAITS: [Code; 4] =
    [Code::TooManyRequests, Code::CoreUnavailable, Code::CapabilityUnverifiable, Code::AttemptSuperseded];

/// A disk that outlives the process.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Memory>>);

impl Disk for Kept {
    fn list(&mut self) -> std::io::Result<Vec<String>> {
        self.0.lock().unwrap().list()
    }
    fn read(&mut self, name: &str) -> std::io::Result<Vec<u8>> {
        self.0.lock().unwrap().read(name)
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().create(name, bytes)
    }
    fn append(&mut self, name: &str, bytes: &[u8], sync: bool) -> std::io::Result<()> {
        self.0.lock().unwrap().append(name, bytes, sync)
    }
    fn rename(&mut self, from: &str, to: &str) -> std::io::Result<()> {
        self.0.lock().unwrap().rename(from, to)
    }
    fn remove(&mut self, name: &str) -> std::io::Result<()> {
        self.0.lock().unwrap().remove(name)
    }
    fn sync_names(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A chunk at the relay.
#[derive(Default)]
struct Held {
    content: Vec<u8>,
    offset: u64,
    staged: bool,
    confirmed: bool,
}

#[derive(Clone, Debug)]
enum Message {
    Offset(u64),
    Sent,
    Told(Option<ChunkState>, Option<Code>, Option<u64>, bool),
    Broken,
}

/// What the rules say of a chunk, by itself.
#[derive(Default, Clone, Debug)]
struct Expected {
    retries: u32,
    failed: bool,
    offset: u64,
    done: u64,
    attempt: u64,
    given: bool,
}

struct World {
    seed: u64,
    dice: Jitter,
    now: u64,
    calm: bool,
    online: bool,
    disk: Kept,
    store: Store,
    book: Book,
    relay: BTreeMap<u64, Held>,
    expected: BTreeMap<u64, Expected>,
    mail: Vec<(u64, u64, u64, Message)>,
    recorded: u64,
    run: u64,
}

fn open(disk: &Kept, seed: u64) -> Store {
    let mut dice = Jitter::new(seed);
    let fill = move |out: &mut [u8]| {
        out.iter_mut().for_each(|byte| *byte = dice.roll() as u8);
        true
    };
    let key = crate::capture::local::LocalKey::new([1; 32]);
    Store::open(Box::new(disk.clone()), key, Box::new(fill), 1 << 30, "g").unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let (disk, mut dice) = (Kept::default(), Jitter::new(seed));
        let store = open(&disk, dice.roll());
        let mut book = Book::new(0, dice.roll());
        book.set_keys(None, 0);
        let (relay, expected, mail) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self {
            seed,
            dice,
            now: 0,
            calm: false,
            online: true,
            disk,
            store,
            book,
            relay,
            expected,
            mail,
            recorded: 0,
            run: 0,
        }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.dice.roll().is_multiple_of(n)
    }

    /// A chunk is cut, and sealed with what chance says: twice would be two contents.
    fn record(&mut self) {
        let id = self.recorded;
        let (variant, lane_seq) = (Variant::AudioPriority, id);
        let (file, size) = self.store.file(b"plaintext").unwrap();
        self.store.add(Record::Kept { id, variant, lane_seq, file, size, started_ms: id as i64, ended_ms: id as i64 });
        self.store.commit().unwrap();
        self.recorded += 1;
    }

    fn seal(&mut self) {
        let waits = self.store.state().items.iter().find(|(_, item)| item.sealed.is_none()).map(|(id, _)| *id);
        let Some(id) = waits else { return };
        let content = format!("{id} {:0>90}", self.dice.roll()).into_bytes();
        let sha256 =
            Digest(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content).as_ref().try_into().unwrap());
        let header = format!(
            r#"incident="i", stream="s", index={}, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#,
            id + 1
        );
        let offer = dictionary::parse_offer(&header, sha256, Some(LENGTH)).unwrap();
        let (file, size) = self.store.envelope_file(&content).unwrap();
        self.store.add(Record::sealed(id, file, size, &offer, 0));
        if self.one_in(9) {
            // The process ends before it is written down; the next one seals anew.
            return self.kill();
        }
        self.store.commit().unwrap();
        self.add(id);
    }

    fn add(&mut self, id: u64) {
        let item = self.store.state().items[&id].clone();
        let Some(sealed) = item.sealed else { return };
        let label = Label {
            variant: item.variant,
            lane_seq: item.lane_seq,
            stream_no: 0,
            index: id + 1,
            started_ms: 0,
            length: LENGTH,
        };
        self.book.add(id, New { label, offer: sealed.offer, manifest: false, note: item.note }, self.now);
        let expected = self.expected.entry(id).or_default();
        (expected.offset, expected.given) = (0, false);
        if std::mem::take(&mut expected.failed) {
            expected.retries = 0;
        }
    }

    fn kill(&mut self) {
        self.run += 1;
        let (store, book) = (self.dice.roll(), self.dice.roll());
        self.store = open(&self.disk, store);
        self.book = Book::new(self.store.state().epoch, book);
        self.book.set_keys(None, self.now);
        let ids: Vec<u64> = self.store.state().items.keys().copied().collect();
        ids.into_iter().for_each(|id| self.add(id));
    }

    fn act(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Note { id, note } => self.store.add(Record::Noted { id, note }),
                Effect::Free { id } => {
                    assert!(self.relay[&id].confirmed, "seed {}: {id} is freed unconfirmed", self.seed);
                    self.store.add(Record::Confirmed { id });
                }
                Effect::Renew => self.book.renewed(self.now),
                Effect::State { .. }
                | Effect::Item { .. }
                | Effect::FetchKeys
                | Effect::Reconcile { .. }
                | Effect::Signs => {}
            }
        }
        self.store.commit().unwrap();
    }

    fn post(&mut self, id: u64, attempt: u64, message: Message) {
        let delay = self.dice.roll() % 3_000;
        self.mail.push((self.now + delay, id, attempt, message.clone()));
        if self.one_in(6) {
            let delay = self.dice.roll() % 200_000;
            self.mail.push((self.now + delay, id, attempt, message));
        }
    }

    /// The relay gets an offer, and perhaps bytes.
    fn offered(&mut self, id: u64, attempt: u64, content: Vec<u8>) {
        let chance = self.dice.roll() % if self.calm { 1 } else { 12 };
        let some = self.dice.roll();
        let held = self.relay.entry(id).or_default();
        assert!(held.content.is_empty() || held.content == content, "seed {}: other bytes for {id}", self.seed);
        held.content = content;
        if held.confirmed {
            return self.post(id, attempt, Message::Told(Some(ChunkState::Confirmed), None, None, true));
        }
        if held.staged {
            held.confirmed = self.calm || some.is_multiple_of(2);
            let state = if held.confirmed { ChunkState::Confirmed } else { ChunkState::Staged };
            let code = (!held.confirmed).then_some(Code::ConfirmationPending);
            return self.post(id, attempt, Message::Told(Some(state), code, Some(1 + some % 5), true));
        }
        let before = held.offset;
        match chance {
            0..4 => {
                (held.offset, held.staged) = (LENGTH, true);
                held.confirmed = self.calm;
                let state = if self.calm { ChunkState::Confirmed } else { ChunkState::Staged };
                self.post(id, attempt, Message::Offset(before));
                self.post(id, attempt, Message::Sent);
                self.post(id, attempt, Message::Told(Some(state), None, Some(2), true));
            }
            4..6 => {
                held.offset = before + some % (LENGTH - before);
                self.post(id, attempt, Message::Offset(before));
                self.post(id, attempt, Message::Broken);
            }
            6..9 => self.post(
                id,
                attempt,
                Message::Told(None, Some(FAILURES[some as usize % 4]), some.is_multiple_of(3).then_some(60), true),
            ),
            9 => self.post(id, attempt, Message::Told(None, Some(WAITS[some as usize % 4]), Some(2), true)),
            10 => self.post(id, attempt, Message::Told(None, Some(Code::CapabilityExpired), None, true)),
            // Nobody hears of it again.
            _ => held.offset = 0,
        }
    }

    fn give(&mut self) {
        while self.online
            && let Some(give) = self.book.take(self.now, ROOM)
        {
            let (id, attempt) = (give.id, give.offer.attempt);
            let content = self.store.read(id).unwrap().to_vec();
            let effect = self.book.given(id);
            self.act(effect.into_iter().collect());
            let expected = self.expected.get_mut(&id).unwrap();
            assert!(attempt > expected.attempt, "seed {}: attempt {attempt} of {id} again", self.seed);
            assert!(!expected.failed && !expected.given, "seed {}: {id} is not to be tried", self.seed);
            (expected.attempt, expected.given) = (attempt, true);
            self.offered(id, attempt, content);
        }
    }

    fn deliver(&mut self, id: u64, attempt: u64, message: Message) {
        let known = self.book.entries.get(&id).is_some_and(|entry| entry.attempt == attempt);
        if known && let Some(expected) = self.expected.get_mut(&id) {
            expect(expected, &message);
        }
        match message {
            Message::Offset(offset) => {
                let effect = self.book.offset(id, attempt, offset, self.now);
                self.act(effect.into_iter().collect());
            }
            Message::Sent => drop(self.book.sent(id, attempt, self.now)),
            Message::Broken => self.book.broken(id, attempt, self.now),
            Message::Told(state, code, retry_after_s, last) => {
                let verdict =
                    Verdict { state, error: code.map(Error::from), retry_after_s, last, ..Verdict::default() };
                let effects = self.book.verdict(id, attempt, verdict, self.now);
                self.act(effects);
            }
        }
        self.check(id);
    }

    fn check(&mut self, id: u64) {
        let (seed, run) = (self.seed, self.run);
        let Some(entry) = self.book.entries.get(&id) else { return };
        let (item, expected) = (entry.item(false), self.expected.get_mut(&id).unwrap());
        assert_eq!(item.retries, expected.retries, "seed {seed}, run {run}: {id} {expected:?}");
        assert_eq!(item.state == ItemState::Failed, expected.failed, "seed {seed}: {id} {expected:?}");
        assert!(item.done >= expected.done && item.done <= LENGTH, "seed {seed}: progress of {id} went back");
        expected.done = item.done;
        expected.given = entry.is_given();
    }

    fn network_changes(&mut self) {
        self.online = true;
        let effects = self.book.retry_all(self.now);
        self.act(effects);
        for expected in self.expected.values_mut().filter(|expected| expected.failed) {
            (expected.failed, expected.retries) = (false, 0);
        }
    }

    fn step(&mut self) {
        self.now += self.dice.roll() % 4_000;
        let (due, later) = std::mem::take(&mut self.mail).into_iter().partition(|mail| mail.0 <= self.now);
        self.mail = later;
        let due: Vec<(u64, u64, u64, Message)> = due;
        for (_, id, attempt, message) in due {
            self.deliver(id, attempt, message);
        }
        self.seal();
        self.book.requeue_stalled(self.now);
        let ids: Vec<u64> = self.book.entries.keys().copied().collect();
        ids.into_iter().for_each(|id| self.check(id));
        self.give();
        if self.calm {
            return;
        }
        match self.dice.roll() % 60 {
            0..12 => self.record(),
            12..14 => self.kill(),
            14 => {
                self.online = false;
                self.book.disconnected(self.now);
                self.expected.values_mut().for_each(|expected| expected.given = false);
            }
            15..18 => self.network_changes(),
            18 => {
                self.book.disconnected(self.now);
                self.expected.values_mut().for_each(|expected| expected.given = false);
            }
            _ => {}
        }
    }
}

/// The rules once more, in short.
fn expect(expected: &mut Expected, message: &Message) {
    match message {
        Message::Offset(offset) => {
            if *offset > expected.offset {
                expected.retries = 0;
            }
            expected.offset = *offset;
        }
        Message::Told(Some(_), ..) => (expected.retries, expected.offset) = (0, LENGTH),
        Message::Told(None, Some(code), ..) if FAILURES.contains(code) => {
            if expected.retries == 5 {
                expected.failed = true;
            } else {
                expected.retries += 1;
            }
        }
        _ => {}
    }
}

fn history(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..400 {
        world.step();
    }
    world.calm = true;
    world.network_changes();
    for _ in 0..2_000 {
        world.step();
        if world.store.state().items.is_empty() {
            break;
        }
    }
    let confirmed = world.relay.values().filter(|held| held.confirmed).count() as u64;
    let left = world.store.state().items.len();
    assert_eq!((confirmed, left), (world.recorded, 0), "seed {seed}: something is lost or never ends");
    assert_eq!(world.store.state().totals.confirmed, world.recorded, "seed {seed}");
    assert_eq!(world.disk.list().unwrap().len(), 1, "seed {seed}: only the queue's file is left");
}

#[test]
fn nothing_is_lost_altered_or_miscounted() {
    if let Ok(seed) = std::env::var("QUEUE_SEED") {
        return history(seed.parse().expect("QUEUE_SEED is a number"));
    }
    let seeds = std::env::var("QUEUE_SEEDS").map_or(80, |seeds| seeds.parse().expect("QUEUE_SEEDS is a number"));
    for seed in 0..seeds {
        if std::panic::catch_unwind(|| history(seed)).is_err() {
            panic!("replay with QUEUE_SEED={seed}");
        }
    }
}
