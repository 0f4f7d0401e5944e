//! From frames to checked and opened chunks. Pure: the time of arrival is an argument. Bounded in
//! the bytes that may be arriving and in what is remembered of earlier chunks.

use std::collections::{BTreeMap, HashMap, VecDeque};

use waystation_proto::frame::{self, Frame, Piece, kind};
use waystation_proto::id::{Digest, IncidentId, StreamId};
use waystation_proto::message::{
    CaptureEvent, ChunkBegins, Complete, ContactChunkState, Cursor, Ending, Omitted, Sign, StreamJoins, Watching,
    Withdrawn,
};
use waystation_proto::{Code, ContactState, Variant};

use super::event::{Bad, Event, Label, Whole};
use crate::capture::lane_seq;
use crate::envelope::{self, Identity};
use crate::keys::GroupKey;
use crate::receipt::{Jwks, Keys, Proof};

/// Chunks that may be arriving at once.
pub(super) const MAX_ARRIVING: usize = 64;
/// Bytes that may be arriving at once.
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// Chunks and streams remembered, to label states that come late and to tell repetitions.
const MAX_KNOWN: usize = 8192;
/// Receipts that wait for the core's keys; about 1 KiB each.
const MAX_DOUBTED: usize = 1024;

type Name = (StreamId, u64);

struct Arriving {
    name: Name,
    label: Label,
    digest: Digest,
    bytes: Vec<u8>,
    first_byte_ms: Option<i64>,
    lane_seq: Option<u64>,
    /// Its bytes are not wanted: too many, torn, or seen before.
    skip: bool,
}

struct Known {
    label: Label,
    digest: Digest,
    opened: bool,
    state: Option<(ContactState, Proof)>,
}

/// The chunks of one subscription, over all its connections.
pub struct Assembly {
    key: GroupKey,
    incident: IncidentId,
    max_chunk: u64,
    keys: Keys,
    arriving: BTreeMap<u64, Arriving>,
    known: HashMap<Name, Known>,
    order: VecDeque<Name>,
    streams: HashMap<StreamId, (Variant, u64)>,
    stream_counts: HashMap<Variant, u64>,
    doubted: Vec<ContactChunkState>,
    wants_keys: bool,
    earlier: u64,
}

impl Assembly {
    /// An empty one.
    #[must_use]
    pub fn new(key: GroupKey, incident: IncidentId, max_chunk: u64) -> Self {
        Self {
            key,
            incident,
            max_chunk,
            keys: Keys::Awaited,
            arriving: BTreeMap::new(),
            known: HashMap::new(),
            order: VecDeque::new(),
            streams: HashMap::new(),
            stream_counts: HashMap::new(),
            doubted: Vec::new(),
            wants_keys: false,
            earlier: 0,
        }
    }

    /// Forgets what was arriving: the connection is gone, its handles with it.
    pub fn disconnected(&mut self) {
        self.arriving.clear();
    }

    /// The core's keys; receipts that waited for them are looked at again.
    pub fn set_keys(&mut self, jwks: Option<Jwks>) -> Vec<Event> {
        self.wants_keys = false;
        // What waits since before the first answer may be newer than that answer.
        let fresh = !matches!(self.keys, Keys::Awaited);
        // A core that once signed is not believed to have stopped.
        if jwks.is_some() || matches!(self.keys, Keys::Awaited) {
            self.keys = Keys::answered(jwks);
        }
        let doubted = std::mem::take(&mut self.doubted);
        doubted.into_iter().filter_map(|told| self.state(told, fresh)).collect()
    }

    /// Whether a receipt waits for the core's keys.
    #[must_use]
    pub const fn wants_keys(&self) -> bool {
        self.wants_keys
    }

    /// Takes one frame that came at `at_ms`.
    ///
    /// # Errors
    /// [`Code::ProtocolError`] if the frame is not what its type says.
    pub fn frame(&mut self, frame: &Frame, at_ms: i64) -> Result<Option<Event>, Code> {
        Ok(match frame.kind {
            kind::WATCHING => Some(self.watching(&frame::control(frame)?)),
            kind::CHUNK => Some(self.begins(frame::control(frame)?)),
            kind::PIECE => self.piece(Piece::decode(frame.body.clone())?, at_ms),
            kind::COMPLETE => self.complete(frame::control(frame)?, at_ms),
            kind::WITHDRAWN => self.withdrawn(frame::control(frame)?),
            kind::STATE => self.state(frame::control(frame)?, false),
            kind::OMITTED => Some(self.omitted(&frame::control(frame)?)),
            kind::CAPTURE => {
                let told: CaptureEvent = frame::control(frame)?;
                Some(Event::Capture { event: told.event, last_sign_s: told.last_sign })
            }
            kind::SIGN => {
                let told: Sign = frame::control(frame)?;
                Some(Event::Sign { last_sign_s: told.last_sign })
            }
            kind::STREAM => self.joins(frame::control(frame)?),
            kind::ENDING => {
                let told: Ending = frame::control(frame)?;
                Some(Event::Ending { reason: crate::wire::plain(&told.reason) })
            }
            kind::CURSOR => {
                let told: Cursor = frame::control(frame)?;
                Some(Event::Cursor(told.cursor))
            }
            // Unknown types are ignored, so that a newer relay may say more.
            _ => None,
        })
    }

