//! Contacts with Proofline tokens, which no revocation list names, are authorised again while they
//! watch: the core is asked about each of their capabilities once within
//! `fanout.reauthorize_every`, however many subscriptions hold it, and last of all calls
//! (`proto::reauthorize` says who is next, `proto::budget` how often). Only a refusal by the core
//! ends anything: a core that is away, limits this relay or makes no sense leaves everybody watching.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Admission;
use super::watch::fanout_fields;
use crate::capability::Capability;
use crate::clock::Clock;
use crate::core::CoreApi;
use crate::proto::Code;
use crate::proto::budget::Call;
use crate::proto::claims::{Format, Use};
use crate::proto::outcome::{Outcome, Refusal};
use crate::proto::reauthorize::{Name, Schedule};
use crate::telemetry::Metrics;
use crate::telemetry::names::Reauthorized;

/// Capabilities that are authorised again while something is watched with them, at about 1 KiB
/// each. A contact with one more is refused: it could not be ended.
const MAX_REAUTHORIZED: usize = 16_384;
/// Calls under way at once, so that a core that thinks long is asked about the others meanwhile.
const CALLS: usize = 4;

/// Who watches with a capability that is to be authorised again.
pub(super) struct Reauthorize {
    held: Mutex<Holders>,
    sooner: Notify,
    clock: Clock,
    metrics: Metrics,
}

struct Holders {
    schedule: Schedule,
    open: HashMap<Name, Open>,
    generation: u64,
    late: bool,
}

struct Open {
    capability: Capability,
    ended: watch::Sender<Option<Code>>,
    /// Which of the entries under this name: a holder of one that ended gives up no later one.
    generation: u64,
}

/// One subscription's hold on its capability. Dropped, nobody is asked for it any more.
pub(super) struct Hold {
    all: Arc<Reauthorize>,
    name: Name,
    generation: u64,
    ended: watch::Receiver<Option<Code>>,
}

impl Reauthorize {
    pub(super) fn new(every: Duration, clock: Clock, metrics: Metrics) -> Arc<Self> {
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let schedule = Schedule::new(every, MAX_REAUTHORIZED);
        let held = Holders { schedule, open: HashMap::new(), generation: 0, late: false };
        Arc::new(Self { held: Mutex::new(held), sooner: Notify::new(), clock, metrics })
    }

    /// One more subscription with this capability, to which the core said yes at `yes`; `None`:
    /// there is no room.
    fn hold(self: &Arc<Self>, name: Name, capability: &Capability, yes: Option<u64>) -> Option<Hold> {
        let (now, random) = (self.clock.now_ms(), self.clock.random_below(u64::MAX));
        let mut held = self.held();
        if !held.schedule.hold(name, yes, now, random) {
            return None;
        }
        held.generation += 1;
        let generation = held.generation;
        let open = held.open.entry(name).or_insert_with(|| Open {
            capability: capability.clone(),
            ended: watch::Sender::new(None),
            generation,
        });
        let hold = Hold { all: Arc::clone(self), name, generation: open.generation, ended: open.ended.subscribe() };
        self.show(&mut held);
        drop(held);
        self.sooner.notify_waiters();
        Some(hold)
    }

    /// Waits until somebody is due.
    async fn due(&self) {
        loop {
            let sooner = self.sooner.notified();
            tokio::pin!(sooner);
            sooner.as_mut().enable();
            let next = self.held().schedule.next_at();
            let now = self.clock.now_ms();
            match next {
                Some(at) if at <= now => return,
                Some(at) => tokio::select! {
                    () = self.clock.sleep(Duration::from_millis(at - now)) => {}
                    () = sooner => {}
                },
                None => sooner.await,
            }
        }
    }

    fn take(&self) -> Option<(Name, Capability)> {
        let mut held = self.held();
        let name = held.schedule.take(self.clock.now_ms())?;
        self.show(&mut held);
        held.open.get(&name).map(|open| (name, open.capability.clone()))
    }

    fn answered(&self, name: &Name, yes: bool) {
        let (now, random) = (self.clock.now_ms(), self.clock.random_below(u64::MAX));
        let mut held = self.held();
        held.schedule.answered(name, yes, now, random);
        self.show(&mut held);
        drop(held);
        self.sooner.notify_waiters();
    }

    fn refused(&self, name: &Name, code: Code) {
        let mut held = self.held();
        held.schedule.refused(name);
        if let Some(open) = held.open.remove(name) {
            open.ended.send_replace(Some(code));
        }
        self.show(&mut held);
    }

