//! What is done while the answer to a `PUT` waits for the core: the relay is asked whether it holds the
//! chunk. Then losing the phone loses nothing of it, which its owner is to know as soon as it is so.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::staged;
use crate::capture::book::Verdict;
use crate::capture::link::Job;
use crate::http::{Broken, Reply};

/// A round trip and this after the last byte was sent the first question goes; each further one
/// after twice as long, so many in all.
const UNANSWERED: Duration = Duration::from_millis(200);
const QUESTIONS: u32 = 5;
/// An answer to a question comes at once, or not at all.
const LIMIT: Duration = Duration::from_secs(20);

/// Asks until the relay says that it holds the chunk; none if it does not say so, or said so before.
pub(in crate::capture) async fn held<'a>(
    job: &Job,
    round_trip: Duration,
    ask: impl Fn() -> BoxFuture<'a, Result<Reply, Broken>>,
) -> Option<Verdict> {
    if job.held {
        return None;
    }
    let pause = round_trip + UNANSWERED;
    for doublings in 0..QUESTIONS {
        tokio::time::sleep(pause * (1 << doublings)).await;
        let answer = tokio::time::timeout(LIMIT, ask()).await;
        if let Some(verdict) = answer.ok().and_then(Result::ok).as_ref().and_then(staged) {
            return Some(verdict);
        }
    }
    None
}