    fn watching(&mut self, told: &Watching) -> Event {
        let earlier = self.earlier;
        self.earlier += 1;
        Event::Watching { window_start_ms: told.window_start.as_ref().map(|at| at.unix_ms()), earlier }
    }

    fn begins(&mut self, told: ChunkBegins) -> Event {
        let label = Label {
            variant: told.variant,
            media: told.media,
            stream_no: self.stream_no(&told.stream, told.variant).0,
            index: told.index,
            started_ms: told.started.unix_ms(),
            ended_ms: told.ended.unix_ms(),
            length: told.length,
        };
        let name = (told.stream, told.index);
        let opened = self.known.get(&name).is_some_and(|known| known.opened && known.digest == told.sha256);
        let buffered: u64 = self.arriving.values().filter(|a| !a.skip).map(|a| a.label.length).sum();
        let fits = told.length <= self.max_chunk
            && buffered + told.length <= MAX_BYTES.max(self.max_chunk)
            && self.arriving.len() < MAX_ARRIVING;
        if !opened {
            self.remember(name.clone(), Known { label, digest: told.sha256, opened: false, state: None });
        }
        if !opened && !fits {
            return Event::Bad { label, why: Bad::TooMuch };
        }
        if self.arriving.len() < MAX_ARRIVING {
            let (digest, bytes) = (told.sha256, Vec::new());
            let arriving = Arriving { name, label, digest, bytes, first_byte_ms: None, lane_seq: None, skip: opened };
            self.arriving.insert(told.handle, arriving);
        }
        Event::Begins { label, state: told.state, replay: told.replay }
    }

    fn piece(&mut self, piece: Piece, at_ms: i64) -> Option<Event> {
        let arriving = self.arriving.get_mut(&piece.handle).filter(|arriving| !arriving.skip)?;
        arriving.first_byte_ms.get_or_insert(at_ms);
        let have = arriving.bytes.len() as u64;
        let end = piece.offset.saturating_add(piece.bytes.len() as u64);
        if piece.offset > have || end > arriving.label.length {
            arriving.skip = true;
            arriving.bytes = Vec::new();
            return Some(Event::Bad { label: arriving.label, why: Bad::Torn });
        }
        let seen = usize::try_from(have - piece.offset).unwrap_or(usize::MAX);
        let news = piece.bytes.get(seen..).filter(|news| !news.is_empty())?;
        arriving.bytes.extend_from_slice(news);
        if arriving.lane_seq.is_none() {
            let header = envelope::peek(&arriving.bytes).ok();
            arriving.lane_seq = header.and_then(|header| lane_seq(header.envelope_id, arriving.label.variant));
        }
        let (label, received) = (arriving.label, arriving.bytes.len() as u64);
        Some(Event::Progress { label, received, lane_seq: arriving.lane_seq })
    }

