//! A lane as a chain of streams: which stream and index the next chunk gets, and when the next
//! stream must be asked for. Pure.

use waystation_proto::id::StreamId;
use waystation_proto::{Media, Variant};

/// Where a chunk belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Stream.
    pub stream: StreamId,
    /// Index in it, from 1.
    pub index: u64,
    /// Ordinal of the stream in its lane, from 0.
    pub stream_no: u64,
    /// The chunk is the first of a stream that follows another.
    pub rolled: bool,
}

#[derive(Debug)]
struct Open {
    stream: StreamId,
    used: u64,
    /// Highest index that a capability allows; 0 while none covers the stream.
    max: u64,
}

/// One lane.
#[derive(Debug)]
pub struct Lane {
    /// Its variant.
    pub variant: Variant,
    /// Its media type.
    pub media: Media,
    current: Option<Open>,
    next: Option<Open>,
    asking: bool,
    exhausted: bool,
    stream_no: u64,
}

impl Lane {
    /// A lane without a stream yet.
    #[must_use]
    pub const fn new(variant: Variant, media: Media) -> Self {
        Self { variant, media, current: None, next: None, asking: false, exhausted: false, stream_no: 0 }
    }

    /// A lane as an earlier run left it: its streams in order, each with its highest index used. No
    /// capability is known to reach any.
    #[must_use]
    pub fn restored(variant: Variant, media: Media, streams: impl IntoIterator<Item = (StreamId, u64)>) -> Self {
        let mut open: Vec<Open> = streams.into_iter().map(|(stream, used)| Open { stream, used, max: 0 }).collect();
        let current = open.iter().rposition(|open| open.used > 0).unwrap_or(0);
        let next = open.drain(..).skip(current).take(2).collect::<Vec<_>>();
        let mut next = next.into_iter();
        Self { current: next.next(), next: next.next(), stream_no: current as u64, ..Self::new(variant, media) }
    }

    /// Whether a stream is to be asked for now: the first, or the next at two thirds of the
    /// current one. The value is the stream it follows.
    #[must_use]
    pub fn wants_stream(&self) -> Option<Option<StreamId>> {
        if self.asking || self.exhausted {
            return None;
        }
        match (&self.current, &self.next) {
            (None, _) => Some(None),
            (Some(open), None) if open.max > 0 && open.used * 3 >= open.max * 2 => Some(Some(open.stream.clone())),
            _ => None,
        }
    }

    /// A stream is being asked for.
    pub const fn asked(&mut self) {
        self.asking = true;
    }

    /// Whether a stream is being asked for.
    #[must_use]
    pub const fn is_asking(&self) -> bool {
        self.asking
    }

    /// The stream asked for.
    pub fn opened(&mut self, stream: StreamId) {
        self.asking = false;
        let open = Open { stream, used: 0, max: 0 };
        if self.current.is_none() {
            self.current = Some(open);
        } else {
            self.next = Some(open);
        }
    }

    /// No stream was given; `for_good` if asking again by itself changes nothing.
    pub const fn refused(&mut self, for_good: bool) {
        self.asking = false;
        self.exhausted = self.exhausted || for_good;
    }

    /// What was refused is asked for again: the account or the core may be another by now.
    pub const fn ask_again(&mut self) {
        self.exhausted = false;
    }

    /// A capability reaches `stream` up to index `max`. True if that was not known.
    pub fn covered(&mut self, stream: &StreamId, max: u64) -> bool {
        let mut news = false;
        for open in self.current.iter_mut().chain(self.next.iter_mut()).filter(|open| open.stream == *stream) {
            news = open.max == 0;
            open.max = max;
        }
        news
    }

    /// Streams of this lane that chunks go to now or next.
    pub fn streams(&self) -> impl Iterator<Item = &StreamId> {
        self.current.iter().chain(self.next.iter()).map(|open| &open.stream)
    }

    /// Streams that no capability covers yet.
    pub fn uncovered(&self) -> impl Iterator<Item = &StreamId> {
        self.current.iter().chain(self.next.iter()).filter(|open| open.max == 0).map(|open| &open.stream)
    }

    /// The last place given was not used: the next chunk gets it.
    pub fn take_back(&mut self) {
        if let Some(open) = &mut self.current {
            open.used = open.used.saturating_sub(1);
        }
    }

