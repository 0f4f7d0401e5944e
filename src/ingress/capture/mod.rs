//! `/capture`: many chunks over one session of frames, none of which holds up another. A WebSocket
//! carries it, or the two bodies of a `POST`.

mod chunk;
mod lane;
mod tokens;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::request::Parts;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;

use self::chunk::Chunk;
use self::lane::Lane;
use self::tokens::Tokens;
use super::body::RequestBody;
use super::conn::{Ctx, EARLY, Listener};
use super::duplex;
use super::frames::{Goodbye, Outbox, Reader, Room};
use super::respond::{self, Reply};
use super::ws;
use crate::admission::Refusal;
use crate::proto::frame::{self, Frame, MAX_PIECE_BYTES, Piece, kind};
use crate::proto::known::MAX_KNOWN;
use crate::proto::message::EARLY_BYTES;
use crate::proto::message::{self, Hello, Hint, OfferBody, Welcome};
use crate::proto::offer::Timestamp;
use crate::proto::{CAPTURE_SUBPROTOCOL, Code, Digest, IncidentId, Media, Offer, PROTOCOL, StreamId};
use crate::telemetry::names::Transport;

/// Chunks of one connection that are received or followed, at about 2 KiB each; their bytes are
/// bounded by `limits.receiving_total`. A core that is away for an hour
/// leaves this many waiting; a further offer hears `too_many_offers` and may use another
/// connection.
const MAX_OFFERS: usize = 1024;
/// How often it is looked whether there is a new hint.
const HINT_EVERY: Duration = Duration::from_secs(3);
/// Replies that may wait to be written; small frames all.
const ROOM: Room = Room { read_buffer: 64 * 1024, messages: 64 };

/// The upgrade of `/capture`.
pub(super) fn upgrade(ctx: &Ctx, parts: &mut Parts) -> Reply {
    early(ctx, ws::start(ctx, parts, CAPTURE_SUBPROTOCOL, ROOM, hold))
}

/// `POST /capture`: the same frames in the request's body and the answer's.
pub(super) fn post(ctx: &Ctx, parts: &Parts, body: &mut RequestBody) -> Reply {
    early(ctx, duplex::start(ctx, parts, body, ROOM, hold))
}

/// Says that bytes may come before they are asked for: the head is there a round trip before any
/// frame. A proxy may bring several clients on one HTTP/2 connection: those are not told, since they would
/// share the room.
fn early(ctx: &Ctx, mut reply: Reply) -> Reply {
    let own = ctx.conn.listener != Listener::Plain || ctx.transport == Transport::H1;
    if own && (reply.status().is_informational() || reply.status().is_success()) {
        reply.headers_mut().insert(HeaderName::from_static(EARLY_BYTES), EARLY.into());
    }
    reply
}

async fn hold(ctx: Ctx, reader: Reader, out: Outbox) -> Goodbye {
    match Session::open(ctx, reader, out).await {
        Ok(Some(session)) => session.run().await,
        Ok(None) => Goodbye::Left,
        Err(refusal) => told(&refusal),
    }
}

fn told(refusal: &Refusal) -> Goodbye {
    Goodbye::Told(respond::bye(refusal), refusal.code)
}

struct Session {
    ctx: Ctx,
    reader: Reader,
    out: Outbox,
    tokens: Tokens,
    lanes: HashMap<u64, Arc<Lane>>,
    highest: Option<u64>,
    receiving: watch::Sender<usize>,
    tasks: JoinSet<Option<u64>>,
    /// What the message that opened the session held beside `HELLO`.
    early: Vec<Frame>,
}

