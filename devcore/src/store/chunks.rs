//! Chunks: looked up, inserted once, listed.

use rusqlite::{Connection, params};

use super::rows::{self, ChunkRow, Target};
use super::{Failed, Store};
use crate::fields::Chunk;
use crate::refusal::{self, Refusal};

/// Chunks listed at once.
const MAX_LISTED: u32 = 100_000;

/// A chunk about to be stored.
pub(crate) struct NewChunk {
    pub(crate) incident: String,
    pub(crate) stream: String,
    pub(crate) chunk: Chunk,
    pub(crate) id: String,
    pub(crate) blob: String,
    pub(crate) created: String,
    pub(crate) receipt: Option<String>,
    /// Only the direct route has one.
    pub(crate) key: Option<Keyed>,
}

/// An idempotency key, hashed, and what was asked under it.
#[derive(Clone)]
pub(crate) struct Keyed {
    pub(crate) key: [u8; 32],
    pub(crate) fingerprint: [u8; 32],
}

/// How an insert ended.
pub(crate) enum Inserted {
    /// It is stored.
    New(ChunkRow),
    /// Another one was first.
    There(ChunkRow),
}

impl Store {
    /// Everything a chunk's checks need, in one look.
    pub(crate) async fn target(&self, incident: &str, stream: &str, index: u64) -> Result<Target, Failed> {
        let (incident, stream) = (incident.to_owned(), stream.to_owned());
        let run = move |db: &Connection| {
            let mut target = rows::target(db, &incident, &stream)?;
            target.chunk = rows::find_chunk(db, &incident, &stream, index)?;
            Ok(target)
        };
        self.database.look(run).await
    }

    /// Row 17 of A.2, 16 of A.3.
    pub(crate) fn fits(&self, target: &Target, size: u64) -> Result<(), Refusal> {
        if target.account_bytes.saturating_add(size) > self.account_quota_bytes {
            return Err(refusal::ACCOUNT_QUOTA);
        }
        Ok(())
    }

    /// Row 18 of A.3: checks state, identity and quota again, and inserts.
    pub(crate) async fn insert(&self, new: NewChunk) -> Result<Inserted, Refusal> {
        let store = self.clone();
        let run = move |db: &Connection| -> Result<Inserted, Refusal> {
            let target = rows::target(db, &new.incident, &new.stream)?;
            target.open_for(new.chunk.media)?;
            if let Some(there) = rows::find_chunk(db, &new.incident, &new.stream, new.chunk.index)? {
                return Ok(Inserted::There(there));
            }
            store.fits(&target, new.chunk.size)?;
            write(db, &new)?;
            let row =
                rows::find_chunk(db, &new.incident, &new.stream, new.chunk.index)?.ok_or(refusal::INTERNAL_ERROR)?;
            Ok(Inserted::New(row))
        };
        self.database.change(run).await
    }

    /// What was stored under an idempotency key; `IDEMPOTENCY_CONFLICT` if it was for something else.
    pub(crate) async fn replay(&self, incident: &str, keyed: Keyed) -> Result<Option<ChunkRow>, Refusal> {
        let incident = incident.to_owned();
        let run = move |db: &Connection| -> Result<Option<ChunkRow>, Refusal> {
            let sql = "SELECT stream, idx, fingerprint FROM idempotency WHERE key = ?1 AND incident = ?2";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let found: Option<(String, u64, [u8; 32])> = rows::first(db, sql, params![keyed.key, incident], read)?;
            let Some((stream, index, fingerprint)) = found else { return Ok(None) };
            if fingerprint != keyed.fingerprint {
                return Err(refusal::IDEMPOTENCY_CONFLICT);
            }
            Ok(rows::find_chunk(db, &incident, &stream, index)?)
        };
        self.database.look(run).await
    }

    /// The chunks of an incident, by stream and index.
    pub(crate) async fn list(&self, incident: &str) -> Result<Vec<ChunkRow>, Failed> {
        let incident = incident.to_owned();
        let run = move |db: &Connection| {
            let sql = format!(
                "SELECT {} FROM chunks WHERE incident = ?1 ORDER BY stream, idx LIMIT {MAX_LISTED}",
                rows::CHUNK
            );
            rows::all(db, &sql, [incident], rows::chunk)
        };
        self.database.look(run).await
    }
}

fn write(db: &Connection, new: &NewChunk) -> Result<(), Failed> {
    let chunk = &new.chunk;
    rows::change(
        db,
        "INSERT INTO chunks (incident, stream, idx, id, media, started, ended, size, sha256, filename, blob, created, receipt)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            new.incident,
            new.stream,
            chunk.index,
            new.id,
            chunk.media.as_str(),
            chunk.started,
            chunk.ended,
            chunk.size,
            chunk.sha256.to_hex(),
            chunk.filename,
            new.blob,
            new.created,
            new.receipt
        ],
    )?;
    super::grants::name(db, &new.incident, &new.stream, chunk.index)?;
    if let Some(keyed) = &new.key {
        rows::change(
            db,
            "INSERT OR REPLACE INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5)",
            params![keyed.key, new.incident, new.stream, chunk.index, keyed.fingerprint],
        )?;
    }
    rows::change(db, "UPDATE account SET chunks = chunks + 1, bytes = bytes + ?1", [chunk.size])?;
    Ok(())
}
