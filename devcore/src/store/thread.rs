//! One thread that owns the database. Jobs that wait together share one transaction, so that a disk sync
//! is paid for once; nobody hears of a job before its transaction is on disk.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use rusqlite::Connection;
use tokio::sync::oneshot;

/// Jobs in one transaction.
const MAX_BATCH: usize = 64;
/// Jobs that may wait; further ones are refused.
const MAX_WAITING: usize = 4096;

/// The database failed, or more waits for it than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        tracing::error!(code = ?error.sqlite_error_code(), "the database failed");
        Self
    }
}

/// Says whether the transaction was committed.
type Done = Box<dyn FnOnce(bool) + Send>;

/// Says whether what it did is to be kept.
type Work = Box<dyn FnOnce(&Connection) -> (bool, Done) + Send>;

/// Work for the thread.
struct Job {
    writes: bool,
    work: Work,
}

/// The way to the thread; it ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Database(SyncSender<Job>);

impl Database {
    /// Starts the thread.
    pub(crate) fn start(connection: Connection) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        connection.set_prepared_statement_cache_capacity(64);
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let thread =
            std::thread::Builder::new().name("devcore-db".into()).spawn(move || work(&connection, &waiting))?;
        Ok((Self(jobs), thread))
    }

    /// Runs `job` in a transaction. `Ok` comes only after the commit; an `Err` of the job undoes what it did.
    pub(crate) async fn change<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Failed> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.run(true, job).await
    }

    /// Runs `job`, which only reads.
    pub(crate) async fn look<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Failed> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.run(false, job).await
    }

    async fn run<T, E, F>(&self, writes: bool, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Failed> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |connection: &Connection| {
            let result = job(connection);
            let keep = result.is_ok();
            let done: Done = Box::new(move |committed| {
                let result = if committed { result } else { Err(Failed.into()) };
                // Whoever asked may have gone; what was stored is stored.
                drop(reply.send(result));
            });
            (keep, done)
        });
        match self.0.try_send(Job { writes, work }) {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(Failed.into())),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Failed.into()),
        }
    }
}

fn work(connection: &Connection, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let mut batch = Batch::default();
        for job in std::iter::once(first).chain(waiting.try_iter().take(MAX_BATCH - 1)) {
            batch.run(connection, job);
        }
        batch.end(connection);
    }
}

/// Jobs of one transaction, which begins with the first that writes.
#[derive(Default)]
struct Batch {
    begun: bool,
    broken: bool,
    done: Vec<Done>,
}

impl Batch {
    fn run(&mut self, connection: &Connection, job: Job) {
        if !job.writes {
            let (_, done) = (job.work)(connection);
            // What was read inside the transaction is true only once that is committed.
            if self.begun {
                self.done.push(done)
            } else {
                done(true)
            }
            return;
        }
        if !self.begun {
            self.begun = true;
            self.say(connection, "BEGIN IMMEDIATE");
        }
        self.say(connection, "SAVEPOINT job");
        let (keep, done) = (job.work)(connection);
        if !keep {
            self.say(connection, "ROLLBACK TO job");
        }
        self.say(connection, "RELEASE job");
        self.done.push(done);
    }

    fn end(mut self, connection: &Connection) {
        if self.begun {
            self.say(connection, if self.broken { "ROLLBACK" } else { "COMMIT" });
        }
        if self.broken {
            tracing::error!("a transaction could not be committed");
            // A failed COMMIT leaves it open; there is none to roll back if it never began.
            drop(connection.execute_batch("ROLLBACK"));
        }
        for done in self.done {
            done(!self.broken);
        }
    }

    fn say(&mut self, connection: &Connection, sql: &str) {
        let said = connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        self.broken |= said.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_fails_undoes_only_itself() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (n INTEGER UNIQUE)").unwrap();
        let (database, thread) = Database::start(connection).unwrap();
        let insert = |n: i64, keep: bool| {
            database.change(move |db| {
                db.execute("INSERT INTO t VALUES (?1)", [n])?;
                if keep { Ok(()) } else { Err(Failed) }
            })
        };
        let all = futures_util::future::join_all((0..100).map(|n| insert(n, n % 3 != 0))).await;
        assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 66);
        let count =
            database.look(|db| Ok::<i64, Failed>(db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?));
        assert_eq!(count.await, Ok(66));
        drop(database);
        thread.join().unwrap();
    }
}
