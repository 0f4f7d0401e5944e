//! Events of the drop-in subscription (contract B.4). A chunk of 8 MiB is 11 MB of base64, so it
//! is written piece by piece, each taken from the window when its turn comes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderValue};
use serde::Serialize;

use super::body::{Outflow, ResponseBody, Stopped};
use super::conn::Ctx;
use super::pour::{Sink as _, over, unless_over};
use super::respond::{self, Failure, Reply};
use crate::admission::Revocation;
use crate::fanout::{ChunkMeta, WholeEvent, WholeSubscription};
use crate::proto::{Code, Digest, Media};

/// How often a quiet stream says that it lives: proxies cut silent ones.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Bytes of a chunk encoded at a time; a multiple of three, so that pieces need no padding.
const PIECE: usize = 12 * 1024;

#[derive(Serialize)]
struct ReadyEvent<'a> {
    status: &'static str,
    state: &'static str,
    incident_id: &'a str,
    stream_id: &'a str,
}

#[derive(Serialize)]
struct ChunkEvent<'a> {
    r#type: &'static str,
    state: &'a str,
    incident_id: &'a str,
    stream_id: &'a str,
    chunk_index: u64,
    media_type: Media,
    byte_size: u64,
    sha256_hex: Digest,
    #[serde(flatten)]
    failure: Option<Failure>,
}

#[derive(Serialize)]
struct EndEvent {
    r#type: &'static str,
    error_code: &'static str,
    terminal: bool,
}

/// A subscription, and what may end it.
type Watching = (WholeSubscription, Revocation);

/// The answer of an opened subscription.
pub(super) fn stream(ctx: &Ctx, watching: Watching, incident: String, stream: String) -> Reply {
    let (out, body) = ResponseBody::flow();
    let names = Names { incident, stream };
    ctx.tasks.spawn(Box::pin(pour(ctx.clone(), watching, names, out)));
    let mut reply = Response::new(body);
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    reply
}

/// What events call the incident and the stream: the subscriber's own words.
struct Names {
    incident: String,
    stream: String,
}

async fn pour(ctx: Ctx, mut watching: Watching, names: Names, out: Outflow) {
    let mut ending = None;
    let written = write_all(&ctx, &mut watching, &names, &out, &mut ending).await;
    let code = match written {
        Ok(()) => ending,
        Err(Stopped::TooSlow) => {
            out.cut(&ctx);
            Some(ending.unwrap_or(Code::ContactTooSlow))
        }
        Err(Stopped::Gone) => return,
    };
    if let Some(code) = code {
        watching.0.let_go(code);
        ctx.ticket.ended(Some(code));
    }
    if written.is_ok() {
        out.finish(&ctx).await;
    }
}

/// Writes events until one is the last. `ending`: why, if it is not the core's verdict.
async fn write_all(
    ctx: &Ctx,
    (subscription, revocation): &mut Watching,
    names: &Names,
    out: &Outflow,
    ending: &mut Option<Code>,
) -> Result<(), Stopped> {
    let clock = &ctx.shared.clock;
    out.send(ctx, names.ready()).await?;
    loop {
        let event = match *ending {
            Some(code) => Some(WholeEvent::End(code)),
            None => tokio::select! {
                event = subscription.next() => Some(event),
                () = clock.sleep(KEEP_ALIVE) => None,
                () = out.gone() => return Err(Stopped::Gone),
                code = over(ctx, revocation) => Some(WholeEvent::End(code)),
            },
        };
        if let Some(WholeEvent::End(code)) = event {
            *ending = Some(code);
        }
        let writing = write(ctx, subscription, names, event, out);
        if unless_over(ctx, writing, over(ctx, revocation), ending).await? {
            return Ok(());
        }
    }
}

