//! The session's task: joins the rules ([`super::book`], [`super::lane`], [`super::wallet`]) with
//! the connection, the authority, the store and the clock.

mod chunks;
mod supply;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use waystation_proto::id::StreamId;
use zeroize::Zeroizing;

use super::book::{Book, Effect};
use super::event::{Event, Summary};
use super::lane::Lane;
use super::link::{Dial, FromLink, Link, ToLink};
use super::policy::{Change, Policy};
use super::store::Store;
use super::wallet::Wallet;
use super::{Command, Config};
use crate::authority::{Authority, AuthorityError};
use crate::clock;
use crate::connect::ConnectError;
use crate::receipt::Jwks;
use crate::token::Token;

/// Plaintext that may wait for a stream to be sealed for, in bytes over all lanes.
const MAX_UNSEALED: usize = 64 << 20;
/// Streams that one capability is asked for; more are covered one after the other.
const MAX_STREAMS: usize = 48;
/// Pause after the authority gave nothing.
const AUTHORITY_PAUSE_MS: i64 = 1000;
/// The core's keys are fetched again at most this often.
const KEYS_PAUSE_MS: i64 = 30_000;
/// Time for `END` and what is queued before it to go out.
const CLOSING_LIMIT: Duration = Duration::from_secs(2);
/// A connection that lasted this long was a good one.
const STEADY: Duration = Duration::from_secs(3);
/// Delays before tries to connect: at once, then these, then every second.
const RECONNECT_MS: [u64; 4] = [0, 250, 500, 1000];

/// A chunk that waits for its place.
struct Unsealed {
    lane: usize,
    lane_seq: u64,
    plaintext: Zeroizing<Vec<u8>>,
    started_ms: i64,
    ended_ms: i64,
}

/// What the authority answered.
enum Told {
    Stream(usize, Result<StreamId, AuthorityError>),
    Capability(Result<Vec<Token>, AuthorityError>),
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
    store: Store,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    started: Instant,
    lanes: Vec<Lane>,
    lane_seqs: Vec<u64>,
    retry_streams_ms: i64,
    unsealed: VecDeque<Unsealed>,
    unsealed_bytes: usize,
    book: Book,
    policy: Policy,
    wallet: Wallet,
    next_id: u64,
    link: Option<Link>,
    connecting: bool,
    failures: usize,
    connect_at: Instant,
    connected_at: Instant,
    connections: u64,
    /// The core's keys are awaited.
    keys_asked: bool,
    keys_not_before_ms: i64,
    /// Answers that are awaited; at most one for each lane and two more.
    tasks: JoinSet<Told>,
    finishing: Option<Finishing>,
    summary: Summary,
}

impl Engine {
    pub(crate) fn new(
        config: Config,
        authority: Arc<dyn Authority>,
        store: Store,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let lanes: Vec<Lane> = config.lanes.iter().map(|lane| Lane::new(lane.variant, lane.media)).collect();
        Self {
            lane_seqs: vec![0; lanes.len()],
            config,
            authority,
            store,
            commands,
            events,
            started: Instant::now(),
            lanes,
            retry_streams_ms: 0,
            unsealed: VecDeque::new(),
            unsealed_bytes: 0,
            book: Book::default(),
            policy: Policy::default(),
            wallet: Wallet::default(),
            next_id: 0,
            link: None,
            connecting: false,
            failures: 0,
            connect_at: Instant::now(),
            connected_at: Instant::now(),
            connections: 0,
            keys_asked: false,
            keys_not_before_ms: i64::MIN,
            tasks: JoinSet::new(),
            finishing: None,
            summary: Summary::default(),
        }
    }

