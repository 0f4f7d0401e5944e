//! A contact's place in the windows.

use bytes::Bytes;

use super::bells::Listener;
use super::cell::{Channel, Seat, Sits, Wake};
use super::group::GroupKey;
use super::hub::Inner;
use super::timer::Timer;
use std::sync::Arc;

use crate::proto::claims::Grant;
use crate::proto::cursor::Cursor;
use crate::proto::frame::{encode_json, kind};
use crate::proto::message::{self, Ending, StartAt, StartWord};
use crate::proto::window::{Contact, LANES, Out, Start, View, Window};
use crate::proto::{Code, StreamId, Variant};

/// A contact is told where it is at most this often.
const CURSOR_EVERY_MS: u64 = 1_000;

/// A link that takes so long for one step is thin, in milliseconds. A step is at most 260 KiB.
const THIN_MS: u64 = 500;
/// It is thin no more after so many steps of 8 KiB without such a wait: more than all the buffers on the
/// way, which take the first ones at once, can hold.
const QUICK_STEPS: u32 = 32;

/// What a contact asks for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Which variants; `None`: every watchable lane.
    pub lanes: Option<Vec<Variant>>,
    /// Where to begin; `None`: live.
    pub from: Option<StartAt>,
    /// A cursor of an earlier subscription; goes before `from`.
    pub cursor: Option<String>,
    /// No bytes of chunks: they are asked for one by one ([`ChunkReader`](super::ChunkReader)).
    pub bare: bool,
}

impl Wanted {
    fn start(&self) -> Start {
        match (&self.cursor, &self.from) {
            // A cursor that can't be read is followed from the oldest, so that nothing is missed.
            (Some(cursor), _) => Cursor::decode(cursor).map_or(Start::Oldest, Start::Cursor),
            (None, None | Some(StartAt::Word(StartWord::Live))) => Start::Live,
            (None, Some(StartAt::Word(StartWord::Oldest))) => Start::Oldest,
            (None, Some(StartAt::At { stream, index })) => Start::At(stream.clone(), *index),
        }
    }
}

/// What a contact is sent next.
pub enum Step {
    /// Encoded frames, in order. Their bytes are shared by all contacts.
    Frames(Vec<Bytes>),
    /// The same, and then nothing more: the last frame is `ENDING`.
    End(Vec<Bytes>),
}

/// A contact's place in the windows.
pub struct Subscription {
    seat: Seat,
    contact: Contact,
    grant: Arc<Grant>,
    lanes: Option<Vec<Variant>>,
    bare: bool,
    wake: Listener,
    timer: Timer,
    ending: Option<Code>,
    /// Its first step was taken: `WATCHING` and how the device is, and nothing else. What follows may be much, and a
    /// browser reads no part of a message.
    greeted: bool,
    over: bool,
    /// Its link takes less than there is.
    thin: bool,
    /// Steps since it was found thin, and whether the last one was worth counting.
    quick: u32,
    ample: bool,
    /// The place moved since the last `CURSOR`.
    moved: bool,
    cursor_at: Option<u64>,
    held: [bool; 2],
    /// It was given all there is, until something changes or this time comes.
    rest: Option<u64>,
}

impl Subscription {
    pub(super) fn open(hub: &Arc<Inner>, grant: &Arc<Grant>, wanted: Wanted) -> Result<Self, Code> {
        hub.may_watch(grant)?;
        let view = view(hub, grant, wanted.lanes.as_deref());
        if view.lanes == [false; 2] {
            return Err(Code::NotWatchable);
        }
        let seat = hub.seat(grant, Sits::Contact)?;
        let now = hub.clock.now_ms();
        let wake = seat.cell.listen(channel(&view));
        seat.cell.tick(hub);
        let contact = Contact::new(&seat.cell.lock().window, view, wanted.start(), now);
        Ok(Self {
            seat,
            contact,
            grant: Arc::clone(grant),
            bare: wanted.bare,
            lanes: wanted.lanes,
            wake,
            timer: Timer::default(),
            ending: None,
            greeted: false,
            over: false,
            thin: false,
            quick: 0,
            ample: false,
            moved: false,
            cursor_at: None,
            held: [false; 2],
            rest: None,
        })
    }

