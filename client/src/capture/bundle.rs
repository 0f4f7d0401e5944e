//! Several WebSockets as one, for a kernel whose congestion control takes each loss for a full
//! queue: each connection alone gets only so far, several together fill a lossy link.
//!
//! The first is there at once. While chunks wait another is added now and then, as long as the last
//! one brought more ([`Growth`]): a link that is full gets no third. Each connection brings one chunk of
//! a class at a time, and the next when its last byte went out.

mod growth;

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
use crate::token::Token;
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
    /// As [`Rank::class`].
    class: usize,
    /// It has bytes to bring.
    moves: bool,
    /// All its bytes went out on this connection.
    sent: bool,
}

impl Strand {
    /// Whether it brings a chunk, of this class if one is named.
    fn brings(&self, class: Option<usize>) -> bool {
        self.given.values().any(|given| given.moves && class.is_none_or(|class| class == given.class))
    }

    /// What it was given, if it still is this attempt.
    fn given(&mut self, id: u64, attempt: u64) -> Option<&mut Given> {
        self.given.get_mut(&id).filter(|given| given.attempt == attempt)
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
    /// Capabilities that came while another connection was made.
    later: Vec<Token>,
    /// The recording is over: no other connection is made.
    ends: bool,
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
            later: Vec::new(),
            ends: false,
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
                    self.growth.added(self.now_ms());
                    self.add(link);
                    // What came while it was made, and is not in its HELLO.
                    for token in std::mem::take(&mut self.later) {
                        self.ask_newest(ToLink::Capability(token)).await;
                    }
                    true
                }
                _ = tick.tick() => {
                    self.growth.look(self.now_ms(), self.dial.written.load(Ordering::Relaxed));
                    if self.needs_another() {
                        self.later.clear();
                        self.adding.begin(super::ws::once(self.dial.clone(), false));
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
        if self.ends || !self.growth.wants_more(self.now_ms(), self.strands.len() as u64) {
            return false;
        }
        let busy = self.strands.values().filter(|strand| strand.brings(None)).count();
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
                if self.adding.is_begun() {
                    self.later.push(token.clone());
                }
                for strand in self.strands.values() {
                    let _ = strand.jobs.send(ToLink::Capability(token.clone())).await;
                }
                true
            }
            ToLink::Moved => {
                // What the old network took says nothing of this one.
                self.growth = Growth::default();
                self.growth.added(self.now_ms());
                for strand in self.strands.values() {
                    let _ = strand.jobs.send(ToLink::Moved).await;
                }
                true
            }
            ToLink::End(reason) => {
                self.ends = true;
                self.adding.stop();
                for strand in self.strands.values() {
                    let _ = strand.jobs.send(ToLink::End(reason.clone())).await;
                }
                true
            }
        }
    }

    async fn ask_newest(&mut self, asked: ToLink) {
        if let Some(strand) = self.begun.checked_sub(1).and_then(|at| self.strands.get_mut(&at)) {
            let _ = strand.jobs.send(asked).await;
        }
    }

    /// Gives chunks to the connections that may begin one: each brings one of a class at a time, and
    /// its plan says which of them goes first. What the relay may hold is asked about at once.
    async fn hand_out(&mut self) {
        let turns: Vec<(Rank, u64)> = self.waiting.keys().copied().collect();
        for turn in turns {
            let Some(resume) = self.waiting.get(&turn).map(|job| job.resume) else { continue };
            let class = turn.0.class();
            let free = self.strands.values_mut().filter(|strand| resume || !strand.brings(Some(class)));
            let Some(strand) = free.min_by_key(|strand| (strand.brings(None), strand.given.len())) else { continue };
            let Some(job) = self.waiting.remove(&turn) else { continue };
            strand.given.insert(job.id, Given { attempt: job.offer.attempt, class, moves: !resume, sent: false });
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
                if let Some(given) = strand.given(id, attempt) {
                    (given.moves, given.sent) = (false, true);
                }
                self.tell(FromLink::Sent { id, attempt }).await
            }
            Some(FromLink::Verdict { id, attempt, verdict }) => {
                let over = verdict.last || verdict.state.is_some_and(ChunkState::ended);
                let whole = verdict.state.is_some_and(is_whole);
                if over && strand.given(id, attempt).is_some() {
                    strand.given.remove(&id);
                } else if let Some(given) = strand.given(id, attempt).filter(|_| whole) {
                    given.moves = false;
                }
                self.tell(FromLink::Verdict { id, attempt, verdict }).await
            }
            Some(FromLink::Broken { id, attempt }) => {
                strand.given.remove(&id);
                self.tell(FromLink::Broken { id, attempt }).await
            }
            Some(FromLink::Offset { id, attempt, offset }) => {
                if let Some(given) = strand.given(id, attempt) {
                    // What went early is asked for when it is gone already.
                    given.moves = !given.sent;
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

/// The relay needs no more bytes of such a chunk.
fn is_whole(state: ChunkState) -> bool {
    state.held() || state == ChunkState::Unsettled
}
