//! From a contact's place to the end of what is here: which chunk is next, and its frames.

use super::contact::{Contact, MAX_OPEN, Open};
use super::entry::Entry;
use super::events::Place;
use super::lane::Slot;
use super::out::{Omissions, Out, THIN_STEP};
use super::{LANES, Window};
use crate::cursor::{Delivered, Owed};
use crate::frame::kind;
use crate::media::Variant;
use crate::message::{Omitted, OmittedReason, StreamJoins};

/// A picture that began to arrive so long before a contact could be given its first byte is left out
/// if a newer one is here: who watches on a thin link sees what is now, not what was. In milliseconds.
pub const LATE_MS: u64 = 6_000;

enum Sent {
    /// The step is full.
    Full,
    /// Nothing more is here.
    Waiting,
    /// The chunk is told to its end.
    Done,
}

impl Contact {
    /// Goes on with what was begun, then begins what is next, until the step is full.
    pub(super) fn fill(&mut self, lane: usize, window: &mut Window, now: u64, out: &mut Out) {
        let mut omissions = Omissions::default();
        let mut at = 0;
        loop {
            if at == self.lanes[lane].open.len()
                && (out.full(1) || at >= MAX_OPEN || !self.begin(lane, window, now, &mut omissions, out))
            {
                break;
            }
            match send(&mut self.lanes[lane].open[at], window, &mut omissions, out) {
                Sent::Full => break,
                Sent::Waiting => at += 1,
                Sent::Done => {
                    let done = self.lanes[lane].open.remove(at);
                    self.finish(done.place, window);
                }
            }
        }
        omissions.flush(out);
    }

    fn finish(&mut self, place: Place, window: &Window) {
        let Some(entry) = window.lanes[place.lane].entry(place.seq) else { return };
        if let Some(had) = self.lanes[place.lane].had_of(entry) {
            had.add(entry.meta.index);
        }
    }

    /// Begins the lane's next chunk; names on the way what can't be shown. `false`: nothing is
    /// there to begin.
    fn begin(&mut self, lane: usize, window: &mut Window, now: u64, omissions: &mut Omissions, out: &mut Out) -> bool {
        while let Some(seq) = self.next_seq(lane, window, omissions, out) {
            match window.lanes[lane].slot(seq) {
                Some(Slot::Live(entry)) if self.view.allows(&entry.meta.stream) => {}
                Some(Slot::Tomb(stream, index, Some(reason))) if self.view.allows(stream) => {
                    if !self.lanes[lane].had_elsewhere(&window.lanes[lane], stream, *index) {
                        omissions.add(stream, *index, *reason, out);
                    }
                    continue;
                }
                _ => continue,
            }
            if self.had_before(lane, seq, window, omissions, out) {
                self.tell_standing(lane, seq, window, omissions, out);
                continue;
            }
            let newer = |entry: &Entry| window.names.get(&entry.meta.chunk) != Some(&Place { lane, seq });
            let Some(entry) = window.lanes[lane].entry(seq) else { continue };
            if let Some(reason) = entry.gone {
                if reason != OmittedReason::Withdrawn || !newer(entry) {
                    omissions.add(&entry.meta.stream, entry.meta.index, reason, out);
                }
                if reason != OmittedReason::Withdrawn {
                    self.finish(Place { lane, seq }, window);
                }
                continue;
            }
            if self.late(lane, seq, window, now) || (out.thin && self.stale(lane, seq, window)) {
                omissions.add(&entry.meta.stream, entry.meta.index, OmittedReason::Slow, out);
                self.finish(Place { lane, seq }, window);
                continue;
            }
            omissions.flush(out);
            if !self.takes_over(Place { lane, seq }) {
                self.announce(lane, seq, window, out);
            }
            return true;
        }
        false
    }

    /// Goes on with a chunk that was being fetched when its lane came to it: it is brought once. `false`:
    /// nothing of it went yet.
    fn takes_over(&mut self, place: Place) -> bool {
        let Some(at) = self.fetches.iter().position(|open| open.place == place) else { return false };
        let Some(open) = self.fetches.remove(at) else { return false };
        self.promised.push(Open::new(place, &open.meta));
        if open.begun {
            self.lanes[place.lane].open.push(open);
            return true;
        }
        false
    }

    /// Whether this picture is left out for a newer one. Sound is kept as long as the window holds it,
    /// and what began before the contact came is history that it asked for.
    fn late(&self, lane: usize, seq: u64, window: &Window, now: u64) -> bool {
        let came = window.lanes[lane].entry(seq).and_then(|entry| entry.came);
        LANES[lane] == Variant::LivePreview
            && self.lanes[lane].joined.is_some_and(|joined| seq >= joined)
            && came.is_some_and(|came| now > came.saturating_add(LATE_MS))
            && (seq + 1..window.lanes[lane].end()).contains(&window.live(lane, &self.view))
    }

