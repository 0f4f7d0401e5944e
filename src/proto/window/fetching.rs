//! One chunk again: what a contact asks for by name.

use super::Window;
use super::contact::{Contact, MAX_FETCHES, MAX_PENDING, Open};
use super::events::Place;
use crate::code::Code;
use crate::frame::{encode_json, kind};
use crate::id::{ChunkRef, StreamId};
use crate::message::{Omitted, OmittedReason};

impl Contact {
    /// Asks for one chunk again; what can't be given is named as omitted with the next poll.
    ///
    /// # Errors
    /// `ContactTooSlow`: `MAX_PENDING` answers wait.
    pub fn fetch(&mut self, window: &Window, stream: &StreamId, index: u64) -> Result<(), Code> {
        if self.pending.len() >= MAX_PENDING {
            return Err(Code::ContactTooSlow);
        }
        let place = window.place(ChunkRef::of(&window.incident, stream, index)).filter(|_| self.view.allows(stream));
        let entry = place.and_then(|place| Some((place, window.lanes[place.lane].entry(place.seq)?)));
        let reason = match entry {
            None => OmittedReason::Evicted,
            Some((place, entry)) => match entry.gone {
                Some(reason) => reason,
                None if self.is_fetched(place) => return Ok(()),
                None if self.asked(window) >= MAX_FETCHES => OmittedReason::Slow,
                None => {
                    let open = Open::new(place, &entry.meta);
                    if self.comes_with_its_lane(place) {
                        self.promised.push(open);
                    } else {
                        self.fetches.push_back(open);
                    }
                    return Ok(());
                }
            },
        };
        self.left_out.push((reason, 1));
        let omitted = Omitted { stream: stream.clone(), from: index, to: index, reason };
        self.pending.push(encode_json(kind::OMITTED, &omitted));
        Ok(())
    }

    fn is_fetched(&self, place: Place) -> bool {
        self.fetches.iter().any(|open| open.place == place)
    }

    /// Whether a chunk will come without being fetched.
    fn comes_with_its_lane(&self, place: Place) -> bool {
        let here = &self.lanes[place.lane];
        let coming = |open: &Open| open.place == place;
        self.view.lanes[place.lane]
            && (place.seq >= here.next || here.redo.contains(&place.seq) || here.open.iter().any(coming))
    }

    /// How many chunks were asked for again and did not come yet.
    fn asked(&mut self, window: &Window) -> usize {
        self.promised = self.still_promised(window);
        self.fetches.len() + self.promised.len()
    }

    /// What was promised and still comes with its lane, by whichever attempt at it is the latest.
    fn still_promised(&mut self, window: &Window) -> Vec<Open> {
        let latest = |open: Open| {
            let place = window.place(open.meta.chunk).filter(|place| *place != open.place);
            let entry = place.and_then(|place| Some((place, window.lanes[place.lane].entry(place.seq)?)));
            entry.map_or(open, |(place, entry)| Open::new(place, &entry.meta))
        };
        let promised = std::mem::take(&mut self.promised).into_iter().map(latest);
        promised.filter(|open| self.comes_with_its_lane(open.place)).collect()
    }

    /// A lane is not shown any more: what was asked for of it goes on by itself, from where it is.
    pub(super) fn keep_promises(&mut self, lane: usize, window: &Window) {
        for promised in self.still_promised(window) {
            if promised.place.lane != lane {
                self.promised.push(promised);
                continue;
            }
            let open = &mut self.lanes[lane].open;
            let begun = open.iter().position(|open| open.place == promised.place).map(|at| open.remove(at));
            self.fetches.push_back(begun.unwrap_or(promised));
        }
    }
}
