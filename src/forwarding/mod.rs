//! Spends the budget of core calls on commits: takes a place in the budget first and the best
//! chunk then, so that what is most urgent at that moment goes (design, promise 5). It learns of
//! work from staging alone.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::core::{ChunkFields, CoreApi, Permit, Reach};
use crate::proto::Class;
use crate::proto::Code;
use crate::proto::budget::{AWAY_LONGEST_MS, Call, Limiter, RETRY_LONGEST_MS, backoff_ms};
use crate::proto::ledger::{Reason, Verdict};
use crate::proto::outcome::{Doubt, Outcome};
use crate::staging::{Job, Staging};

/// Commits under way that may carry any class.
pub const COMMITS: usize = 24;
/// Commits under way that never carry a master: long uploads to a far core can't take every place.
pub const EXPRESS_COMMITS: usize = 8;
/// How long a chunk waits when the core does not accept this relay.
const OPERATOR_RETRY_MS: u64 = 30_000;
/// How long a chunk waits when the account is full and the core names no time.
const ACCOUNT_RETRY_MS: u64 = 600_000;

/// The forwarder.
#[derive(Clone)]
pub struct Forwarding {
    core: CoreApi,
    staging: Staging,
    clock: Clock,
    rate: Arc<AtomicU64>,
    /// The core's last word to this relay was that it does not accept it.
    refused: Arc<AtomicBool>,
}

impl Forwarding {
    /// A forwarder of what `staging` holds.
    #[must_use]
    pub fn new(core: CoreApi, staging: Staging, clock: Clock) -> Self {
        Self { core, staging, clock, rate: Arc::default(), refused: Arc::default() }
    }

