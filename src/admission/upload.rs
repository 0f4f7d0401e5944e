//! Uploads that are gone on with by their name alone, as tus and resumable uploads do it: what was
//! offered is known here.

use std::net::IpAddr;

use super::{Admission, Admitted, Refusal, Standing};
use crate::capability::{Capability, Trust};
use crate::proto::{ChunkRef, ChunkState, Code, Retry};

impl Admission {
    /// Goes on with a chunk that was offered before: decides as on that offer, made again. It takes
    /// over from an attempt that is under way, at once.
    ///
    /// # Errors
    /// Those of [`Admission::offer`]; `NotFound` for what the bearer does not own.
    pub async fn resume(&self, chunk: ChunkRef, capability: &Capability, client: IpAddr) -> Result<Admitted, Refusal> {
        let capability = &self.reaching(chunk, capability, client).await?;
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
    pub async fn pause(&self, chunk: ChunkRef, capability: &Capability, client: IpAddr) -> Result<Standing, Refusal> {
        self.reaching(chunk, capability, client).await?;
        Ok(self.0.parts.staging.pause(chunk).await?)
    }

    /// The capability, if it reaches the chunk. One that can't be verified here may be one that the
    /// core vouched for to the process before this one: it is asked again, about this chunk.
    async fn reaching(&self, chunk: ChunkRef, capability: &Capability, client: IpAddr) -> Result<Capability, Refusal> {
        if self.owns(chunk, capability) {
            return Ok(capability.clone());
        }
        if capability.trust == Trust::Verified {
            return Err(Code::NotFound.into());
        }
        // Said before anything is looked up: it tells nobody what is here.
        let away = self.0.parts.core.as_ref().and_then(crate::core::CoreApi::away_for);
        if let Some(time) = away.filter(|time| !time.is_zero()) {
            let mut refusal = Refusal::from(Code::CoreUnavailable);
            refusal.retry_after = Some(time);
            return Err(refusal);
        }
        let claimed = self.claims(chunk, capability);
        let offer = if claimed { self.0.parts.staging.offered_once(chunk).await } else { None };
        match self.vouch(&offer.ok_or(Code::NotFound)?, capability, client).await {
            Err(refusal) if refusal.code.retry() != Retry::Later => Err(Code::NotFound.into()),
            vouched => vouched,
        }
    }

    /// Until when an unconfirmed chunk is kept, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn kept_until(&self, chunk: ChunkRef) -> Option<i64> {
        self.0.parts.staging.kept_until(chunk)
    }
}
