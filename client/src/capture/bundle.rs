//! Several WebSockets as one, for a kernel whose congestion control takes each loss for a full
//! queue: each connection alone gets only so far, several together fill a lossy link.
//!
//! The first is there at once. While several chunks are under way another is added every second,
//! so that on a link that loses nothing all is done before there are many. A chunk goes to the
//! connection that has the least to bring.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::ChunkState;

use super::link::{Beside, Dial, FromLink, Job, Link, ToLink};
use crate::connect::ConnectError;

/// Connections at once.
const MAX_LINKS: usize = 6;
/// Another connection is added so often while there is work for it.
const ADD_EVERY: Duration = Duration::from_secs(1);

/// One connection now, more when they are needed.
pub(crate) async fn connect(dial: Dial) -> Result<Link, ConnectError> {
    let first = super::ws::connect(dial.clone(), false).await?;
    Ok(Link::spawn(usize::MAX, move |jobs, news| Bundle::new(dial, news).run(first, jobs)))
}

type News = (usize, Option<FromLink>);

/// One of the connections.
struct Strand {
    jobs: mpsc::Sender<ToLink>,
    /// Chunks given to it: their attempts, and the bytes it still has to bring.
    given: HashMap<u64, (u64, u64)>,
    _task: AbortOnDropHandle<()>,
}

impl Strand {
    fn left(&self) -> u64 {
        self.given.values().map(|(_, left)| left).sum()
    }
}

struct Bundle {
    dial: Dial,
    news: mpsc::Sender<FromLink>,
    strands: HashMap<usize, Strand>,
    heard: SelectAll<BoxStream<'static, News>>,
    adding: Beside,
    begun: usize,
}

impl Bundle {
    fn new(dial: Dial, news: mpsc::Sender<FromLink>) -> Self {
        Self { dial, news, strands: HashMap::new(), heard: SelectAll::new(), adding: Beside::default(), begun: 0 }
    }

    async fn run(mut self, first: Link, mut jobs: mpsc::Receiver<ToLink>) {
        self.add(first);
        let mut tick = tokio::time::interval(ADD_EVERY);
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
                    if self.needs_another() {
                        self.adding.begin(super::ws::connect(self.dial.clone(), false));
                    }
                    true
                }
            };
            if !open {
                return;
            }
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
        self.strands.insert(strand, Strand { jobs, given: HashMap::new(), _task: task });
    }

    /// More chunks have bytes to bring than there are connections.
    fn needs_another(&self) -> bool {
        let moving = |strand: &Strand| strand.given.values().filter(|(_, left)| *left > 0).count();
        self.strands.len() < MAX_LINKS && self.strands.values().map(moving).sum::<usize>() > self.strands.len()
    }

    async fn asked(&mut self, job: ToLink) -> bool {
        match job {
            ToLink::Job(job) => self.bring(job).await,
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

    async fn bring(&mut self, job: Box<Job>) -> bool {
        let Some(strand) = self.strands.values_mut().min_by_key(|strand| strand.left()) else { return false };
        strand.given.insert(job.id, (job.offer.attempt, job.offer.length));
        // A strand that is gone says so itself, and its chunks are brought by another.
        let _ = strand.jobs.send(ToLink::Job(job)).await;
        true
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
                strand.given.insert(id, (attempt, 0));
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
            Some(other @ (FromLink::Hint(_) | FromLink::Path(_) | FromLink::Bodies(_) | FromLink::Offset { .. })) => {
                self.tell(other).await
            }
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
        for (id, (attempt, _)) in strand.given {
            self.tell(FromLink::Broken { id, attempt }).await;
        }
        true
    }
}
