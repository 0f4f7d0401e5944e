//! Deciding on an offer, before its body.

use std::net::IpAddr;
use std::time::Duration;

use super::clients::InFlight;
use super::pace::Stretch;
use super::receiving::{Admitted, Receiving, Unshown};
use super::{Admission, Refusal};
use crate::capability::{self, Capability, Trust};
use crate::core::{ChunkFields, CoreApi};
use crate::fanout::{ChunkMeta, GroupKey, Publication};
use crate::proto::budget::{Call, Limiter};
use crate::proto::outcome::{self, Outcome};
use crate::proto::{ChunkRef, Code, Offer, Variant};
use crate::staging::{Incoming, Offered};

/// How long an offer waits for a preflight's place in the call budget.
const PREFLIGHT_WAIT: Duration = Duration::from_secs(10);
/// When to come back while the core is away and nothing better is known.
const AWAY_RETRY: Duration = Duration::from_secs(5);

impl Admission {
    /// Decides on an offer before its body: capability against offer, signature, what is here
    /// already, class head-room, quota, in-flight limits, and the core's preflight where the
    /// capability could not be verified here.
    ///
    /// # Errors
    /// Any refusal; nothing was reserved then. `NotReady` where no core is configured.
    pub async fn offer(&self, offer: Offer, capability: &Capability, client: IpAddr) -> Result<Admitted, Refusal> {
        if self.0.parts.core.is_none() {
            // Nobody would ever forward it.
            return Err(Code::NotReady.into());
        }
        let variant = self.covered(&offer, capability)?;
        let in_flight = self.in_flight(capability, client)?;
        let capability = &self.trusted(&offer, variant, capability).await?;
        self.0.parts.staging.present_for(capability, &offer.stream).await;
        let shown = self.shown(&offer, variant, capability);
        let chunk = offer.chunk_ref();
        let stretch = Stretch::of(&offer, variant);
        match self.0.parts.staging.offer(offer, variant, capability).await {
            Ok(Offered::Have(standing)) => Ok(Admitted::Have(standing)),
            Ok(Offered::Receive(incoming)) => {
                let publication = self.publish(chunk, shown, &incoming).await;
                let coming = self.0.paces.begin(&capability.grant.session, stretch);
                Ok(Admitted::Receive(Receiving::new(incoming, publication, in_flight, coming)))
            }
            Err(code) => {
                let mut refusal = Refusal::from(code);
                refusal.standing = self.0.parts.staging.standing(chunk);
                Err(refusal)
            }
        }
    }

    /// What needs nobody else: the capability against the offer, the signature, the size.
    pub(super) fn covered(&self, offer: &Offer, capability: &Capability) -> Result<Variant, Code> {
        let now = self.0.parts.clock.unix_s();
        // A connection reads its token once and offers for as long as it likes.
        if !capability.grant.expired(now) && self.0.parts.verifier.is_revoked(&capability.grant) {
            return Err(Code::CapabilityRevoked);
        }
        let variant = capability.grant.covers(offer, now)?;
        capability::verify_offer(&capability.grant, offer)?;
        if offer.length > self.0.max_chunk {
            return Err(Code::ChunkTooLarge);
        }
        Ok(variant)
    }

    pub(super) fn in_flight(&self, capability: &Capability, client: IpAddr) -> Result<Option<InFlight>, Code> {
        if capability.trust == Trust::Verified {
            return Ok(None);
        }
        self.0.clients.may_send(client).map(Some).ok_or(Code::InFlightPerClient)
    }

    /// The capability, vouched for by the core if it could not be verified here.
    pub(super) async fn trusted(
        &self,
        offer: &Offer,
        variant: Variant,
        capability: &Capability,
    ) -> Result<Capability, Refusal> {
        if capability.trust == Trust::Verified {
            return Ok(capability.clone());
        }
        let core = self.0.parts.core.as_ref().ok_or(Code::CoreUnavailable)?;
        let permit = permit(core, Call::Preflight, variant.class().rank() as u8).await?;
        let fields = ChunkFields { session: capability.grant.session.as_str(), capability: &capability.token, offer };
        let outcome = core.preflight(permit, fields).await;
        let known =
            matches!(outcome, Outcome::Duplicate(_)) && self.0.parts.staging.standing(offer.chunk_ref()).is_some();
        // A duplicate that this relay brought there itself is answered from its own record.
        if !matches!(outcome, Outcome::Accepted) && !known {
            return Err(refused(&outcome));
        }
        let now = self.0.parts.clock.unix_s();
        self.0.vouched.remember(capability, now);
        Ok(self.0.vouched.apply(capability.clone(), now))
    }

    /// What contacts are told of it, if it is theirs to see.
    fn shown(&self, offer: &Offer, variant: Variant, capability: &Capability) -> (GroupKey, Option<ChunkMeta>) {
        let grant = &capability.grant;
        let group = GroupKey::of(grant, &offer.stream);
        let labelled = grant.lane(&offer.stream).is_some_and(|lane| lane.variant.is_some());
        let watchable = variant.watchable() && (labelled || self.0.allow_unlabelled);
        let meta = watchable.then(|| ChunkMeta {
            chunk: offer.chunk_ref(),
            session: grant.session.clone(),
            stream: offer.stream.clone(),
            variant,
            media: offer.media,
            index: offer.index,
            length: offer.length,
            sha256: offer.sha256,
            started: offer.started.clone(),
            ended: offer.ended.clone(),
        });
        (group, meta)
    }