    /// Waits for the next frames: control first, then audio, then preview. At most 260 KiB of
    /// media a step. Cancel-safe. After [`Step::End`] there are only empty ends.
    pub async fn next(&mut self) -> Step {
        loop {
            let due = match self.rest.take().filter(|_| !self.wake.has_changed()) {
                Some(due) => due,
                None => {
                    self.wake.mark_unchanged();
                    match self.poll() {
                        Ok(step) => return step,
                        Err(due) => due,
                    }
                }
            };
            let clock = self.seat.hub.clock.clone();
            tokio::select! {
                // Whoever brings bytes goes on first: what comes right behind them is handed out
                // with them, in one write instead of several. Many are woken late for that.
                () = self.wake.changed() => if !self.seat.cell.gathers() {
                    tokio::task::yield_now().await;
                },
                () = self.timer.until(&clock, due) => {}
            }
        }
    }

    /// A new capability for the same incident and group. From now on it alone counts: what the one
    /// before reached, and until when, is over.
    ///
    /// # Errors
    /// `CapabilityWrongBinding`, `CapabilityExpired`, `CapabilityWrongUse`.
    pub fn renew(&mut self, grant: &Arc<Grant>) -> Result<(), Code> {
        self.seat.hub.may_watch(grant)?;
        if GroupKey::of_contact(grant) != Ok(self.seat.cell.key.clone()) {
            return Err(Code::CapabilityWrongBinding);
        }
        self.grant = Arc::clone(grant);
        self.look();
        Ok(())
    }

    /// Other lanes from now on.
    pub fn lanes(&mut self, lanes: Vec<Variant>) {
        self.lanes = Some(lanes);
        self.look();
    }

    /// The handles of the chunks that were begun and of which there is more to come.
    #[must_use]
    pub fn bringing(&self) -> Vec<u64> {
        self.contact.bringing(&self.seat.cell.lock().window)
    }

    /// How long the link took for what it was given last: from that it is known to be thin.
    ///
    /// One that asks for the bytes of each chunk by itself is never thin here: it asks for less.
    pub fn took(&mut self, ms: u64) {
        if self.bare {
            return;
        }
        if ms >= THIN_MS {
            (self.thin, self.quick) = (true, 0);
        } else if std::mem::take(&mut self.ample) {
            self.quick = self.quick.saturating_add(1);
            self.thin &= self.quick < QUICK_STEPS;
        }
    }

    /// One chunk again, if it is in the window; else it is announced as omitted. A contact that
    /// asks on and takes no answer is let go.
    pub fn fetch(&mut self, stream: &StreamId, index: u64) {
        self.rest = None;
        let asked = self.contact.fetch(&self.seat.cell.lock().window, stream, index);
        if let Err(code) = asked {
            self.end(code);
        }
    }

    /// Lanes of which the transport has enough: nothing of them is handed out until they are let go.
    pub fn hold(&mut self, lanes: [bool; 2]) {
        if self.held != lanes {
            (self.held, self.rest) = (lanes, None);
        }
    }

    /// Ends it with this reason: the next step is the last.
    pub fn end(&mut self, reason: Code) {
        self.rest = None;
        self.ending.get_or_insert(reason);
    }

    /// The reason with which it ended, if its last step was handed out and names one.
    #[must_use]
    pub const fn ended(&self) -> Option<Code> {
        if self.over { self.ending } else { None }
    }

    /// It ends here, for this reason, unless it has ended: its contact takes no last step.
    pub fn let_go(&mut self, reason: Code) {
        if !self.over {
            self.over = true;
            self.seat.hub.metrics.fanout.ending(Some(reason));
        }
    }

    fn look(&mut self) {
        self.rest = None;
        let view = view(&self.seat.hub, &self.grant, self.lanes.as_deref());
        self.wake = self.seat.cell.listen(channel(&view));
        self.contact.look(view, &self.seat.cell.lock().window);
    }

