//! A request's body as it goes out: bytes before the file, the file as it is read, bytes after;
//! and how far it has come.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};

use crate::clock::Clock;

/// Bytes handed over at once, so that progress shows on a thin link too.
const PIECE: usize = 16 * 1024;

/// Where the file's bytes come from may fail in any way.
pub(super) type SourceError = Box<dyn Error + Send + Sync>;

/// Why a body ended early. Nobody sees it but the connection.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(super) enum Broken {
    #[error("the source of the bytes failed")]
    Source,
    #[error("the source has another length than was said")]
    Length,
    #[error("the answer came first")]
    Abandoned,
}

/// A body of known length.
pub(super) struct Outgoing {
    before: Bytes,
    file: UnsyncBoxBody<Bytes, SourceError>,
    file_left: u64,
    piece: Bytes,
    after: Bytes,
    clock: Clock,
    progress: Arc<Progress>,
}

/// How far a body has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    moved_ms: AtomicU64,
    whole: AtomicBool,
    failed: AtomicBool,
    abandoned: AtomicBool,
}

impl Outgoing {
    /// Bytes that are all there.
    pub(super) fn whole(bytes: Bytes, clock: &Clock) -> Self {
        let nothing = Empty::new().map_err(|never: Infallible| match never {});
        Self::around(bytes, nothing, 0, Bytes::new(), clock)
    }

    /// `file`, which must be `length` bytes, between `before` and `after`.
    pub(super) fn around<B>(before: Bytes, file: B, length: u64, after: Bytes, clock: &Clock) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<SourceError>,
    {
        let progress = Progress { whole: AtomicBool::new(before.is_empty() && length == 0), ..Progress::default() };
        Self {
            before,
            file: file.map_err(Into::into).boxed_unsync(),
            file_left: length,
            piece: Bytes::new(),
            after,
            clock: clock.clone(),
            progress: Arc::new(progress),
        }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    pub(super) fn length(&self) -> u64 {
        (self.before.len() + self.piece.len() + self.after.len()) as u64 + self.file_left
    }

    fn hand_over(&mut self, which: fn(&mut Self) -> &mut Bytes) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let from = which(self);
        let piece = from.split_to(from.len().min(PIECE));
        self.progress.moved(self.clock.now_ms());
        if self.length() == 0 {
            self.progress.whole.store(true, Ordering::Release);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn fail(&self, why: Broken) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.progress.failed.store(!matches!(why, Broken::Abandoned), Ordering::Release);
        Poll::Ready(Some(Err(why)))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if this.progress.abandoned.load(Ordering::Acquire) && this.length() > 0 {
            return this.fail(Broken::Abandoned);
        }
        if !this.before.is_empty() {
            return this.hand_over(|this| &mut this.before);
        }
        while this.piece.is_empty() && this.file_left > 0 {
            match Pin::new(&mut this.file).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return this.fail(Broken::Length),
                Poll::Ready(Some(Err(_))) => return this.fail(Broken::Source),
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers of a source mean nothing here.
                    let bytes = frame.into_data().unwrap_or_default();
                    let Some(left) = this.file_left.checked_sub(bytes.len() as u64) else {
                        return this.fail(Broken::Length);
                    };
                    (this.file_left, this.piece) = (left, bytes);
                }
            }
        }
        if !this.piece.is_empty() {
            return this.hand_over(|this| &mut this.piece);
        }
        if !this.after.is_empty() {
            return this.hand_over(|this| &mut this.after);
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.length() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length())
    }
}

impl Progress {
    /// Something moved at `now_ms`.
    pub(super) fn moved(&self, now_ms: u64) {
        self.moved_ms.fetch_max(now_ms, Ordering::AcqRel);
    }

    /// Every byte was taken by the connection.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// The source of the bytes failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Nobody wants the rest.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Ends when nothing has moved for `quiet`.
    pub(super) async fn stalls(&self, clock: &Clock, quiet: Duration) {
        let quiet = u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX);
        loop {
            let due = self.moved_ms.load(Ordering::Acquire).saturating_add(quiet);
            let now = clock.now_ms();
            if now >= due {
                return;
            }
            clock.sleep(Duration::from_millis(due - now)).await;
        }
    }
}
