//! The session's task: joins the rules ([`super::book`], [`super::lane`], [`super::wallet`]) with
//! the queue on disk, the connection, the authority and the clock.

mod chunks;
mod connection;
mod orders;
mod supply;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use waystation_proto::id::StreamId;

use super::book::{Book, New};
use super::event::{Event, Label, Summary};
use super::link::{FromLink, Link};
use super::policy::Policy;
use super::status::{Network, SessionState, Status};
use super::store::record::{Record, State};
use super::store::{Shared, Store};
use super::wallet::Wallet;
use super::{Command, Config};
use crate::authority::{Authority, AuthorityError, Ids, Reconciled};
use crate::clock;
use crate::connect::ConnectError;
use crate::receipt::Jwks;
use crate::token::Token;

use waiting::{LaneQueue, Unsealed};

pub(super) use orders::status_of;

/// Streams that one capability is asked for; more are covered one after the other.
const MAX_STREAMS: usize = 48;
/// Unsettled chunks that the core is asked about at once.
const MAX_RECONCILING: usize = 8;
/// Pause after the authority did not answer, or the disk failed.
const PAUSE_MS: i64 = 1000;
/// Pause after the authority refused.
const REFUSED_PAUSE_MS: i64 = 60_000;
/// The core's keys are fetched again at most this often.
const KEYS_PAUSE_MS: i64 = 30_000;
/// A status is shown at most this often.
const SHOW_AFTER: Duration = Duration::from_millis(50);

/// What the authority answered.
enum Told {
    Ids(Result<Ids, AuthorityError>),
    Stream(usize, Result<StreamId, AuthorityError>),
    Capability(Result<Vec<Token>, AuthorityError>),
    Reconciled(u64, Result<Reconciled, AuthorityError>),
    Keys(Option<Jwks>),
    Connected(Result<Link, ConnectError>),
}

enum Input {
    Command(Option<Command>),
    Link(Option<FromLink>),
    Told(Told),
    Timer,
}

struct Finishing {
    deadline: Instant,
    reason: String,
    reply: oneshot::Sender<Summary>,
}

pub(crate) struct Engine {
    config: Config,
    authority: Arc<dyn Authority>,
    store: Shared,
    /// Changes to be written down with the next ones.
    records: Vec<Record>,
    commands: mpsc::Receiver<Command>,
    /// A command that was taken ahead of its turn.
    later: Option<Command>,
    events: mpsc::Sender<Event>,
    shows: watch::Sender<Status>,
    shown_at: Instant,
    changed: bool,
    started: Instant,
    session: SessionState,
    network: Network,
    ids: Option<Ids>,
    /// The recording's names are awaited, or were given in this run.
    ids_asked: bool,
    named: bool,
    lanes: Vec<LaneQueue>,
    next_id: u64,
    not_before_ms: NotBefore,
    closing: bool,
    ready: bool,
    book: Book,
    policy: Policy,
    wallet: Wallet,
    link: Option<Link>,
    connecting: bool,
    failures: usize,
    /// The next connection begins with requests, before its handshake is complete.
    early: bool,
    relay: usize,
    connect_at: Instant,
    connected_at: Instant,
    connections: u64,
    /// Something was recorded in this run.
    recorded: bool,
    /// There are signs of life: something was recorded in this run, or it is the first and nothing was yet. One that
    /// finds what an earlier run left may only be bringing that, until it records.
    recording: Arc<AtomicBool>,
    /// The core's keys are awaited.
    keys_asked: bool,
    /// Chunks of which the core is asked, and those that wait for their turn.
    reconciling: HashSet<u64>,
    unasked: BTreeSet<u64>,
    /// Answers that are awaited; at most one for each lane and unsettled chunk asked about, and
    /// four more.
    tasks: JoinSet<Told>,
    finishing: Option<Finishing>,
    summary: Summary,
}

/// Calendar times in milliseconds before which something is not done again.
struct NotBefore {
    ids: i64,
    streams: i64,
    sealing: i64,
    keys: i64,
}

impl Engine {
    pub(crate) fn new(
        config: Config,
        authority: Arc<dyn Authority>,
        store: Store,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        shows: watch::Sender<Status>,
    ) -> Self {
        let seed = clock::random().map_or(0, u64::from_be_bytes);
        let (state, started) = (store.state(), Instant::now());
        let mut engine = Self {
            book: Book::new(state.epoch, seed),
            policy: Policy::default(),
            session: state.session,
            ids: state.ids.clone(),
            next_id: state.next_id,
            closing: state.closing,
            ready: state.ready,
            lanes: waiting::lanes(state, &config),
            records: Vec::new(),
            config,
            authority,
            commands,
            later: None,
            events,
            shows,
            shown_at: started,
            changed: true,
            started,
            network: Network::default(),
            ids_asked: false,
            named: false,
            not_before_ms: NotBefore { ids: 0, streams: 0, sealing: 0, keys: i64::MIN },
            wallet: Wallet::default(),
            link: None,
            connecting: false,
            failures: 0,
            early: false,
            relay: 0,
            connect_at: started,
            connected_at: started,
            connections: 0,
            recorded: false,
            recording: Arc::new(AtomicBool::new(!state.closing && state.next_id == State::default().next_id)),
            keys_asked: false,
            reconciling: HashSet::new(),
            unasked: BTreeSet::new(),
            tasks: JoinSet::new(),
            finishing: None,
            summary: Summary::default(),
            store: Shared::new(store),
        };
        engine.restore();
        engine
    }

