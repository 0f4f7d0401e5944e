//! Several WebSockets as one, for a kernel whose congestion control takes each loss for a full
//! queue: each connection alone gets only so far, several together fill a lossy link.
//!
//! The first is there at once. While chunks wait another is added now and then, as long as the last
//! one brought more ([`Growth`]): a link that is full gets no third. Each connection brings one chunk of
//! a class at a time, and the next when its last byte went out.
//!
//! Where nothing is heard any more, or on another network, one connection is made for all of them,
//! and they go when it is through: the link that comes back may be thinner than the one that went.

mod growth;
mod strand;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};
use tokio::sync::mpsc;
use tokio::time::Instant;
use waystation_proto::ChunkState;

use super::ear::Takes;
use super::link::{Beside, Dial, FromLink, Job, Link, ToLink};
use super::queue::Rank;
use super::retry::Pause;
use super::ws::{self, Part};
use crate::connect::ConnectError;
use crate::token::Token;
use growth::Growth;
use strand::{Given, Strand};

/// Connections at once.
const MAX_LINKS: usize = 10;
/// It is looked so often whether another connection is wanted.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So long those that are asked have to be heard, in milliseconds: then one is made for all.
const ASKED_MS: u64 = 1000;
/// The same where another is heard: then its chunks go over to that one. TCP that lost a packet again
/// and again may come back by itself, and all that it has in flight is lost if it goes.
const SILENT_MS: u64 = 5000;

/// One connection now, more when they are needed.
pub(crate) async fn connect(dial: Dial) -> Result<Link, ConnectError> {
    let first = ws::connect(dial.clone(), Part::Strand).await?;
    let mut link = Link::spawn(usize::MAX, move |jobs, news| Bundle::new(dial, news).run(first, jobs));
    link.carries(MAX_LINKS);
    link.offers_ahead();
    Ok(link)
}

type News = (usize, Option<FromLink>);

/// Why one connection is made for all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// One of them stalls, and none was heard since. What is heard first goes on.
    Stalled,
    /// The device is on another network: what still comes over the old one will not for long.
    Moved,
}

