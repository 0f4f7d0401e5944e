//! The one who is watched, and another whose uploads shall not suffer from it.

use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use waystation_client::session::Session;
use waystation_proto::Variant;

use super::PATIENCE;
use super::follower::{Published, key};
use crate::Failure;
use crate::chunks::Maker;
use crate::link::{self, Link};
use crate::rig::Rig;
use crate::upload::{complain, upload_capability};

/// How fast, and how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Chunks a second; 0: the next one as soon as every contact has the last.
    pub(super) rate: f64,
    pub(super) time: Duration,
    /// At most so many chunks.
    pub(super) chunks: Option<u32>,
}

/// The one who is watched.
pub(super) struct Uploader {
    link: Link,
    maker: Maker,
    token: String,
    published: Arc<Published>,
    contacts: u64,
    sent: u64,
}

impl Uploader {
    pub(super) async fn connect(
        rig: &Rig,
        session: &Session,
        size: usize,
        published: Arc<Published>,
        contacts: u64,
    ) -> Result<Self, Failure> {
        Self::of(rig, Maker::new(session, size)?, session, published, contacts).await
    }

    /// Of the chunks that `maker` makes.
    pub(super) async fn of(
        rig: &Rig,
        maker: Maker,
        session: &Session,
        published: Arc<Published>,
        contacts: u64,
    ) -> Result<Self, Failure> {
        let token = upload_capability(session)?;
        let link = Link::connect(rig, link::Transport::H1, &token).await?;
        Ok(Self { link, maker, token, published, contacts, sent: 0 })
    }

    /// Uploads at a pace, and waits until everything is delivered or nothing comes any more, if it counts
    /// contacts at all.
    /// Returns the indexes of its chunks: from, and up to but without.
    pub(super) async fn run(&mut self, pace: Pace) -> Result<(u64, u64), Failure> {
        let (began, first) = (Instant::now(), self.sent);
        while pace.chunks.is_none_or(|most| self.sent - first < u64::from(most)) {
            if pace.rate > 0.0 {
                let due = began + Duration::from_secs_f64((self.sent - first) as f64 / pace.rate);
                tokio::time::sleep_until(due.into()).await;
            }
            if pace.chunks.is_none() && began.elapsed() >= pace.time {
                break;
            }
            self.sent += 1;
            self.put().await?;
            if pace.rate <= 0.0 {
                self.delivered().await;
            }
        }
        self.delivered().await;
        Ok((first + 1, self.sent + 1))
    }

    async fn delivered(&self) {
        if self.contacts > 0 {
            self.published.until_delivered(self.sent * self.contacts, PATIENCE).await;
        }
    }

    async fn put(&mut self) -> Result<(), Failure> {
        let chunk = self.maker.next_chunk()?;
        let key = key(chunk.offer.media, chunk.offer.index);
        self.published.announce(key, chunk.bytes.clone());
        let verdict = self.link.put(&chunk, &self.token).await?;
        self.published.sent(key, verdict.sent);
        if !verdict.confirmed {
            complain(verdict.refusal.as_deref().unwrap_or("without a reason"));
        }
        Ok(())
    }
}

/// Brings chunks of another session that nobody watches, one after the other. It is another client, so it has
/// a thread of its own and waits for none of the contacts' turns.
pub(super) struct Beside {
    ask: std_mpsc::Sender<(Duration, oneshot::Sender<Result<f64, Failure>>)>,
}

const GONE: Failure = Failure::Wire("the uploader beside the fan-out is gone");

impl Beside {
    pub(super) async fn connect(rig: &Arc<Rig>, size: usize) -> Result<Self, Failure> {
        let session = rig.session(&[Variant::EvidenceMaster]).await?;
        let (token, maker) = (upload_capability(&session)?, Maker::new(&session, size)?);
        let (ask, asked) = std_mpsc::channel::<(Duration, oneshot::Sender<_>)>();
        let (ready, connected) = oneshot::channel();
        let rig = Arc::clone(rig);
        std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            let link = runtime.block_on(Link::connect(&rig, link::Transport::H1, &token));
            // The programs end with whoever started them.
            drop(rig);
            let mut other = match link {
                Ok(link) => Other { link, maker, token, size },
                Err(failure) => return drop(ready.send(Err(failure))),
            };
            let _ = ready.send(Ok(()));
            while let Ok((time, tell)) = asked.recv() {
                let _ = tell.send(runtime.block_on(other.run(time)));
            }
        });
        connected.await.map_err(|_| GONE)??;
        Ok(Self { ask })
    }

    /// Megabytes a second, confirmed.
    pub(super) async fn run(&self, time: Duration) -> Result<f64, Failure> {
        let (tell, told) = oneshot::channel();
        self.ask.send((time, tell)).map_err(|_| GONE)?;
        told.await.map_err(|_| GONE)?
    }
}

struct Other {
    link: Link,
    maker: Maker,
    token: String,
    size: usize,
}

impl Other {
    async fn run(&mut self, time: Duration) -> Result<f64, Failure> {
        let (began, mut bytes) = (Instant::now(), 0);
        while began.elapsed() < time {
            let chunk = self.maker.next_chunk()?;
            if !self.link.put(&chunk, &self.token).await?.confirmed {
                return Err(Failure::Wire("an upload beside the fan-out was refused"));
            }
            bytes += self.size;
        }
        Ok(bytes as f64 / 1e6 / began.elapsed().as_secs_f64())
    }
}
