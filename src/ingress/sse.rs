//! Events of the drop-in subscription (contract B.4). A chunk of 8 MiB is 11 MB of base64, so it
//! is written piece by piece.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderValue};
use serde::Serialize;

use super::body::{Outflow, ResponseBody, Stopped};
use super::conn::Ctx;
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
    match write_all(&ctx, &mut watching, &names, &out).await {
        Ok(()) => out.finish(&ctx).await,
        Err(Stopped::TooSlow) => ctx.ticket.ended(Some(Code::ContactTooSlow)),
        Err(Stopped::Gone) => {}
    }
}

async fn write_all(ctx: &Ctx, watching: &mut Watching, names: &Names, out: &Outflow) -> Result<(), Stopped> {
    let (subscription, revocation) = watching;
    out.send(ctx, names.ready()).await?;
    let clock = &ctx.shared.clock;
    loop {
        let event = tokio::select! {
            event = subscription.next() => event,
            () = clock.sleep(KEEP_ALIVE) => {
                out.send(ctx, Bytes::from_static(b":\n\n")).await?;
                continue;
            }
            () = out.gone() => return Err(Stopped::Gone),
            code = revocation.heard() => WholeEvent::End(code),
            () = ctx.drain.cancelled() => WholeEvent::End(Code::Draining),
        };
        match event {
            WholeEvent::Chunk(meta, pieces) => send_chunk(ctx, names, &meta, &pieces, out).await?,
            WholeEvent::State(meta, state, error) => {
                let Some((word, failure)) = respond::drop_in_state(state, error) else { continue };
                let last = failure.is_some();
                out.send(ctx, event_of("relay_chunk_state", &names.chunk("relay_chunk_state", word, &meta, failure)))
                    .await?;
                if last {
                    return Ok(());
                }
            }
            WholeEvent::End(code) => {
                ctx.ticket.ended(Some(code));
                let end = EndEvent { r#type: "relay_end", error_code: code.name(), terminal: true };
                return out.send(ctx, event_of("relay_end", &end)).await;
            }
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
    pieces: &[Bytes],
    out: &Outflow,
) -> Result<(), Stopped> {
    let mut head = event_of("relay_chunk", &names.chunk("relay_chunk", "near_live_unconfirmed", meta, None)).to_vec();
    // The object is opened again for its last member.
    head.truncate(head.len() - b"}\n\n".len());
    head.extend_from_slice(b",\"payload_b64\":\"");
    out.send(ctx, head.into()).await?;
    let mut encoder = Encoder::default();
    for piece in pieces {
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
    use super::*;
    use crate::proto::offer::Timestamp;
    use crate::proto::{ChunkRef, ContactState, SessionId, StreamId, Variant};
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