    /// Whether no chunk gets a place before something is asked for again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let full = |open: &Open| open.max > 0 && open.used >= open.max;
        self.exhausted && self.next.is_none() && self.current.as_ref().is_none_or(full)
    }

    /// Whether [`Self::place`] would give one.
    #[must_use]
    pub fn has_place(&self) -> bool {
        let free = |open: &Open| open.used < open.max;
        let full = |open: &Open| open.max > 0 && open.used >= open.max;
        self.current.as_ref().is_some_and(free)
            || self.current.as_ref().is_some_and(full) && self.next.as_ref().is_some_and(free)
    }

    /// The place of the next chunk; none while the authority has not given one.
    pub fn place(&mut self) -> Option<Place> {
        let full = self.current.as_ref().is_some_and(|open| open.max > 0 && open.used >= open.max);
        let rolled = full && self.next.as_ref().is_some_and(|open| open.max > 0);
        if rolled {
            self.current = self.next.take();
            self.stream_no += 1;
        }
        let open = self.current.as_mut().filter(|open| open.used < open.max)?;
        open.used += 1;
        Some(Place { stream: open.stream.clone(), index: open.used, stream_no: self.stream_no, rolled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: usize) -> StreamId {
        StreamId::new(&format!("s{n}")).unwrap()
    }

    #[test]
    fn no_chunk_has_a_place_before_stream_and_capability() {
        let mut lane = Lane::new(Variant::AudioPriority, Media::Audio);
        assert_eq!(lane.wants_stream(), Some(None));
        lane.asked();
        assert_eq!(lane.wants_stream(), None, "asked once");
        lane.opened(id(0));
        assert_eq!(lane.place(), None);
        assert!(lane.covered(&id(0), 3));
        assert_eq!(lane.place().unwrap().index, 1);
        assert_eq!(lane.wants_stream(), None);
        assert_eq!(lane.place().unwrap().index, 2);
        assert_eq!(lane.wants_stream(), Some(Some(id(0))), "at two thirds");
        assert_eq!(lane.place().unwrap().index, 3);
        assert_eq!(lane.place(), None);
        lane.opened(id(1));
        assert_eq!(lane.place(), None, "not covered yet");
        assert!(lane.covered(&id(1), 3));
        assert_eq!(lane.place(), Some(Place { stream: id(1), index: 1, stream_no: 1, rolled: true }));
    }

    #[test]
    fn a_refusal_for_good_ends_the_lane_when_its_stream_is_full() {
        let mut lane = Lane::new(Variant::AudioPriority, Media::Audio);
        lane.opened(id(0));
        lane.covered(&id(0), 1);
        lane.refused(true);
        assert!(!lane.is_over());
        assert!(lane.place().is_some());
        assert!(lane.is_over());
    }

    #[test]
    fn a_lane_goes_on_where_an_earlier_run_left_it() {
        let streams = [(id(0), 3), (id(1), 2), (id(2), 0)];
        let mut lane = Lane::restored(Variant::AudioPriority, Media::Audio, streams);
        assert_eq!(lane.place(), None, "not covered yet");
        lane.covered(&id(1), 3);
        lane.covered(&id(2), 3);
        assert_eq!(lane.place(), Some(Place { stream: id(1), index: 3, stream_no: 1, rolled: false }));
        let next = Place { stream: id(2), index: 1, stream_no: 2, rolled: true };
        assert_eq!(lane.place(), Some(next.clone()));
        lane.take_back();
        assert_eq!(lane.place(), Some(Place { rolled: false, ..next }));
        let fresh = Lane::restored(Variant::AudioPriority, Media::Audio, []);
        assert_eq!(fresh.wants_stream(), Some(None));
    }

    proptest! {
        #[test]
        fn places_are_unbroken_whenever_streams_come(max in 1u64..10, late in prop::collection::vec(0u8..4, 50)) {
            let mut lane = Lane::new(Variant::AudioPriority, Media::Audio);
            let (mut opened, mut waiting, mut places) = (0, None, Vec::new());
            for delay in late {
                if waiting.is_none() && lane.wants_stream().is_some() {
                    lane.asked();
                    waiting = Some(delay);
                }
                waiting = match waiting {
                    Some(0) => {
                        lane.opened(id(opened));
                        lane.covered(&id(opened), max);
                        opened += 1;
                        None
                    }
                    Some(n) => Some(n - 1),
                    None => None,
                };
                places.extend(lane.place());
            }
            for (n, place) in (0u64..).zip(&places) {
                prop_assert_eq!((place.stream_no, place.index), (n / max, n % max + 1));
                prop_assert_eq!(&place.stream, &id(place.stream_no as usize));
                prop_assert_eq!(place.rolled, n > 0 && n % max == 0);
            }
        }
    }
}
