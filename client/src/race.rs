//! Several tries to connect at once: the first that is through wins, the others are dropped.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::connect::ConnectError;

/// How tries follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// So many begin at once.
    first: usize,
    /// One more after each of these, beside the ones that wait.
    every: Duration,
}

/// With QUIC: what starts right after a link is back does not suffer from the back-off of what started before.
pub(crate) const QUIC: Pace = Pace { first: 1, every: Duration::from_secs(1) };
/// With TCP, which waits a second before it sends a lost first packet again, and has three answers to
/// lose before a WebSocket is open: where 15 % is lost each way, one try of four loses none.
pub(crate) const TCP: Pace = Pace { first: 2, every: Duration::from_millis(500) };
/// All tries together are given up after this long.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Tries at once.
const MAX_ATTEMPTS: usize = 4;

/// Makes tries at this pace until one is through, the other end is not to be trusted, or all have failed. One
/// that is refused begins no more, and is told when those beside it have failed too: the last free place may be theirs.
pub(crate) async fn staggered<T, F>(pace: Pace, mut attempt: impl FnMut(usize) -> F) -> Result<T, ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let (mut attempts, mut begun, mut refused) = (FuturesUnordered::new(), 0, None);
    let mut tick = tokio::time::interval(pace.every);
    let mut limit = std::pin::pin!(tokio::time::sleep(CONNECT_LIMIT));
    loop {
        tokio::select! {
            _ = tick.tick(), if attempts.len() < MAX_ATTEMPTS && refused.is_none() => {
                for _ in 0..if begun == 0 { pace.first } else { 1 } {
                    attempts.push(attempt(begun));
                    begun += 1;
                }
            }
            Some(done) = attempts.next(), if !attempts.is_empty() => match done {
                Err(refusal @ ConnectError::Refused { .. }) if !attempts.is_empty() => refused = Some(refusal),
                Err(ConnectError::Unreachable) if !attempts.is_empty() => {}
                Err(ConnectError::Unreachable) => return Err(refused.unwrap_or(ConnectError::Unreachable)),
                done => return done,
            },
            () = &mut limit => return Err(refused.unwrap_or(ConnectError::Unreachable)),
        }
    }
}

/// Runs both; the preferred one wins if it is through before the other has been for `grace`. If
/// one fails, the other is waited for; the preferred one's error is told.
pub(crate) async fn prefer<T>(
    preferred: impl Future<Output = Result<T, ConnectError>>,
    other: impl Future<Output = Result<T, ConnectError>>,
    grace: Duration,
) -> Result<T, ConnectError> {
    let (mut preferred, mut other) = (std::pin::pin!(preferred), std::pin::pin!(other));
    tokio::select! {
        first = &mut preferred => match first {
            Ok(first) => Ok(first),
            Err(error) => other.await.map_err(|_| error),
        },
        second = &mut other => match tokio::time::timeout(grace, &mut preferred).await {
            Ok(Ok(first)) => Ok(first),
            Ok(Err(error)) => second.map_err(|_| error),
            Err(_) if second.is_ok() => second,
            Err(_) => preferred.await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after<T>(ms: u64, out: Result<T, ConnectError>) -> Result<T, ConnectError> {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        out
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_try_overtakes_one_that_hangs() {
        let begun = tokio::time::Instant::now();
        let won = staggered(QUIC, |n| async move {
            match n {
                0 => std::future::pending().await,
                1 => Err(ConnectError::Unreachable),
                n => after(300, Ok(n)).await,
            }
        });
        assert_eq!(won.await.unwrap(), 2);
        assert_eq!(begun.elapsed().as_millis(), 2300);
        let mut tries = 0;
        let refused = staggered(QUIC, |_| {
            tries += 1;
            async { Err::<(), _>(ConnectError::Untrusted) }
        });
        assert!(matches!(refused.await, Err(ConnectError::Untrusted)));
        assert_eq!(tries, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn two_with_tcp_begin_at_once() {
        let begun = tokio::time::Instant::now();
        let won = staggered(TCP, |n| after(1000 - 300 * n as u64, Ok((n, begun.elapsed().as_millis()))));
        assert_eq!(won.await.unwrap(), (1, 0));
        assert_eq!(begun.elapsed().as_millis(), 700);
        let all =
            staggered(TCP, |n| async move { if n < 3 { std::future::pending().await } else { Ok(begun.elapsed()) } });
        assert_eq!(all.await.unwrap().as_millis(), 1700, "0.5 and 1 s after the first two");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_the_last_place_does_not_take_it_from_the_other() {
        let full = || Err(ConnectError::Refused { code: "too_many_connections".into(), retry_after_s: Some(7) });
        let won = staggered(TCP, |n| after(900 - 600 * n as u64, if n == 0 { Ok(n) } else { full() }));
        assert_eq!(won.await.unwrap(), 0);
        let both = staggered(TCP, |n| {
            after(900 - 600 * n as u64, if n == 0 { Err(ConnectError::Unreachable) } else { full() })
        });
        assert!(matches!(both.await, Err(ConnectError::Refused { retry_after_s: Some(7), .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_four_hang_at_once() {
        let mut begun = 0;
        let hanging = staggered(QUIC, |_| {
            begun += 1;
            std::future::pending::<Result<(), _>>()
        });
        assert!(matches!(hanging.await, Err(ConnectError::Unreachable)));
        assert_eq!(begun, MAX_ATTEMPTS);
        let gone = staggered(QUIC, |_| async { Err::<(), _>(ConnectError::Unreachable) });
        let begun = tokio::time::Instant::now();
        assert!(matches!(gone.await, Err(ConnectError::Unreachable)));
        assert_eq!(begun.elapsed(), Duration::ZERO, "whoever asks knows best when to ask again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_preferred_way_wins_unless_it_is_late() {
        let grace = Duration::from_millis(300);
        let race = |first, second| prefer(first, second, grace);
        assert_eq!(race(after(500, Ok("quic")), after(300, Ok("tcp"))).await.unwrap(), "quic");
        assert_eq!(race(after(700, Ok("quic")), after(300, Ok("tcp"))).await.unwrap(), "tcp");
        assert_eq!(race(after(9000, Ok("quic")), after(300, Err(ConnectError::Unreachable))).await.unwrap(), "quic");
        assert_eq!(race(after(10, Err(ConnectError::Unreachable)), after(800, Ok("tcp"))).await.unwrap(), "tcp");
        let both = race(after(10, Err(ConnectError::Untrusted)), after(20, Err(ConnectError::Unreachable)));
        assert!(matches!(both.await, Err(ConnectError::Untrusted)));
    }
}
