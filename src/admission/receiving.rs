//! One attempt's bytes on their way to contacts and to the disk.

use std::sync::Arc;

use bytes::Bytes;

use super::clients::InFlight;
use super::pace::Coming;
use super::{Refusal, Standing};
use crate::clock::Clock;
use crate::fanout::{GroupKey, Hub, Publication};
use crate::proto::Code;
use crate::proto::message::WithdrawnReason;
use crate::staging::Incoming;

/// How often bytes of a chunk that no contact sees are told as a sign of life.
const SIGN_EVERY_MS: u64 = 1_000;

/// What became of an offer.
pub enum Admitted {
    /// Send the bytes from [`Receiving::offset`] on.
    Receive(Receiving),
    /// It is here already.
    Have(Standing),
}

/// A chunk that no contact sees: its bytes are still a sign of life.
pub(super) struct Unshown {
    pub(super) hub: Hub,
    pub(super) group: GroupKey,
    pub(super) clock: Clock,
    pub(super) told_ms: u64,
}

impl Unshown {
    /// Bytes came; told once a second.
    fn came(&mut self) {
        let now = self.clock.now_ms();
        if now.saturating_sub(self.told_ms) >= SIGN_EVERY_MS {
            self.told_ms = now;
            self.hub.seen(&self.group);
        }
    }
}

/// One attempt to bring a chunk's bytes. Dropping it ends the attempt and keeps what came.
pub struct Receiving {
    incoming: Incoming,
    publication: Option<Arc<Publication>>,
    unshown: Option<Unshown>,
    coming: Option<Coming>,
    _in_flight: Option<InFlight>,
}

impl Receiving {
    pub(super) fn new(
        mut incoming: Incoming,
        (publication, unshown): (Option<Publication>, Option<Unshown>),
        in_flight: Option<InFlight>,
        coming: Option<Coming>,
    ) -> Self {
        let publication = publication.map(Arc::new);
        if let Some(publication) = publication.clone() {
            incoming.on_hashed(Box::new(move |agrees| {
                if agrees {
                    publication.complete();
                } else {
                    publication.withdraw(WithdrawnReason::HashMismatch);
                }
            }));
        }
        Self { incoming, publication, unshown, coming, _in_flight: in_flight }
    }

    /// Where the client goes on.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.incoming.held()
    }

    /// Bytes in all.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.incoming.length()
    }

    /// Takes the next bytes: contacts get them at once, the disk when enough are gathered.
    /// Waits while the disk is behind; that is the transport's back-pressure.
    ///
    /// # Errors
    /// `BodyTooLong`, `StagingFailed`, `AttemptSuperseded`.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        let offset = self.offset();
        if bytes.len() as u64 > self.length() - offset {
            return Err(Code::BodyTooLong.into());
        }
        if let Some(coming) = &self.coming {
            coming.came(bytes.len());
        }
        if let Some(unshown) = &mut self.unshown {
            unshown.came();
        }
        if let Some(publication) = &self.publication {
            publication.push(offset, &bytes);
        }
        let pushed = self.incoming.push(bytes).await;
        if let (Err(Code::StagingFailed), Some(publication)) = (&pushed, &self.publication) {
            publication.withdraw(WithdrawnReason::Stalled);
        }
        Ok(pushed?)
    }

    /// The body ended before the chunk does. What came is written down before anybody is told of it;
    /// says how many bytes are held.
    ///
    /// # Errors
    /// `StagingFailed`, `AttemptSuperseded`.
    pub async fn keep(self) -> Result<u64, Refusal> {
        Ok(self.incoming.keep().await?)
    }

    /// The body ended. Waits until the chunk is whole, hashed and synced.
    ///
    /// # Errors
    /// `BodyIncomplete` (what came is kept), `HashMismatch`, `StagingFailed`, `AttemptSuperseded`.
    pub async fn finish(mut self) -> Result<Standing, Refusal> {
        // What the disk takes is none of the link's time.
        self.coming = None;
        Ok(self.incoming.finish().await?)
    }

    /// No byte came for `idle_timeout`: tells contacts and keeps what came.
    pub fn stalled(self) {
        if let Some(publication) = &self.publication {
            publication.withdraw(WithdrawnReason::Stalled);
        }
    }
}
