//! Contact grants: who may watch a group, the capabilities that were made of it, and what it may read.
//! Of a grant's secret only the SHA-256 is kept.

use rusqlite::{Connection, Row, params};
use waystation_proto::media::Variant;
use waystation_proto::{ChunkRef, IncidentId, StreamId};

use super::rows::{self, IncidentState};
use super::{Failed, Store};
use crate::refusal::{self, Refusal};

/// Grants of one group: about 200 bytes each. Those that ended make room when it is full.
const MAX_GRANTS: i64 = 1024;
/// Capabilities of one grant that hold at the same time: a page that renews has two.
const MAX_LIVE: i64 = 32;
/// The same of those that the account asked for, for one group.
const MAX_LENT: i64 = 4096;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS grants (
    id TEXT PRIMARY KEY, incident TEXT NOT NULL, grp TEXT NOT NULL, secret BLOB NOT NULL UNIQUE, session TEXT NOT NULL,
    expires INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX IF NOT EXISTS grants_of_group ON grants (grp);
CREATE TABLE IF NOT EXISTS granted (jti TEXT PRIMARY KEY, owner TEXT NOT NULL, expires INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS granted_by ON granted (owner);
CREATE INDEX IF NOT EXISTS granted_until ON granted (expires);
CREATE TABLE IF NOT EXISTS refs (
    ref BLOB PRIMARY KEY, incident TEXT NOT NULL, stream TEXT NOT NULL, idx INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// The capabilities that still hold of grants that were revoked, and all for contacts of incidents that are not open any more.
/// Their owner is a grant, or the group where the account itself asked for them.
pub(super) const REVOKED: &str = "SELECT granted.jti FROM granted
     LEFT JOIN grants ON grants.id = granted.owner LEFT JOIN groups ON groups.id = granted.owner
     LEFT JOIN incidents ON incidents.id = coalesce(grants.incident, groups.incident)
     WHERE (grants.revoked = 1 OR incidents.state <> 'open') AND granted.expires > ?1 ORDER BY granted.jti";

/// A grant. Times are Unix seconds.
#[derive(Clone)]
pub(crate) struct Grant {
    pub(crate) id: String,
    pub(crate) incident: String,
    pub(crate) group: String,
    /// Relay session of all its capabilities.
    pub(crate) session: String,
    pub(crate) expires: i64,
    pub(crate) revoked: bool,
}

/// A stored chunk as a contact may see it.
pub(crate) struct Shown {
    /// Its place in the order in which chunks were stored.
    pub(crate) place: u64,
    pub(crate) variant: String,
    pub(crate) chunk: rows::ChunkRow,
}

impl Store {
    /// Keeps a new grant for a group of an open incident, known by the hash of its secret.
    pub(crate) async fn new_grant(&self, grant: Grant, secret: [u8; 32], now: i64) -> Result<(), Refusal> {
        let run = move |db: &Connection| -> Result<(), Refusal> {
            super::streams::in_open_group(db, &grant.incident, &grant.group)?;
            make_room(db, &grant.group, now)?;
            rows::change(
                db,
                "INSERT INTO grants (id, incident, grp, secret, session, expires) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![grant.id, grant.incident, grant.group, secret, grant.session, grant.expires],
            )?;
            Ok(())
        };
        self.database.change(run).await
    }

    /// The grant whose secret has this hash.
    pub(crate) async fn grant(&self, secret: [u8; 32]) -> Result<Option<Grant>, Failed> {
        let run = move |db: &Connection| {
            let sql = "SELECT id, incident, grp, session, expires, revoked FROM grants WHERE secret = ?1";
            rows::first(db, sql, [secret], grant)
        };
        self.database.look(run).await
    }

    /// Remembers a capability of a grant before it is handed out, so that a revocation reaches it.
    pub(crate) async fn granted(&self, grant: &Grant, jti: String, expires: i64, now: i64) -> Result<(), Refusal> {
        let grant = grant.clone();
        let run = move |db: &Connection| -> Result<(), Refusal> {
            if rows::target(db, &grant.incident, "")?.incident != Some(IncidentState::Open) {
                return Err(refusal::CONTACT_INCIDENT_CLOSED);
            }
            // It may have been revoked since it was looked up.
            let sql = "SELECT revoked FROM grants WHERE id = ?1";
            if rows::first(db, sql, [&grant.id], |row| row.get::<_, bool>(0))?.unwrap_or(true) {
                return Err(refusal::GRANT_REVOKED);
            }
            note(db, Noted { jti: &jti, owner: &grant.id, expires, now }, MAX_LIVE)
        };
        self.database.change(run).await
    }

    /// Remembers a capability to watch that the account asked for, so that the incident's end reaches it.
    pub(crate) async fn lent(&self, group: &str, jti: &str, expires: i64, now: i64) -> Result<(), Refusal> {
        let (group, jti) = (group.to_owned(), jti.to_owned());
        let run = move |db: &Connection| note(db, Noted { jti: &jti, owner: &group, expires, now }, MAX_LENT);
        self.database.change(run).await
    }

    /// Revokes a grant of a group. Returns its capabilities that still hold.
    pub(crate) async fn revoke_grant(
        &self,
        incident: &str,
        group: &str,
        id: &str,
        now: i64,
    ) -> Result<Vec<String>, Refusal> {
        let (incident, group, id) = (incident.to_owned(), group.to_owned(), id.to_owned());
        let run = move |db: &Connection| -> Result<Vec<String>, Refusal> {
            let sql = "UPDATE grants SET revoked = 1 WHERE id = ?1 AND grp = ?2 AND incident = ?3";
            if rows::change(db, sql, [id.as_str(), group.as_str(), incident.as_str()])? == 0 {
                return Err(refusal::GRANT_NOT_FOUND);
            }
            let sql = "SELECT jti FROM granted WHERE owner = ?1 AND expires > ?2";
            Ok(rows::all(db, sql, params![id, now], |row| row.get(0))?)
        };
        self.database.change(run).await
    }

    /// Chunks that the grant shows, in the order in which they were stored, after the place `after`.
    pub(crate) async fn shown(&self, grant: &Grant, after: u64, limit: u32) -> Result<Vec<Shown>, Failed> {
        let grant = grant.clone();
        let run = move |db: &Connection| {
            let sql = format!(
                "SELECT {}, chunks.rowid, streams.variant {VISIBLE} AND chunks.rowid > ?5 ORDER BY chunks.rowid LIMIT ?6",
                rows::CHUNK
            );
            let read =
                |row: &Row<'_>| Ok(Shown { place: row.get(12)?, variant: row.get(13)?, chunk: rows::chunk(row)? });
            let [audio, picture] = WATCHABLE;
            rows::all(db, &sql, params![grant.incident, grant.group, audio, picture, after, limit], read)
        };
        self.database.look(run).await
    }

    /// One of the chunks that the grant shows.
    pub(crate) async fn shown_chunk(&self, grant: &Grant, name: ChunkRef) -> Result<Option<rows::ChunkRow>, Failed> {
        let grant = grant.clone();
        let run = move |db: &Connection| {
            let sql = format!(
                "SELECT {} {VISIBLE} AND (chunks.stream, chunks.idx) =
                 (SELECT refs.stream, refs.idx FROM refs WHERE refs.ref = ?5 AND refs.incident = ?1)",
                rows::CHUNK
            );
            let [audio, picture] = WATCHABLE;
            rows::first(db, &sql, params![grant.incident, grant.group, audio, picture, name.0], rows::chunk)
        };
        self.database.look(run).await
    }
}

/// The lanes that contacts may watch.
const WATCHABLE: [&str; 2] = [Variant::AudioPriority.as_str(), Variant::LivePreview.as_str()];

const VISIBLE: &str = "FROM chunks JOIN streams ON streams.id = chunks.stream
     WHERE chunks.incident = ?1 AND streams.grp = ?2 AND streams.variant IN (?3, ?4)";

/// Remembers under which name the chunk is asked for.
pub(super) fn name(db: &Connection, incident: &str, stream: &str, index: u64) -> Result<(), Failed> {
    let (Ok(of), Ok(within)) = (IncidentId::new(incident), StreamId::new(stream)) else { return Ok(()) };
    let name = ChunkRef::of(&of, &within, index);
    rows::change(db, "INSERT OR IGNORE INTO refs VALUES (?1, ?2, ?3, ?4)", params![name.0, incident, stream, index])?;
    Ok(())
}

/// Names the chunks of a data directory that was begun without names.
pub(super) fn name_all(db: &Connection) -> Result<(), Failed> {
    if rows::one::<bool>(db, "SELECT (SELECT count(*) FROM refs) >= (SELECT count(*) FROM chunks)", [])? {
        return Ok(());
    }
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u64>(2)?));
    for (incident, stream, index) in rows::all(db, "SELECT incident, stream, idx FROM chunks", [], read)? {
        name(db, &incident, &stream, index)?;
    }
    Ok(())
}

/// A capability that is handed out.
struct Noted<'a> {
    jti: &'a str,
    owner: &'a str,
    expires: i64,
    now: i64,
}