impl Session {
    /// Waits for `HELLO` and answers it.
    async fn open(ctx: Ctx, mut reader: Reader, out: Outbox) -> Result<Option<Self>, Refusal> {
        let Some(mut frames) = reader.first(kind::HELLO).await? else { return Ok(None) };
        let early = frames.split_off(1);
        let hello: Hello = frames.first().map(frame::control).ok_or(Code::ProtocolError)??;
        if hello.protocol != PROTOCOL {
            return Err(Code::UnsupportedProtocol.into());
        }
        if hello.capabilities.is_empty() {
            return Err(Code::CapabilityMissing.into());
        }
        let mut session = Self {
            ctx,
            reader,
            out,
            tokens: Tokens::default(),
            lanes: HashMap::new(),
            highest: None,
            receiving: watch::Sender::new(0),
            tasks: JoinSet::new(),
            early,
        };
        for token in &hello.capabilities {
            session.present(token);
        }
        // One good token opens the session; the bad ones beside it are told by themselves.
        session.tokens.opened().await?;
        session.welcome().await;
        session.tell_refused().await;
        Ok(Some(session))
    }

    async fn welcome(&self) {
        let shared = &self.ctx.shared;
        let limits = message::Limits {
            max_chunk: shared.max_chunk,
            max_piece: MAX_PIECE_BYTES as u64,
            offers: MAX_OFFERS as u32,
            in_flight: u32::try_from(self.ctx.limits.in_flight_per_session).unwrap_or(u32::MAX),
            // Behind a proxy one connection may be several clients', and one client's several.
            known: if self.ctx.conn.listener == Listener::Plain { 0 } else { MAX_KNOWN as u32 },
        };
        let welcome = Welcome { protocol: PROTOCOL, node: shared.node.to_string(), limits };
        self.out.send(frame::encode_json(kind::WELCOME, &welcome)).await;
    }

    async fn run(mut self) -> Goodbye {
        match self.serve().await {
            Ok(()) => Goodbye::Left,
            Err(refusal) => told(&refusal),
        }
    }

