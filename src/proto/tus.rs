//! What a tus client says of a chunk: `Upload-Metadata` and `Upload-Checksum` (tus 1.0, "Creation" and
//! "Checksum").

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::code::Code;
use crate::id::{Digest, GroupId, IncidentId, StreamId};
use crate::media::{Media, Priority, Profile, Variant};
use crate::offer::{Offer, Timestamp, parse_role};

/// Longest `Upload-Metadata` read, in bytes: the largest dictionary in base64.
pub const MAX_METADATA_BYTES: usize = 6144;

/// Reads `Upload-Metadata` as the offer of a chunk of `length` bytes. Keys are those of the
/// dictionary with `sha256` as lower-case hex and `sig` as base64url; unknown ones are ignored.
///
/// # Errors
/// The code of the first rule that is broken.
pub fn parse_metadata(header: &str, length: u64) -> Result<Offer, Code> {
    let fields = Fields::parse(header).ok_or(Code::InvalidUploadMetadata)?;
    let offer = Offer {
        incident: IncidentId::new(fields.need("incident")?).map_err(|_| Code::InvalidIdentifier)?,
        stream: StreamId::new(fields.need("stream")?).map_err(|_| Code::InvalidIdentifier)?,
        index: fields.number("index")?.ok_or(Code::InvalidUploadMetadata)?,
        media: Media::parse(fields.need("media")?).ok_or(Code::InvalidMediaType)?,
        started: Timestamp::parse(fields.need("started")?)?,
        ended: Timestamp::parse(fields.need("ended")?)?,
        length,
        sha256: Digest::from_hex(fields.need("sha256")?).map_err(|_| Code::InvalidDigest)?,
        name: fields.get("name").unwrap_or_default().into(),
        role: fields.get("role").map(parse_role).transpose()?,
        group: fields.get("group").map(GroupId::new).transpose().map_err(|_| Code::InvalidIdentifier)?,
        segment: fields.get("segment").map(Into::into),
        sequence: fields.number("sequence")?,
        source: fields.get("source").map(Into::into),
        clock: fields.get("clock").map(Into::into),
        profile: fields.word("profile", Profile::parse)?,
        priority: fields.word("priority", Priority::parse)?,
        attempt: fields.number("attempt")?.unwrap_or(1),
        sig: fields.signature()?,
    };
    offer.check()?;
    Ok(offer)
}

/// Writes `Upload-Metadata`.
#[must_use]
pub fn write_metadata(offer: &Offer) -> String {
    let numbers = [Some(offer.index), offer.sequence, (offer.attempt > 1).then_some(offer.attempt)];
    let [index, sequence, attempt] = numbers.map(|number| number.map(|number| number.to_string()));
    let (sha256, sig) = (offer.sha256.to_hex(), offer.sig.map(|sig| URL_SAFE_NO_PAD.encode(sig)));
    let pairs = [
        ("incident", Some(offer.incident.as_str())),
        ("stream", Some(offer.stream.as_str())),
        ("index", index.as_deref()),
        ("media", Some(offer.media.as_str())),
        ("started", Some(offer.started.as_str())),
        ("ended", Some(offer.ended.as_str())),
        ("sha256", Some(&sha256)),
        ("name", Some(&*offer.name).filter(|name| !name.is_empty())),
        ("role", offer.role.map(Variant::as_str)),
        ("group", offer.group.as_ref().map(GroupId::as_str)),
        ("segment", offer.segment.as_deref()),
        ("sequence", sequence.as_deref()),
        ("source", offer.source.as_deref()),
        ("clock", offer.clock.as_deref()),
        ("profile", offer.profile.map(Profile::as_str)),
        ("priority", offer.priority.map(Priority::as_str)),
        ("attempt", attempt.as_deref()),
        ("sig", sig.as_deref()),
    ];
    let written = pairs.into_iter().filter_map(|(key, value)| Some(format!("{key} {}", STANDARD.encode(value?))));
    written.collect::<Vec<_>>().join(",")
}

/// An algorithm of `Upload-Checksum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-1, which tus demands of every server. It finds a damaged transfer; nothing else relies on it.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// What `Tus-Checksum-Algorithm` says.
pub const ALGORITHMS: &str = "sha1,sha256";

/// Reads `Upload-Checksum: sha256 <base64>`.
///
/// # Errors
/// [`Code::UnsupportedChecksum`].
pub fn parse_checksum(header: &str) -> Result<(Algorithm, Vec<u8>), Code> {
    let (name, value) = header.trim().split_once(' ').ok_or(Code::UnsupportedChecksum)?;
    let (algorithm, length) = match name {
        "sha1" => (Algorithm::Sha1, 20),
        "sha256" => (Algorithm::Sha256, 32),
        _ => return Err(Code::UnsupportedChecksum),
    };
    let digest = STANDARD.decode(value.trim()).ok().filter(|digest| digest.len() == length);
    Ok((algorithm, digest.ok_or(Code::UnsupportedChecksum)?))
}

/// The pairs of a header, and typed look-ups in them.
struct Fields<'a>(HashMap<&'a str, String>);

