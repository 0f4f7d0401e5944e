//! `/capture` over a WebSocket: one connection, chunks interleaved piece by piece.

mod outbox;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::frame::{self, Frame, kind};
use waystation_proto::message::{self, Bye, CaptureState, Credit, End, Hint, OfferBody, Send, Welcome};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkState};

use super::book::Verdict;
use super::ear::Ear;
use super::link::{Beside, Dial, FromLink, Job, Link, ToLink, greeting};
use super::retry::Pause;
use super::sign;
use crate::connect::ConnectError;
use crate::race;
use crate::tcp::Watch;
use crate::wsio::{self, Opened, Socket};
use outbox::{Outbox, PIECE_BYTES, Write};

/// How often the connection is looked at.
const TICK: Duration = Duration::from_millis(250);

/// What a connection is to its session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The only one: the kernel is asked for BBR, and another is made beside it when it stalls.
    Alone,
    /// One of several: whoever looks after them is told that it stalls, and makes another for all.
    Strand,
    /// The same, made beside others: its first word is not waited for more than any other.
    Further,
}

/// Connects; tries again beside a try that hangs.
///
/// `WELCOME` is not waited for: the first offers go right behind `HELLO`, a round trip earlier. A
/// relay that does not want them says `BYE`.
pub(crate) fn connect(dial: Dial, part: Part) -> BoxFuture<'static, Result<Link, ConnectError>> {
    Box::pin(async move {
        let open = |_| wsio::open(&dial.relay, "/capture", CAPTURE_SUBPROTOCOL, part == Part::Alone);
        let opened = race::staggered(race::TCP, open).await?;
        let mut link = Link::spawn(usize::MAX, move |jobs, news| run(opened, dial, part, jobs, news));
        link.offers_ahead();
        Ok(link)
    })
}

/// One more strand, with one try: what is there already need not wait for it.
pub(crate) async fn once(dial: Dial) -> Result<Link, ConnectError> {
    let opened = wsio::open(&dial.relay, "/capture", CAPTURE_SUBPROTOCOL, false).await?;
    Ok(Link::spawn(usize::MAX, move |jobs, news| run(opened, dial, Part::Further, jobs, news)))
}

struct Shared {
    outbox: Mutex<Outbox>,
    wake: Notify,
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        let out = change(&mut self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
        out
    }

    /// Only looks; the writer calls it, which needs no waking.
    fn next(&self) -> Write {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

async fn run(
    opened: Opened,
    mut dial: Dial,
    part: Part,
    mut jobs: mpsc::Receiver<ToLink>,
    news: mpsc::Sender<FromLink>,
) {
    let (sink, mut stream) = opened.socket.split();
    let outbox = Outbox::new(greeting(&dial.tokens, dial.recording.load(Ordering::Relaxed)), opened.early);
    let shared = Arc::new(Shared { outbox: Mutex::new(outbox), wake: Notify::new() });
    let mut writer =
        AbortOnDropHandle::new(tokio::spawn(write(sink, Arc::clone(&shared), news.clone(), Arc::clone(&dial.written))));
    let first_word = (part != Part::Further).then_some(opened.round_trip);
    let ear = Ear::new(dial.takes.clone(), first_word, opened.watch.is_some());
    let mut reader = Reader::new(part, shared, news, ear, opened.watch);
    let (mut beside, mut pause, begun) = (Beside::default(), Pause::beside(), Instant::now());
    let mut tick = tokio::time::interval(TICK);
    let mut open = true;
    while open {
        open = tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => {
                    match &job {
                        ToLink::Capability(token) => dial.add(token.clone()),
                        // Whichever answers first goes on.
                        ToLink::Moved if part == Part::Alone => {
                            // What is being made goes over the network before.
                            beside.stop();
                            pause = Pause::beside();
                            beside.begin(connect(dial.clone(), part));
                        }
                        ToLink::Moved => reader.silent = true,
                        ToLink::Job(_) | ToLink::End(_) => {}
                    }
                    reader.asked(job)
                }
                None => false,
            },
            message = stream.next() => {
                reader.ear.heard();
                let speaks = matches!(message, Some(Ok(_)));
                let open = reader.message(message).await;
                if speaks && !reader.ear.stalls() {
                    beside.stop();
                    pause.eased();
                    reader.flows().await;
                }
                open
            }
            _ = tick.tick() => {
                let alive = reader.tick(dial.recording.load(Ordering::Relaxed));
                match part {
                    Part::Alone if reader.ear.stalls() && pause.is_over(millis(begun)) => {
                        beside.begin(connect(dial.clone(), part));
                    }
                    Part::Strand | Part::Further => reader.stalls().await,
                    Part::Alone => {}
                }
                alive
            }
            made = beside.made() => match made {
                Ok(better) => reader.news.send(FromLink::Better(Box::new(better))).await.is_ok(),
                Err(error) => {
                    pause.failed(millis(begun), error.retry_after_s());
                    true
                }
            },
            _ = &mut writer => false,
        };
    }
    let closed = FromLink::Closed { code: reader.code.take(), retry_after_s: reader.retry_after_s };
    // The session may be gone already; then nobody needs to know.
    let _ = reader.news.send(closed).await;
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

async fn write(
    mut sink: SplitSink<Socket, Message>,
    shared: Arc<Shared>,
    news: mpsc::Sender<FromLink>,
    written: Arc<AtomicU64>,
) {
    loop {
        let result = match shared.next() {
            Write::Message(message) => sink.send(message).await,
            Write::Piece { message, last } => {
                let length = message.len() as u64;
                let result = sink.send(message).await;
                written.fetch_add(length, Ordering::Relaxed);
                if let (Ok(()), Some((id, attempt))) = (&result, last) {
                    let _ = news.send(FromLink::Sent { id, attempt }).await;
                }
                result
            }
            Write::Close => {
                let _ = sink.close().await;
                return;
            }
            Write::Nothing => {
                shared.wake.notified().await;
                Ok(())
            }
        };
        if result.is_err() {
            return;
        }
    }
}

/// What the relay said; none at its end.
type Incoming = Option<Result<Message, tokio_tungstenite::tungstenite::Error>>;

/// The half that listens to the relay and to the session.
struct Reader {
    part: Part,
    shared: Arc<Shared>,
    news: mpsc::Sender<FromLink>,
    next_handle: u64,
    ear: Ear,
    watch: Option<Watch>,
    /// Whoever looks after several takes it for silent until it is heard, or where it stalls until it answers.
    silent: bool,
    code: Option<String>,
    retry_after_s: Option<u64>,
}

impl Reader {
    fn new(part: Part, shared: Arc<Shared>, news: mpsc::Sender<FromLink>, ear: Ear, watch: Option<Watch>) -> Self {
        Self { part, shared, news, next_handle: 1, ear, watch, silent: false, code: None, retry_after_s: None }
    }

