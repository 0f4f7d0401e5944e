//! A multipart upload: text fields and one file, hashed and staged as it comes (contract A.3 rows 3-8).

use std::collections::HashMap;

use aws_lc_rs::digest;
use http::header::CONTENT_TYPE;

use crate::call::Call;
use crate::envelope;
use crate::multipart::{self, Broken, Reader};
use crate::refusal::{self, Refusal};
use crate::store::blobs::Staged;

/// Longest text field, in bytes.
const MAX_FIELD_BYTES: usize = 64 * 1024;
/// What the fields may take beside the file, in bytes.
const FIELDS_BYTES: u64 = 1024 * 1024;

/// A read upload.
pub(crate) struct Form {
    fields: HashMap<&'static str, String>,
    pub(crate) file: Option<File>,
}

/// The file part.
pub(crate) struct File {
    pub(crate) filename: String,
    pub(crate) length: u64,
    pub(crate) sha256: [u8; 32],
    /// Its first bytes, as many as the envelope check can need.
    pub(crate) head: Vec<u8>,
    pub(crate) staged: Staged,
}

impl Form {
    /// The last value of a field; empty if there is none.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.fields.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Reads the body. Fields that are not `known` are read, bounded and dropped.
    pub(crate) async fn read(call: &mut Call, known: &'static [&'static str]) -> Result<Self, Refusal> {
        let content_type = call.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = multipart::boundary(content_type).ok_or(refusal::INVALID_MULTIPART)?;
        let max_file_bytes = call.core.options.max_upload_bytes;
        let mut reader = Reader::new(&mut call.body, &boundary, max_file_bytes + FIELDS_BYTES);
        let mut form = Self { fields: HashMap::new(), file: None };
        while let Some(part) = reader.next_part().await.map_err(broken)? {
            if part.name == "file" {
                if form.file.is_some() {
                    return Err(refusal::DUPLICATE_FILE);
                }
                let staged = call.core.blobs.stage(!call.core.options.keep_nothing);
                let filename = part.filename.unwrap_or_default();
                form.file = Some(file(&mut reader, staged, filename, max_file_bytes).await?);
            } else if !part.name.is_empty() {
                let value = field(&mut reader).await?;
                if let Some(name) = known.iter().find(|name| **name == part.name) {
                    form.fields.insert(name, value);
                }
            }
        }
        Ok(form)
    }
}

async fn field<B>(reader: &mut Reader<B>) -> Result<String, Refusal>
where
    B: http_body::Body<Data = bytes::Bytes> + Unpin,
{
    let mut value = Vec::new();
    while let Some(piece) = reader.piece().await.map_err(broken)? {
        if value.len() + piece.len() > MAX_FIELD_BYTES {
            return Err(refusal::INVALID_FIELD);
        }
        value.extend_from_slice(&piece);
    }
    Ok(String::from_utf8_lossy(&value).into_owned())
}

async fn file<B>(reader: &mut Reader<B>, mut staged: Staged, filename: String, max: u64) -> Result<File, Refusal>
where
    B: http_body::Body<Data = bytes::Bytes> + Unpin,
{
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    let mut head = Vec::new();
    while let Some(piece) = reader.piece().await.map_err(broken)? {
        length += piece.len() as u64;
        if length > max {
            return Err(refusal::UPLOAD_TOO_LARGE);
        }
        staged.reserve(piece.len() as u64).map_err(|_| refusal::STAGING_QUOTA)?;
        hash.update(&piece);
        let missing = envelope::HEAD_BYTES.saturating_sub(head.len());
        head.extend_from_slice(&piece[..piece.len().min(missing)]);
        staged.push(&piece).await.map_err(|error| {
            tracing::error!(kind = ?error.kind(), "an upload could not be staged");
            refusal::INTERNAL_ERROR
        })?;
    }
    let sha256 = hash.finish().as_ref().try_into().unwrap_or_default();
    Ok(File { filename, length, sha256, head, staged })
}

const fn broken(why: Broken) -> Refusal {
    match why {
        Broken::Malformed => refusal::INVALID_MULTIPART,
        Broken::TooLarge => refusal::UPLOAD_TOO_LARGE,
    }
}
