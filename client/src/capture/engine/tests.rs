//! The session's task on a disk with faults.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use waystation_proto::id::{GroupId, IncidentId};
use waystation_proto::{Media, Offer, Variant};

use super::*;
use crate::authority::Answer;
use crate::capture::local::LocalKey;
use crate::capture::status::NetworkKind;
use crate::capture::store::disk::{Disk, Memory};
use crate::capture::{Cut, LaneSpec, Storage};
use crate::connect::{Endpoint, Transport, Trust};
use crate::keys::GroupKey;

/// A disk whose files outlive the store, and which fails as it is told.
#[derive(Clone, Default)]
struct Faulty(Arc<Mutex<(Memory, Faults)>>);

#[derive(Default)]
struct Faults {
    /// These can't be read.
    unreadable: HashSet<String>,
    /// Nothing can be added to a file.
    full: bool,
}

impl Faulty {
    fn with<T>(&self, look: impl FnOnce(&mut Memory, &mut Faults) -> T) -> T {
        let (memory, faults) = &mut *self.0.lock().unwrap();
        look(memory, faults)
    }

    fn chunks(&self) -> Vec<String> {
        self.with(|memory, _| memory.list().unwrap().into_iter().filter(|name| name.len() == 32).collect())
    }
}

impl Disk for Faulty {
    fn list(&mut self) -> io::Result<Vec<String>> {
        self.with(|memory, _| memory.list())
    }
    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        self.with(|memory, faults| match faults.unreadable.contains(name) {
            true => Err(ErrorKind::PermissionDenied.into()),
            false => memory.read(name),
        })
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.with(|memory, _| memory.create(name, bytes))
    }
    fn append(&mut self, name: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
        self.with(|memory, faults| match faults.full {
            true => Err(ErrorKind::StorageFull.into()),
            false => memory.append(name, bytes, sync),
        })
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.with(|memory, _| memory.rename(from, to))
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.with(|memory, _| memory.remove(name))
    }
    fn sync_names(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Nobody answers; what is needed is put into the session by hand.
struct Nobody;

impl Authority for Nobody {
    fn ids(&self, _: Option<Ids>) -> Answer<'_, Ids> {
        Box::pin(std::future::pending())
    }
    fn next_stream(&self, _: Variant, _: Media, _: Option<StreamId>) -> Answer<'_, StreamId> {
        Box::pin(std::future::pending())
    }
    fn upload_capability(&self, _: Vec<StreamId>) -> Answer<'_, Vec<Token>> {
        Box::pin(std::future::pending())
    }
    fn fanout_capability(&self) -> Answer<'_, Token> {
        Box::pin(std::future::pending())
    }
    fn reconcile(&self, _: Offer) -> Answer<'_, Reconciled> {
        Box::pin(std::future::pending())
    }
    fn jwks(&self) -> Answer<'_, Option<Jwks>> {
        Box::pin(std::future::pending())
    }
}

struct Rig {
    disk: Faulty,
    engine: Engine,
    events: mpsc::Receiver<Event>,
    _commands: mpsc::Sender<Command>,
    _shows: watch::Receiver<Status>,
}

fn stream() -> StreamId {
    StreamId::new("stream_1").unwrap()
}

fn rig() -> Rig {
    let disk = Faulty::default();
    let trust = Trust::certificates(Vec::new()).unwrap();
    let config = Config {
        relays: vec![Endpoint::parse("http://127.0.0.1:1", trust).unwrap()],
        transport: Transport::Ws,
        group_key: GroupKey::new([42; 32]),
        lanes: vec![LaneSpec { variant: Variant::AudioPriority, media: Media::Audio }],
        client_key: None,
        storage: Storage::Memory,
        manifest: false,
        wait_s: 5,
    };
    let key = LocalKey::new([1; 32]);
    let store = Store::open(Box::new(disk.clone()), key, Box::new(clock::fill), 1 << 20, "g").unwrap();
    let ((commands, inbox), (out, events)) = (mpsc::channel(8), mpsc::channel(64));
    let (shows, shown) = watch::channel(Status::default());
    let mut engine = Engine::new(config, Arc::new(Nobody), store, inbox, out, shows);
    let (incident, group) = (IncidentId::new("incident_1").unwrap(), GroupId::new("group_1").unwrap());
    engine.ids = Some(Ids { incident, group, sid: None });
    Rig { disk, engine, events, _commands: commands, _shows: shown }
}