    fn asked(&mut self, job: ToLink) -> bool {
        match job {
            ToLink::Job(job) => self.offer(*job),
            ToLink::Capability(token) => {
                let body = message::Capability { capability: token.as_str().into() };
                self.control(frame::encode_json(kind::CAPABILITY, &body));
            }
            ToLink::Moved => {
                let question = if self.part == Part::Alone { self.ear.moved() } else { self.ear.ask() };
                self.shared.with(|out| out.ping = Some(question));
            }
            ToLink::End(reason) => {
                let end = frame::encode_json(kind::END, &End { reason });
                self.shared.with(|out| {
                    out.control.push_back(end);
                    out.closing = true;
                });
            }
        }
        true
    }

    fn offer(&mut self, job: Job) {
        let handle = self.next_handle;
        self.next_handle += 1;
        let offer = frame::encode_json(kind::OFFER, &OfferBody::new(handle, &job.offer));
        self.shared.with(|out| {
            out.chunks.insert(handle, (job.id, job.offer.attempt));
            out.plan.limit(job.most);
            out.plan.offered(handle, job.rank, job.bytes);
            if !job.resume {
                out.begin(handle, job.offer.length);
            }
            out.control.push_back(offer);
        });
    }

    fn control(&self, frame: Bytes) {
        self.shared.with(|out| out.control.push_back(frame));
    }

    fn tick(&mut self, recording: bool) -> bool {
        let bytes_wait = self.shared.with(|out| {
            if recording && out.last_written.elapsed() >= sign::AFTER && out.control.is_empty() {
                out.control.push_back(frame::encode(kind::ALIVE, b"{}"));
            }
            !out.chunks.is_empty()
        });
        let watched = !bytes_wait && !self.ear.stalls();
        // Beside a connection that brings chunks another is made, and the one that is heard first goes on.
        self.watch.iter_mut().for_each(|watch| watch.set(watched));
        if let Some(question) = self.ear.asks(bytes_wait).or_else(|| self.ear.look()) {
            self.shared.with(|out| out.ping = Some(question));
        }
        !self.ear.is_dead()
    }

    /// One of several: says once that it stalls.
    async fn stalls(&mut self) {
        if self.ear.stalls() && !std::mem::replace(&mut self.silent, true) {
            let _ = self.news.send(FromLink::Stalls).await;
        }
    }

