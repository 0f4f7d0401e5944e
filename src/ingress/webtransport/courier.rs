//! Brings frames to a contact over the streams of its session: what is said on the control stream,
//! each chunk on a stream of its own. Streams have priorities, control before sound before picture
//! and the older chunk before the newer, so that a lost packet of a picture holds up that picture
//! alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, Stream as _};
use quinn::{VarInt, WriteError};

use super::super::body::Stopped;
use crate::proto::frame::kind;
use crate::proto::message::{ChunkBegins, Complete, Omitted, Withdrawn};
use crate::proto::{Variant, varint};

/// How a one-way stream of a session begins; its session's id follows.
const CHUNK_STREAM: u64 = 0x54;
/// Chunk streams of one contact that are not written to their end. Beyond, no chunk is begun.
const MAX_STREAMS: usize = 32;
/// A lane of which so many bytes wait to be taken by QUIC gets no more: what a contact on a thin
/// link is sent next is decided late.
const ENOUGH: usize = 32 * 1024;
/// Cursors that wait for what they count to be acknowledged; beyond, the newest takes the place of
/// the one before.
const MAX_CURSORS: usize = 16;
/// QUIC holds for one contact at most twice what is on its way, and this at least.
const LEAST_WINDOW: u64 = 32 * 1024;

/// Why a chunk's stream is reset; the page reads it as `streamErrorCode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// What came is not that chunk; `WITHDRAWN` says why.
    Withdrawn = 1,
    /// It is left out, or nothing more of it will come.
    LeftOut = 2,
}

impl Reset {
    /// As HTTP/3 carries it (draft-ietf-webtrans-http3, section 4.3).
    fn code(self) -> VarInt {
        const FIRST: u64 = 0x52e4_a40f_a8db;
        let code = self as u64;
        VarInt::from_u64(FIRST + code + code / 0x1e).unwrap_or(VarInt::MAX)
    }
}

/// Order among chunk streams: lane, then age.
type Rank = (u8, u64);
type Opening = Pin<Box<dyn Future<Output = Result<quinn::SendStream, quinn::ConnectionError>> + Send>>;
type Acked = Pin<Box<dyn Future<Output = u64> + Send>>;

/// One contact's streams.
pub(super) struct Courier {
    quic: quinn::Connection,
    session: u64,
    control: Outgoing,
    /// Chunks that are not written to their end.
    chunks: BTreeMap<Rank, Chunk>,
    begun: u64,
    opening: Option<(Rank, Opening)>,
    /// Chunks handed over whole, by number, until the contact's end has them.
    unacked: BTreeSet<u64>,
    acked: FuturesUnordered<Acked>,
    whole: u64,
    /// Cursors, each with the number of chunks it counts.
    cursors: VecDeque<(u64, Bytes)>,
    window: u64,
}

struct Chunk {
    begins: ChunkBegins,
    out: Outgoing,
    /// Its number among the whole ones: nothing more will come.
    whole: Option<u64>,
}

/// A stream, and what waits for it.
struct Outgoing {
    stream: Option<quinn::SendStream>,
    waiting: VecDeque<Bytes>,
    bytes: usize,
}

impl Courier {
    pub(super) fn new(quic: quinn::Connection, session: u64, control: quinn::SendStream) -> Self {
        let _ = control.set_priority(i32::MAX);
        Self {
            quic,
            session,
            control: Outgoing { stream: Some(control), waiting: VecDeque::new(), bytes: 0 },
            chunks: BTreeMap::new(),
            begun: 0,
            opening: None,
            unacked: BTreeSet::new(),
            acked: FuturesUnordered::new(),
            whole: 0,
            cursors: VecDeque::new(),
            window: 0,
        }
    }

    /// Which lanes have enough waiting, in the order of [`LANES`](crate::proto::window::LANES).
    pub(super) fn enough(&self) -> [bool; 2] {
        let crowded = self.chunks.len() >= MAX_STREAMS;
        let waits = |lane: u8| self.chunks.range((lane, 0)..=(lane, u64::MAX)).map(|(_, chunk)| chunk.out.bytes).sum();
        [0, 1].map(|lane| crowded || ENOUGH <= waits(lane))
    }

    /// Takes frames, each whole.
    pub(super) fn take(&mut self, frames: Vec<Bytes>) {
        for frame in frames {
            self.route(frame);
        }
    }

    /// Something waits to be taken by QUIC.
    pub(super) fn waits(&self) -> bool {
        !self.control.waiting.is_empty() || self.chunks.values().any(|chunk| !chunk.out.waiting.is_empty())
    }

    /// Everything was brought, and the contact's end has it.
    pub(super) fn done(&self) -> bool {
        !self.waits() && self.chunks.is_empty() && self.unacked.is_empty()
    }