    fn complete(&mut self, told: Complete, at_ms: i64) -> Option<Event> {
        let arriving = self.arriving.remove(&told.handle).filter(|arriving| !arriving.skip)?;
        let label = arriving.label;
        if arriving.bytes.len() as u64 != label.length {
            return Some(Event::Bad { label, why: Bad::Torn });
        }
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &arriving.bytes);
        if digest.as_ref() != arriving.digest.0 {
            return Some(Event::Bad { label, why: Bad::HashMismatch });
        }
        let identity = Identity {
            incident: self.incident.clone(),
            stream: arriving.name.0.clone(),
            media: label.media,
            index: label.index,
        };
        let opened =
            self.key.stream_key(&identity.stream).and_then(|key| envelope::open(&key, &identity, &arriving.bytes).ok());
        let Some(opened) = opened else { return Some(Event::Bad { label, why: Bad::Sealed }) };
        if let Some(known) = self.known.get_mut(&arriving.name) {
            known.opened = true;
        }
        Some(Event::Complete(Whole {
            label,
            lane_seq: lane_seq(&opened.envelope_id, label.variant),
            plaintext: opened.plaintext,
            first_byte_ms: arriving.first_byte_ms.unwrap_or(at_ms),
            last_byte_ms: at_ms,
        }))
    }

    fn withdrawn(&mut self, told: Withdrawn) -> Option<Event> {
        let arriving = self.arriving.remove(&told.handle)?;
        Some(Event::Withdrawn { label: arriving.label, reason: told.reason })
    }

    /// What the core said. Its receipt, where there is one, must be of the chunk that came here.
    fn state(&mut self, told: ContactChunkState, keys_are_new: bool) -> Option<Event> {
        let name = (told.stream.clone(), told.index);
        let (mut state, mut receipt) = (told.state, Proof::Absent);
        let known = self.known.get(&name);
        let code = told.error.as_ref().map(crate::wire::code_of);
        if let (ContactState::Confirmed, Some(text)) = (told.state, &told.receipt) {
            let checked = self.keys.check(text, keys_are_new, |receipt| {
                receipt.incident == self.incident
                    && (&receipt.stream, receipt.index) == (&name.0, name.1)
                    && known.is_none_or(|k| k.digest == receipt.sha256 && k.label.length == receipt.length)
            });
            if checked.is_none() && self.doubted.len() < MAX_DOUBTED {
                self.wants_keys = true;
                self.doubted.push(told);
                return None;
            }
            // More wait than are kept: this one stays without proof.
            receipt = checked.unwrap_or(Proof::Unchecked);
            if checked.is_none() || receipt == Proof::Invalid {
                state = ContactState::Unsettled;
            }
        }
        let label = known.map(|known| known.label);
        if let Some(known) = self.known.get_mut(&name) {
            if known.state == Some((state, receipt)) {
                return None;
            }
            known.state = Some((state, receipt));
        }
        Some(Event::State { label, state, code, receipt })
    }

    fn omitted(&mut self, told: &Omitted) -> Event {
        // Nothing more comes of one that had begun: its room is another's.
        let gone = |(stream, index): &Name| *stream == told.stream && (told.from..=told.to).contains(index);
        self.arriving.retain(|_, arriving| !gone(&arriving.name));
        let variant = self.streams.get(&told.stream).map(|(variant, _)| *variant);
        let count = told.to.saturating_sub(told.from).saturating_add(1);
        Event::Omitted { variant, count, reason: told.reason }
    }

    fn joins(&mut self, told: StreamJoins) -> Option<Event> {
        if let Some(before) = &told.follows {
            self.stream_no(before, told.variant);
        }
        let (stream_no, new) = self.stream_no(&told.stream, told.variant);
        new.then_some(Event::Stream { variant: told.variant, stream_no })
    }

    /// A stream's ordinal among those of its lane; true if it was not known.
    fn stream_no(&mut self, stream: &StreamId, variant: Variant) -> (u64, bool) {
        if let Some((_, number)) = self.streams.get(stream) {
            return (*number, false);
        }
        if self.streams.len() >= MAX_KNOWN {
            self.streams.clear();
        }
        let count = self.stream_counts.entry(variant).or_default();
        let number = *count;
        *count += 1;
        self.streams.insert(stream.clone(), (variant, number));
        (number, true)
    }

    fn remember(&mut self, name: Name, known: Known) {
        if self.known.insert(name.clone(), known).is_none() {
            self.order.push_back(name);
        }
        if self.order.len() > MAX_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl std::fmt::Debug for Assembly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembly").field("arriving", &self.arriving.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ClientKey;
    use crate::receipt::tests::{issue, jwks};
    use bytes::Bytes;
    use proptest::prelude::*;
    use waystation_proto::Media;
    use waystation_proto::frame::Decoder;
    use waystation_proto::message::OmittedReason;
    use waystation_proto::offer::Timestamp;

    fn key() -> GroupKey {
        GroupKey::new([5; 32])
    }

    fn incident() -> IncidentId {
        IncidentId::new("i").unwrap()
    }

    fn sealed(index: u64, plaintext: &[u8]) -> (ChunkBegins, Bytes) {
        let stream = StreamId::new("s").unwrap();
        let identity = Identity { incident: incident(), stream: stream.clone(), media: Media::Audio, index };
        let name = format!("audio_priority.{}", index - 1);
        let bytes = envelope::seal(&key().stream_key(&stream).unwrap(), &identity, &name, [index as u8; 12], plaintext)
            .unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let begins = ChunkBegins {
            handle: index,
            stream,
            variant: Variant::AudioPriority,
            media: Media::Audio,
            index,
            length: bytes.len() as u64,
            sha256: Digest(digest.as_ref().try_into().unwrap()),
            started: Timestamp::from_unix_ms(0),
            ended: Timestamp::from_unix_ms(1),
            state: ContactState::Arriving,
            replay: false,
        };
        (begins, bytes)
    }

    fn run(wire: &[u8], cut: usize) -> Vec<Event> {
        let (mut decoder, mut out) = (Decoder::default(), Vec::new());
        let mut assembly = Assembly::new(key(), incident(), 1 << 20);
        for part in wire.chunks(cut) {
            decoder.push(part);
            while let Some(frame) = decoder.next_frame().unwrap() {
                out.extend(assembly.frame(&frame, 7).unwrap());
            }
        }
        out
    }

    proptest! {
        #[test]
        fn chunks_come_whole_in_any_cut(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 1..5),
            piece in 1usize..200,
            overlap in 0usize..40,
            cut in 1usize..300,
        ) {
            let made: Vec<_> = (1..).zip(&chunks).map(|(index, plain)| sealed(index, plain)).collect();
            let mut wire = Vec::new();
            for (begins, _) in &made {
                wire.extend_from_slice(&frame::encode_json(kind::CHUNK, begins));
            }
            let longest = made.iter().map(|(_, bytes)| bytes.len()).max().unwrap();
            for at in (0..longest).step_by(piece) {
                for (begins, bytes) in made.iter().filter(|(_, bytes)| at < bytes.len()) {
                    let from = at.saturating_sub(overlap);
                    let bytes = &bytes[from..(at + piece).min(bytes.len())];
                    wire.extend_from_slice(&Piece::encode(kind::PIECE, begins.handle, from as u64, bytes));
                }
            }
            for (begins, _) in &made {
                wire.extend_from_slice(&frame::encode_json(kind::COMPLETE, &Complete { handle: begins.handle }));
            }
            let whole: Vec<_> = run(&wire, cut)
                .into_iter()
                .filter_map(|event| if let Event::Complete(whole) = event { Some(whole) } else { None })
                .collect();
            prop_assert_eq!(whole.len(), chunks.len());
            for (n, (whole, plain)) in (0..).zip(whole.iter().zip(&chunks)) {
                prop_assert_eq!(&whole.plaintext, plain);
                prop_assert_eq!(whole.lane_seq, Some(n));
            }
        }

        #[test]
        fn no_frame_panics(kind in 0x30u64..0x3d, body in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Assembly::new(key(), incident(), 100).frame(&Frame { kind, body: body.into() }, 0);
        }
    }

    #[test]
    fn only_so_many_chunks_arrive_at_once() {
        let mut assembly = Assembly::new(key(), incident(), 1 << 20);
        let mut refused = 0;
        for index in 1..=MAX_ARRIVING as u64 + 5 {
            let (begins, _) = sealed(index, b"x");
            let frame = frame::split_message(frame::encode_json(kind::CHUNK, &begins)).unwrap().remove(0);
            let event = assembly.frame(&frame, 0).unwrap();
            refused += usize::from(matches!(event, Some(Event::Bad { why: Bad::TooMuch, .. })));
        }
        assert_eq!((assembly.arriving.len(), refused), (MAX_ARRIVING, 5));
    }

    #[test]
    fn what_is_left_out_after_it_began_takes_no_room() {
        let mut assembly = Assembly::new(key(), incident(), 1 << 20);
        let mut take = |wire: Bytes| assembly.frame(&frame::split_message(wire).unwrap().remove(0), 0).unwrap();
        let (begins, bytes) = sealed(1, b"x");
        let (other, other_bytes) = sealed(9, b"x");
        for begins in [&begins, &other] {
            take(frame::encode_json(kind::CHUNK, begins));
        }
        let omitted = Omitted { stream: begins.stream.clone(), from: 1, to: 8, reason: OmittedReason::Slow };
        take(frame::encode_json(kind::OMITTED, &omitted));
        for (handle, bytes) in [(1, bytes), (9, other_bytes)] {
            take(Piece::encode(kind::PIECE, handle, 0, &bytes));
            let event = take(frame::encode_json(kind::COMPLETE, &Complete { handle }));
            assert_eq!(matches!(event, Some(Event::Complete(_))), handle == 9);
        }
        assert!(assembly.arriving.is_empty());
    }

    #[test]
    fn a_confirmation_waits_for_the_keys_its_receipt_needs() {
        let core = ClientKey::from_seed(&[1; 32]).unwrap();
        let (begins, _) = sealed(1, b"x");
        let payload = serde_json::json!({"iss": "core", "iat": 1, "incident": "i", "stream": "s", "index": 1,
            "length": begins.length, "sha256": begins.sha256});
        let told = ContactChunkState {
            stream: begins.stream.clone(),
            index: 1,
            state: ContactState::Confirmed,
            receipt: Some(issue(&core, "k1", &payload)),
            error: None,
        };
        let mut assembly = Assembly::new(key(), incident(), 1 << 20);
        let mut take = |wire: Bytes| assembly.frame(&frame::split_message(wire).unwrap().remove(0), 0).unwrap();
        take(frame::encode_json(kind::CHUNK, &begins));
        assert_eq!(take(frame::encode_json(kind::STATE, &told)), None);
        assert!(assembly.wants_keys());
        let events = assembly.set_keys(Some(jwks(&core, "k1")));
        let [Event::State { state, receipt, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!((*state, *receipt), (ContactState::Confirmed, Proof::Verified));
    }
}
