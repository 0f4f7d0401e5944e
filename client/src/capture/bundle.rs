//! Several WebSockets as one, for a kernel whose congestion control takes each loss for a full
//! queue: each connection alone gets only so far, several together fill a lossy link.
//!
//! The first is there at once. While chunks wait another is added now and then, as long as the last
//! one brought more ([`Growth`]): a link that is full gets no third. Each connection brings one chunk at
//! a time, and the next when its last byte went out; what is more merciful than all that a
//! connection has begun goes beside it at once, and before it.

mod growth;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::ChunkState;

use super::link::{Beside, Dial, FromLink, Job, Link, ToLink};
use super::queue::Rank;
use crate::connect::ConnectError;
use growth::Growth;

/// Connections at once.
const MAX_LINKS: usize = 10;
/// It is looked so often whether another connection is wanted.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// One connection now, more when they are needed.
pub(crate) async fn connect(dial: Dial) -> Result<Link, ConnectError> {
    let first = super::ws::connect(dial.clone(), false).await?;
    let mut link = Link::spawn(usize::MAX, move |jobs, news| Bundle::new(dial, news).run(first, jobs));
    link.carries(MAX_LINKS);
    Ok(link)
}

type News = (usize, Option<FromLink>);

/// One of the connections.
struct Strand {
    jobs: mpsc::Sender<ToLink>,
    given: HashMap<u64, Given>,
    _task: AbortOnDropHandle<()>,
}

/// A chunk that a connection was given.
struct Given {
    attempt: u64,
    rank: Rank,
    /// It has bytes to bring.
    moves: bool,
}

impl Strand {
    /// The most merciful chunk that it brings; none if it could begin another.
    fn brings(&self) -> Option<Rank> {
        self.given.values().filter(|given| given.moves).map(|given| given.rank).min()
    }
}

struct Bundle {
    dial: Dial,
    news: mpsc::Sender<FromLink>,
    strands: HashMap<usize, Strand>,
    /// What no connection has begun: as many as the session gives at most.
    waiting: BTreeMap<(Rank, u64), Box<Job>>,
    heard: SelectAll<BoxStream<'static, News>>,
    adding: Beside,
    growth: Growth,
    started: Instant,
    begun: usize,
}

impl Bundle {
    fn new(dial: Dial, news: mpsc::Sender<FromLink>) -> Self {
        let (strands, waiting, heard) = (HashMap::new(), BTreeMap::new(), SelectAll::new());
        Self {
            dial,
            news,
            strands,
            waiting,
            heard,
            adding: Beside::default(),
            growth: Growth::default(),
            started: Instant::now(),
            begun: 0,
        }
    }