    /// Forwards until `shutdown`, then waits for the commits under way; whoever drops the future
    /// earlier loses no chunk, only answers.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut loops = JoinSet::new();
        for (lowest, places) in [(Class::Master, COMMITS), (Class::Context, EXPRESS_COMMITS)] {
            loops.spawn(self.clone().dispatch(lowest, places, shutdown.clone()));
        }
        loops.spawn(self.watch_the_core(shutdown));
        while loops.join_next().await.is_some() {}
    }

    async fn dispatch(self, lowest: Class, places: usize, shutdown: CancellationToken) {
        let room = Arc::new(Semaphore::new(places));
        let mut under_way = JoinSet::new();
        loop {
            let next = async {
                let place = Arc::clone(&room).acquire_owned().await.ok()?;
                self.staging.ready(lowest).await;
                let permit = self.permit(lowest).await;
                Some((place, permit, self.staging.take(lowest).await))
            };
            let Some(Some((place, permit, job))) = shutdown.run_until_cancelled(next).await else { break };
            // Somebody else took it; the unused permit goes back.
            let Some(job) = job else { continue };
            let this = self.clone();
            under_way.spawn(async move {
                this.commit(permit, job).await;
                drop(place);
            });
            while under_way.try_join_next().is_some() {}
        }
        while under_way.join_next().await.is_some() {}
    }

    /// A place in the budget, in the order of mercy beside whoever else commits (the drop-in
    /// routes): at the rank of the most urgent chunk, and anew when a more urgent one comes.
    async fn permit(&self, lowest: Class) -> Permit {
        loop {
            let waits = |class: &&Class| self.staging.ready(**class).now_or_never().is_some();
            let rank = Class::ALL.iter().find(waits).map_or(lowest.rank(), |class| class.rank());
            let more_urgent = async {
                match rank.checked_sub(1) {
                    Some(above) => self.staging.ready(Class::ALL[above]).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                permit = self.core.permit_ranked(Call::Commit, rank as u8) => return permit,
                () = more_urgent => {}
            }
        }
    }

    async fn commit(&self, permit: Permit, job: Job) {
        let verdict = match job.body().await {
            // Rotten bytes are no evidence, and the core refused nothing: the uploader may have them.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Verdict::Damaged,
            Err(_) => Verdict::Retry(self.backoff(job.tries(), RETRY_LONGEST_MS)),
            Ok(body) => {
                let begun = self.clock.now_ms();
                let fields = ChunkFields { session: job.session(), capability: job.capability(), offer: job.offer() };
                let outcome = self.core.commit(permit, fields, body).await;
                if !matches!(outcome, Outcome::Ambiguous(_) | Outcome::Limited(_)) {
                    self.refused.store(matches!(outcome, Outcome::Operator(_)), Relaxed);
                }
                self.measure(&outcome, job.offer().length, self.clock.now_ms().saturating_sub(begun));
                self.verdict(outcome, job.tries())
            }
        };
        job.settle(verdict).await;
    }

    fn verdict(&self, outcome: Outcome, tries: u32) -> Verdict {
        let retry_after = outcome.refusal().and_then(|refusal| refusal.retry_after_s).unwrap_or(0) * 1000;
        let longest = if outcome.away() { AWAY_LONGEST_MS } else { RETRY_LONGEST_MS };
        let backoff = self.backoff(tries, longest).max(retry_after);
        match outcome {
            // What is here may be the only copy, and a portal on the way can answer `{}` too.
            Outcome::Confirmed(confirmed) if confirmed.bare => Verdict::Ambiguous(backoff),
            Outcome::Confirmed(confirmed) => Verdict::Confirmed(confirmed.receipt.map(Arc::from)),
            Outcome::Refused(refusal) => Verdict::Rejected(Code::CoreRejected, refusal.code),
            Outcome::Renew(_) => Verdict::CapabilityExpired,
            Outcome::Duplicate(_) => Verdict::Duplicate,
            Outcome::Blocked(_) => Verdict::AccountFull(retry_after.max(ACCOUNT_RETRY_MS)),
            Outcome::Operator(_) => Verdict::Retry(OPERATOR_RETRY_MS),
            // The budget holds the whole class back; the chunk keeps its place in the order.
            Outcome::Limited(_) | Outcome::Accepted => Verdict::Retry(0),
            Outcome::Wait(_) => Verdict::Retry(backoff),
            // Permits wait until the core may be back; the chunk itself has nothing to wait for.
            Outcome::Ambiguous(Doubt::NotSent) => Verdict::Retry(0),
            outcome @ Outcome::Ambiguous(_) if outcome.may_have_stored() => Verdict::Ambiguous(backoff),
            Outcome::Ambiguous(_) => Verdict::Retry(backoff),
        }
    }

    fn backoff(&self, tries: u32, longest_ms: u64) -> u64 {
        backoff_ms(tries, longest_ms, self.clock.random_below(u64::MAX))
    }

    /// A moving average of the rate of single commits: what a master's first chunk would take.
    fn measure(&self, outcome: &Outcome, length: u64, took_ms: u64) {
        const LEAST_TELLING: u64 = 32 * 1024;
        if matches!(outcome, Outcome::Confirmed(_)) && length >= LEAST_TELLING {
            let now = length * 1000 / took_ms.max(1);
            let before = self.rate.load(Relaxed);
            let rate = if before == 0 { now } else { (before * 7 + now) / 8 };
            self.rate.store(rate, Relaxed);
            self.staging.set_rate(rate);
        }
    }

    /// Keeps the reason that waiting chunks are counted under: at once where the core went away or came back, so
    /// that nobody reads of a core that is away and of chunks that wait for something else. What is told
    /// of it in the log is what it is when somebody looks, four times a second.
    async fn watch_the_core(self, shutdown: CancellationToken) {
        const EVERY: Duration = Duration::from_millis(250);
        let (mut reach, mut told) = (self.core.reach(), self.staging.gate());
        let watch = async {
            loop {
                let mut look = pin!(self.clock.sleep(EVERY));
                loop {
                    tokio::select! {
                        Ok(()) = reach.changed() => self.staging.set_gate(self.reason()),
                        () = &mut look => break,
                    }
                }
                let now = self.reason();
                self.staging.set_gate(now);
                if now != told {
                    tell(now, told);
                    told = now;
                }
            }
        };
        shutdown.run_until_cancelled(watch).await;
    }

    fn reason(&self) -> Reason {
        if matches!(*self.core.reach().borrow(), Reach::Away { .. }) || self.core.troubled() {
            Reason::CoreUnreachable
        } else if self.core.limited_for(Limiter::Upload).is_some() {
            Reason::CoreLimited
        } else if self.refused.load(Relaxed) {
            Reason::ServiceToken
        } else {
            Reason::Queued
        }
    }
}

/// The line that an operator reads when the core stops taking chunks, or takes them again. What
/// to do about it is said by `waystation status`.
fn tell(now: Reason, before: Reason) {
    let (waits_for, before) = (now.as_str(), before.as_str());
    if now == Reason::Queued {
        tracing::info!(component = "forwarding", waits_for, before, "the core takes chunks again");
    } else {
        tracing::warn!(component = "forwarding", waits_for, before, "the core takes no chunks: they are kept and wait");
    }
}
