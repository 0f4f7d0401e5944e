//! A session of frames in the two bodies of one request, both streaming at once: on HTTP/2 and
//! HTTP/3, and on HTTP/1.1 for a client that reads an answer before it has sent everything.

use std::future::Future;
use std::sync::Arc;

use http::Response;
use http::header::{self, HeaderValue};
use http::request::Parts;
use tokio::sync::{Mutex, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::body::{Outflow, RequestBody, ResponseBody, Stopped};
use super::conn::Ctx;
use super::cors;
use super::frames::{self, Bundle, Goodbye, Out, Outbox, Reader, Room};
use super::respond::{self, Reply, Shape};
use crate::proto::Code;
use crate::proto::frame::{Decoder, Frame};

/// Answers the head at once and starts `session` on the bodies. What is wrong with the first frame is
/// told by the last one, as on a WebSocket.
pub(super) fn start<S, F>(ctx: &Ctx, parts: &Parts, body: &mut RequestBody, room: Room, session: S) -> Reply
where
    S: FnOnce(Ctx, Reader, Outbox) -> F + Send + 'static,
    F: Future<Output = Goodbye> + Send,
{
    let refused = if cors::allowed(ctx, &parts.headers) == Some(false) {
        Some(Code::OriginNotAllowed)
    } else {
        ctx.drain.is_cancelled().then_some(Code::Draining)
    };
    if let Some(code) = refused {
        return respond::refusal(Shape::Native, &code.into());
    }
    let (outflow, answer) = ResponseBody::flow();
    let (ctx, cut, body) = (ctx.clone(), ctx.cut.clone(), body.take());
    ctx.tasks.clone().spawn(async move {
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = Box::pin(run(ctx, body, outflow, room, session)) => {}
        }
    });
    let mut reply = Response::new(answer);
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply
}

async fn run<S, F>(ctx: Ctx, body: RequestBody, outflow: Outflow, room: Room, session: S)
where
    S: FnOnce(Ctx, Reader, Outbox) -> F,
    F: Future<Output = Goodbye>,
{
    let (out, rx) = Outbox::new(room.messages);
    let writer = AbortOnDropHandle::new(tokio::spawn(write(ctx.clone(), outflow, rx)));
    let reader = Reader::Body(Inflow::new(ctx.clone(), body));
    frames::hold(ctx, reader, out, writer, session).await;
}

/// Writes what comes. Ends with a code if the peer took nothing for too long.
async fn write(ctx: Ctx, outflow: Outflow, mut rx: mpsc::Receiver<Out>) -> Option<Code> {
    let mut held = None;
    loop {
        let out = match held.take() {
            Some(out) => out,
            None => tokio::select! {
                out = rx.recv() => out?,
                () = outflow.gone() => return None,
            },
        };
        let sent = match out {
            Out::Message(first) => outflow.send(&ctx, frames::join(first, &mut rx, &mut held)).await,
            Out::Batch(batch) => {
                let parts: Vec<_> = batch.into_iter().flat_map(Bundle::into_parts).collect();
                outflow.send(&ctx, parts.concat().into()).await
            }
            Out::Close(_) => {
                outflow.finish(&ctx).await;
                return None;
            }
        };
        match sent {
            Ok(()) => {}
            Err(Stopped::TooSlow) => return Some(Code::ContactTooSlow),
            Err(Stopped::Gone) => return None,
        }
    }
}

/// The frames of a request's body.
pub(super) struct Inflow {
    pub(super) ctx: Ctx,
    body: Arc<Mutex<RequestBody>>,
    decoder: Decoder,
    /// What the first frame must be, until it came: no other one's bytes are kept.
    first: Option<u64>,
    ended: bool,
    /// A peer that says nothing is let go.
    hurried: bool,
}

impl Inflow {
    fn new(ctx: Ctx, body: RequestBody) -> Self {
        // The request's head is a sign of life too.
        ctx.conn.sign.give();
        let (body, decoder) = (Arc::new(Mutex::new(body)), Decoder::default());
        Self { ctx, body, decoder, first: None, ended: false, hurried: true }
    }

    /// Frames of a peer that need not say anything: its connection tells that it lives.
    pub(super) fn patient(ctx: Ctx, body: RequestBody) -> Self {
        Self { hurried: false, ..Self::new(ctx, body) }
    }

    /// The first frame must be of this kind.
    pub(super) const fn begins_with(&mut self, kind: u64) {
        self.first = Some(kind);
    }

    /// The frames that are whole; `None` at the body's end. What counts as a sign of life is any
    /// byte of any body on this connection: a client that brings a chunk beside this stream lives.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Frame>>, Code> {
        loop {
            let frames = self.whole()?;
            if !frames.is_empty() {
                return Ok(Some(frames));
            }
            if self.ended {
                return if self.decoder.pending() { Err(Code::ProtocolError) } else { Ok(None) };
            }
            let idle = self.ctx.limits.idle_timeout;
            let left = idle.saturating_sub(self.ctx.conn.sign.silent_for());
            let next = async { self.body.lock().await.next().await };
            let next = if self.hurried { self.ctx.within(left, next).await } else { Some(next.await) };
            match next {
                Some(Some(Ok(bytes))) => self.decoder.push(&bytes),
                Some(Some(Err(_))) => return Ok(None),
                Some(None) => self.ended = true,
                None if self.ctx.conn.sign.silent_for() < idle => {}
                None => return Err(Code::BodyStalled),
            }
        }
    }

    /// Frames that are whole. One that is wrong is told after those before it.
    fn whole(&mut self) -> Result<Vec<Frame>, Code> {
        let mut whole = Vec::new();
        if let (Some(wanted), Some(kind)) = (self.first, self.decoder.kind())
            && wanted != kind
        {
            return Err(Code::ProtocolError);
        }
        while whole.len() < frames::MAX_AT_ONCE {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    self.first = None;
                    whole.push(frame);
                }
                Err(code) if whole.is_empty() => return Err(code),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(whole)
    }

    /// Ends when the body has.
    pub(super) fn rest(&self) -> impl Future<Output = ()> + Send + use<> {
        let body = Arc::clone(&self.body);
        async move { while let Some(Ok(_)) = body.lock().await.next().await {} }
    }
}