    pub(crate) async fn run(mut self) {
        self.fetch_keys(Duration::ZERO);
        loop {
            self.ask_for_streams();
            self.seal_waiting().await;
            self.ask_for_capability();
            self.connect();
            self.give().await;
            if self.finishing.as_ref().is_some_and(|f| self.is_done() || f.deadline <= Instant::now()) {
                return self.end().await;
            }
            match self.next_input().await {
                Input::Command(Some(Command::Chunk(cut, reply))) => {
                    // Nobody waits for the answer: the chunk is kept all the same.
                    let _ = reply.send(self.accept(cut));
                }
                Input::Command(Some(Command::Finish(limit, reason, reply))) => {
                    self.finishing = Some(Finishing { deadline: Instant::now() + limit, reason, reply });
                }
                Input::Command(None) => return,
                Input::Link(news) => self.heard(news).await,
                Input::Told(told) => self.told(told).await,
                Input::Timer => {}
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

    fn is_done(&self) -> bool {
        self.unsealed.is_empty() && self.book.all_ended()
    }

    async fn next_input(&mut self) -> Input {
        let wake = self.wake_at();
        let finishing = self.finishing.is_some();
        let news = async {
            match &mut self.link {
                Some(link) => link.news.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv(), if !finishing => Input::Command(command),
            news = news => Input::Link(news),
            Some(Ok(told)) = self.tasks.join_next() => Input::Told(told),
            () = tokio::time::sleep_until(wake) => Input::Timer,
        }
    }

    /// When something is to be done though nothing happens.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let mut wake = now + Duration::from_secs(1);
        if let Some(due) = self.book.next_due(self.now_ms()) {
            wake = wake.min(self.started + Duration::from_millis(due));
        }
        if let Some(ask) = self.wallet.ask_at() {
            let wait = u64::try_from(ask - clock::unix_ms()).unwrap_or(0).max(1);
            wake = wake.min(now + Duration::from_millis(wait));
        }
        if self.link.is_none() && !self.connecting && self.connect_at > now {
            wake = wake.min(self.connect_at);
        }
        self.finishing.as_ref().map_or(wake, |finishing| wake.min(finishing.deadline))
    }

    // === connection ===

    fn connect(&mut self) {
        let tokens = self.wallet.live(clock::unix_ms());
        if self.link.is_some() || self.connecting || tokens.is_empty() || self.connect_at > Instant::now() {
            return;
        }
        self.connecting = true;
        let (transport, relay, wait_s) = (self.config.transport, self.config.relay.clone(), self.config.wait_s);
        let dial = Dial { transport, relay, tokens, wait_s };
        // What is sent early may be lost as a whole: once, not with every try.
        let early = self.connections > 0 && self.failures == 0;
        self.tasks.spawn(async move { Told::Connected(dial.connect(early).await) });
    }

    fn connected(&mut self, result: Result<Link, ConnectError>) {
        self.connecting = false;
        match result {
            Ok(link) => {
                self.link = Some(link);
                let changes = self.policy.connected();
                self.advised(changes);
                self.connected_at = Instant::now();
                self.emit(Event::Connected { earlier: self.connections });
                self.summary.reconnects += u64::from(self.connections > 0);
                self.connections += 1;
            }
            Err(error) => {
                let (code, wait) = match error {
                    ConnectError::Refused { code, retry_after_s } => (Some(code), retry_after_s),
                    ConnectError::Unreachable => (None, None),
                    other => (Some(other.to_string()), None),
                };
                self.disconnected(code, wait);
            }
        }
    }

    fn disconnected(&mut self, code: Option<String>, retry_after_s: Option<u64>) {
        if code.as_deref().is_some_and(|code| code.starts_with("capability_") || code == "http_401") {
            self.wallet.want();
        }
        // A relay that accepts and closes again must not be called without a pause.
        if self.link.is_some() && self.connected_at.elapsed() > STEADY {
            self.failures = 0;
        }
        let pause = RECONNECT_MS[self.failures.min(RECONNECT_MS.len() - 1)].max(retry_after_s.unwrap_or(0) * 1000);
        self.failures += 1;
        self.connect_at = Instant::now() + Duration::from_millis(pause);
        self.link = None;
        let now_ms = self.now_ms();
        self.book.disconnected(now_ms);
        self.emit(Event::Disconnected { code });
    }

    async fn heard(&mut self, news: Option<FromLink>) {
        let now_ms = self.now_ms();
        match news {
            Some(FromLink::Sent { id, attempt }) => {
                if let Some(label) = self.book.sent(id, attempt, now_ms) {
                    self.emit(Event::Sent(label));
                }
            }
            Some(FromLink::Verdict { id, attempt, verdict }) => {
                let effects = self.book.verdict(id, attempt, verdict, now_ms);
                self.act(effects).await;
            }
            Some(FromLink::Broken { id, attempt }) => {
                self.summary.reconnects += 1;
                self.book.broken(id, attempt, now_ms);
            }
            Some(FromLink::Hint(hint)) => {
                let changes = self.policy.heard(&hint, now_ms);
                self.emit(Event::Hint(hint));
                self.advised(changes);
            }
            Some(FromLink::Better(link)) => {
                self.disconnected(None, None);
                self.connected(Ok(*link));
            }
            Some(FromLink::Closed { code, retry_after_s }) => self.disconnected(code, retry_after_s),
            None => self.disconnected(None, None),
        }
    }

    /// Tells the recorder what follows from the relay's advice.
    fn advised(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.emit(Event::Advice(change));
        }
    }

    async fn act(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::State { label, state, code, receipt, .. } => {
                    self.emit(Event::State { label, state, code, receipt });
                }
                Effect::Free { id } => self.store.free(id).await,
                Effect::Renew => self.wallet.want(),
                Effect::FetchKeys => self.fetch_keys_again(),
            }
        }
    }

    // === end ===

    async fn end(mut self) {
        let Some(finishing) = self.finishing.take() else { return };
        if let Some(link) = self.link.take() {
            let Link { jobs, mut news, task, .. } = link;
            let closing = async {
                let _ = jobs.send(ToLink::End(finishing.reason)).await;
                while news.recv().await.is_some() {}
                let _ = task.await;
            };
            let _ = tokio::time::timeout(CLOSING_LIMIT, closing).await;
        }
        let count = self.book.count();
        let unsealed = self.unsealed.len() as u64;
        let summary = Summary {
            chunks: count.chunks + unsealed + self.summary.lost,
            confirmed: count.confirmed,
            unsettled: count.unsettled,
            rejected: count.rejected,
            expired: count.expired,
            pending: self.book.open().count() as u64 + unsealed,
            ..self.summary
        };
        // Whoever asked may have given up waiting.
        let _ = finishing.reply.send(summary);
    }
}