/// Writes one event, or that the stream lives; whether it is the last.
async fn write(
    ctx: &Ctx,
    subscription: &mut WholeSubscription,
    names: &Names,
    event: Option<WholeEvent>,
    out: &Outflow,
) -> Result<bool, Stopped> {
    match event {
        None => out.send(ctx, Bytes::from_static(b":\n\n")).await.map(|()| false),
        Some(WholeEvent::Chunk(meta)) => send_chunk(ctx, names, &meta, subscription, out).await.map(|()| false),
        Some(WholeEvent::State(meta, state, error)) => {
            let Some((word, failure)) = respond::drop_in_state(state, error) else { return Ok(false) };
            let last = failure.is_some();
            let event = event_of("relay_chunk_state", &names.chunk("relay_chunk_state", word, &meta, failure));
            out.send(ctx, event).await.map(|()| last)
        }
        Some(WholeEvent::End(code)) => {
            let end = EndEvent { r#type: "relay_end", error_code: code.name(), terminal: true };
            out.send(ctx, event_of("relay_end", &end)).await.map(|()| true)
        }
    }
}

fn event_of(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n").into()
}

impl Names {
    fn ready(&self) -> Bytes {
        let ready = ReadyEvent {
            status: "subscribed",
            state: "near_live_unconfirmed",
            incident_id: &self.incident,
            stream_id: &self.stream,
        };
        event_of("relay_ready", &ready)
    }

    fn chunk<'a>(
        &'a self,
        kind: &'static str,
        state: &'a str,
        meta: &ChunkMeta,
        failure: Option<Failure>,
    ) -> ChunkEvent<'a> {
        ChunkEvent {
            r#type: kind,
            state,
            incident_id: &self.incident,
            stream_id: &self.stream,
            chunk_index: meta.index,
            media_type: meta.media,
            byte_size: meta.length,
            sha256_hex: meta.sha256,
            failure,
        }
    }
}

/// `relay_chunk` with its payload, encoded as it is sent.
async fn send_chunk(
    ctx: &Ctx,
    names: &Names,
    meta: &ChunkMeta,
    subscription: &mut WholeSubscription,
    out: &Outflow,
) -> Result<(), Stopped> {
    let mut head = event_of("relay_chunk", &names.chunk("relay_chunk", "near_live_unconfirmed", meta, None)).to_vec();
    // The object is opened again for its last member.
    head.truncate(head.len() - b"}\n\n".len());
    head.extend_from_slice(b",\"payload_b64\":\"");
    out.send(ctx, head.into()).await?;
    let mut encoder = Encoder::default();
    while let Some(piece) = subscription.piece().map_err(|_| Stopped::TooSlow)? {
        for part in piece.chunks(PIECE) {
            out.send(ctx, encoder.push(part).into()).await?;
        }
    }
    out.send(ctx, encoder.finish().into()).await?;
    out.send(ctx, Bytes::from_static(b"\"}\n\n")).await
}

/// Standard base64 of bytes that come in pieces of any size.
#[derive(Default)]
struct Encoder {
    left: Vec<u8>,
}