    /// Nothing more will be handed over: chunks that are not whole are left out.
    pub(super) fn last(&mut self) {
        self.reset_unless(Reset::LeftOut, |_| false);
        self.cursors.clear();
    }

    /// Of chunks that are not whole only these go on.
    pub(super) fn only(&mut self, handles: &[u64]) {
        self.reset_unless(Reset::LeftOut, |begins| handles.contains(&begins.handle));
    }

    /// The contact took nothing for too long: it is told why, and given no chunk any more.
    pub(super) fn give_up(&mut self) {
        self.reset_if(Reset::LeftOut, |_| true);
    }

    /// Brings what can be brought. `Ready` when something went on, and is to be called again.
    pub(super) fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        self.fit_window();
        let mut went = false;
        while let Poll::Ready(Some(number)) = Pin::new(&mut self.acked).poll_next(cx) {
            self.unacked.remove(&number);
            went = true;
        }
        self.release_cursors();
        match self.control.poll_write(cx) {
            Ok(some) => went |= some,
            // The contact takes no more of the control stream: it is gone.
            Err(_) => return Poll::Ready(Err(Stopped::Gone)),
        }
        went |= self.poll_open(cx)?;
        went |= self.write_chunks(cx)?;
        if went { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// The control stream ends.
    pub(super) fn finish(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let stream = self.control.stream.as_mut()?;
        let _ = stream.finish();
        let acked = stream.stopped();
        Some(async move {
            let _ = acked.await;
        })
    }

    fn route(&mut self, frame: Bytes) {
        let mut body = frame.clone();
        let kind = varint::get(&mut body);
        let _length = varint::get(&mut body);
        match kind {
            Some(kind::CHUNK) => self.begin(&body, frame),
            Some(kind::PIECE) => {
                if let Some(chunk) = varint::get(&mut body).and_then(|handle| self.of_handle(handle)) {
                    chunk.out.push(frame);
                }
            }
            Some(kind::COMPLETE) => self.complete(&body, frame),
            Some(kind::WITHDRAWN) => {
                if let Ok(Withdrawn { handle, .. }) = serde_json::from_slice(&body) {
                    self.reset(Reset::Withdrawn, |begins| begins.handle == handle);
                }
                self.control.push(frame);
            }
            Some(kind::OMITTED) => {
                if let Ok(Omitted { stream, from, to, .. }) = serde_json::from_slice(&body) {
                    let named = |begins: &ChunkBegins| begins.stream == stream && (from..=to).contains(&begins.index);
                    self.reset(Reset::LeftOut, named);
                }
                self.control.push(frame);
            }
            Some(kind::CURSOR) => {
                if self.cursors.len() >= MAX_CURSORS {
                    self.cursors.pop_back();
                }
                self.cursors.push_back((self.whole, frame));
            }
            _ => self.control.push(frame),
        }
    }

    fn begin(&mut self, body: &[u8], frame: Bytes) {
        let Ok(begins) = serde_json::from_slice::<ChunkBegins>(body) else { return };
        // One that begins anew goes on no longer where it was.
        self.reset(Reset::LeftOut, |open| open.handle == begins.handle);
        let lane = u8::from(begins.variant != Variant::AudioPriority);
        let mut out = Outgoing { stream: None, waiting: VecDeque::new(), bytes: 0 };
        let mut head = BytesMut::with_capacity(12);
        varint::put(&mut head, CHUNK_STREAM);
        varint::put(&mut head, self.session);
        out.push(head.freeze());
        out.push(frame);
        self.chunks.insert((lane, self.begun), Chunk { begins, out, whole: None });
        self.begun += 1;
    }

    fn complete(&mut self, body: &[u8], frame: Bytes) {
        let Ok(Complete { handle }) = serde_json::from_slice(body) else { return };
        let number = self.whole;
        let Some(chunk) = self.of_handle(handle) else { return };
        chunk.out.push(frame);
        chunk.whole = Some(number);
        self.whole += 1;
        self.unacked.insert(number);
    }

    fn of_handle(&mut self, handle: u64) -> Option<&mut Chunk> {
        self.chunks.values_mut().find(|chunk| chunk.begins.handle == handle && chunk.whole.is_none())
    }

    /// Resets the streams of chunks that are not whole but those to keep.
    fn reset_unless(&mut self, why: Reset, keep: impl Fn(&ChunkBegins) -> bool) {
        self.reset_if(why, |chunk| chunk.whole.is_none() && !keep(&chunk.begins));
    }

    /// Resets the streams of these chunks as far as they are not written.
    fn reset(&mut self, why: Reset, which: impl Fn(&ChunkBegins) -> bool) {
        self.reset_if(why, |chunk| which(&chunk.begins));
    }

    fn reset_if(&mut self, why: Reset, which: impl Fn(&Chunk) -> bool) {
        let ranks: Vec<Rank> = self.chunks.iter().filter(|(_, chunk)| which(chunk)).map(|(rank, _)| *rank).collect();
        for rank in ranks {
            let Some(mut chunk) = self.chunks.remove(&rank) else { continue };
            if let Some(number) = chunk.whole {
                self.unacked.remove(&number);
            }
            if let Some(stream) = &mut chunk.out.stream {
                let _ = stream.reset(why.code());
            }
            if self.opening.as_ref().is_some_and(|(opening, _)| *opening == rank) {
                self.opening = None;
            }
        }
    }

    /// Opens a stream for the first chunk that has none. The contact allows so many.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Result<bool, Stopped> {
        let mut went = false;
        loop {
            if self.opening.is_none() {
                let first = self.chunks.iter().find(|(_, chunk)| chunk.out.stream.is_none());
                let Some((rank, _)) = first else { return Ok(went) };
                let quic = self.quic.clone();
                self.opening = Some((*rank, Box::pin(async move { quic.open_uni().await })));
            }
            let Some((rank, opening)) = &mut self.opening else { return Ok(went) };
            let Poll::Ready(opened) = opening.as_mut().poll(cx) else { return Ok(went) };
            let stream = opened.map_err(|_| Stopped::Gone)?;
            // A stream that is closed already has nothing to order.
            let _ = stream.set_priority(priority(*rank));
            if let Some(chunk) = self.chunks.get_mut(rank) {
                chunk.out.stream = Some(stream);
            }
            self.opening = None;
            went = true;
        }
    }

