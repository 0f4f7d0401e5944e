//! The session file: what a capture client and a contact of one recording must agree on. The form
//! is that which `waystation-devcore session` prints. It holds capabilities, so it is written
//! readable by its owner only.

use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use waystation_proto::id::{GroupId, IncidentId, StreamId};
use waystation_proto::{Media, Variant};

/// Largest session file read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// One recording: its names, its first streams and, if minted already, capabilities.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Base URL of the core.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub core: Option<String>,
    /// Incident.
    pub incident: IncidentId,
    /// Capture group.
    pub group: GroupId,
    /// Streams, one for each lane.
    #[serde(default)]
    pub streams: Vec<Stream>,
    /// Upload capability of our format.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upload_capability: Option<String>,
    /// Fan-out capability of our format.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fanout_capability: Option<String>,
    /// Relay session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sid: Option<String>,
}

/// One stream of a session.
#[derive(Clone, Serialize, Deserialize)]
pub struct Stream {
    /// The stream.
    pub stream: StreamId,
    /// Its lane's variant.
    pub variant: Variant,
    /// Its lane's media type.
    pub media: Media,
    /// The core's own HMAC tokens for this stream.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proofline: Option<Proofline>,
}

/// Tokens of an unchanged core.
#[derive(Clone, Serialize, Deserialize)]
pub struct Proofline {
    /// To upload.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upload: Option<String>,
    /// To watch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fanout: Option<String>,
}

/// A session file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It can't be read or written.
    #[error("the session file can't be read or written")]
    Io(#[from] std::io::Error),
    /// It is not a session.
    #[error("the session file is not the JSON of a session")]
    Form,
}

impl Session {
    /// Reads a session file.
    ///
    /// # Errors
    /// [`SessionError`]
    pub fn read(path: &Path) -> Result<Self, SessionError> {
        if std::fs::metadata(path)?.len() > MAX_BYTES {
            return Err(SessionError::Form);
        }
        serde_json::from_slice(&std::fs::read(path)?).map_err(|_| SessionError::Form)
    }

    /// Writes it, readable by its owner only, whole or not at all.
    ///
    /// # Errors
    /// [`SessionError::Io`]
    pub fn write(&self, path: &Path) -> Result<(), SessionError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(self).map_err(|_| SessionError::Form)?)?;
        drop(file);
        std::fs::rename(&partial, path)?;
        Ok(())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_file_is_its_owners_alone_and_reads_back() {
        use std::os::unix::fs::PermissionsExt as _;
        let json = serde_json::json!({"core": "http://127.0.0.1:1", "incident": "i", "group": "g", "sid": "s",
            "expires_at": "2026-01-01T00:00:00Z", "upload_capability": "u", "fanout_capability": "f",
            "streams": [{"stream": "a", "variant": "audio_priority", "media": "audio",
                "proofline": {"relay_session_id": "r", "upload": "pu", "fanout": "pf", "expires_at": "x"}}]});
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("session.json");
        let session: Session = serde_json::from_value(json).unwrap();
        session.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let back = Session::read(&path).unwrap();
        assert_eq!(back.streams[0].proofline.as_ref().unwrap().upload.as_deref(), Some("pu"));
        assert_eq!(format!("{back:?}"), "Session { streams: 1, .. }");
    }
}
