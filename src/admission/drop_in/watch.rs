//! The drop-in subscription (contract B.4): the core is asked, always.

use std::net::IpAddr;

use super::{budget, said};
use crate::admission::{Admission, Refusal, Revocation};
use crate::capability;
use crate::core::FanoutFields;
use crate::fanout::WholeSubscription;
use crate::proto::budget::Call;
use crate::proto::claims::Use;
use crate::proto::outcome::Outcome;
use crate::proto::{Code, StreamId};

/// The headers of a drop-in subscription.
pub struct DropInWatch {
    /// `X-Proofline-Relay-Session-ID`
    pub session: String,
    /// `X-Proofline-Relay-Fanout-Capability`
    pub capability: String,
    /// `X-Proofline-Relay-Incident-ID`
    pub incident: String,
    /// `X-Proofline-Relay-Stream-ID`
    pub stream: String,
}

impl Admission {
    /// Opens a drop-in subscription; it ends when its capability is taken back.
    ///
    /// # Errors
    /// `RelayCoreNotConfigured`, `TooManyRequests`, `CoreFanoutRejected`, `CoreFanoutUnavailable`,
    /// `RelayFanoutLimit`.
    pub async fn drop_in_watch(
        &self,
        watch: DropInWatch,
        client: IpAddr,
    ) -> Result<(WholeSubscription, Revocation), Refusal> {
        let core = self.0.parts.core.as_ref().ok_or(Code::RelayCoreNotConfigured)?;
        let known = self.drop_in_bearer(&watch.capability, client).await?;
        let permit = budget(core, Call::Authorize, 0, Code::CoreFanoutUnavailable).await?;
        let fields = FanoutFields {
            session: &watch.session,
            capability: &watch.capability,
            incident: &watch.incident,
            stream: &watch.stream,
        };
        match core.fanout_authorize(permit, fields).await {
            Outcome::Accepted => {}
            outcome => return Err(said(&outcome, Code::CoreFanoutRejected, Code::CoreFanoutUnavailable)),
        }
        // The core vouched for the token; what it says is read for its expiry and its group, and
        // must be about what was asked.
        let capability = known.ok_or(Code::CoreFanoutRejected)?;
        let (grant, session) = (&capability.grant, Some(watch.session.as_str()));
        capability::check(grant, Use::Fanout, session, &watch.incident, &watch.stream)
            .map_err(|_| Code::CoreFanoutRejected)?;
        self.0.vouched.remember(&capability, self.0.parts.clock.unix_s());
        let stream = StreamId::new(&watch.stream).map_err(|_| Code::InvalidRelayFanoutRequest)?;
        let subscription = self.0.parts.hub.subscribe_whole(grant, &stream).map_err(|code| match code {
            Code::TooManyContacts => Code::RelayFanoutLimit,
            _ => Code::CoreFanoutRejected,
        })?;
        let revocation = self.revocation(&capability).map_err(|_| Code::RelayFanoutLimit)?;
        Ok((subscription, revocation))
    }
}
