//! A recording on disk, to be played back as if it were being recorded now.
//!
//! `recording.json` names the lanes and their files; file k of every lane covers the stretch
//! from `k * chunk_ms` to `(k + 1) * chunk_ms`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use waystation_proto::{Media, Variant};

/// Largest `recording.json` read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// A recording that can't be played.
#[derive(Debug, thiserror::Error)]
pub enum PlaybackError {
    /// A file can't be read.
    #[error("a file of the recording can't be read")]
    Io(#[from] std::io::Error),
    /// `recording.json` is not one.
    #[error("recording.json is not that of a recording")]
    Form,
}

/// A recording.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Length of a chunk, in milliseconds.
    pub chunk_ms: u64,
    /// Its lanes.
    pub lanes: Vec<RecordedLane>,
}

/// One lane of it.
#[derive(Debug, Clone)]
pub struct RecordedLane {
    /// Its variant.
    pub variant: Variant,
    /// Its media type.
    pub media: Media,
    files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Form {
    chunk_ms: u64,
    lanes: Vec<FormLane>,
}

#[derive(Deserialize)]
struct FormLane {
    variant: Variant,
    media: Media,
    directory: PathBuf,
    files: Vec<PathBuf>,
}

impl Recording {
    /// Reads `recording.json` of a directory; the files themselves are read as they are played.
    ///
    /// # Errors
    /// [`PlaybackError`]
    pub fn read(directory: &Path) -> Result<Self, PlaybackError> {
        let path = directory.join("recording.json");
        if std::fs::metadata(&path)?.len() > MAX_BYTES {
            return Err(PlaybackError::Form);
        }
        let form: Form = serde_json::from_slice(&std::fs::read(path)?).map_err(|_| PlaybackError::Form)?;
        let lanes: Vec<RecordedLane> = form
            .lanes
            .into_iter()
            .map(|lane| RecordedLane {
                variant: lane.variant,
                media: lane.media,
                files: lane.files.iter().map(|file| directory.join(&lane.directory).join(file)).collect(),
            })
            .collect();
        if form.chunk_ms == 0 || lanes.is_empty() || lanes.iter().any(|lane| lane.files.is_empty()) {
            return Err(PlaybackError::Form);
        }
        Ok(Self { chunk_ms: form.chunk_ms, lanes })
    }

    /// Whether it has such a lane.
    #[must_use]
    pub fn has(&self, variant: Variant) -> bool {
        self.lanes.iter().any(|lane| lane.variant == variant)
    }

    /// Chunks of one pass.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.files.len()).max().unwrap_or(0) as u64
    }
}

impl RecordedLane {
    /// The bytes of chunk `k`; the files repeat when the recording is looped.
    ///
    /// # Errors
    /// [`PlaybackError::Io`]
    pub async fn chunk(&self, k: u64) -> Result<Vec<u8>, PlaybackError> {
        let file = usize::try_from(k % self.files.len() as u64).ok().and_then(|k| self.files.get(k));
        Ok(tokio::fs::read(file.ok_or(PlaybackError::Form)?).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_repeat_and_an_empty_lane_is_no_recording() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/0.mp4"), "zero").unwrap();
        std::fs::write(dir.path().join("a/1.mp4"), "one").unwrap();
        let form = |files: &[&str]| {
            serde_json::json!({"chunk_ms": 2000, "seconds": 4, "lanes": [
                {"variant": "audio_priority", "media": "audio", "directory": "a", "files": files}]})
        };
        std::fs::write(dir.path().join("recording.json"), form(&["0.mp4", "1.mp4"]).to_string()).unwrap();
        let recording = Recording::read(dir.path()).unwrap();
        assert_eq!(recording.chunks(), 2);
        assert_eq!(recording.lanes[0].chunk(3).await.unwrap(), b"one");
        std::fs::write(dir.path().join("recording.json"), form(&[]).to_string()).unwrap();
        assert!(matches!(Recording::read(dir.path()), Err(PlaybackError::Form)));
    }
}
