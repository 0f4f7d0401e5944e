//! What the core keeps: incidents, groups, streams, chunks' metadata in SQLite, bytes in files.

pub(crate) mod blobs;
mod chunks;
mod grants;
mod rows;
mod streams;
mod thread;

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

pub(crate) use chunks::{Inserted, Keyed, NewChunk};
pub(crate) use grants::{Grant, Shown};
pub(crate) use rows::{ChunkRow, IncidentState, StreamRow, Target};
pub(crate) use streams::NewStream;
pub(crate) use thread::{Database, Failed};

use crate::refusal::{self, Refusal};
use crate::running::StartError;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS incidents (id TEXT PRIMARY KEY, state TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS groups (id TEXT PRIMARY KEY, incident TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS streams (
    id TEXT PRIMARY KEY, incident TEXT NOT NULL, grp TEXT, variant TEXT, media TEXT NOT NULL, label TEXT NOT NULL,
    follows TEXT, state TEXT NOT NULL, failure_reason TEXT NOT NULL DEFAULT '') STRICT;
CREATE TABLE IF NOT EXISTS chunks (
    incident TEXT NOT NULL, stream TEXT NOT NULL, idx INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, media TEXT NOT NULL,
    started TEXT NOT NULL, ended TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL, filename TEXT NOT NULL,
    blob TEXT NOT NULL UNIQUE, created TEXT NOT NULL, receipt TEXT, PRIMARY KEY (incident, stream, idx)) STRICT;
CREATE TABLE IF NOT EXISTS idempotency (
    key BLOB NOT NULL, incident TEXT NOT NULL, stream TEXT NOT NULL, idx INTEGER NOT NULL, fingerprint BLOB NOT NULL,
    PRIMARY KEY (key, incident)) STRICT;
CREATE TABLE IF NOT EXISTS revocations (jti TEXT PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY CHECK (id = 1), chunks INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO account VALUES (1, 0, 0);
";

/// The database, from any task.
#[derive(Clone)]
pub(crate) struct Store {
    database: Database,
    account_quota_bytes: u64,
}

impl Store {
    /// Opens or makes the database in `dir`, and removes blobs that no row names.
    pub(crate) fn open(
        dir: &Path,
        blobs: &blobs::Blobs,
        account_quota_bytes: u64,
    ) -> Result<(Self, std::thread::JoinHandle<()>), StartError> {
        let failed = |error: rusqlite::Error| StartError::Database(error.sqlite_error_code());
        let connection = Connection::open(dir.join("core.sqlite")).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        // FULL: a commit is on disk before it is answered.
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        connection.execute_batch(SCHEMA).map_err(failed)?;
        connection.execute_batch(grants::SCHEMA).map_err(failed)?;
        grants::name_all(&connection).map_err(|_| StartError::Database(None))?;
        let removed = {
            let mut known = connection.prepare("SELECT 1 FROM chunks WHERE blob = ?1").map_err(failed)?;
            let known = std::cell::RefCell::new(&mut known);
            // A row that can't be read counts as known: nothing is removed on a doubt.
            blobs.sweep(|name| known.borrow_mut().exists([name]).unwrap_or(true)).map_err(StartError::Io)?
        };
        if removed > 0 {
            tracing::info!(count = removed, "removed files that no chunk names");
        }
        let (database, thread) = Database::start(connection).map_err(StartError::Io)?;
        Ok((Self { database, account_quota_bytes }, thread))
    }

    /// Adds to the revocation list.
    pub(crate) async fn revoke(&self, jti: String) -> Result<(), Refusal> {
        /// Entries of the list: a relay reads it whole.
        const MAX_REVOCATIONS: i64 = 100_000;
        let run = move |db: &Connection| -> Result<(), Refusal> {
            let count: i64 = rows::one(db, "SELECT count(*) FROM revocations", [])?;
            if count >= MAX_REVOCATIONS {
                return Err(refusal::TOO_MANY_REVOCATIONS);
            }
            rows::change(db, "INSERT OR IGNORE INTO revocations VALUES (?1)", [jti])?;
            Ok(())
        };
        self.database.change(run).await
    }

    /// The revocation list: what the account put on it, and what contacts still have out at `now` that were shut out.
    pub(crate) async fn revoked(&self, now: i64) -> Result<Vec<String>, Failed> {
        let run = move |db: &Connection| {
            let mut all = rows::all(db, "SELECT jti FROM revocations ORDER BY rowid", [], |row| row.get(0))?;
            all.extend(rows::all(db, grants::REVOKED, [now], |row| row.get::<_, String>(0))?);
            Ok(all)
        };
        self.database.look(run).await
    }

    /// Chunks stored, and their bytes.
    pub(crate) async fn totals(&self) -> Result<(u64, u64), Failed> {
        let run = |db: &Connection| {
            rows::first(db, "SELECT chunks, bytes FROM account", [], |row| Ok((row.get(0)?, row.get(1)?)))
        };
        Ok(self.database.look(run).await?.unwrap_or_default())
    }
}

impl From<Failed> for Refusal {
    fn from(_: Failed) -> Self {
        refusal::INTERNAL_ERROR
    }
}