    /// Takes up what an earlier run left, and writes down lanes that are new.
    fn restore(&mut self) {
        if self.store.look(|state| state.signs) {
            self.book.signs();
        }
        let (items, known) = self.store.look(|state| {
            let known: Vec<_> = state.lanes.iter().map(|lane| lane.variant).collect();
            let manifest = |id| state.is_manifest(id);
            let items: Vec<_> = state.items.iter().map(|(id, item)| (*id, manifest(*id), item.clone())).collect();
            (items, known)
        });
        let new = self.lanes.iter().filter(|queue| !known.contains(&queue.lane.variant));
        let new: Vec<Record> = new.map(LaneQueue::record).collect();
        self.records.extend(new);
        for (id, manifest, item) in items {
            let (lane_seq, started_ms, ended_ms, variant) =
                (item.lane_seq, item.started_ms, item.ended_ms, item.variant);
            match item.sealed {
                Some(sealed) => {
                    let (offer, stream_no) = (sealed.offer, sealed.stream_no);
                    let label =
                        Label { variant, lane_seq, stream_no, index: offer.index, started_ms, length: offer.length };
                    self.book.add(id, New { label, offer, manifest, note: item.note }, 0);
                }
                None => {
                    let unsealed = Unsealed::new(id, lane_seq, started_ms, ended_ms);
                    let lane = self.lanes.iter_mut().find(|queue| queue.lane.variant == variant);
                    lane.into_iter().for_each(|queue| queue.unsealed.push_back(unsealed));
                }
            }
        }
    }

    pub(crate) async fn run(mut self) {
        self.fetch_keys(Duration::ZERO);
        if self.ready {
            self.emit(Event::EvidenceReady);
        }
        loop {
            self.write_down().await;
            self.ask_for_ids();
            self.ask_for_streams();
            self.seal_some().await;
            self.cut_manifest().await;
            self.ask_for_capability();
            self.book.requeue_stalled(self.now_ms());
            self.connect();
            self.give().await;
            self.show();
            if self.finishing.as_ref().is_some_and(|f| self.is_done() || f.deadline <= Instant::now()) {
                return self.finished().await;
            }
            let going = match self.next_input().await {
                Input::Command(Some(command)) => self.command(command).await,
                Input::Command(None) => false,
                Input::Link(news) => {
                    self.heard_all(news);
                    true
                }
                Input::Told(told) => {
                    self.told(told);
                    true
                }
                Input::Timer => true,
            };
            if !going {
                return self.write_down().await;
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn emit(&mut self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.summary.events_missed += 1;
        }
    }

    /// Nothing is sent now.
    fn is_idle(&self) -> bool {
        self.session == SessionState::Paused || !self.network.is_usable()
    }

    /// Whether there is somebody to ask for streams and capabilities, and a way to them.
    fn can_ask(&self) -> bool {
        self.named && self.network.is_usable()
    }

    async fn next_input(&mut self) -> Input {
        if let Some(command) = self.later.take() {
            return Input::Command(Some(command));
        }
        let wake = self.wake_at();
        let news = async {
            match &mut self.link {
                Some(link) => link.news.recv().await,
                None => std::future::pending().await,
            }
        };
        let input = tokio::select! {
            command = self.commands.recv() => Input::Command(command),
            news = news => Input::Link(news),
            Some(Ok(told)) = self.tasks.join_next() => Input::Told(told),
            () = tokio::time::sleep_until(wake) => return Input::Timer,
        };
        self.changed = true;
        input
    }

    /// When something is to be done though nothing happens.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        if self.can_seal_more() {
            return now;
        }
        let mut wake = now + Duration::from_secs(1);
        if self.changed {
            wake = wake.min(self.shown_at + SHOW_AFTER);
        }
        if let Some(due) = self.book.next_due(self.now_ms()) {
            wake = wake.min(self.started + Duration::from_millis(due));
        }
        if self.can_ask()
            && let Some(ask) = self.wallet.ask_at()
        {
            let wait = u64::try_from(ask - clock::unix_ms()).unwrap_or(0).max(1);
            wake = wake.min(now + Duration::from_millis(wait));
        }
        if self.link.is_none() && !self.connecting && self.connect_at > now {
            wake = wake.min(self.connect_at);
        }
        self.finishing.as_ref().map_or(wake, |finishing| wake.min(finishing.deadline))
    }

    /// Writes changes down that wait for it.
    async fn write_down(&mut self) {
        let records = std::mem::take(&mut self.records);
        if records.is_empty() {
            return;
        }
        let kept: Vec<Record> = records.iter().filter(|r| !matches!(r, Record::Noted { .. })).cloned().collect();
        let work = move |store: &mut Store| {
            records.into_iter().for_each(|record| store.add(record));
            store.commit()
        };
        if self.store.work(work).await.is_err() {
            // A note may be lost; the rest is written with the next change.
            self.records = kept;
        }
    }
}
