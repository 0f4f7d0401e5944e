//! Bytes that are hashed on the disk like any others and never staged.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{Incoming, WRITE_BUFFER, blocking};
use crate::proto::{ChunkRef, Code};
use crate::staging::{Part, Staging};

impl Incoming {
    /// Takes the bytes back instead of staging them (the drop-in route keeps nothing): the
    /// partial is removed when the returned value is dropped.
    ///
    /// # Errors
    /// `BodyIncomplete`, `HashMismatch`, `AttemptSuperseded`, `StagingFailed`.
    pub async fn spooled(mut self) -> Result<Spooled, Code> {
        if self.held < self.length {
            return Err(Code::BodyIncomplete);
        }
        let Some(attempt) = self.inner.take() else { return Err(Code::InternalError) };
        let spool = Spool { staging: attempt.staging.clone(), key: attempt.key };
        let part = attempt.whole_part().await?;
        if !part.is_whole() {
            return Err(Code::HashMismatch);
        }
        Ok(Spooled { part: Arc::new(part), _spool: Arc::new(spool) })
    }
}

/// Whole, hashed bytes that are not staged and go when this does.
#[derive(Clone)]
pub struct Spooled {
    part: Arc<Part>,
    _spool: Arc<Spool>,
}

struct Spool {
    staging: Staging,
    key: ChunkRef,
}

impl Drop for Spool {
    fn drop(&mut self) {
        let (staging, key) = (self.staging.clone(), self.key);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // NotFound only if it was let go already.
            runtime.spawn(async move { staging.delete(key).await });
        }
    }
}

impl Spooled {
    /// Bytes from `offset` on, at most `most`.
    ///
    /// # Errors
    /// From the disk.
    pub async fn read(&self, offset: u64, most: usize) -> io::Result<Bytes> {
        let part = Arc::clone(&self.part);
        blocking(move || {
            let left = usize::try_from(part.len().saturating_sub(offset)).unwrap_or(usize::MAX);
            let mut out = vec![0; left.min(most)];
            part.read_at(offset, &mut out)?;
            Ok(out.into())
        })
        .await
    }

    /// All of it as a request body.
    #[must_use]
    pub fn body(&self) -> crate::staging::JobBody {
        let this = self.clone();
        let stream = futures_util::stream::unfold((this, 0u64), |(this, at)| async move {
            if at >= this.part.len() {
                return None;
            }
            let read = this.read(at, WRITE_BUFFER).await;
            let next = read.as_ref().map_or(u64::MAX, |bytes| at + bytes.len() as u64);
            Some((read.map(http_body::Frame::data), (this, next)))
        });
        http_body_util::combinators::BoxBody::new(http_body_util::StreamBody::new(stream))
    }
}