    /// Whether a thin link shall be spared this chunk: a preview that is no replay, while a newer one is
    /// there. Sound is never left out.
    fn stale(&self, lane: usize, seq: u64, window: &Window) -> bool {
        let (here, there) = (&self.lanes[lane], &window.lanes[lane]);
        let newer = |seq| there.entry(seq).is_some_and(|entry| entry.shows() && self.view.allows(&entry.meta.stream));
        LANES[lane] == Variant::LivePreview
            && seq + 1 == here.next
            && here.joined.is_some_and(|joined| seq >= joined)
            && (here.next..there.end()).any(newer)
    }

    fn next_seq(&mut self, lane: usize, window: &Window, omissions: &mut Omissions, out: &mut Out) -> Option<u64> {
        let there = &window.lanes[lane];
        while let Some(seq) = self.lanes[lane].redo.pop_front() {
            if seq >= there.base {
                return Some(seq);
            }
            self.fell_out(lane, window, omissions, out);
        }
        let here = &mut self.lanes[lane];
        if here.next < there.base {
            here.next = there.base;
            self.fell_out(lane, window, omissions, out);
        }
        let here = &mut self.lanes[lane];
        (here.next < there.end()).then(|| {
            here.next += 1;
            here.next - 1
        })
    }

    /// The places of what it missed are forgotten; their streams' indexes are not.
    fn fell_out(&mut self, lane: usize, window: &Window, omissions: &mut Omissions, out: &mut Out) {
        omissions.flush(out);
        let (here, mut named) = (&mut self.lanes[lane], Vec::new());
        let from = here.had.first().map_or(0, |(ordinal, _)| *ordinal);
        for (ordinal, stream) in window.lanes[lane].streams_from(from) {
            let Some(to) = stream.forgotten.filter(|_| self.view.allows(&stream.id)) else { continue };
            let after = here.brought(stream.tag).map_or(0, |had| had.index + 1).max(stream.first);
            if after <= to {
                out.omitted(&Omitted { stream: stream.id.clone(), from: after, to, reason: OmittedReason::Evicted });
                named.push((ordinal, stream.tag, to));
            }
        }
        for (ordinal, tag, to) in named {
            if let Some(had) = here.had_at(ordinal, tag, to) {
                had.add(to);
            }
        }
    }

    /// Whether another window delivered this chunk already. Names the holes between what that delivered and what is
    /// here when its lane comes to them; what is missing later may still come.
    fn had_before(&mut self, lane: usize, seq: u64, window: &Window, omissions: &mut Omissions, out: &mut Out) -> bool {
        let (there, here) = (&window.lanes[lane], &mut self.lanes[lane]);
        let (Some(before), Some(entry)) = (&mut here.before, there.entry(seq)) else { return false };
        let index = entry.meta.index;
        let asked = self.promised.iter().any(|open| open.place == Place { lane, seq });
        let news = here.joined.is_some_and(|joined| seq >= joined);
        let missed = !before.up_to_date;
        before.up_to_date |= news;
        let delivered = match before.streams.iter_mut().find(|had| had.stream == entry.tag) {
            Some(had) if !before.here && !asked && !entry.again && had.has(index) => return true,
            Some(had) => {
                let left = if index > had.index { Owed::Nothing } else { had.owed.min(Owed::Above) };
                Delivered { owed: std::mem::replace(&mut had.owed, left), ..had.clone() }
            }
            // It follows: what of it is not here any more came and went meanwhile.
            None if missed && before.followed.is_none_or(|last| entry.ordinal > last) => {
                before.followed = Some(entry.ordinal);
                Delivered { owed: Owed::All, ..Delivered::from(entry.tag, 1) }
            }
            None => return false,
        };
        let owes = |from: u64| match delivered.owed {
            Owed::Nothing => false,
            Owed::Above => from > delivered.index && index > delivered.index,
            Owed::All => from < delivered.index || index > delivered.index,
        };
        let stream = there.stream(entry.ordinal).filter(|_| owes(delivered.index + 1) || owes(0));
        let holes = stream.map(|stream| there.holes(stream, &delivered)).unwrap_or_default();
        for (from, to) in holes.into_iter().filter(|(from, _)| owes(*from)) {
            omissions.flush(out);
            let (stream, reason) = (entry.meta.stream.clone(), OmittedReason::Evicted);
            out.omitted(&Omitted { stream, from, to, reason });
        }
        false
    }