    /// The same for what is heard then.
    async fn flows(&mut self) {
        if std::mem::take(&mut self.silent) {
            let _ = self.news.send(FromLink::Flows).await;
        }
    }

    async fn message(&mut self, message: Incoming) -> bool {
        match message {
            Some(Ok(Message::Binary(bytes))) => match frame::split_message(bytes) {
                Ok(frames) => self.frames(frames).await,
                Err(_) => false,
            },
            Some(Ok(Message::Close(_))) | Some(Err(_)) | None => false,
            Some(Ok(Message::Pong(question))) => {
                if let Ok(question) = <[u8; 4]>::try_from(&question[..]) {
                    self.ear.answered(u32::from_be_bytes(question));
                }
                true
            }
            Some(Ok(_)) => true,
        }
    }

    async fn frames(&mut self, frames: Vec<Frame>) -> bool {
        for frame in frames {
            if !self.frame(&frame).await.unwrap_or(false) {
                return false;
            }
        }
        true
    }

    /// Handles one frame; none or false ends the connection.
    async fn frame(&mut self, frame: &Frame) -> Option<bool> {
        match frame.kind {
            kind::WELCOME => {
                let limits = frame::control::<Welcome>(frame).ok()?.limits;
                self.ear.greeted();
                if limits.known == 0 {
                    self.ear.is_behind_another();
                }
                let max_piece = usize::try_from(limits.max_piece).unwrap_or(PIECE_BYTES);
                self.shared.with(|out| out.max_piece = max_piece.clamp(1, PIECE_BYTES));
                let bodies = limits.in_flight.min(limits.offers) as usize;
                Some(self.news.send(FromLink::Bodies(bodies)).await.is_ok())
            }
            kind::SEND => {
                let send: Send = frame::control(frame).ok()?;
                let fits = self.shared.with(|out| {
                    out.answered(send.handle);
                    out.plan.send(send.handle, send.offset, send.credit)
                });
                let verdict = Verdict { state: Some(ChunkState::Receiving), ..Verdict::default() };
                self.tell(send.handle, verdict, false).await;
                let chunk = self.shared.with(|out| out.chunks.get(&send.handle).copied());
                if let Some((id, attempt)) = chunk {
                    let _ = self.news.send(FromLink::Offset { id, attempt, offset: send.offset }).await;
                }
                Some(fits)
            }
            kind::CREDIT => {
                let credit: Credit = frame::control(frame).ok()?;
                let chunk = self.shared.with(|out| {
                    out.plan.credit(credit.handle, credit.bytes);
                    out.chunks.get(&credit.handle).copied()
                });
                if let Some((id, attempt)) = chunk {
                    let _ = self.news.send(FromLink::Moves { id, attempt }).await;
                }
                Some(true)
            }
            kind::CAPTURE_STATE => {
                self.state(frame::control(frame).ok()?).await;
                Some(true)
            }
            kind::HINT => {
                let hint: Hint = frame::control(frame).ok()?;
                Some(self.news.send(FromLink::Hint(hint)).await.is_ok())
            }
            kind::BYE => {
                let bye: Bye = frame::control(frame).ok()?;
                (self.code, self.retry_after_s) =
                    (Some(crate::wire::plain(&bye.reason)), bye.retry_after_s.map(crate::http::bounded));
                Some(false)
            }
            // Unknown types are ignored, so that a newer relay may say more.
            _ => Some(true),
        }
    }

    async fn state(&self, told: CaptureState) {
        let state = told.state;
        let held = state.is_some_and(ChunkState::held);
        let ended = state.is_some_and(|state| state.ended() || state == ChunkState::Unsettled);
        // A refusal of the offer, or of bytes that were on their way, is the last word; an error
        // beside a chunk that the relay holds says what that one waits for.
        let refused = told.error.is_some() && !held;
        if held || ended || refused {
            self.shared.with(|out| {
                out.answered(told.handle);
                out.plan.forget(told.handle);
            });
        }
        let last = (ended && state != Some(ChunkState::Unsettled)) || refused;
        let verdict =
            Verdict { state, receipt: told.receipt, error: told.error, retry_after_s: told.retry_after_s, last };
        self.tell(told.handle, verdict, last).await;
    }

    async fn tell(&self, handle: u64, verdict: Verdict, forget: bool) {
        let chunk =
            self.shared.with(|out| if forget { out.chunks.remove(&handle) } else { out.chunks.get(&handle).copied() });
        if let Some((id, attempt)) = chunk {
            let _ = self.news.send(FromLink::Verdict { id, attempt, verdict }).await;
        }
    }
}