/// Writes it down, unless so many of its owner hold already.
fn note(db: &Connection, Noted { jti, owner, expires, now }: Noted<'_>, most: i64) -> Result<(), Refusal> {
    rows::change(db, "DELETE FROM granted WHERE expires <= ?1", [now])?;
    let sql = "SELECT count(*), coalesce(min(expires), 0) FROM granted WHERE owner = ?1";
    let (live, soonest) = rows::first(db, sql, [owner], |row| Ok((row.get(0)?, row.get(1)?)))?.unwrap_or((0, now));
    if live >= most {
        return Err(refusal::RATE_LIMITED.with_retry_after(soonest.saturating_sub(now).max(1).unsigned_abs()));
    }
    rows::change(db, "INSERT INTO granted VALUES (?1, ?2, ?3)", params![jti, owner, expires])?;
    Ok(())
}

fn make_room(db: &Connection, group: &str, now: i64) -> Result<(), Refusal> {
    let all: i64 = rows::one(db, "SELECT count(*) FROM grants WHERE grp = ?1", [group])?;
    if all < MAX_GRANTS {
        return Ok(());
    }
    // A revoked one stays as long as a capability of it is on the revocation list.
    let sql = "DELETE FROM grants WHERE grp = ?1 AND (expires <= ?2 OR revoked = 1)
         AND NOT EXISTS (SELECT 1 FROM granted WHERE owner = grants.id AND granted.expires > ?2)";
    rows::change(db, sql, params![group, now])?;
    let sql = "SELECT count(*) FROM grants WHERE grp = ?1 AND expires > ?2 AND revoked = 0";
    let open: i64 = rows::one(db, sql, params![group, now])?;
    if open < MAX_GRANTS { Ok(()) } else { Err(refusal::TOO_MANY_GRANTS) }
}

fn grant(row: &Row<'_>) -> rusqlite::Result<Grant> {
    Ok(Grant {
        id: row.get(0)?,
        incident: row.get(1)?,
        group: row.get(2)?,
        session: row.get(3)?,
        expires: row.get(4)?,
        revoked: row.get(5)?,
    })
}
