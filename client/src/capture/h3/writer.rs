//! The one place that writes bodies: a piece at a time, in the order of mercy.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use waystation_proto::ChunkState;

use super::Shared;
use crate::capture::book::Verdict;
use crate::capture::link::FromLink;
use crate::capture::native;
use crate::capture::plan::Next;
use crate::h3link::Sending;
use crate::http::Broken;

/// A piece that was handed over, with the stream to go on with.
type Handed = (Next, Option<Sending>);

/// Sends pieces as long as there are any.
pub(super) async fn write(shared: Arc<Shared>) {
    let mut streams: HashMap<u64, Sending> = HashMap::new();
    // Pieces that the relay does not take now: it holds up one chunk, and no other.
    let mut blocked = FuturesUnordered::new();
    loop {
        let woken = shared.wake.notified();
        let next = shared.next(&mut streams);
        match next {
            Some(next) => {
                let stream = streams.remove(&next.handle);
                let mut work = Box::pin(shared.piece(stream, next));
                match futures_util::poll!(&mut work) {
                    Poll::Ready(handed) => shared.handed(handed, &mut streams).await,
                    Poll::Pending => blocked.push(work),
                }
                shared.connection.gauge().room().await;
            }
            None => tokio::select! {
                () = woken => {}
                Some(handed) = blocked.next(), if !blocked.is_empty() => shared.handed(handed, &mut streams).await,
            },
        }
    }
}

impl Shared {
    /// The next piece; its chunk waits until it is handed over.
    fn next(&self, streams: &mut HashMap<u64, Sending>) -> Option<Next> {
        let path = self.connection.gauge().path();
        self.with_quietly(|waiting| {
            streams.retain(|id, _| waiting.entries.contains_key(id));
            let next = waiting.next(path)?;
            waiting.plan.pause(next.handle, true);
            Some(next)
        })
    }

    async fn piece(&self, stream: Option<Sending>, next: Next) -> Handed {
        let bytes = next.bytes.clone();
        let handing = async {
            let mut sending = match stream {
                Some(stream) => stream,
                None => self.begin(next.handle).await?,
            };
            self.wrote();
            if self.with_quietly(|waiting| waiting.is_sound(next.handle)) {
                self.connection.gauge().urgent(bytes.len());
            }
            sending.send(bytes).await?;
            if next.last {
                sending.finish().await?;
            }
            Ok::<Sending, Broken>(sending)
        };
        let sending = handing.await.ok();
        (next, sending)
    }

    async fn handed(&self, (next, sending): Handed, streams: &mut HashMap<u64, Sending>) {
        let handle = next.handle;
        match sending {
            Some(_) if next.last => self.sent(handle).await,
            Some(sending) => {
                streams.insert(handle, sending);
                let moves = self.with_quietly(|waiting| waiting.handed(handle));
                if let Some((id, attempt)) = moves {
                    let _ = self.news.send(FromLink::Moves { id, attempt }).await;
                }
            }
            // The answer, or its absence, tells the rest.
            None => self.with_quietly(|waiting| waiting.plan.forget(handle)),
        }
    }

    /// Opens the stream of a chunk whose turn has come.
    async fn begin(&self, handle: u64) -> Result<Sending, Broken> {
        let found = self.with_quietly(|waiting| {
            let entry = waiting.entries.get_mut(&handle)?;
            Some((Arc::clone(&entry.job), entry.offset, entry.wait_s, entry.begun.take()?))
        });
        let (job, offset, wait_s, begun) = found.ok_or(Broken)?;
        let (sending, receiving) = self
            .connection
            .begin(native::put(&job, offset, wait_s, self.names.has(&job.token))?, job.rank.priority())
            .await?;
        begun.send(receiving).map_err(|_| Broken)?;
        let verdict = Verdict { state: Some(ChunkState::Receiving), ..Verdict::default() };
        let _ = self.news.send(FromLink::Verdict { id: job.id, attempt: job.offer.attempt, verdict }).await;
        Ok(sending)
    }

    async fn sent(&self, handle: u64) {
        let sent = self.with_quietly(|waiting| waiting.sent(handle));
        if let Some((id, attempt)) = sent {
            let _ = self.news.send(FromLink::Sent { id, attempt }).await;
        }
    }
}
