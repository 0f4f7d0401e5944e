//! Contacts: who may watch.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::offer::{permit, refused};
use super::reauthorize::Hold;
use super::{Admission, Refusal};
use crate::capability::{Capability, Trust, Verifier};
use crate::clock::Clock;
use crate::core::FanoutFields;
use crate::fanout::{ChunkReader, GroupKey, Subscription, Timer, Wanted};
use crate::proto::budget::Call;
use crate::proto::claims::{Grant, Use};
use crate::proto::outcome::Outcome;
use crate::proto::{ChunkRef, Code};

/// Hears when a capability is over: its time is up, or the core takes it back. It is waited for beside
/// whatever its holder is sent, so that nobody goes on for being slow.
pub struct Revocation {
    verifier: Verifier,
    changes: watch::Receiver<u64>,
    grant: Arc<Grant>,
    hold: Option<Hold>,
    clock: Clock,
    timer: Timer,
}

impl Revocation {
    fn new(verifier: &Verifier, grant: &Arc<Grant>, hold: Option<Hold>, clock: &Clock) -> Self {
        let mut changes = verifier.revocations();
        // It may have been taken back since it was read.
        changes.mark_changed();
        let (grant, clock) = (Arc::clone(grant), clock.clone());
        Self { verifier: verifier.clone(), changes, grant, hold, clock, timer: Timer::default() }
    }

    /// The same for what the core is not asked about again.
    #[cfg(test)]
    pub(crate) fn of(verifier: &Verifier, grant: &Arc<Grant>, clock: &Clock) -> Self {
        Self::new(verifier, grant, None, clock)
    }

    /// Ends when the capability is over, with the code that its holder is told. Cancel-safe.
    pub async fn heard(&mut self) -> Code {
        let Self { verifier, changes, grant, hold, clock, timer } = self;
        let listed = async {
            while changes.changed().await.is_ok() {
                if verifier.is_revoked(grant) {
                    return;
                }
            }
            std::future::pending().await
        };
        let refused = async {
            match hold {
                Some(hold) => hold.refused().await,
                None => std::future::pending().await,
            }
        };
        let expired = async {
            while let left @ 1.. = grant.exp.saturating_mul(1000).saturating_sub(clock.unix_ms()) {
                timer.until(clock, clock.now_ms().saturating_add_signed(left)).await;
            }
        };
        tokio::select! {
            biased;
            () = listed => Code::CapabilityRevoked,
            code = refused => code,
            () = expired => Code::CapabilityExpired,
        }
    }
}

/// What the core is asked for a contact: about the first of its streams.
pub(super) fn fanout_fields(capability: &Capability) -> Option<FanoutFields<'_>> {
    let grant = &*capability.grant;
    Some(FanoutFields {
        session: grant.session.as_str(),
        capability: &capability.token,
        incident: grant.incident.as_str(),
        stream: grant.lanes.first()?.stream.as_str(),
    })
}

impl Admission {
    /// Hears when this capability is over: what is open by it must end then.
    ///
    /// # Errors
    /// `TooManyContacts`: there is no room to ask the core about it again.
    pub fn revocation(&self, capability: &Capability) -> Result<Revocation, Code> {
        let hold = self.hold(capability)?;
        Ok(Revocation::new(&self.0.parts.verifier, &capability.grant, hold, &self.0.parts.clock))
    }

    /// Opens a contact's subscription; asks the core first where the capability could not be
    /// verified here.
    ///
    /// # Errors
    /// Any refusal.
    pub async fn watch(
        &self,
        capability: &Capability,
        wanted: Wanted,
        client: IpAddr,
    ) -> Result<Subscription, Refusal> {
        let _place = match capability.trust {
            Trust::Verified => None,
            Trust::Claimed => Some(self.0.clients.may_send(client).ok_or(Code::InFlightPerClient)?),
        };
        self.may_watch(capability).await?;
        Ok(self.0.parts.hub.subscribe(&capability.grant, wanted)?)
    }

    /// Reads a new capability for an open subscription and asks the core where it must. It may
    /// take as long as the core does: whoever shows the subscription waits elsewhere.
    ///
    /// # Errors
    /// Any refusal; the subscription goes on with the old one until it ends.
    pub async fn renewal(&self, token: &str, client: IpAddr) -> Result<Capability, Refusal> {
        let capability = self.capability(token, client).await?;
        self.may_watch(&capability).await?;
        Ok(capability)
    }

    /// Reads one chunk with a fan-out capability (`GET /chunks/{ref}`).
    ///
    /// # Errors
    /// Any refusal.
    pub async fn read(&self, chunk: ChunkRef, capability: &Capability) -> Result<ChunkReader, Refusal> {
        self.may_watch(capability).await?;
        self.may_be_shown(chunk, capability)?;
        Ok(self.0.parts.hub.read(&capability.grant, chunk)?)
    }

    /// Whether the chunk may still come: it is not known as one of a lane that is not shown.
    ///
    /// # Errors
    /// `NotWatchable`.
    pub fn may_be_shown(&self, chunk: ChunkRef, capability: &Capability) -> Result<(), Code> {
        let group = GroupKey::of_contact(&capability.grant)?;
        if self.0.hidden.holds(chunk, &group) { Err(Code::NotWatchable) } else { Ok(()) }
    }

    /// The core vouches for a token that could not be verified here.
    async fn may_watch(&self, capability: &Capability) -> Result<(), Refusal> {
        let grant = &capability.grant;
        let now = self.0.parts.clock.unix_s();
        if grant.expired(now) {
            return Err(Code::CapabilityExpired.into());
        }
        if grant.use_ != Use::Fanout {
            return Err(Code::CapabilityWrongUse.into());
        }
        if capability.trust == Trust::Verified {
            return Ok(());
        }
        let core = self.0.parts.core.as_ref().ok_or(Code::CoreUnavailable)?;
        let fields = fanout_fields(capability).ok_or(Code::NotWatchable)?;
        let permit = permit(core, Call::Authorize, 0).await?;
        match core.fanout_authorize(permit, fields).await {
            Outcome::Accepted => {
                self.0.vouched.remember(capability, now);
                Ok(())
            }
            outcome => Err(refused(&outcome)),
        }
    }
}