impl<'a> Fields<'a> {
    /// Keys are not empty and unique; a value may be left out.
    fn parse(header: &'a str) -> Option<Self> {
        if header.len() > MAX_METADATA_BYTES {
            return None;
        }
        let mut fields = HashMap::new();
        for pair in header.split(',') {
            let pair = pair.trim_matches([' ', '\t']);
            let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
            let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
            let value = String::from_utf8(STANDARD.decode(value.trim_start_matches(' ')).ok()?).ok()?;
            if key.is_empty() || !visible || fields.insert(key, value).is_some() {
                return None;
            }
        }
        Some(Self(fields))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn need(&self, key: &str) -> Result<&str, Code> {
        self.get(key).ok_or(Code::InvalidUploadMetadata)
    }

    /// As a dictionary's integer: at most 15 digits.
    fn number(&self, key: &str) -> Result<Option<u64>, Code> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let plain = (1..=15).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| plain).map(Some).ok_or(Code::InvalidUploadMetadata)
    }

    fn word<T>(&self, key: &str, parse: fn(&str) -> Option<T>) -> Result<Option<T>, Code> {
        self.get(key).map(|text| parse(text).ok_or(Code::InvalidUploadMetadata)).transpose()
    }

    fn signature(&self) -> Result<Option<[u8; 64]>, Code> {
        let Some(text) = self.get("sig") else { return Ok(None) };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Code::SignatureInvalid)?;
        bytes.try_into().map(Some).map_err(|_| Code::SignatureInvalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::parse_offer;
    use proptest::prelude::*;

    const HEADER: &str = r#"incident="inc_1", stream="str_1", index=1, media="video", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;

    fn offer() -> Offer {
        parse_offer(HEADER, Digest([7; 32]), Some(9)).unwrap()
    }

    fn with(key: &str, value: &str) -> String {
        let kept = write_metadata(&offer());
        let kept = kept.split(',').filter(|pair| pair.split_once(' ').unwrap().0 != key);
        kept.map(str::to_owned).chain([format!("{key} {}", STANDARD.encode(value))]).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn what_a_stock_client_writes_is_an_offer() {
        let header = "incident aW5jXzE=,stream c3RyXzE=,index MQ==,media dmlkZW8=,started MjAyNi0wNi0xMFQxMjowMDowMFo=,\
                      ended MjAyNi0wNi0xMFQxMjowMDowMlo=,filename eA==,empty,\
                      sha256 MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNw==";
        assert_eq!(parse_metadata(header, 9), Ok(offer()));
        assert_eq!(parse_metadata(&header.replace(',', " , "), 9), Ok(offer()), "spaces around a comma");
    }

    #[test]
    fn each_broken_rule_has_its_code() {
        let cases = [
            (with("index", "0"), Code::InvalidChunkIndex),
            (with("index", "-1"), Code::InvalidUploadMetadata),
            (with("index", ""), Code::InvalidUploadMetadata),
            (with("index", "1000000000000000"), Code::InvalidUploadMetadata),
            (with("media", "film"), Code::InvalidMediaType),
            (with("ended", "2026-06-10T11:00:02Z"), Code::InvalidTime),
            (with("incident", "inc 1"), Code::InvalidIdentifier),
            (with("attempt", "0"), Code::InvalidAttempt),
            (with("role", "preview_only"), Code::RoleRefused),
            (with("sig", "AAAA"), Code::SignatureInvalid),
            (with("sha256", "07"), Code::InvalidDigest),
            (with("priority", "x"), Code::InvalidUploadMetadata),
            (with("name", &"x".repeat(256)), Code::InvalidChunkHeader),
            (format!("{},index MQ==", with("index", "1")), Code::InvalidUploadMetadata),
            (write_metadata(&offer()).replace("index MQ==,", ""), Code::InvalidUploadMetadata),
            (format!("{},", write_metadata(&offer())), Code::InvalidUploadMetadata),
            (format!("{},x !", write_metadata(&offer())), Code::InvalidUploadMetadata),
            (format!("{},x /w==", write_metadata(&offer())), Code::InvalidUploadMetadata),
            (String::new(), Code::InvalidUploadMetadata),
            ("x".repeat(MAX_METADATA_BYTES + 1), Code::InvalidUploadMetadata),
        ];
        for (header, code) in cases {
            assert_eq!(parse_metadata(&header, 9), Err(code), "{header}");
        }
        assert_eq!(parse_metadata(&with("index", "1"), 0), Err(Code::LengthMismatch));
    }

    #[test]
    fn checksums_have_two_algorithms() {
        let sha1 = format!("sha1 {}", STANDARD.encode([1; 20]));
        assert_eq!(parse_checksum(&sha1), Ok((Algorithm::Sha1, vec![1; 20])));
        let sha256 = format!("sha256 {}", STANDARD.encode([2; 32]));
        assert_eq!(parse_checksum(&sha256), Ok((Algorithm::Sha256, vec![2; 32])));
        for bad in ["", "sha1", "md5 AAAA", "sha1 AAAA", &sha1.replace("sha1", "sha256"), "sha256 !"] {
            assert_eq!(parse_checksum(bad), Err(Code::UnsupportedChecksum), "{bad}");
        }
        assert!(ALGORITHMS.split(',').any(|name| name == "sha1"), "tus demands it");
    }

    proptest! {
        #[test]
        fn offers_round_trip(
            index in 1u64..1_000_000, length in 1u64..1 << 40, attempt in 1u64..99, name in "[a-zé \"%,]{0,20}",
            sequence in prop::option::of(0u64..1 << 40), role in 0usize..5, signed: bool,
        ) {
            let mut offer = Offer { index, length, attempt, name, sequence, ..offer() };
            offer.role = Some(Variant::ALL[role]);
            offer.profile = Some(Profile::FullQuality);
            offer.priority = Some(Priority::Preservation);
            offer.group = GroupId::new("grp").ok();
            offer.segment = Some("s".into());
            offer.sig = signed.then_some([9; 64]);
            prop_assert_eq!(parse_metadata(&write_metadata(&offer), length), Ok(offer));
        }

        #[test]
        fn no_header_panics(text in ".{0,300}") {
            let _ = parse_metadata(&text, 9);
            let _ = parse_checksum(&text);
        }
    }
}
