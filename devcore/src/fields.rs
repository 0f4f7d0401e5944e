//! What preflight and commit say of a chunk, and the rules it must keep (contract A.2 rows 5-11).

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use waystation_proto::{Digest, Media};

use crate::json::{Kind, Object};
use crate::refusal::{self, Refusal};

/// The eleven names of A.2 as a JSON body has them.
pub(crate) const PREFLIGHT: &[(&str, Kind)] = &[
    ("relay_session_id", Kind::Text),
    ("capability", Kind::Text),
    ("incident_id", Kind::Text),
    ("stream_id", Kind::Text),
    ("chunk_index", Kind::Integer),
    ("media_type", Kind::Text),
    ("started_at", Kind::Text),
    ("ended_at", Kind::Text),
    ("byte_size", Kind::Integer),
    ("sha256_hex", Kind::Text),
    ("original_filename", Kind::Text),
];

/// Who asks, for which stream: the four ids.
#[derive(Clone)]
pub(crate) struct Ids {
    pub(crate) session: String,
    pub(crate) capability: String,
    pub(crate) incident: String,
    pub(crate) stream: String,
}

impl Ids {
    /// Takes the four ids through `text`, trimmed; `None` if one is empty.
    pub(crate) fn read<'a>(text: impl Fn(&str) -> &'a str) -> Option<Self> {
        let word = |name: &str| Some(text(name).trim()).filter(|word| !word.is_empty()).map(str::to_owned);
        Some(Self {
            session: word("relay_session_id")?,
            capability: word("capability")?,
            incident: word("incident_id")?,
            stream: word("stream_id")?,
        })
    }
}

/// What is said of a chunk, before any check.
#[derive(Default)]
pub(crate) struct Claimed<'a> {
    /// `None`: not a number.
    pub(crate) index: Option<i64>,
    pub(crate) media: &'a str,
    pub(crate) started: &'a str,
    pub(crate) ended: &'a str,
    /// `None`: not a number.
    pub(crate) size: Option<i64>,
    pub(crate) sha256: &'a str,
    pub(crate) filename: &'a str,
}

impl<'a> Claimed<'a> {
    pub(crate) fn of_json(body: &'a Object) -> Self {
        Self {
            index: body.integer("chunk_index"),
            media: body.text("media_type"),
            started: body.text("started_at"),
            ended: body.text("ended_at"),
            size: body.integer("byte_size"),
            sha256: body.text("sha256_hex"),
            filename: body.text("original_filename"),
        }
    }

    /// `text` gives the multipart fields; decimal text for the two numbers.
    pub(crate) fn of_form(text: impl Fn(&str) -> &'a str) -> Self {
        Self {
            index: text("chunk_index").parse::<i32>().ok().map(i64::from),
            media: text("media_type"),
            started: text("started_at"),
            ended: text("ended_at"),
            size: text("byte_size").parse().ok(),
            sha256: text("sha256_hex"),
            filename: text("original_filename"),
        }
    }

    /// Rows 6-11, in their order.
    pub(crate) fn check(&self, max_bytes: u64) -> Result<Chunk, Refusal> {
        let index = self.index.filter(|index| *index > 0).ok_or(refusal::INVALID_CHUNK_INDEX)?;
        let media = Media::parse(self.media).ok_or(refusal::INVALID_MEDIA_TYPE)?;
        let started = instant(self.started).ok_or(refusal::INVALID_STARTED_AT)?;
        let ended = instant(self.ended).ok_or(refusal::INVALID_ENDED_AT)?;
        if ended < started {
            return Err(refusal::INVALID_TIME_RANGE);
        }
        let size = self.size.filter(|size| *size > 0).ok_or(refusal::INVALID_BYTE_SIZE)?.unsigned_abs();
        let sha256 = Digest::from_hex(self.sha256).map_err(|_| refusal::INVALID_SHA256_HEX)?;
        if size > max_bytes {
            return Err(refusal::UPLOAD_TOO_LARGE);
        }
        Ok(Chunk {
            index: index.unsigned_abs(),
            media,
            started: self.started.to_owned(),
            ended: self.ended.to_owned(),
            size,
            sha256,
            filename: base_name(self.filename).to_owned(),
        })
    }
}

/// A chunk whose description keeps the rules.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) index: u64,
    pub(crate) media: Media,
    /// As written.
    pub(crate) started: String,
    /// As written.
    pub(crate) ended: String,
    pub(crate) size: u64,
    pub(crate) sha256: Digest,
    pub(crate) filename: String,
}

/// RFC 3339, fraction allowed.
pub(crate) fn instant(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// The last element of a path; `.` and `/` become empty.
pub(crate) fn base_name(path: &str) -> &str {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if name == "." { "" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Claimed<'static> {
        Claimed {
            index: Some(1),
            media: "audio",
            started: "2026-06-10T12:00:00.5Z",
            ended: "2026-06-10T12:00:00.5Z",
            size: Some(10),
            sha256: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            filename: "",
        }
    }

    /// Each step mends one more fault; the refusal is always that of the first one left.
    #[test]
    fn the_first_broken_rule_answers() {
        let mut claimed = Claimed::default();
        let mut seen = Vec::new();
        let mut step = |claimed: &Claimed<'_>| seen.push(claimed.check(10).err().map(|r| r.code.into_owned()));
        step(&claimed);
        claimed.index = Some(1);
        step(&claimed);
        claimed.media = "audio";
        step(&claimed);
        claimed.started = good().started;
        step(&claimed);
        claimed.ended = "2026-06-10T12:00:00.499999999Z";
        step(&claimed);
        claimed.ended = good().ended;
        step(&claimed);
        claimed.size = Some(11);
        step(&claimed);
        claimed.sha256 = good().sha256;
        step(&claimed);
        claimed.size = Some(10);
        step(&claimed);
        let expected = [
            "invalid_chunk_index",
            "invalid_media_type",
            "invalid_started_at",
            "invalid_ended_at",
            "invalid_time_range",
            "invalid_byte_size",
            "invalid_sha256_hex",
            "upload_too_large",
        ];
        let seen: Vec<_> = seen.iter().map(|code| code.as_deref()).collect();
        assert_eq!(seen, expected.iter().map(|code| Some(*code)).chain([None]).collect::<Vec<_>>());
    }

    #[test]
    fn names_are_reduced() {
        for (path, name) in
            [("", ""), (".", ""), ("/", ""), ("a", "a"), ("/x/a.enc", "a.enc"), ("a/", "a"), ("..", "..")]
        {
            assert_eq!(base_name(path), name);
        }
    }

    #[test]
    fn form_numbers_are_decimal_text() {
        let read = |index: &'static str, size: &'static str| {
            Claimed::of_form(move |name| match name {
                "chunk_index" => index,
                "byte_size" => size,
                _ => "",
            })
        };
        assert_eq!(read("2147483647", "1").index, Some(i64::from(i32::MAX)));
        assert_eq!(read("2147483648", "1").index, None, "must fit 32 bits");
        assert_eq!(read("1.0", "1e3").index, None);
        assert_eq!(read("1", " 1").size, None);
    }
}