    /// The next step, or when to look again without being woken.
    fn poll(&mut self) -> Result<Step, u64> {
        if self.over {
            return Ok(Step::End(Vec::new()));
        }
        let clock = &self.seat.hub.clock;
        let (now, unix_ms) = (clock.now_ms(), clock.unix_ms());
        let expires = self.grant.exp.saturating_mul(1000).saturating_sub(unix_ms);
        if expires <= 0 {
            return Ok(self.finish(Vec::new(), Some(Code::CapabilityExpired)));
        }
        let cell = self.seat.cell.clone();
        let mut state = cell.lock();
        let ticked = state.window.tick(now);
        if ticked {
            self.seat.hub.settle(&cell, &mut state);
        }
        let greeted = std::mem::replace(&mut self.greeted, true);
        let mut out = match self.ending {
            Some(_) => Out::control_only(),
            None if !greeted => Out::control_only(),
            None if self.thin => Out::thin().holding(self.held),
            None if self.bare => Out::bare().holding(self.held),
            None => Out::default().holding(self.held),
        };
        self.contact.poll(&mut state.window, now, &mut out);
        let settled = self.contact.settled(&state.window, now);
        self.ample |= out.ample();
        self.count(&out);
        let roomy = out.roomy();
        let mut frames = out.frames;
        self.add_cursor(&state.window, now, &mut frames);
        let due = self.due(&state.window, now).min(now.saturating_add_signed(expires));
        drop(state);
        if ticked {
            cell.wake(Wake::All);
        }
        match self.ending {
            Some(reason) => Ok(self.finish(frames, Some(reason))),
            None if settled => Ok(self.finish(frames, None)),
            None if frames.is_empty() => Err(due),
            None => {
                self.rest = (roomy && greeted).then_some(due);
                Ok(Step::Frames(frames))
            }
        }
    }

    /// When something is to be done though nothing comes.
    fn due(&self, window: &Window, now: u64) -> u64 {
        let cursor = self.cursor_at.filter(|_| self.moved).map(|at| at.saturating_add(CURSOR_EVERY_MS));
        let settles = self.contact.settles_at(window);
        [cursor, settles, window.silent_at(), self.contact.sign_due(window), window.abandoned_at()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(u64::MAX)
            .max(now)
    }

    fn count(&mut self, out: &Out) {
        let metrics = &self.seat.hub.metrics.fanout;
        for lane in 0..LANES.len() {
            metrics.delivered(lane, out.counts.frames[lane], out.counts.bytes[lane]);
        }
        for (reason, chunks) in &out.counts.omitted {
            metrics.omitted(*reason, *chunks);
        }
        self.moved |= out.counts.finished > 0;
    }

    fn add_cursor(&mut self, window: &Window, now: u64, frames: &mut Vec<Bytes>) {
        if self.moved && self.cursor_at.is_none_or(|at| now >= at.saturating_add(CURSOR_EVERY_MS)) {
            let cursor = self.contact.cursor(window);
            frames.push(encode_json(kind::CURSOR, &message::Cursor { cursor }));
            self.moved = false;
            self.cursor_at = Some(now);
        }
    }

    fn finish(&mut self, mut frames: Vec<Bytes>, reason: Option<Code>) -> Step {
        (self.over, self.ending) = (true, reason);
        self.seat.hub.metrics.fanout.ending(reason);
        let reason = reason.map_or("ended", Code::name).to_owned();
        frames.push(encode_json(kind::ENDING, &Ending { reason }));
        Step::End(frames)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.over {
            self.seat.hub.metrics.fanout.left();
        }
    }
}

/// What a grant and a wish come to.
fn view(hub: &Inner, grant: &Grant, wanted: Option<&[Variant]>) -> View {
    let shown = |variant: Variant| hub.reaches(grant, variant) && wanted.is_none_or(|wanted| wanted.contains(&variant));
    let streams = (!grant.lanes.is_empty()).then(|| grant.lanes.iter().map(|lane| lane.stream.clone()).collect());
    View { lanes: LANES.map(shown), streams }
}

/// Only what a contact sees wakes it.
const fn channel(view: &View) -> Channel {
    match view.lanes {
        [true, false] => Channel::Lane(0),
        [false, true] => Channel::Lane(1),
        _ => Channel::Any,
    }
}
