//! Rows as values, and the few shapes of query the store needs.

use rusqlite::{Connection, OptionalExtension as _, Params, Row};
use waystation_proto::media::{Media, Variant};

use super::Failed;
use crate::refusal::{self, Refusal};

/// An incident's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IncidentState {
    Open,
    Closed,
    Deleting,
}

impl IncidentState {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Deleting => "deleting",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Closed, Self::Deleting].into_iter().find(|state| state.as_str() == text)
    }
}

/// A stream's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamState {
    Open,
    Complete,
    Failed,
}

impl StreamState {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Complete, Self::Failed].into_iter().find(|state| state.as_str() == text)
    }
}

/// A stream.
#[derive(Clone)]
pub(crate) struct StreamRow {
    pub(crate) id: String,
    pub(crate) group: Option<String>,
    pub(crate) variant: Option<Variant>,
    pub(crate) media: Media,
    pub(crate) label: String,
    pub(crate) follows: Option<String>,
    pub(crate) state: StreamState,
}

/// A stored chunk.
#[derive(Clone)]
pub(crate) struct ChunkRow {
    pub(crate) id: String,
    pub(crate) stream: String,
    pub(crate) index: u64,
    pub(crate) media: String,
    pub(crate) started: String,
    pub(crate) ended: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
    pub(crate) filename: String,
    pub(crate) blob: String,
    pub(crate) created: String,
    pub(crate) receipt: Option<String>,
}

/// What a call is about, as it is stored.
#[derive(Clone, Default)]
pub(crate) struct Target {
    pub(crate) incident: Option<IncidentState>,
    pub(crate) stream: Option<StreamRow>,
    pub(crate) chunk: Option<ChunkRow>,
    pub(crate) account_bytes: u64,
}

impl Target {
    /// The incident exists and is not being deleted.
    pub(crate) fn known_incident(&self) -> Result<IncidentState, Refusal> {
        match self.incident {
            None => Err(refusal::INCIDENT_NOT_FOUND),
            Some(IncidentState::Deleting) => Err(refusal::INCIDENT_DELETING),
            Some(state) => Ok(state),
        }
    }

    /// Row 15 of A.2.
    pub(crate) fn open_incident(&self) -> Result<(), Refusal> {
        match self.known_incident()? {
            IncidentState::Closed => Err(refusal::INCIDENT_CLOSED),
            _ => Ok(()),
        }
    }

    /// Rows 15 and 16 of A.2, but for the media type.
    pub(crate) fn open_stream(&self) -> Result<&StreamRow, Refusal> {
        self.open_incident()?;
        let stream = self.stream.as_ref().ok_or(refusal::STREAM_NOT_FOUND)?;
        if stream.state == StreamState::Open { Ok(stream) } else { Err(refusal::STREAM_NOT_OPEN) }
    }

    /// Rows 15 and 16 of A.2.
    pub(crate) fn open_for(&self, media: Media) -> Result<(), Refusal> {
        if self.open_stream()?.media == media { Ok(()) } else { Err(refusal::STREAM_MEDIA_TYPE_MISMATCH) }
    }
}

pub(super) const STREAM: &str = "id, grp, variant, media, label, follows, state";
pub(super) const CHUNK: &str =
    "chunks.id, chunks.stream, idx, chunks.media, started, ended, size, sha256, filename, blob, created, receipt";

pub(super) fn stream(row: &Row<'_>) -> rusqlite::Result<StreamRow> {
    let (variant, media, state): (Option<String>, String, String) = (row.get(2)?, row.get(3)?, row.get(6)?);
    let unknown = || rusqlite::Error::InvalidColumnName("unknown word".into());
    Ok(StreamRow {
        id: row.get(0)?,
        group: row.get(1)?,
        variant: variant.as_deref().map(|text| Variant::parse(text).ok_or_else(unknown)).transpose()?,
        media: Media::parse(&media).ok_or_else(unknown)?,
        label: row.get(4)?,
        follows: row.get(5)?,
        state: StreamState::parse(&state).ok_or_else(unknown)?,
    })
}

pub(super) fn chunk(row: &Row<'_>) -> rusqlite::Result<ChunkRow> {
    Ok(ChunkRow {
        id: row.get(0)?,
        stream: row.get(1)?,
        index: row.get(2)?,
        media: row.get(3)?,
        started: row.get(4)?,
        ended: row.get(5)?,
        size: row.get(6)?,
        sha256: row.get(7)?,
        filename: row.get(8)?,
        blob: row.get(9)?,
        created: row.get(10)?,
        receipt: row.get(11)?,
    })
}

/// The first row of a query, if there is one.
pub(super) fn first<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, Failed> {
    Ok(db.prepare_cached(sql)?.query_row(params, read).optional()?)
}

/// The one value of a query that always has one.
pub(super) fn one<T: rusqlite::types::FromSql>(db: &Connection, sql: &str, params: impl Params) -> Result<T, Failed> {
    Ok(db.prepare_cached(sql)?.query_row(params, |row| row.get(0))?)
}

/// Every row of a query.
pub(super) fn all<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Failed> {
    Ok(db.prepare_cached(sql)?.query_map(params, read)?.collect::<Result<_, _>>()?)
}

/// Changes rows; how many.
pub(super) fn change(db: &Connection, sql: &str, params: impl Params) -> Result<usize, Failed> {
    Ok(db.prepare_cached(sql)?.execute(params)?)
}

/// The incident's state, and the stream if it is one of its.
pub(super) fn target(db: &Connection, incident: &str, stream_id: &str) -> Result<Target, Failed> {
    let state: Option<String> = first(db, "SELECT state FROM incidents WHERE id = ?1", [incident], |row| row.get(0))?;
    let sql = format!("SELECT {STREAM} FROM streams WHERE id = ?1 AND incident = ?2");
    Ok(Target {
        incident: state.as_deref().and_then(IncidentState::parse),
        stream: first(db, &sql, [stream_id, incident], stream)?,
        chunk: None,
        account_bytes: one(db, "SELECT bytes FROM account", [])?,
    })
}

/// The chunk with this identity.
pub(super) fn find_chunk(
    db: &Connection,
    incident: &str,
    stream_id: &str,
    index: u64,
) -> Result<Option<ChunkRow>, Failed> {
    let sql = format!("SELECT {CHUNK} FROM chunks WHERE incident = ?1 AND stream = ?2 AND idx = ?3");
    first(db, &sql, rusqlite::params![incident, stream_id, index], chunk)
}