    /// Opens the publication. What an earlier attempt left on the disk is shown again, for
    /// contacts that came after it or after a restart; those who have it are not sent it twice.
    async fn publish(
        &self,
        chunk: ChunkRef,
        shown: (GroupKey, Option<ChunkMeta>),
        incoming: &Incoming,
    ) -> (Option<Publication>, Option<Unshown>) {
        let (group, meta) = shown;
        let Some(meta) = meta else {
            let (hub, clock) = (self.0.parts.hub.clone(), self.0.parts.clock.clone());
            hub.seen(&group);
            self.0.hidden.remember(chunk, &group);
            let told_ms = clock.now_ms();
            return (None, Some(Unshown { hub, group, clock, told_ms }));
        };
        let small = meta.length <= self.0.max_shown;
        let publication = self.0.parts.hub.publish(&group, meta);
        if incoming.held() > 0
            && small
            && let Some(bytes) = incoming.held_bytes().await
        {
            publication.push(0, &bytes);
        }
        (Some(publication), None)
    }
}

/// A place in the call budget, or the reason why there is none soon.
pub(super) async fn permit(core: &CoreApi, call: Call, rank: u8) -> Result<crate::core::Permit, Refusal> {
    let later = |code: Code, time: Duration| {
        let mut refusal = Refusal::from(code);
        refusal.retry_after = Some(time.max(Duration::from_secs(1)));
        refusal
    };
    // Once the back-off is over somebody has to try: it may be that only preflights are waiting.
    if let Some(time) = core.away_for().filter(|time| !time.is_zero()) {
        return Err(later(Code::CoreUnavailable, time));
    }
    if let Some(time) = core.limited_for(Limiter::Stream)
        && time > PREFLIGHT_WAIT
    {
        return Err(later(Code::CoreLimited, time));
    }
    tokio::time::timeout(PREFLIGHT_WAIT, core.permit_ranked(call, rank)).await.map_err(|_| match core.away_for() {
        Some(time) => later(Code::CoreUnavailable, time),
        None => later(Code::CoreLimited, AWAY_RETRY),
    })
}

/// A core's "no" in the native words.
pub(super) fn refused(outcome: &Outcome) -> Refusal {
    let code = match outcome {
        Outcome::Accepted | Outcome::Confirmed(_) => Code::InternalError,
        Outcome::Refused(_) => Code::CoreRejected,
        Outcome::Renew(_) => Code::CapabilityExpired,
        Outcome::Duplicate(_) => Code::DuplicateChunk,
        Outcome::Blocked(_) => Code::AccountQuota,
        Outcome::Operator(_) => Code::CoreRefusesRelay,
        Outcome::Limited(_) | Outcome::Wait(_) => Code::CoreLimited,
        Outcome::Ambiguous(_) => Code::CoreUnavailable,
    };
    let said: Option<&outcome::Refusal> = outcome.refusal();
    let ours = matches!(outcome, Outcome::Operator(_) | Outcome::Limited(_) | Outcome::Wait(_) | Outcome::Ambiguous(_));
    let mut refusal = Refusal::from(code);
    // What the operator must mend, and what is only slow, is not told as the core's word.
    refusal.core_code = said.and_then(|said| said.code.clone()).filter(|_| !ours);
    refusal.status = said.map(|said| said.status).filter(|_| code == Code::CoreRejected);
    refusal.retry_after = said.and_then(|said| said.retry_after_s).map(Duration::from_secs);
    if ours && refusal.retry_after.is_none() {
        refusal.retry_after = Some(AWAY_RETRY);
    }
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::core::{Client, FanoutFields};
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn one_call_goes_when_the_back_off_is_over() {
        let clock = Clock::at_unix_ms(0);
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = crate::config::Core {
            url: format!("http://{nobody}"),
            service_token: "canary-service-token-0123456789abcdef".into(),
            ca_file: None,
            request_timeout: Duration::from_secs(30),
            max_requests_per_minute: 0,
        };
        let core = CoreApi::new(&config, &Client::new(None).unwrap(), clock.clone(), Metrics::new()).unwrap();
        let fields = FanoutFields { session: "s", capability: "c", incident: "i", stream: "s" };
        let first = permit(&core, Call::Preflight, 0).await.unwrap();
        assert!(matches!(core.fanout_authorize(first, fields).await, Outcome::Ambiguous(_)));

        let refusal = permit(&core, Call::Preflight, 0).await.err().unwrap();
        assert_eq!(refusal.code, Code::CoreUnavailable);
        clock.advance(core.away_for().unwrap());
        let probe = permit(&core, Call::Preflight, 0).await.unwrap();
        let second = permit(&core, Call::Preflight, 0).await.err().unwrap();
        assert_eq!(second.code, Code::CoreUnavailable, "only one goes each back-off");
        drop(probe);
    }
}
