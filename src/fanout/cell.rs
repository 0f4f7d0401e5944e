//! One group: its window behind its lock, those who watch it, and how they are woken.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::bells::{Bells, Listener};
use super::group::GroupKey;
use super::hub::Inner;
use crate::proto::Code;
use crate::proto::claims::Grant;
use crate::proto::window::{Place, Window};

/// One capability has this many seats of a group at least: its holder's devices and pages, and what
/// an earlier connection left for a while. More would let one contact take the others' seats.
const LEAST_SEATS: usize = 64;
/// Chunks that may be asked for by themselves for each seat of a contact: one who watches over plain HTTP/3
/// requests asks for the next of each lane ahead, and for sound more than once.
const READERS_PER_SEAT: usize = 8;

/// How long a change waits for others, for each contact that is to be told and at most: about what it
/// takes to serve one, and what nobody who watches notices.
const SERVING: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(4));
/// The same for a chunk's state, which the next bytes can take along.
const TELLING: (Duration, Duration) = (Duration::from_micros(250), Duration::from_millis(25));
/// A timer is no finer.
const LEAST_GATHER: Duration = Duration::from_millis(1);

/// Where a chunk lies, among all windows.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) cell: Weak<Cell>,
    pub(super) place: Place,
}

impl Address {
    pub(super) fn watched(&self) -> bool {
        self.cell.upgrade().is_some_and(|cell| cell.watched())
    }
}

/// Whom a change concerns.
#[derive(Clone, Copy)]
pub(super) enum Wake {
    /// Nobody, unless the capture device's own state changed.
    Nobody,
    /// Those who watch this lane.
    Lane(usize),
    /// The same, and it may be told with what comes next.
    News(usize),
    /// Those who watch this lane, at once if they were not just woken: a chunk is whole, and nothing more of it comes.
    Whole(usize),
    /// Everybody.
    All,
}

/// Who has a seat.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sits {
    /// A contact.
    Contact,
    /// A chunk that is asked for by itself.
    Reader,
}

impl Sits {
    fn gauge(self, hub: &Inner) -> &Gauge {
        match self {
            Self::Contact => &hub.metrics.fanout.contacts,
            Self::Reader => &hub.metrics.fanout.readers,
        }
    }
}

/// What a contact listens to.
#[derive(Clone, Copy)]
pub(super) enum Channel {
    /// One lane, and what concerns everybody.
    Lane(usize),
    /// Everything.
    Any,
}

pub(super) struct Cell {
    pub(super) key: GroupKey,
    window: Mutex<State>,
    /// Seats taken by each of [`Sits`].
    taken: [AtomicUsize; 2],
    /// The same of each capability, by its keyed hash.
    seats: Mutex<HashMap<u64, [usize; 2]>>,
    hasher: RandomState,
    bells: Arc<Bells>,
    gather: Mutex<Gather>,
}

/// A wake-up that is due, for several changes together.
#[derive(Default)]
struct Gather {
    at: Option<Instant>,
    lanes: [bool; 2],
    /// The last one.
    rang: Option<Instant>,
}

/// A window, and whether the hub still knows it.
pub(super) struct State {
    pub(super) window: Window,
    /// The hub has let go of it: a publisher asks for the group again.
    pub(super) closed: bool,
}

