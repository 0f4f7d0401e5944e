//! A plan's requests: when each is made, what is heard of it, and when it is made again.

use std::time::Duration;

use tokio::time::Instant;
use waystation_proto::frame::kind;
use waystation_proto::message::{ChunkBegins, Complete, Ending, OmittedReason};
use waystation_proto::{ContactState, Offer, Variant};

use super::{
    ALONE, Failure, KEPT_FOR_SOUND, MAX_ASKED, MAX_RETRY_AFTER, MAX_TRIES, News, Order, PATIENT, PAUSES_MS, Plan,
    THRICE_FROM, TWICE_FROM, read,
};
use crate::http::Broken;
use crate::watch::table::Class;

impl Plan {
    /// Makes the requests that may be made: sound before pictures, those of now before those of before, and the
    /// older of each first.
    pub(super) fn ask_more(&mut self, now: Instant) {
        loop {
            let Some((handle, chunk)) = self.table.waiting(Class::Sound).next() else { return };
            let taken = self.table.taken();
            let full = chunk.picture() && taken.of_pictures >= MAX_ASKED - KEPT_FOR_SOUND;
            if full || taken.requests >= MAX_ASKED || !self.fits(chunk) {
                return;
            }
            self.table.set_open(handle);
            self.request(handle, now);
            if self.table.get(handle).is_some_and(|chunk| chunk.told.is_some()) {
                self.pass_on(handle);
            }
        }
    }

    /// Asks for an open chunk.
    pub(super) fn request(&mut self, handle: u64, now: Instant) {
        // What it has had so far is one place.
        let free = (MAX_ASKED + 1).saturating_sub(self.table.taken().requests);
        let copies = self.copies(now).min(free).max(1);
        let Some(chunk) = self.table.get_mut(handle) else { return };
        (chunk.again_at, chunk.asked_at) = (None, Some(now));
        for _ in 0..if chunk.picture() { 1 } else { copies } {
            chunk.requests.push(self.next_request);
            self.orders.push_back(Order::Ask(self.next_request, chunk.name.clone()));
            self.next_request += 1;
        }
    }

    /// How often sound is asked for. A link that takes less than there is takes nothing twice.
    fn copies(&self, now: Instant) -> usize {
        let behind = self.table.pictures_told(1);
        match self.loss {
            _ if behind || self.alone_until.is_some_and(|until| now < until) => 1,
            THRICE_FROM.. => 3,
            TWICE_FROM.. => 2,
            _ => 1,
        }
    }

    /// Takes what is heard of a request. Of one that is not wanted any more nothing counts.
    pub(in crate::watch) fn heard(&mut self, request: u64, news: News, now: Instant) -> Result<(), Broken> {
        let Some(handle) = self.table.of_request(request) else { return Ok(()) };
        match news {
            News::Begins(offer, loss) => {
                self.loss = loss.unwrap_or(TWICE_FROM);
                self.answered(handle, request, *offer, now);
            }
            News::Bytes(offset, bytes) => self.bytes(handle, offset, &bytes),
            News::Whole => {
                // In front of a cursor that counts it.
                self.speech.say(kind::COMPLETE, &Complete { handle });
                if let Some(told) = self.table.get(handle).and_then(|chunk| chunk.told.as_ref()) {
                    self.done_with(handle, told.sha256);
                }
            }
            News::Failed(why) => self.failed(handle, request, why, now)?,
        }
        self.ask_more(now);
        Ok(())
    }

    fn answered(&mut self, handle: u64, request: u64, offer: Offer, now: Instant) {
        let Some(chunk) = self.table.get(handle) else { return };
        match &chunk.told {
            Some(told) if told.sha256 == offer.sha256 => {}
            // Which of the two is newer is not known: the answer to a request that is made now is.
            Some(_) if request < chunk.since => {
                self.drop_request(handle, request);
                if let Some(chunk) = self.table.get_mut(handle).filter(|chunk| chunk.requests.is_empty()) {
                    chunk.again_at = Some(now);
                    self.request(handle, now);
                }
            }
            Some(_) => {
                let variant = chunk.variant;
                let newer = self.replaced(handle, Some(request));
                self.begins(newer, of_offer(offer, variant));
            }
            None => {
                let variant = chunk.variant;
                self.begins(handle, of_offer(offer, variant));
            }
        }
    }

    fn bytes(&mut self, handle: u64, offset: u64, bytes: &[u8]) {
        let Some(chunk) = self.table.get_mut(handle) else { return };
        // What another request brought is passed over; none leaves a hole.
        let had = chunk.passed.checked_sub(offset).and_then(|had| usize::try_from(had).ok());
        let Some(new) = had.and_then(|had| bytes.get(had..)).filter(|new| !new.is_empty()) else { return };
        self.speech.piece(handle, chunk.passed, new);
        chunk.passed += new.len() as u64;
    }

    fn drop_request(&mut self, handle: u64, request: u64) {
        if let Some(chunk) = self.table.get_mut(handle) {
            chunk.requests.retain(|own| *own != request);
            self.orders.push_back(Order::Drop(request));
        }
    }

    fn failed(&mut self, handle: u64, request: u64, why: Failure, now: Instant) -> Result<(), Broken> {
        self.drop_request(handle, request);
        let Some(chunk) = self.table.get_mut(handle) else { return Ok(()) };
        if !chunk.requests.is_empty() {
            // The chunk comes by another one.
            if let Failure::Busy(_) = why {
                self.alone_until = Some(now + ALONE);
            }
            return Ok(());
        }
        // A relay that ends a subscription for another reason than the recording's end brings no more of it.
        let told_why = self.ending.as_ref().map(read::<Ending>).transpose()?;
        self.short |= told_why.is_some_and(|ending| ending.reason != "ended");
        let ahead = chunk.told.is_none();
        let pause = match why {
            Failure::Absent if !ahead => {
                self.give_up(handle, OmittedReason::Evicted);
                return Ok(());
            }
            Failure::Busy(after) => {
                chunk.refused += 1;
                pause(chunk.refused).max(after.unwrap_or_default().min(MAX_RETRY_AFTER))
            }
            Failure::Absent | Failure::Lost => {
                // It did not begin in time: asked for again as long as the lane is there.
                let waited = why == Failure::Absent && chunk.asked_at.is_some_and(|at| now >= at + PATIENT);
                chunk.tries = if waited { 1 } else { chunk.tries.saturating_add(1) };
                if !ahead && chunk.tries >= MAX_TRIES {
                    return Err(Broken);
                }
                // Once at once: what broke off may be over with that.
                pause(chunk.tries - 1)
            }
        };
        chunk.again_at = Some(now + pause);
        Ok(())
    }
}

/// How long to wait before the `n`th time in a row that something is tried again.
fn pause(n: u32) -> Duration {
    let longest = PAUSES_MS.len() - 1;
    let pause = (n as usize).checked_sub(1).map_or(0, |n| PAUSES_MS[n.min(longest)]);
    Duration::from_millis(pause)
}

/// What a chunk's own answer tells of it.
fn of_offer(offer: Offer, variant: Variant) -> ChunkBegins {
    ChunkBegins {
        handle: 0,
        variant: offer.role.unwrap_or(variant),
        stream: offer.stream,
        media: offer.media,
        index: offer.index,
        length: offer.length,
        sha256: offer.sha256,
        started: offer.started,
        ended: offer.ended,
        state: ContactState::Arriving,
        replay: false,
    }
}