struct Bundle {
    dial: Dial,
    news: mpsc::Sender<FromLink>,
    strands: HashMap<usize, Strand>,
    /// What no connection has begun: as many as the session gives at most.
    waiting: BTreeMap<(Rank, u64), Box<Job>>,
    heard: SelectAll<BoxStream<'static, News>>,
    adding: Beside,
    /// What is being added is one for all.
    racing: bool,
    growth: Growth,
    doubt: Option<Doubt>,
    pause: Pause,
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
            racing: false,
            growth: Growth::default(),
            doubt: None,
            pause: Pause::beside(),
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
                made = self.adding.made() => {
                    self.made(made).await;
                    true
                }
                _ = tick.tick() => {
                    self.look().await;
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

    /// Looks whether a connection is to be made, or to go.
    async fn look(&mut self) {
        let now_ms = self.now_ms();
        self.growth.look(now_ms, self.dial.written.load(Ordering::Relaxed));
        let overdue = |strand: &Strand, ms| strand.silent_ms.is_some_and(|since| now_ms - since >= ms);
        if self.doubt == Some(Doubt::Moved) || self.strands.values().all(|s| overdue(s, ASKED_MS)) {
            self.doubt.get_or_insert(Doubt::Stalled);
            self.race();
        } else if self.doubt.is_none() {
            let gone: Vec<usize> =
                self.strands.iter().filter(|(_, s)| overdue(s, SILENT_MS)).map(|(at, _)| *at).collect();
            for at in gone {
                self.let_go(at).await;
                self.growth.lost(now_ms);
            }
            if !self.adding.is_begun() && self.needs_another() {
                self.later.clear();
                self.racing = false;
                self.adding.begin(ws::once(self.dial.clone()));
            }
        }
    }

    /// Nobody knows which of them still work: each is asked, and one is made for all.
    async fn doubts(&mut self, why: Doubt) {
        let now_ms = self.now_ms();
        self.doubt = Some(why);
        for strand in self.strands.values_mut() {
            strand.silent_ms = Some(now_ms);
            let _ = strand.jobs.send(ToLink::Moved).await;
        }
        if why == Doubt::Moved {
            // What is being added is lost as the others are.
            self.adding.stop();
            self.race();
        } else if self.strands.len() == 1 {
            self.race();
        }
    }

    /// One is heard.
    fn flows(&mut self, now_ms: u64) {
        if self.doubt == Some(Doubt::Stalled) {
            self.doubt = None;
            if self.racing {
                self.adding.stop();
            }
            // The others have as long from now on.
            let silent = self.strands.values_mut().filter_map(|strand| strand.silent_ms.as_mut());
            silent.for_each(|since| *since = now_ms);
        }
    }

    /// Begins to make one for all, unless it is being made.
    fn race(&mut self) {
        if self.ends || !self.pause.is_over(self.now_ms()) || (self.racing && self.adding.is_begun()) {
            return;
        }
        self.racing = true;
        self.later.clear();
        self.adding.stop();
        self.adding.begin(ws::connect(self.dial.clone(), Part::Strand));
    }

    /// A connection was made, one more or one for all, or could not be.
    async fn made(&mut self, made: Result<Link, ConnectError>) {
        let now_ms = self.now_ms();
        match (made, std::mem::take(&mut self.racing)) {
            (Ok(link), false) => {
                self.growth.added(now_ms);
                self.adds(link).await;
                self.flows(now_ms);
            }
            (Ok(link), true) => {
                self.growth.begins(now_ms);
                self.pause.over();
                self.doubt = None;
                let old: Vec<usize> = self.strands.keys().copied().collect();
                self.adds(link).await;
                for at in old {
                    self.let_go(at).await;
                }
            }
            (Err(error), false) => self.growth.failed(now_ms, error.retry_after_s()),
            (Err(error), true) => {
                self.pause.failed(now_ms, error.retry_after_s());
                // One that is heard is good enough where no other comes to be.
                self.doubt = self.doubt.filter(|_| self.strands.values().all(Strand::is_silent));
            }
        }
    }

    /// Adds one that was made beside others.
    async fn adds(&mut self, link: Link) {
        self.add(link);
        // What came while it was made, and is not in its HELLO.
        for token in std::mem::take(&mut self.later) {
            self.ask_newest(ToLink::Capability(token)).await;
        }
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
        self.strands.insert(strand, Strand::new(jobs, task));
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
                self.growth.begins(self.now_ms());
                self.dial.takes = Takes::default();
                self.pause.over();
                self.doubts(Doubt::Moved).await;
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

    /// Gives chunks to the connections that may begin or offer one. What the relay may hold is asked about at
    /// once.
    async fn hand_out(&mut self) {
        let turns: Vec<(Rank, u64)> = self.waiting.keys().copied().collect();
        for turn in turns {
            let Some((resume, most)) = self.waiting.get(&turn).map(|job| (job.resume, job.most)) else { continue };
            let class = turn.0.class();
            let Some(strand) = strand::for_one_more(&mut self.strands, class, resume, most) else { continue };
            let Some(mut job) = self.waiting.remove(&turn) else { continue };
            if most < usize::MAX {
                // The others' share is theirs.
                job.most = most.min(1);
            }
            strand.given.insert(job.id, Given { attempt: job.offer.attempt, class, moves: !resume, sent: false });
            // A strand that is gone says so itself, and its chunks are brought by another.
            let _ = strand.jobs.send(ToLink::Job(job)).await;
        }
    }

    async fn told(&mut self, at: usize, news: Option<FromLink>) -> bool {
        let now_ms = self.now_ms();
        let Some(strand) = self.strands.get_mut(&at) else { return true };
        match news {
            None => return self.ended(at, None, None).await,
            Some(FromLink::Closed { code, retry_after_s }) => return self.ended(at, code, retry_after_s).await,
            Some(FromLink::Stalls) => {
                strand.silent_ms = Some(now_ms);
                if self.doubt.is_none() {
                    self.doubts(Doubt::Stalled).await;
                }
                true
            }
            Some(FromLink::Flows) => {
                strand.silent_ms = None;
                self.flows(now_ms);
                true
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
            Some(other) => self.tell(other).await,
        }
    }

    async fn tell(&mut self, news: FromLink) -> bool {
        self.news.send(news).await.is_ok()
    }

    /// A connection broke off. The last one takes the bundle with it.
    async fn ended(&mut self, at: usize, code: Option<String>, retry_after_s: Option<u64>) -> bool {
        if self.strands.len() == 1 {
            self.tell(FromLink::Closed { code, retry_after_s }).await;
            return false;
        }
        self.growth.failed(self.now_ms(), retry_after_s);
        self.let_go(at).await;
        true
    }

    /// What a connection was to bring is to be brought by another, from where the relay says.
    async fn let_go(&mut self, at: usize) {
        let Some(strand) = self.strands.remove(&at) else { return };
        for (id, given) in strand.given {
            self.tell(FromLink::Broken { id, attempt: given.attempt }).await;
        }
    }
}

/// The relay needs no more bytes of such a chunk.
fn is_whole(state: ChunkState) -> bool {
    state.held() || state == ChunkState::Unsettled
}
