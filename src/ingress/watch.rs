//! `/watch`: what contacts see, as WebSocket messages or as the body of a streaming `GET`.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::Response;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use tokio::task::coop::consume_budget;
use tokio_util::sync::WaitForCancellationFuture;

use super::batch::{batch, joined};
use super::bearer;
use super::body::{ResponseBody, Stopped};
use super::conn::Ctx;
use super::frames::{Goodbye, LINGER, Outlet, Reader, Room};
use super::pour::{Pouring, pour};
use super::respond::{self, Reply, Shape};
use super::ws;
use crate::admission::{Refusal, Revocation};
use crate::capability::Capability;
use crate::fanout::{Step, Subscription, Wanted};
use crate::proto::dictionary::{self, WatchHeader};
use crate::proto::frame::{self, Frame, kind};
use crate::proto::message::{self, Fetch, Lanes, Watch};
use crate::proto::{Code, PROTOCOL, WATCH_SUBPROTOCOL};
use crate::rare::Rare;
use crate::telemetry::names::Transport;

/// A contact sends little; and only one message waits for it, so that what it is sent next is
/// decided as late as possible.
const ROOM: Room = Room { read_buffer: 256, messages: 1 };

/// The upgrade of `/watch`.
pub(super) fn upgrade(ctx: &Ctx, parts: &mut Parts) -> Reply {
    ws::start_direct(ctx, parts, WATCH_SUBPROTOCOL, ROOM, |ctx, reader, mut out| async move {
        // In a box of its own: a contact may stay for hours, and what opening needs is let go.
        let goodbye = match Box::pin(open(&ctx, reader)).await {
            Ok(Some((watching, commands))) => serve(&ctx, watching, commands, &mut out).await,
            Ok(None) => Goodbye::Left,
            Err(refusal) => Goodbye::Told(respond::ending(refusal.code), refusal.code),
        };
        (goodbye, out)
    })
}

/// What a contact asks for while it watches.
pub(super) enum Command {
    /// Read, and vouched for.
    Renew(Capability),
    Lanes(Lanes),
    Fetch(Fetch),
    /// It broke the protocol, or fell silent.
    End(Code),
}

/// A subscription, and what may end it. In a box: it is handed on, and every hand would keep room for it.
pub(super) type Watching = (Box<Subscription>, Revocation);

/// The first frame, which opens a subscription; `None`: the contact left.
pub(super) async fn open(ctx: &Ctx, mut reader: Reader) -> Result<Option<(Watching, Commands)>, Refusal> {
    let Some(frames) = reader.first(kind::WATCH).await? else { return Ok(None) };
    let mut frames = frames.into_iter();
    let watch: Watch = frame::control(&frames.next().ok_or(Code::ProtocolError)?)?;
    if watch.protocol != PROTOCOL {
        return Err(Code::UnsupportedProtocol.into());
    }
    let capability = ctx.shared.admission.capability(&watch.capability, ctx.client).await?;
    let wanted = Wanted { lanes: watch.lanes, from: watch.from, cursor: watch.cursor, bare: false };
    let subscription = ctx.shared.admission.watch(&capability, wanted, ctx.client).await?;
    let watching = (Box::new(subscription), ctx.shared.admission.revocation(&capability)?);
    let listener = Listener { ctx: ctx.clone(), reader, frames, renewal: None };
    Ok(Some((watching, Commands::new(listener))))
}

/// The reading half of a contact's session, to be waited for beside the writing half: a contact whose link is full
/// can still say that it wants less.
pub(super) struct Commands(BoxStream<'static, Command>);

impl Commands {
    fn new(listener: Listener) -> Self {
        // In a box: it is moved into every wait.
        let commands = stream::unfold((Box::new(listener), false), |(mut listener, ended)| async move {
            if ended {
                // It is kept all the same: who drops it tells the peer to say no more, before it has read why.
                return None;
            }
            let command = listener.next().await?;
            let ends = matches!(command, Command::End(_));
            Some((command, (listener, ends)))
        });
        Self(commands.fuse().boxed())
    }

    /// The next one; `None`: the contact left. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Option<Command> {
        self.0.next().await
    }
}

/// Reads commands.
struct Listener {
    ctx: Ctx,
    reader: Reader,
    /// Read, and not looked at.
    frames: std::vec::IntoIter<Frame>,
    /// The newest one, which waits for whoever must vouch for it.
    renewal: Option<Renewal>,
}

type Renewal = Pin<Box<dyn Future<Output = Option<Command>> + Send>>;