impl Cell {
    pub(super) fn new(key: GroupKey, window: Window) -> Self {
        Self {
            key,
            window: Mutex::new(State { window, closed: false }),
            taken: Default::default(),
            seats: Mutex::default(),
            hasher: RandomState::new(),
            bells: Arc::default(),
            gather: Mutex::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the window, does elsewhere what follows from it, and wakes whom it concerns.
    pub(super) fn change<T>(self: &Arc<Self>, hub: &Inner, whom: Wake, change: impl FnOnce(&mut Window) -> T) -> T {
        let mut state = self.lock();
        let captures = state.window.captures();
        let result = change(&mut state.window);
        self.changed(hub, state, captures, whom);
        result
    }

    /// The end of a change that began when there were `captures` events of the capture device:
    /// such an event concerns everybody.
    pub(super) fn changed(self: &Arc<Self>, hub: &Inner, mut state: MutexGuard<'_, State>, captures: u64, whom: Wake) {
        hub.settle(self, &mut state);
        let all = captures != state.window.captures();
        drop(state);
        self.wake(if all { Wake::All } else { whom });
    }

    /// Does what is due by time alone.
    pub(super) fn tick(self: &Arc<Self>, hub: &Inner) {
        let mut state = self.lock();
        let captures = state.window.captures();
        if state.window.tick(hub.clock.now_ms()) {
            self.changed(hub, state, captures, Wake::All);
        }
    }

    /// Wakes whom it concerns: a few at once; many when as much time has passed as it takes to serve
    /// them. What changes meanwhile is told with it, in one write to each of them instead of several.
    pub(super) fn wake(self: &Arc<Self>, whom: Wake) {
        let (lanes, each) = match whom {
            Wake::Nobody => return,
            Wake::Lane(this) => (lane(this), SERVING),
            Wake::News(this) => (lane(this), TELLING),
            Wake::Whole(this) => (lane(this), SERVING),
            Wake::All => ([true; 2], SERVING),
        };
        let time = self.gathering(each);
        match Handle::try_current() {
            Ok(runtime) if time >= LEAST_GATHER => {
                self.wake_within(&runtime, lanes, time, matches!(whom, Wake::Whole(_)));
            }
            _ => self.bells.ring(lanes),
        }
    }

    fn gathering(&self, (each, most): (Duration, Duration)) -> Duration {
        each.saturating_mul(u32::try_from(self.watching()).unwrap_or(u32::MAX)).min(most)
    }

    /// Whether so many watch that they are woken for several changes together.
    pub(super) fn gathers(&self) -> bool {
        self.gathering(SERVING) >= LEAST_GATHER
    }

    /// By the runtime's clock: it paces work, and nothing that is told depends on it. `at_once`: unless they were
    /// woken less than `time` ago. Also then by another task: who brings bytes goes on.
    fn wake_within(self: &Arc<Self>, runtime: &Handle, lanes: [bool; 2], time: Duration, at_once: bool) {
        let _entered = runtime.enter();
        let later = tokio::time::sleep(time).deadline();
        let now = later - time;
        let mut gather = self.gather();
        let at = match gather.rang {
            _ if !at_once => later,
            Some(rang) => (rang + time).clamp(now, later),
            None => now,
        };
        gather.lanes.iter_mut().zip(lanes).for_each(|(due, this)| *due |= this);
        if gather.at.is_some_and(|due| due <= at) {
            return;
        }
        gather.at = Some(at);
        drop(gather);
        let cell = Arc::clone(self);
        runtime.spawn(async move {
            // The timer would round it up.
            if at - now >= LEAST_GATHER {
                tokio::time::sleep_until(at).await;
            }
            cell.ring(at);
        });
    }

    /// Wakes all who are to be woken by then.
    fn ring(&self, at: Instant) {
        let lanes = {
            let mut gather = self.gather();
            // An earlier one has taken everything, also what another waits for.
            if gather.at.is_none_or(|due| due > at) {
                return;
            }
            std::mem::replace(&mut *gather, Gather { rang: Some(at), ..Gather::default() }).lanes
        };
        self.bells.ring(lanes);
    }

    fn gather(&self) -> MutexGuard<'_, Gather> {
        self.gather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn listen(&self, channel: Channel) -> Listener {
        self.bells.listen(match channel {
            Channel::Lane(this) => lane(this),
            Channel::Any => [true; 2],
        })
    }

    /// One more seat for a capability, if fewer than `limit` have it.
    fn seat_for(&self, grant: &Grant, sits: Sits, limit: usize) -> Option<u64> {
        let capability = self.hasher.hash_one((&grant.jti, grant.session.as_str(), grant.exp));
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = &mut seats.entry(capability).or_default()[sits as usize];
        if *taken >= limit {
            return None;
        }
        *taken += 1;
        Some(capability)
    }

    fn leave(&self, capability: u64, sits: Sits) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = seats.get_mut(&capability) {
            taken[sits as usize] -= 1;
            if *taken == [0; 2] {
                seats.remove(&capability);
            }
        }
    }

    fn watching(&self) -> usize {
        self.taken.iter().map(|taken| taken.load(Ordering::Acquire)).sum()
    }

    pub(super) fn watched(&self) -> bool {
        self.watching() > 0
    }
}

fn lane(this: usize) -> [bool; 2] {
    [0, 1].map(|lane| lane == this)
}

/// A seat in a group. Dropping it frees the seat.
pub(super) struct Seat {
    pub(super) hub: Arc<Inner>,
    pub(super) cell: Arc<Cell>,
    capability: u64,
    sits: Sits,
}

impl Seat {
    /// Takes one of `limit` seats, of which one capability has a sixteenth, and no fewer than
    /// [`LEAST_SEATS`]; chunks asked for by themselves have [`READERS_PER_SEAT`] times as many of their own.
    pub(super) fn take(
        hub: &Arc<Inner>,
        cell: Arc<Cell>,
        grant: &Grant,
        sits: Sits,
        limit: usize,
    ) -> Result<Self, Code> {
        let each = if sits == Sits::Reader { READERS_PER_SEAT } else { 1 };
        let (limit, share) = (each * limit, each * (limit / 16).max(LEAST_SEATS));
        let capability = cell.seat_for(grant, sits, share).ok_or(Code::TooManyContacts)?;
        let taken = cell.taken[sits as usize]
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < limit).then_some(taken + 1));
        if taken.is_err() {
            cell.leave(capability, sits);
            return Err(Code::TooManyContacts);
        }
        sits.gauge(hub).inc();
        Ok(Self { hub: hub.clone(), cell, capability, sits })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.sits.gauge(&self.hub).dec();
        self.cell.leave(self.capability, self.sits);
        self.cell.taken[self.sits as usize].fetch_sub(1, Ordering::AcqRel);
        if !self.cell.watched() {
            self.hub.let_go_if_unused(&self.cell);
        }
    }
}
