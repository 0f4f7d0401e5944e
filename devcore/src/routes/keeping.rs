//! The last steps of every upload: the file is what was said, it is stored once, a receipt is signed
//! (contract A.3 rows 11-18).

use waystation_proto::receipt::{RECEIPT_TYP, Receipt};
use waystation_proto::{IncidentId, StreamId};

use super::form::File;
use crate::clock::{random_id, rfc3339};
use crate::core::Core;
use crate::envelope::{self, Identity};
use crate::fields::Chunk;
use crate::refusal::{self, Refusal};
use crate::store::{ChunkRow, Inserted, Keyed, NewChunk};

/// A checked chunk and where it belongs.
pub(crate) struct Keeping<'a> {
    pub(crate) core: &'a Core,
    pub(crate) incident: &'a str,
    pub(crate) stream: &'a str,
    pub(crate) chunk: &'a Chunk,
}

impl Keeping<'_> {
    /// Rows 11-13: length, hash, envelope header.
    pub(crate) fn check_file(&self, file: &File) -> Result<(), Refusal> {
        if file.length != self.chunk.size {
            return Err(refusal::BYTE_SIZE_MISMATCH);
        }
        if file.sha256 != self.chunk.sha256.0 {
            return Err(refusal::HASH_MISMATCH);
        }
        let identity = Identity {
            incident: self.incident,
            stream: self.stream,
            media: self.chunk.media.as_str(),
            index: self.chunk.index,
        };
        if envelope::accepts(&file.head, &identity) { Ok(()) } else { Err(refusal::INVALID_ENVELOPE) }
    }

    /// Whether `row` is this chunk: same identity, size and hash.
    pub(crate) fn equals(&self, row: &ChunkRow) -> bool {
        row.size == self.chunk.size && row.sha256 == self.chunk.sha256.to_hex()
    }

    /// Rows 17 and 18: the bytes first, then their row.
    pub(crate) async fn keep(&self, file: File, key: Option<Keyed>) -> Result<Inserted, Refusal> {
        let now_ms = self.core.clock.unix_ms();
        let mut new = NewChunk {
            incident: self.incident.to_owned(),
            stream: self.stream.to_owned(),
            chunk: self.chunk.clone(),
            id: random_id("chk_"),
            blob: String::new(),
            created: rfc3339(now_ms),
            receipt: self.receipt(now_ms.div_euclid(1000)),
            key,
        };
        if self.core.options.keep_nothing {
            return Ok(Inserted::New(unkept(new)));
        }
        new.blob = file.staged.put().await.map_err(|error| {
            tracing::error!(kind = ?error.kind(), "a blob could not be put in place");
            refusal::INTERNAL_ERROR
        })?;
        let blob = self.core.blobs.path(&new.blob);
        let inserted = self.core.store.insert(new).await;
        // After an internal error the row may exist: the blob stays, and the next start sweeps it if not.
        let refused = matches!(&inserted, Ok(Inserted::There(_)))
            || matches!(&inserted, Err(refusal) if *refusal != refusal::INTERNAL_ERROR);
        if refused && tokio::fs::remove_file(blob).await.is_err() {
            tracing::warn!("the blob of a refused chunk stays until the next start");
        }
        inserted
    }

    fn receipt(&self, iat: i64) -> Option<String> {
        if !self.core.options.signs_receipts() {
            return None;
        }
        let receipt = Receipt {
            iss: self.core.options.issuer.clone(),
            iat,
            incident: IncidentId::new(self.incident).ok()?,
            stream: StreamId::new(self.stream).ok()?,
            index: self.chunk.index,
            length: self.chunk.size,
            sha256: self.chunk.sha256,
        };
        self.core.keys.sign(RECEIPT_TYP, &receipt)
    }
}

/// The row a chunk would have.
fn unkept(new: NewChunk) -> ChunkRow {
    ChunkRow {
        id: new.id,
        stream: new.stream,
        index: new.chunk.index,
        media: new.chunk.media.as_str().to_owned(),
        started: new.chunk.started,
        ended: new.chunk.ended,
        size: new.chunk.size,
        sha256: new.chunk.sha256.to_hex(),
        filename: new.chunk.filename,
        blob: new.blob,
        created: new.created,
        receipt: new.receipt,
    }
}