    /// What another window delivered is not delivered again. Its verdict may be this window's: it
    /// came before the contact did.
    fn tell_standing(&self, lane: usize, seq: u64, window: &mut Window, omissions: &mut Omissions, out: &mut Out) {
        let Some(entry) = window.lanes[lane].entry_mut(seq).filter(|entry| entry.withdrawn.is_none()) else { return };
        if let Some(state) = entry.states_beside() {
            omissions.flush(out);
            out.frames.push(state);
        }
    }

    /// `STREAM` where it is new, `CHUNK`, and `STATE` where that says more.
    fn announce(&mut self, lane: usize, seq: u64, window: &mut Window, out: &mut Out) {
        let Some(entry) = window.lanes[lane].entry(seq) else { return };
        let here = &mut self.lanes[lane];
        // From here on it is known of the stream what came, and this did not yet.
        if let Some(had) = here.had_of(entry) {
            had.remove(entry.meta.index);
        }
        let replay = here.joined.is_some_and(|joined| seq < joined);
        let own = entry.ordinal;
        let (first, next) = here.streams.unwrap_or((own, own));
        let new = if own < first { own..own + 1 } else { next..(own + 1).max(next) };
        here.streams = Some((first, next.max(own + 1)));
        let known = |ordinal: u64| {
            let stream = window.lanes[lane].stream(ordinal).map(|stream| &stream.id);
            stream.filter(|stream| self.view.allows(stream))
        };
        for ordinal in new {
            // The lane may have forgotten the stream of an old chunk; the chunk has not.
            let stream = known(ordinal).or((ordinal == own).then_some(&entry.meta.stream));
            if let Some(stream) = stream.cloned() {
                let follows = ordinal.checked_sub(1).and_then(known).cloned();
                out.json(kind::STREAM, &StreamJoins { stream, variant: LANES[lane], follows });
            }
        }
        let Some(entry) = window.lanes[lane].entry_mut(seq) else { return };
        out.frames.push(entry.begins(replay));
        out.frames.extend(entry.states_beside());
        let meta = entry.meta.clone();
        self.lanes[lane].open.push(Open { begun: true, ..Open::new(Place { lane, seq }, &meta) });
    }

    pub(super) fn refetch(&mut self, window: &mut Window, out: &mut Out) {
        let mut omissions = Omissions::default();
        let mut at = 0;
        while at < self.fetches.len() && !out.full(1) {
            let open = &mut self.fetches[at];
            if out.held[open.place.lane] {
                at += 1;
                continue;
            }
            let entry = window.lanes[open.place.lane].entry_mut(open.place.seq);
            if let Some(entry) = entry.filter(|entry| entry.held() && !open.begun) {
                out.frames.push(entry.begins(true));
                open.begun = true;
            }
            match send(open, window, &mut omissions, out) {
                Sent::Full => break,
                Sent::Waiting => at += 1,
                Sent::Done => drop(self.fetches.remove(at)),
            }
        }
        omissions.flush(out);
    }
}

/// Hands out what is here of an open chunk.
fn send(open: &mut Open, window: &mut Window, omissions: &mut Omissions, out: &mut Out) -> Sent {
    let lane = open.place.lane;
    let entry = window.lanes[lane].entry_mut(open.place.seq);
    let gone = entry.as_ref().and_then(|entry| entry.gone);
    let Some(entry) = entry.filter(|entry| entry.held()) else {
        let reason = gone.unwrap_or(OmittedReason::Evicted);
        omissions.add(&open.meta.stream, open.meta.index, reason, out);
        return Sent::Done;
    };
    let Some(body) = &mut entry.body else { return Sent::Done };
    while !out.bare
        && let Some(frame) = body.frame(open.frame)
    {
        if open.at == 0 && !out.thin {
            if out.full(frame.len()) {
                return Sent::Full;
            }
            out.piece(lane, frame);
            open.frame += 1;
            continue;
        }
        let most = if out.thin { THIN_STEP } else { usize::MAX };
        let Some((head, bytes)) = body.part(open.frame, open.at, most) else {
            (open.frame, open.at) = (open.frame + 1, 0);
            continue;
        };
        if out.full(bytes.len()) {
            return Sent::Full;
        }
        open.at += bytes.len();
        out.parts(lane, head, bytes);
    }
    if !entry.whole {
        return Sent::Waiting;
    }
    out.frames.push(entry.completes());
    out.counts.finished += 1;
    Sent::Done
}