    /// Says how it stands, and in the log when it begins to be late and when it no longer is.
    fn show(&self, held: &mut Holders) {
        let overdue = held.schedule.overdue(self.clock.now_ms());
        self.metrics.fanout.reauthorizing(held.schedule.len(), overdue);
        if held.late != (overdue > 0) {
            held.late = overdue > 0;
            if held.late {
                tracing::warn!(
                    component = "admission",
                    "contacts are not authorised again within fanout.reauthorize_every: the core does not answer, or they are more than a tenth of its calls is enough for"
                );
            } else {
                tracing::info!(component = "admission", "all contacts are authorised again in time");
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Holders> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// Ends when the core refuses the capability. Cancel-safe.
    pub(super) async fn refused(&mut self) -> Code {
        match self.ended.wait_for(Option::is_some).await.ok().and_then(|code| *code) {
            Some(code) => code,
            // The other end lives as long as this does, or has spoken.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.all.held();
        let current = held.open.get(&self.name).is_some_and(|open| open.generation == self.generation);
        if current && held.schedule.release(&self.name) {
            held.open.remove(&self.name);
        }
        self.all.show(&mut held);
    }
}

impl Admission {
    /// Authorises contacts again while they watch; never ends. Without a core there is nobody to ask.
    pub async fn reauthorize(&self) {
        let Some(core) = &self.0.parts.core else { return };
        futures_util::future::join_all((0..CALLS).map(|_| self.ask_again(core))).await;
    }

    async fn ask_again(&self, core: &CoreApi) {
        let all = &self.0.reauthorize;
        loop {
            all.due().await;
            let permit = core.permit(Call::Reauthorize).await;
            // Who is due longest is seen only now: some left while the permit was waited for.
            let Some((name, capability)) = all.take() else { continue };
            let Some(fields) = fanout_fields(&capability) else { continue };
            let outcome = core.fanout_authorize(permit, fields).await;
            let now = self.0.parts.clock.unix_s();
            match refusal(&outcome) {
                None => {
                    let yes = outcome == Outcome::Accepted;
                    if yes {
                        self.0.vouched.remember(&capability, now);
                    }
                    let outcome = if yes { Reauthorized::Authorized } else { Reauthorized::Unanswered };
                    self.0.parts.metrics.fanout.reauthorized(outcome);
                    all.answered(&name, yes);
                }
                Some(code) => {
                    self.0.vouched.refuse(&capability, now);
                    self.0.parts.metrics.fanout.reauthorized(Reauthorized::Refused);
                    tracing::info!(component = "admission", code = code.name(), "the core took a contact's token back");
                    all.refused(&name, code);
                }
            }
        }
    }

    /// A hold on a capability that no revocation list names; `None`: there is nothing to ask.
    pub(super) fn hold(&self, capability: &Capability) -> Result<Option<Hold>, Code> {
        let grant = &capability.grant;
        if self.0.parts.core.is_none() || grant.format != Format::Proofline || grant.use_ != Use::Fanout {
            return Ok(None);
        }
        let name = self.0.vouched.name(&capability.token);
        let yes = self.0.vouched.yes(&name);
        self.0.reauthorize.hold(name, capability, yes).map(Some).ok_or(Code::TooManyContacts)
    }
}

/// With which code a subscription ends; `None`: the core did not refuse it.
fn refusal(outcome: &Outcome) -> Option<Code> {
    let code = |refusal: &Refusal| match refusal.code.as_deref().unwrap_or_default() {
        "relay_capability_expired" => Code::CapabilityExpired,
        code if code.starts_with("relay_capability_") => Code::CapabilityRevoked,
        _ => Code::CoreRejected,
    };
    match outcome {
        Outcome::Refused(refusal) | Outcome::Renew(refusal) => Some(code(refusal)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::outcome::{Answer, Asked, Doubt, read};

    #[test]
    fn only_a_refusal_by_the_core_ends_anything() {
        let said = |status: u16, body: &str| {
            let asked = Asked::FanoutAuthorize { incident: "i", stream: "s" };
            refusal(&read(asked, Answer { status, retry_after: None, body: Some(body.as_bytes()) }))
        };
        let error = |code: &str| format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"\"}}}}");
        for (status, code, ends) in [
            (401, "relay_capability_invalid", Some(Code::CapabilityRevoked)),
            (401, "relay_capability_expired", Some(Code::CapabilityExpired)),
            (403, "relay_capability_revoked", Some(Code::CapabilityRevoked)),
            (403, "relay_capability_wrong_role", Some(Code::CapabilityRevoked)),
            (404, "incident_not_found", Some(Code::CoreRejected)),
            (409, "incident_closed", Some(Code::CoreRejected)),
            (409, "stream_not_open", Some(Code::CoreRejected)),
            (401, "relay_service_auth_required", None),
            (404, "not_found", None),
            (429, "rate_limited", None),
            (500, "internal_error", None),
            (503, "relay_capability_not_configured", None),
            (507, "anything", None),
        ] {
            assert_eq!(said(status, &error(code)), ends, "{status} {code}");
        }
        assert_eq!(said(403, "<html>a proxy's word</html>"), None);
        assert_eq!(said(200, "not the answer to this"), None);
        assert_eq!(refusal(&Outcome::Ambiguous(Doubt::NotSent)), None);
        assert_eq!(refusal(&Outcome::Accepted), None);
    }
}