impl Listener {
    /// Nothing waits for a renewal: neither what is shown nor other commands.
    async fn next(&mut self) -> Option<Command> {
        loop {
            for frame in self.frames.by_ref() {
                // Whoever says much at once lets others go first.
                consume_budget().await;
                match command(&frame) {
                    Ok(Some(Said::Renew(token))) => self.renewal = Some(Box::pin(renew(self.ctx.clone(), token))),
                    Ok(Some(Said::Command(command))) => return Some(command),
                    Ok(None) => {}
                    Err(code) => return Some(Command::End(code)),
                }
            }
            // What they lay in is let go.
            self.frames = Vec::new().into_iter();
            let renewed = async {
                match &mut self.renewal {
                    Some(renewal) => renewal.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = self.reader.next() => match read {
                    Ok(Some(read)) => self.frames = read.into_iter(),
                    Ok(None) => return None,
                    Err(code) => return Some(Command::End(code)),
                },
                command = renewed => {
                    self.renewal = None;
                    if command.is_some() {
                        return command;
                    }
                }
            }
        }
    }
}

/// What a frame of a contact says.
enum Said {
    Command(Command),
    /// A token that is to be read yet.
    Renew(String),
}

fn command(frame: &Frame) -> Result<Option<Said>, Code> {
    Ok(Some(match frame.kind {
        kind::RENEW => Said::Renew(frame::control::<message::Capability>(frame)?.capability),
        kind::LANES => Said::Command(Command::Lanes(frame::control(frame)?)),
        kind::FETCH => Said::Command(Command::Fetch(frame::control(frame)?)),
        kind::WATCH => return Err(Code::ProtocolError),
        _ => return Ok(None),
    }))
}

/// One that is no good leaves the subscription with the one it has; it ends at that one's `exp`,
/// with a reason.
async fn renew(ctx: Ctx, token: String) -> Option<Command> {
    ctx.shared.admission.renewal(&token, ctx.client).await.ok().map(Command::Renew)
}

async fn serve(ctx: &Ctx, watching: Watching, mut commands: Commands, out: &mut impl Outlet) -> Goodbye {
    let (mut subscription, revocation) = watching;
    let mut waiting = VecDeque::new();
    let mut last = false;
    let mut ending = None;
    let mut lingers = None;
    let mut asked = None;
    let clock = &ctx.shared.clock;
    let drained = pin!(ctx.drain.cancelled());
    let mut aside = Rare::new(Aside { commands: &mut commands, revoked: heard(revocation), drained });
    loop {
        if ending.is_some() && lingers.is_none() {
            let left: Sleep<'_> = Box::pin(clock.sleep(LINGER));
            lingers = Some(left);
        }
        let step = async {
            let since = *asked.get_or_insert_with(|| clock.now_ms());
            out.room().await?;
            subscription.took(clock.now_ms().saturating_sub(since));
            asked = None;
            let batch = batch(&mut waiting);
            if !batch.is_empty() {
                out.send(batch);
                return Ok(Turn::Again);
            }
            if last {
                return Ok(Turn::Over);
            }
            tokio::select! {
                biased;
                // A ping too: as long as there is more than the link takes, nothing else says that the contact lives.
                () = out.chores() => Ok(Turn::Again),
                step = subscription.next() => Ok(Turn::Step(step)),
            }
        };
        let ends = tokio::select! {
            step = step => match step {
                // If it reads again, it reads why.
                Err(Stopped::TooSlow) if !last => Some(Code::ContactTooSlow),
                Err(Stopped::TooSlow | Stopped::Gone) => return Goodbye::Left,
                Ok(Turn::Over) => return ending.map_or(Goodbye::Done, |code| Goodbye::Told(Bytes::new(), code)),
                Ok(Turn::Again) => None,
                Ok(Turn::Step(mut step)) => {
                    let (Step::Frames(frames) | Step::End(frames)) = &mut step;
                    waiting.extend(joined(std::mem::take(frames)));
                    last = matches!(step, Step::End(_));
                    ending = ending.or(subscription.ended());
                    // There is room: a step is asked for when all before it is written.
                    out.send(batch(&mut waiting));
                    None
                }
            },
            command = poll_fn(|cx| aside.poll_by(cx, Aside::poll)), if ending.is_none() => match command {
                None => return Goodbye::Left,
                Some(command) => obey(ctx, command, &mut subscription, &mut aside),
            },
            code = lingered(&mut lingers, ending) => {
                subscription.let_go(code);
                return Goodbye::Told(Bytes::new(), code);
            }
        };
        if let Some(code) = ends.filter(|_| ending.is_none()) {
            // Who does not answer since it does not read is too slow.
            let code = if code == Code::BodyStalled && asked.is_some() { Code::ContactTooSlow } else { code };
            subscription.end(code);
            ending = Some(code);
            if !last {
                // Whole messages all of them: what did not go yet is not seen any more.
                waiting.clear();
            }
        }
    }
}

/// Does what a contact asks for; the code if that ends it.
fn obey(ctx: &Ctx, command: Command, subscription: &mut Subscription, aside: &mut Rare<Aside<'_, '_>>) -> Option<Code> {
    match command {
        Command::Lanes(lanes) => subscription.lanes(lanes.lanes),
        Command::Fetch(fetch) => subscription.fetch(&fetch.stream, fetch.index),
        Command::Renew(capability) => {
            if let Ok(next) = ctx.shared.admission.revocation(&capability)
                && subscription.renew(&capability.grant).is_ok()
            {
                aside.change().revoked = heard(next);
            }
        }
        Command::End(code) => return Some(code),
    }
    None
}

/// What a contact's turn came to.
enum Turn {
    /// Something is being written.
    Again,
    /// There is more to write.
    Step(Step),
    /// The last of it is taken.
    Over,
}

type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Ends when a contact had its time to take the last of it.
async fn lingered(lingers: &mut Option<Sleep<'_>>, ending: Option<Code>) -> Code {
    match (lingers, ending) {
        (Some(lingers), Some(code)) => {
            lingers.await;
            code
        }
        _ => std::future::pending().await,
    }
}

/// What seldom happens while a contact watches.
struct Aside<'a, 'b> {
    commands: &'a mut Commands,
    revoked: Pin<Box<dyn Future<Output = Code> + Send>>,
    drained: Pin<&'a mut WaitForCancellationFuture<'b>>,
}

impl Aside<'_, '_> {
    /// What it asks for, or what ends it; `None`: the contact left.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Command>> {
        if let Poll::Ready(code) = self.revoked.as_mut().poll(cx) {
            return Poll::Ready(Some(Command::End(code)));
        }
        if self.drained.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Command::End(Code::Draining)));
        }
        self.commands.0.poll_next_unpin(cx)
    }
}