    fn write_chunks(&mut self, cx: &mut Context<'_>) -> Result<bool, Stopped> {
        let (mut went, mut over) = (false, Vec::new());
        for (rank, chunk) in &mut self.chunks {
            match chunk.out.poll_write(cx) {
                Ok(some) => went |= some,
                Err(WriteError::ConnectionLost(_)) => return Err(Stopped::Gone),
                // The contact does not want it.
                Err(_) => over.push(*rank),
            }
            if chunk.whole.is_some() && chunk.out.waiting.is_empty() {
                over.push(*rank);
            }
        }
        for rank in over {
            went = true;
            let Some(mut chunk) = self.chunks.remove(&rank) else { continue };
            let (Some(stream), Some(number)) = (&mut chunk.out.stream, chunk.whole) else { continue };
            let _ = stream.finish();
            let acked = stream.stopped();
            self.acked.push(Box::pin(async move {
                let _ = acked.await;
                number
            }));
        }
        Ok(went)
    }

    fn release_cursors(&mut self) {
        let had = self.unacked.first().copied().unwrap_or(self.whole);
        while let Some((_, cursor)) = self.cursors.pop_front_if(|(counts, _)| *counts <= had) {
            self.control.push(cursor);
        }
    }

    /// What QUIC takes beyond what is on its way could not be overtaken by sound.
    fn fit_window(&mut self) {
        let path = self.quic.stats().path;
        let window = path.cwnd.saturating_mul(2).clamp(LEAST_WINDOW, super::super::quic::SEND_WINDOW);
        if window != self.window {
            self.window = window;
            self.quic.set_send_window(window);
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        // quinn finishes what is dropped, and a chunk that was cut off would look whole.
        self.give_up();
    }
}

impl Outgoing {
    fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.waiting.push_back(bytes);
    }

    /// Writes what is taken; whether anything was. Nothing is copied: others are sent it too.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, WriteError> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        let mut went = false;
        while !self.waiting.is_empty() {
            // Whoever waits for room is known to the stream: dropping this loses nothing.
            let Poll::Ready(written) = pin!(stream.write_chunks(self.waiting.make_contiguous())).poll(cx) else {
                break;
            };
            let written = written?;
            self.bytes -= written.bytes;
            self.waiting.drain(..written.chunks);
            went = true;
        }
        Ok(went)
    }
}

/// The higher goes first, in what is new as in what was lost.
fn priority((lane, age): Rank) -> i32 {
    const LANE: i32 = 1 << 29;
    let first = if lane == 0 { 2 * LANE } else { LANE };
    first - i32::try_from(age % (1 << 28)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_goes_before_every_picture_and_the_older_chunk_before_the_newer() {
        let ranks = [(0, 0), (0, 7), (0, (1 << 28) - 1), (1, 0), (1, 9)];
        let priorities = ranks.map(priority);
        assert!(priorities.is_sorted_by(|one, next| one > next), "{priorities:?}");
        assert!(priorities.iter().all(|priority| (0..i32::MAX).contains(priority)));
    }

    #[test]
    fn resets_are_in_the_range_of_applications() {
        assert_eq!(Reset::Withdrawn.code().into_inner(), 0x52e4_a40f_a8dc);
        assert_eq!(Reset::LeftOut.code().into_inner(), 0x52e4_a40f_a8dd);
    }
}