    async fn serve(&mut self) -> Result<(), Refusal> {
        for frame in std::mem::take(&mut self.early) {
            consume_budget().await;
            self.frame(frame).await?;
        }
        let clock = self.ctx.shared.clock.clone();
        let drain = self.ctx.drain.clone();
        let mut received = self.receiving.subscribe();
        let mut look = Box::pin(clock.sleep(Duration::ZERO));
        let mut hint = Hint::default();
        loop {
            let drained = async {
                drain.cancelled().await;
                // The sender lives as long as the session.
                let _ = received.wait_for(|count| *count == 0).await;
            };
            tokio::select! {
                message = self.reader.next() => match message? {
                    None => return Ok(()),
                    Some(frames) => for frame in frames {
                        // Whoever says much at once lets others go first.
                        consume_budget().await;
                        self.frame(frame).await?;
                    },
                },
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(Some(handle)) = ended {
                        self.lanes.remove(&handle);
                    }
                    self.tell_refused().await;
                }
                () = &mut look => {
                    look = Box::pin(clock.sleep(HINT_EVERY));
                    self.hint(&mut hint).await;
                }
                () = self.out.closed() => return Ok(()),
                () = drained => return Err(Code::Draining.into()),
            }
        }
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), Refusal> {
        match frame.kind {
            kind::OFFER => self.offer(&frame).await?,
            kind::CAPTURE_PIECE => self.piece(Piece::decode(frame.body)?)?,
            kind::CAPABILITY => {
                let body: message::Capability = frame::control(&frame)?;
                self.present(&body.capability);
                self.tell_refused().await;
            }
            kind::ALIVE => self.tokens.each(|one| self.ctx.shared.admission.alive(one)),
            kind::END => self.tokens.each(|one| self.ctx.shared.admission.ended(one)),
            kind::HELLO => return Err(Code::ProtocolError.into()),
            // Unknown types, and those of the other side, mean nothing here.
            _ => {}
        }
        Ok(())
    }

    /// Takes a capability in. Reading it may take a fetch of the core's keys, which no other lane
    /// waits for; what it releases goes on by itself.
    fn present(&mut self, token: &str) {
        let Some(number) = self.tokens.begin(token, self.ctx.shared.clock.unix_s()) else { return };
        let (ctx, tokens, token) = (self.ctx.clone(), self.tokens.clone(), token.to_owned());
        self.tasks.spawn(async move {
            let admission = &ctx.shared.admission;
            let outcome = admission.capability(&token, ctx.client).await;
            let good = outcome.as_ref().ok().cloned();
            // Before WELCOME, which tells the client that it may name it.
            if let Some(capability) = &good {
                ctx.conn.known.learn(capability);
            }
            tokens.read(number, &token, outcome);
            if let Some(capability) = good {
                admission.present(&capability, ctx.client).await;
            }
            None
        });
    }

    /// A token that is no good ends nothing: its sender hears which one it is and why.
    async fn tell_refused(&self) {
        for (number, refusal) in self.tokens.untold() {
            self.ctx.shared.metrics.ingress.refuse_on_capture(refusal.code);
            self.out.send(respond::capability_refusal(number, &refusal)).await;
        }
    }

    async fn offer(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let (handle, offer) = read_offer(frame)?;
        if self.lanes.contains_key(&handle) {
            return Err(Code::ProtocolError.into());
        }
        self.highest = self.highest.max(Some(handle));
        let refused = match offer {
            Err(code) => code,
            Ok(_) if self.ctx.drain.is_cancelled() => Code::Draining,
            Ok(_) if self.lanes.len() >= MAX_OFFERS => Code::TooManyOffers,
            Ok(offer) => {
                self.begin(handle, offer);
                return Ok(());
            }
        };
        self.ctx.shared.metrics.ingress.refuse_on_capture(refused);
        self.out.send(respond::capture_refusal(handle, &refused.into())).await;
        Ok(())
    }

    fn begin(&mut self, handle: u64, offer: Offer) {
        let lane = Arc::new(Lane::default());
        self.lanes.insert(handle, Arc::clone(&lane));
        let (ctx, out) = (self.ctx.clone(), self.out.clone());
        let (tokens, receiving) = (self.tokens.clone(), self.receiving.clone());
        let chunk = Chunk { ctx, handle, lane, out, tokens, receiving };
        self.tasks.spawn(async move {
            Box::pin(chunk.run(offer)).await;
            Some(handle)
        });
    }

    fn piece(&self, piece: Piece) -> Result<(), Refusal> {
        match self.lanes.get(&piece.handle) {
            Some(lane) => Ok(lane.piece(piece.offset, piece.bytes, &self.ctx.conn.early_room)?),
            // A piece may be under way when its chunk is refused; a handle that never was is a
            // mistake.
            None if Some(piece.handle) <= self.highest => Ok(()),
            None => Err(Code::UnknownHandle.into()),
        }
    }

    async fn hint(&self, last: &mut Hint) {
        let admission = &self.ctx.shared.admission;
        let mut sessions = Vec::new();
        self.tokens.each(|one| sessions.extend(admission.hinted(one)));
        sessions.dedup();
        // One recording has one session, but for a core that gives each stream its own.
        let hints = sessions.iter().map(|session| admission.hint(Some(session)));
        let now = hints.max_by_key(|hint| hint.rate).unwrap_or_else(|| admission.hint(None));
        if material(last, &now) {
            self.out.send(frame::encode_json(kind::HINT, &now)).await;
            *last = now;
        }
    }
}

/// Whether a hint says something new: the core came or went, a class's room moved by a tenth, the
/// rate by a quarter, or there is other advice.
fn material(last: &Hint, now: &Hint) -> bool {
    let away = last.core_away.unwrap_or_default() != now.core_away.unwrap_or_default();
    let limited = last.core_limited_s.is_some() != now.core_limited_s.is_some();
    let (before, after) = (last.pressure.unwrap_or_default(), now.pressure.unwrap_or_default());
    let rate = match (last.rate, now.rate) {
        (Some(last), Some(now)) => last.abs_diff(now) > last / 4,
        (last, now) => last != now,
    };
    let advice = (&last.lanes, last.chunk_ms) != (&now.lanes, now.chunk_ms);
    away || limited || rate || advice || before.iter().zip(after).any(|(before, after)| (before - after).abs() >= 0.1)
}

/// An offer's handle, and the offer or what is wrong with it. Without a handle nothing can be
/// answered, and the connection ends.
fn read_offer(frame: &Frame) -> Result<(u64, Result<Offer, Code>), Code> {
    if let Ok(body) = frame::control::<OfferBody>(frame) {
        return Ok((body.handle, body.into_offer()));
    }
    let body: serde_json::Value = frame::control(frame)?;
    let handle = body.get("handle").and_then(serde_json::Value::as_u64).ok_or(Code::ProtocolError)?;
    Ok((handle, Err(blame(&body))))
}