impl Rig {
    /// The lane gets a stream, whose record is not written down yet.
    fn open_stream(&mut self) {
        let lane = &mut self.engine.lanes[0].lane;
        lane.asked();
        self.engine.told(Told::Stream(0, Ok(stream())));
        self.engine.lanes[0].lane.covered(&stream(), 64);
    }

    /// Cuts chunks and returns their files, oldest first.
    async fn cut(&mut self, count: u8) -> Vec<String> {
        for n in 0..count {
            let (reply, answer) = oneshot::channel();
            let plaintext = zeroize::Zeroizing::new(vec![n; 100]);
            let cut = Cut { variant: Variant::AudioPriority, plaintext, started_ms: 0, ended_ms: 1 };
            self.engine.accept(cut, reply).await;
            answer.await.unwrap().unwrap();
        }
        self.engine.store.look(|state| state.items.values().map(|item| item.file.clone()).collect())
    }

    /// Ids of the chunks that are there, and whether each is sealed; and how many are lost.
    fn chunks(&self) -> (Vec<(u64, bool)>, u64) {
        self.engine.store.look(|state| {
            (state.items.iter().map(|(id, item)| (*id, item.sealed.is_some())).collect(), state.totals.lost)
        })
    }

    fn told(&mut self) -> Vec<Event> {
        let events = std::iter::from_fn(|| self.events.try_recv().ok());
        events.filter(|event| matches!(event, Event::Held { .. } | Event::Lost { .. })).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_not_there_is_called_at_once_then_later_and_then_every_second() {
    let mut rig = rig();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        rig.engine.disconnected(None, None);
        pauses.push((rig.engine.connect_at - Instant::now()).as_millis());
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(pauses, [0, 250, 500, 1000, 1000, 1000, 1000]);
    // One that was good for a while is called at once again.
    rig.engine.link = Some(Link::spawn(1, |_, _| async {}));
    rig.engine.connected_at = Instant::now();
    tokio::time::advance(Duration::from_secs(60)).await;
    rig.engine.disconnected(None, None);
    assert_eq!(rig.engine.connect_at, Instant::now());
}

#[tokio::test]
async fn a_chunk_that_the_disk_does_not_give_now_is_kept_and_the_others_go_on() {
    let mut rig = rig();
    let files = rig.cut(3).await;
    rig.open_stream();
    rig.engine.write_down().await;
    rig.disk.with(|_, faults| faults.unreadable.insert(files[1].clone()));
    for _ in 0..4 {
        rig.engine.seal_some().await;
    }
    assert_eq!(rig.chunks(), (vec![(0, true), (1, false), (2, true)], 0));
    assert!(rig.disk.chunks().contains(&files[1]));
    let held = Event::Held { variant: Variant::AudioPriority, code: "file_unreadable".into() };
    assert_eq!(rig.told(), [held], "told once");
    rig.disk.with(|_, faults| faults.unreadable.clear());
    rig.engine.lanes[0].ask_again();
    rig.engine.seal_some().await;
    assert_eq!(rig.chunks(), (vec![(0, true), (1, true), (2, true)], 0));
}

#[tokio::test]
async fn a_file_that_does_not_open_is_told_and_left_and_one_that_is_gone_is_lost() {
    let mut rig = rig();
    let files = rig.cut(3).await;
    rig.open_stream();
    rig.engine.write_down().await;
    let spoiled = rig.disk.with(|memory, _| {
        let mut bytes = memory.read(&files[0]).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        memory.remove(&files[0]).unwrap();
        memory.create(&files[0], &bytes).unwrap();
        memory.remove(&files[1]).unwrap();
        bytes
    });
    rig.engine.seal_some().await;
    rig.engine.seal_some().await;
    assert_eq!(rig.chunks(), (vec![(2, true)], 2));
    let lost = |lane_seq| Event::Lost { variant: Variant::AudioPriority, lane_seq };
    assert_eq!(rig.told(), [lost(0), lost(1)]);
    let left = rig.disk.with(|memory, _| memory.read(&format!("{}.left", files[0])));
    assert_eq!(left.unwrap(), spoiled, "what is there is never taken away");
}

#[tokio::test]
async fn no_chunk_is_sealed_for_a_stream_that_is_not_written_down() {
    let mut rig = rig();
    rig.cut(1).await;
    rig.disk.with(|_, faults| faults.full = true);
    rig.open_stream();
    rig.engine.write_down().await;
    // The disk takes something again before the stream's record goes: the order must hold.
    rig.disk.with(|_, faults| faults.full = false);
    rig.engine.seal_some().await;
    assert_eq!(rig.chunks().0, [(0, false)]);
    rig.engine.write_down().await;
    rig.engine.seal_some().await;
    assert_eq!(rig.chunks().0, [(0, true)]);
    let used =
        rig.engine.store.look(|state| state.lanes[0].streams.iter().map(|stream| stream.used).collect::<Vec<_>>());
    assert_eq!(used, [1], "the next run goes on behind it");
}

#[tokio::test]
async fn a_relay_that_goes_away_for_ever_is_called_again_and_at_once_on_another_network() {
    let mut rig = rig();
    rig.engine.disconnected(None, Some(u64::MAX));
    let wait = rig.engine.connect_at.saturating_duration_since(Instant::now());
    assert!(wait <= Duration::from_secs(600) && wait > Duration::from_secs(500), "{wait:?}");
    rig.engine.command(Command::Retry).await;
    assert!(rig.engine.connect_at <= Instant::now());
}

#[tokio::test(start_paused = true)]
async fn only_the_first_try_after_a_good_connection_begins_with_requests() {
    let mut rig = rig();
    let lasts = async |engine: &mut Engine, ms: u64| {
        engine.connecting = true;
        engine.connected(Ok(Link::spawn(1, |_, _| std::future::pending())));
        tokio::time::advance(Duration::from_millis(ms)).await;
        engine.disconnected(None, None);
        engine.early
    };
    assert!(!rig.engine.early, "nobody is known yet");
    assert!(lasts(&mut rig.engine, 60_000).await);
    assert!(!lasts(&mut rig.engine, 3_500).await, "this one may have been begun early in vain");
    assert!(!lasts(&mut rig.engine, 10).await);
    assert!(lasts(&mut rig.engine, 60_000).await, "another was good again");
    assert_eq!(rig.engine.failures, 1, "and what was before it is forgotten");
    rig.engine.disconnected(None, None);
    assert!(!rig.engine.early, "a try that failed");
    rig.engine.command(Command::Network(Network { kind: NetworkKind::Cellular, battery_low: false })).await;
    assert!(rig.engine.early, "the relay is known on the other network too");
}

#[tokio::test(start_paused = true)]
async fn a_try_that_begins_with_requests_uses_that_up() {
    let mut rig = rig();
    rig.engine.early = true;
    rig.engine.connect();
    assert!(rig.engine.early, "without a capability nothing is tried");
    let now_s = clock::unix_ms() / 1000;
    let token = Token::parse(&crate::token::tests::forge(&[("stream_1", 64)], now_s, now_s + 900)).unwrap();
    rig.engine.told(Told::Capability(Ok(vec![token])));
    rig.engine.connect();
    assert!(rig.engine.connecting && !rig.engine.early);
}
