//! Uploads that are gone on with by their name alone, as tus and resumable uploads do it: what was
//! offered is known here.

use std::net::IpAddr;

use super::{Admission, Admitted, Refusal, Standing};
use crate::capability::Capability;
use crate::proto::{ChunkRef, ChunkState, Code};

impl Admission {
    /// Goes on with a chunk that was offered before: decides as on that offer, made again. It takes
    /// over from an attempt that is under way, at once.
    ///
    /// # Errors
    /// Those of [`Admission::offer`]; `NotFound` for what the bearer does not own.
    pub async fn resume(&self, chunk: ChunkRef, capability: &Capability, client: IpAddr) -> Result<Admitted, Refusal> {
        let standing = self.standing(chunk, capability).ok_or(Code::NotFound)?;
        if standing.state == ChunkState::Receiving
            && let Some(offer) = self.0.parts.staging.offered(chunk).await
        {
            return self.offer(offer, capability, client).await;
        }
        self.0.parts.staging.present(capability).await;
        // Its last byte may have come meanwhile. What never had one, and no file, can't be gone on with.
        let whole = |standing: &Standing| standing.state != ChunkState::Receiving;
        let standing = self.standing(chunk, capability).filter(whole).ok_or(Code::NotFound)?;
        Ok(Admitted::Have(standing))
    }

    /// Where a chunk stands, once the attempt that may be under way has ended: whoever asks lost it.
    ///
    /// # Errors
    /// `NotFound` for what the bearer does not own; `StagingFailed`.
    pub async fn pause(&self, chunk: ChunkRef, capability: &Capability) -> Result<Standing, Refusal> {
        self.standing(chunk, capability).ok_or(Code::NotFound)?;
        Ok(self.0.parts.staging.pause(chunk).await?)
    }

    /// Until when an unconfirmed chunk is kept, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn kept_until(&self, chunk: ChunkRef) -> Option<i64> {
        self.0.parts.staging.kept_until(chunk)
    }
}
