//! A capability that came without an offer: releases what waits for one of its streams.

use std::net::IpAddr;
use std::time::Duration;

use super::{Admission, Refusal};
use crate::capability::{Capability, Trust};
use crate::proto::claims::Use;
use crate::proto::{Offer, Retry};

/// When the core is asked again about a token, at first; each time later, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause before the core is asked again about a token for which a chunk waits.
const MAX_PAUSE: Duration = Duration::from_secs(60);

impl Admission {
    /// Releases what waits for a capability of these streams, and lets it carry what is held. One
    /// that can't be verified here is asked of the core first, about one of those chunks; while the
    /// core can't tell, this waits, until the capability runs out. Dropping it ends that.
    pub async fn present(&self, capability: &Capability, client: IpAddr) {
        if capability.grant.use_ != Use::Upload {
            return;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let now = self.0.parts.clock.unix_s();
            let capability = self.0.vouched.apply(capability.clone(), now);
            if capability.trust == Trust::Verified {
                return self.0.parts.staging.present(&capability).await;
            }
            let waiting = self.0.parts.staging.waits_for(&capability.grant).await;
            let Some(offer) = waiting.filter(|_| !capability.grant.expired(now)) else { return };
            let refusal = match self.vouch(&offer, &capability, client).await {
                Ok(vouched) => return self.0.parts.staging.present(&vouched).await,
                Err(refusal) if refusal.code.retry() != Retry::Later => return,
                Err(refusal) => refusal,
            };
            self.0.parts.clock.sleep(refusal.retry_after.unwrap_or(pause).max(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Asks the core, as an offer of this chunk would.
    pub(super) async fn vouch(
        &self,
        offer: &Offer,
        capability: &Capability,
        client: IpAddr,
    ) -> Result<Capability, Refusal> {
        let variant = self.covered(offer, capability)?;
        let _place = self.in_flight(capability, client)?;
        self.trusted(offer, variant, capability).await
    }
}