/// Ends when the capability is over.
fn heard(mut revocation: Revocation) -> Pin<Box<dyn Future<Output = Code> + Send>> {
    Box::pin(async move { revocation.heard().await })
}

/// Streaming `GET /watch`.
pub(super) async fn get(ctx: &Ctx, parts: &Parts) -> Reply {
    let subscription = async {
        if ctx.drain.is_cancelled() {
            return Err(Refusal::from(Code::Draining));
        }
        let wanted = wanted(&parts.headers)?;
        let capability = bearer::capability(ctx, &parts.headers).await?;
        let subscription = ctx.shared.admission.watch(&capability, wanted, ctx.client).await?;
        Ok((Box::new(subscription), ctx.shared.admission.revocation(&capability)?))
    };
    let watching = match subscription.await {
        Ok(watching) => watching,
        Err(refusal) => return respond::refusal(Shape::Native, &refusal),
    };
    let mut reply = Response::new(if ctx.transport == Transport::H3 {
        ResponseBody::contact(Pouring::Watch(ctx.clone(), watching))
    } else {
        let (out, body) = ResponseBody::flow();
        ctx.tasks.spawn(pour(ctx.clone(), watching, out));
        body
    });
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply
}

fn wanted(headers: &HeaderMap) -> Result<Wanted, Code> {
    let mut values = headers.get_all("waystation-watch").iter();
    let header = match values.next() {
        None => WatchHeader::default(),
        Some(value) => dictionary::parse_watch(value.to_str().map_err(|_| Code::ProtocolError)?)?,
    };
    if values.next().is_some() {
        return Err(Code::ProtocolError);
    }
    Ok(Wanted { lanes: header.lanes, from: header.from, cursor: header.cursor, bare: header.bare })
}

#[cfg(test)]
mod tests {
    use super::super::body::RequestBody;
    use super::super::duplex::Inflow;
    use super::super::tests::watched::Watched;
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio_util::task::AbortOnDropHandle;

    async fn commands(said: Vec<Bytes>) -> Commands {
        let ctx = Watched::new().await.ctx;
        let body = RequestBody::pieces([Some(said.concat().into())]);
        let reader = Reader::Body(Inflow::patient(ctx.clone(), body));
        Commands::new(Listener { ctx, reader, frames: Vec::new().into_iter(), renewal: None })
    }

    #[tokio::test]
    async fn who_says_much_at_once_lets_others_go_first() {
        const SAID: usize = 5_000;
        let mut commands = commands(vec![frame::encode(kind::LANES, b"{\"lanes\":[]}"); SAID]).await;
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        let _other = AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }));
        for _ in 0..SAID {
            assert!(matches!(commands.recv().await, Some(Command::Lanes(_))));
        }
        assert!(turns.load(Ordering::Relaxed) >= SAID / 256, "{turns:?}");
        assert!(commands.recv().await.is_none());
    }

    #[tokio::test]
    async fn what_is_behind_a_broken_command_is_not_heard() {
        let lanes = frame::encode(kind::LANES, b"{\"lanes\":[]}");
        let mut commands = commands(vec![lanes.clone(), frame::encode(kind::LANES, b"x"), lanes]).await;
        assert!(matches!(commands.recv().await, Some(Command::Lanes(_))));
        assert!(matches!(commands.recv().await, Some(Command::End(Code::ProtocolError))));
        for _ in 0..2 {
            assert!(commands.recv().await.is_none());
        }
    }

    #[test]
    fn the_header_may_be_missing_but_not_doubled() {
        let mut headers = HeaderMap::new();
        assert!(wanted(&headers).unwrap().lanes.is_none());
        headers.append("waystation-watch", HeaderValue::from_static("from=\"oldest\""));
        assert!(wanted(&headers).unwrap().from.is_some());
        headers.append("waystation-watch", HeaderValue::from_static("from=\"live\""));
        assert_eq!(wanted(&headers).err(), Some(Code::ProtocolError));
    }
}