impl Encoder {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.left.extend_from_slice(bytes);
        let whole = self.left.len() / 3 * 3;
        let text = STANDARD.encode(&self.left[..whole]);
        self.left.drain(..whole);
        text
    }

    fn finish(self) -> String {
        STANDARD.encode(&self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::Poll;

    use super::super::tests::watched::{LEFT, Watched};
    use super::*;
    use crate::proto::offer::Timestamp;
    use crate::proto::{ChunkRef, ContactState, SessionId, StreamId, Variant};
    use http_body::Body as _;
    use proptest::prelude::*;

    fn meta() -> ChunkMeta {
        ChunkMeta {
            chunk: ChunkRef([0; 16]),
            session: SessionId::new("canary").unwrap(),
            stream: StreamId::new("str").unwrap(),
            variant: Variant::AudioPriority,
            media: Media::Audio,
            index: 3,
            length: 5,
            sha256: Digest([0; 32]),
            started: Timestamp::from_unix_ms(0),
            ended: Timestamp::from_unix_ms(0),
        }
    }

    fn names() -> Names {
        Names { incident: "inc".into(), stream: "str".into() }
    }

    #[test]
    fn events_are_framed_as_the_contract_says() {
        assert_eq!(
            names().ready(),
            "event: relay_ready\ndata: {\"status\":\"subscribed\",\"state\":\"near_live_unconfirmed\",\"incident_id\":\"inc\",\"stream_id\":\"str\"}\n\n"
        );
        let (word, failure) = respond::drop_in_state(
            ContactState::Rejected,
            Some((Code::CoreCommitRejected, Some("duplicate_chunk".into()))),
        )
        .unwrap();
        let event = event_of("relay_chunk_state", &names().chunk("relay_chunk_state", word, &meta(), failure));
        let text = std::str::from_utf8(&event).unwrap();
        assert!(!text.contains("canary"));
        let data: serde_json::Value =
            serde_json::from_str(text.lines().nth(1).unwrap().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["state"], "rejected");
        assert_eq!(data["error_code"], "core_commit_rejected");
        assert_eq!(data["core_error_code"], "duplicate_chunk");
        assert_eq!((data["retryable"].as_bool(), data["terminal"].as_bool()), (Some(false), Some(true)));

        let (word, failure) = respond::drop_in_state(ContactState::Confirmed, None).unwrap();
        let event = event_of("relay_chunk_state", &names().chunk("relay_chunk_state", word, &meta(), failure));
        let text = std::str::from_utf8(&event).unwrap();
        assert!(!text.contains("terminal") && !text.contains("error_code") && text.contains("\"confirmed\""));
    }

    /// Takes one piece each second of the clock until nothing more comes. What it took, and how long that was.
    async fn trickle(
        watched: &Watched,
        each: impl Fn(&Watched, u64),
    ) -> (Vec<u8>, Result<(), super::super::body::Cut>, u64) {
        let subscription = watched.hub.subscribe_whole(&watched.capability.grant, &Watched::stream()).unwrap();
        // Far more than anybody takes here.
        watched.bring(1, 4 << 20);
        let (out, mut body) = ResponseBody::flow();
        let pouring = pour(watched.ctx.clone(), (subscription, watched.revocation()), names(), out);
        let pouring = tokio::spawn(pouring);
        let (began, mut took) = (watched.clock.now_ms(), Vec::new());
        let end = loop {
            tokio::task::yield_now().await;
            each(watched, watched.clock.now_ms() - began);
            let frame = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            match frame {
                Poll::Ready(Some(Ok(frame))) => took.extend_from_slice(&frame.into_data().unwrap()),
                Poll::Ready(Some(Err(cut))) => break Err(cut),
                Poll::Ready(None) => break Ok(()),
                Poll::Pending => {}
            }
            watched.clock.advance(Duration::from_secs(1));
        };
        pouring.await.unwrap();
        (took, end, watched.clock.now_ms() - began)
    }

    #[tokio::test]
    async fn who_reads_a_chunk_slowly_ends_with_its_capability() {
        // What it may still take, the piece that waits, and a turn of the loop.
        let (exp, linger) = (LEFT.as_millis() as u64, 4_000);
        for (reason, code, at) in
            [("expired", Code::CapabilityExpired, exp), ("revoked", Code::CapabilityRevoked, exp / 2)]
        {
            let watched = Watched::new().await;
            let (took, end, lasted) = trickle(&watched, |watched, now| {
                if code == Code::CapabilityRevoked && now >= at {
                    watched.revoke();
                }
            })
            .await;
            assert!(took.starts_with(b"event: relay_ready") && took.len() < 1 << 20);
            assert!(end.is_err() && (at..=at + linger).contains(&lasted), "{reason}: {lasted} ms");
            assert_eq!((watched.endings(reason), watched.ctx.ticket.code()), (1, Some(code)));
            assert!(watched.ctx.conn.cut.is_cancelled(), "what nobody reads is not kept");
        }
    }

    #[tokio::test]
    async fn who_reads_a_chunk_more_slowly_than_the_window_moves_is_let_go() {
        let watched = Watched::new().await;
        let (_, end, lasted) = trickle(&watched, |watched, now| {
            if now == 1_000 {
                // Five minutes on, by the phone's clock.
                for index in 50..=52 {
                    watched.bring(index * 3, 10);
                }
            }
        })
        .await;
        assert!(end.is_err() && lasted < LEFT.as_millis() as u64, "{lasted} ms");
        assert_eq!((watched.endings("too_slow"), watched.ctx.ticket.code()), (1, Some(Code::ContactTooSlow)));
    }

    proptest! {
        #[test]
        fn base64_in_pieces_is_base64(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1usize..50) {
            let mut encoder = Encoder::default();
            let mut text: String = bytes.chunks(cut).map(|part| encoder.push(part)).collect();
            text.push_str(&encoder.finish());
            prop_assert_eq!(text, STANDARD.encode(&bytes));
        }
    }
}
