//! Incidents, groups and streams.

use rusqlite::{Connection, params};
use waystation_proto::media::{Media, Variant};

use super::rows::{self, IncidentState, StreamRow, StreamState, Target};
use super::{Failed, Store};
use crate::refusal::{self, Refusal};

/// A stream about to be opened.
pub(crate) struct NewStream {
    pub(crate) id: String,
    pub(crate) incident: String,
    pub(crate) group: Option<String>,
    pub(crate) variant: Option<Variant>,
    pub(crate) media: Media,
    pub(crate) label: String,
    pub(crate) follows: Option<String>,
}

impl Store {
    pub(crate) async fn new_incident(&self, id: String) -> Result<(), Failed> {
        self.database
            .change(move |db| rows::change(db, "INSERT INTO incidents VALUES (?1, 'open')", [id]).map(drop))
            .await
    }

    /// Opens, closes or marks an incident; `Err` if it does not exist.
    pub(crate) async fn set_incident(&self, id: &str, state: IncidentState) -> Result<(), Refusal> {
        let id = id.to_owned();
        let run = move |db: &Connection| -> Result<(), Refusal> {
            match rows::change(db, "UPDATE incidents SET state = ?2 WHERE id = ?1", [id.as_str(), state.as_str()])? {
                0 => Err(refusal::INCIDENT_NOT_FOUND),
                _ => Ok(()),
            }
        };
        self.database.change(run).await
    }

    pub(crate) async fn new_group(&self, incident: &str, id: String) -> Result<(), Refusal> {
        let incident = incident.to_owned();
        let run = move |db: &Connection| -> Result<(), Refusal> {
            rows::target(db, &incident, "")?.open_incident()?;
            rows::change(db, "INSERT INTO groups VALUES (?1, ?2)", [id, incident])?;
            Ok(())
        };
        self.database.change(run).await
    }

    /// Whether the group is one of an open incident.
    pub(crate) async fn open_group(&self, incident: &str, group: &str) -> Result<(), Refusal> {
        let (incident, group) = (incident.to_owned(), group.to_owned());
        self.database.look(move |db| in_open_group(db, &incident, &group)).await
    }

    pub(crate) async fn new_stream(&self, new: NewStream) -> Result<StreamRow, Refusal> {
        let run = move |db: &Connection| -> Result<StreamRow, Refusal> {
            rows::target(db, &new.incident, "")?.open_incident()?;
            if let Some(group) = &new.group {
                in_open_group(db, &new.incident, group)?;
            }
            if let Some(follows) = &new.follows {
                let before = rows::target(db, &new.incident, follows)?.stream.ok_or(refusal::INVALID_FOLLOWS)?;
                if before.group != new.group || before.variant != new.variant || before.media != new.media {
                    return Err(refusal::INVALID_FOLLOWS);
                }
            }
            rows::change(
                db,
                "INSERT INTO streams (id, incident, grp, variant, media, label, follows, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'open')",
                params![
                    new.id,
                    new.incident,
                    new.group,
                    new.variant.map(Variant::as_str),
                    new.media.as_str(),
                    new.label,
                    new.follows
                ],
            )?;
            rows::target(db, &new.incident, &new.id)?.stream.ok_or(refusal::INTERNAL_ERROR)
        };
        self.database.change(run).await
    }

    /// An incident and one of its streams.
    pub(crate) async fn stream(&self, incident: &str, stream: &str) -> Result<Target, Failed> {
        let (incident, stream) = (incident.to_owned(), stream.to_owned());
        self.database.look(move |db| rows::target(db, &incident, &stream)).await
    }

    /// Completes a stream that has exactly the chunks 1 to `expected`, whose files `there` finds.
    pub(crate) async fn complete(
        &self,
        incident: &str,
        stream: &str,
        expected: u64,
        there: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<StreamRow, Refusal> {
        let (incident, stream) = (incident.to_owned(), stream.to_owned());
        let run = move |db: &Connection| -> Result<StreamRow, Refusal> {
            ending(db, &incident, &stream)?;
            let sql = "SELECT idx, blob FROM chunks WHERE incident = ?1 AND stream = ?2 ORDER BY idx";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let chunks: Vec<(u64, String)> = rows::all(db, sql, [&incident, &stream], read)?;
            if chunks.len() as u64 != expected {
                return Err(refusal::STREAM_CHUNKS_INCOMPLETE);
            }
            if !chunks.iter().zip(1..).all(|((index, _), wanted)| *index == wanted) {
                return Err(refusal::STREAM_CHUNKS_NOT_CONTIGUOUS);
            }
            if !chunks.iter().all(|(_, blob)| there(blob)) {
                return Err(refusal::STREAM_CHUNK_FILE_MISSING);
            }
            end(db, &incident, &stream, StreamState::Complete, "")
        };
        self.database.change(run).await
    }

    /// Fails a stream; its chunks stay.
    pub(crate) async fn fail(&self, incident: &str, stream: &str, reason: String) -> Result<StreamRow, Refusal> {
        let (incident, stream) = (incident.to_owned(), stream.to_owned());
        let run = move |db: &Connection| -> Result<StreamRow, Refusal> {
            ending(db, &incident, &stream)?;
            end(db, &incident, &stream, StreamState::Failed, &reason)
        };
        self.database.change(run).await
    }
}

pub(super) fn in_open_group(db: &Connection, incident: &str, group: &str) -> Result<(), Refusal> {
    rows::target(db, incident, "")?.open_incident()?;
    let sql = "SELECT 1 FROM groups WHERE id = ?1 AND incident = ?2";
    rows::first(db, sql, [group, incident], |_| Ok(()))?.ok_or(refusal::GROUP_NOT_FOUND)
}

/// Whether the stream can be ended.
fn ending(db: &Connection, incident: &str, stream: &str) -> Result<(), Refusal> {
    let target = rows::target(db, incident, stream)?;
    target.known_incident()?;
    match target.stream.ok_or(refusal::STREAM_NOT_FOUND)?.state {
        StreamState::Open => Ok(()),
        StreamState::Complete => Err(refusal::STREAM_ALREADY_COMPLETE),
        StreamState::Failed => Err(refusal::STREAM_FAILED),
    }
}

fn end(db: &Connection, incident: &str, stream: &str, state: StreamState, reason: &str) -> Result<StreamRow, Refusal> {
    let sql = "UPDATE streams SET state = ?1, failure_reason = ?2 WHERE id = ?3";
    rows::change(db, sql, [state.as_str(), reason, stream])?;
    rows::target(db, incident, stream)?.stream.ok_or(refusal::INTERNAL_ERROR)
}