/// The code of the first member that can't be read, in the order of the dictionary's rules.
fn blame(body: &serde_json::Value) -> Code {
    fn reads<T: serde::de::DeserializeOwned>(body: &serde_json::Value, name: &str) -> bool {
        body.get(name).is_some_and(|value| T::deserialize(value).is_ok())
    }
    let rules = [
        (reads::<u64>(body, "length"), Code::LengthRequired),
        (reads::<IncidentId>(body, "incident") && reads::<StreamId>(body, "stream"), Code::InvalidIdentifier),
        (reads::<u64>(body, "index"), Code::InvalidChunkIndex),
        (reads::<Media>(body, "media"), Code::InvalidMediaType),
        (reads::<Timestamp>(body, "started") && reads::<Timestamp>(body, "ended"), Code::InvalidTime),
        (reads::<Digest>(body, "sha256"), Code::InvalidDigest),
    ];
    rules.into_iter().find(|(reads, _)| !reads).map_or(Code::InvalidChunkHeader, |(_, code)| code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn offer() -> serde_json::Value {
        json!({
            "handle": 7, "incident": "i", "stream": "s", "index": 1, "media": "audio",
            "started": "2026-06-10T12:00:00Z", "ended": "2026-06-10T12:00:02Z", "length": 10,
            "sha256": "0".repeat(64), "later": {"x": 1},
        })
    }

    fn read(body: &serde_json::Value) -> Result<(u64, Result<Offer, Code>), Code> {
        read_offer(&Frame { kind: kind::OFFER, body: body.to_string().into() })
    }

    #[test]
    fn each_broken_member_has_its_code() {
        assert!(read(&offer()).unwrap().1.is_ok());
        let cases = [
            ("incident", json!(""), Code::InvalidIdentifier),
            ("stream", json!(null), Code::InvalidIdentifier),
            ("index", json!("1"), Code::InvalidChunkIndex),
            ("index", json!(0), Code::InvalidChunkIndex),
            ("media", json!("film"), Code::InvalidMediaType),
            ("ended", json!("later"), Code::InvalidTime),
            ("sha256", json!("AA"), Code::InvalidDigest),
            ("length", json!(-1), Code::LengthRequired),
            ("role", json!("preview_only"), Code::RoleRefused),
            ("role", json!(3), Code::InvalidChunkHeader),
            ("sig", json!("!"), Code::SignatureInvalid),
        ];
        for (name, value, code) in cases {
            let mut body = offer();
            body[name] = value;
            let (handle, offer) = read(&body).unwrap();
            assert_eq!((handle, offer.unwrap_err()), (7, code), "{name}");
        }
        let mut nameless = offer();
        nameless["handle"] = json!(null);
        assert_eq!(read(&nameless).unwrap_err(), Code::ProtocolError);
    }

    #[test]
    fn a_hint_is_sent_when_it_says_something_new() {
        let calm = Hint::default();
        let full = |level: f32| Hint { pressure: Some([0.0, 0.0, 0.0, level]), ..Hint::default() };
        assert!(!material(&calm, &full(0.05)));
        assert!(material(&calm, &full(0.5)));
        assert!(!material(&full(0.5), &full(0.55)));
        assert!(material(&calm, &Hint { core_away: Some(true), ..Hint::default() }));
        assert!(!material(&calm, &Hint { core_away: Some(false), ..Hint::default() }));
        let fast = |rate| Hint { rate: Some(rate), ..Hint::default() };
        assert!(material(&calm, &fast(1000)) && material(&fast(1000), &fast(700)));
        assert!(!material(&fast(1000), &fast(1200)));
        assert!(material(&calm, &Hint { lanes: Some(Vec::new()), ..Hint::default() }));
        assert!(material(&calm, &Hint { chunk_ms: Some(4000), ..Hint::default() }));
    }

    proptest! {
        #[test]
        fn no_offer_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_offer(&Frame { kind: kind::OFFER, body: body.into() });
        }
    }
}