    async fn run(mut self, first: Link, mut jobs: mpsc::Receiver<ToLink>) {
        self.add(first);
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            let open = tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => self.asked(job).await,
                    None => false,
                },
                Some((strand, news)) = self.heard.next() => self.told(strand, news).await,
                Some(link) = self.adding.ready() => {
                    self.add(link);
                    true
                }
                _ = tick.tick() => {
                    self.growth.look(self.now_ms(), self.dial.written.load(Ordering::Relaxed));
                    if self.needs_another() {
                        self.adding.begin(super::ws::connect(self.dial.clone(), false));
                    }
                    true
                }
            };
            if !open {
                return;
            }
            self.hand_out().await;
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn add(&mut self, link: Link) {
        self.growth.added(self.now_ms());
        let Link { jobs, news, task, .. } = link;
        let strand = self.begun;
        self.begun += 1;
        let news = futures_util::stream::unfold(Some(news), move |news| async move {
            let mut news = news?;
            let told = news.recv().await;
            let rest = told.is_some().then_some(news);
            Some(((strand, told), rest))
        });
        self.heard.push(news.boxed());
        self.strands.insert(strand, Strand { jobs, given: HashMap::new(), _task: task });
    }

    fn needs_another(&self) -> bool {
        if !self.growth.wants_more(self.now_ms(), self.strands.len() as u64) {
            return false;
        }
        let busy = self.strands.values().filter(|strand| strand.brings().is_some()).count();
        self.strands.len() < MAX_LINKS && (!self.waiting.is_empty() || busy == self.strands.len())
    }

    async fn asked(&mut self, job: ToLink) -> bool {
        match job {
            ToLink::Job(job) => {
                self.waiting.insert((job.rank, job.id), job);
                true
            }
            ToLink::Capability(token) => {
                self.dial.add(token.clone());
                for strand in self.strands.values() {
                    let _ = strand.jobs.send(ToLink::Capability(token.clone())).await;
                }
                true
            }
            ToLink::Moved => {
                for strand in self.strands.values() {
                    let _ = strand.jobs.send(ToLink::Moved).await;
                }
                true
            }
            ToLink::End(reason) => {
                for strand in self.strands.values() {
                    let _ = strand.jobs.send(ToLink::End(reason.clone())).await;
                }
                true
            }
        }
    }

    /// Gives chunks to the connections that may begin one.
    async fn hand_out(&mut self) {
        while let Some(first) = self.waiting.first_entry() {
            // None is the least: whoever brings nothing comes first, then the least merciful.
            let idle_first =
                |strand: &&mut Strand| strand.brings().map(Reverse).map_or((0, None), |rank| (1, Some(rank)));
            let Some(strand) = self.strands.values_mut().min_by_key(idle_first) else { return };
            // What the relay may hold is asked about at once; then it moves, or does not.
            let moves = !first.get().resume;
            if moves && strand.brings().is_some_and(|rank| rank.class() <= first.key().0.class()) {
                return;
            }
            let job = first.remove();
            strand.given.insert(job.id, Given { attempt: job.offer.attempt, rank: job.rank, moves });
            // A strand that is gone says so itself, and its chunks are brought by another.
            let _ = strand.jobs.send(ToLink::Job(job)).await;
        }
    }

    async fn told(&mut self, at: usize, news: Option<FromLink>) -> bool {
        let Some(strand) = self.strands.get_mut(&at) else { return true };
        match news {
            None => return self.ended(at, None, None).await,
            Some(FromLink::Closed { code, retry_after_s }) => return self.ended(at, code, retry_after_s).await,
            Some(FromLink::Better(link)) => {
                self.add(*link);
                return self.ended(at, None, None).await;
            }
            Some(FromLink::Sent { id, attempt }) => {
                if let Some(given) = strand.given.get_mut(&id) {
                    given.moves = false;
                }
                self.tell(FromLink::Sent { id, attempt }).await
            }
            Some(FromLink::Verdict { id, attempt, verdict }) => {
                if verdict.last || verdict.state.is_some_and(ChunkState::ended) {
                    strand.given.remove(&id);
                }
                self.tell(FromLink::Verdict { id, attempt, verdict }).await
            }
            Some(FromLink::Broken { id, attempt }) => {
                strand.given.remove(&id);
                self.tell(FromLink::Broken { id, attempt }).await
            }
            Some(FromLink::Offset { id, attempt, offset }) => {
                if let Some(given) = strand.given.get_mut(&id) {
                    given.moves = true;
                }
                self.tell(FromLink::Offset { id, attempt, offset }).await
            }
            Some(other @ (FromLink::Hint(_) | FromLink::Path(_) | FromLink::Bodies(_))) => self.tell(other).await,
        }
    }

    async fn tell(&mut self, news: FromLink) -> bool {
        self.news.send(news).await.is_ok()
    }

    /// A connection is gone: what it was to bring is to be brought by another. The last one takes
    /// the bundle with it.
    async fn ended(&mut self, at: usize, code: Option<String>, retry_after_s: Option<u64>) -> bool {
        let Some(strand) = self.strands.remove(&at) else { return true };
        if self.strands.is_empty() {
            self.tell(FromLink::Closed { code, retry_after_s }).await;
            return false;
        }
        for (id, given) in strand.given {
            self.tell(FromLink::Broken { id, attempt: given.attempt }).await;
        }
        true
    }
}
