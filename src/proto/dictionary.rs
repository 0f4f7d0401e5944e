//! The headers `Waystation-Chunk`, `Repr-Digest`, `Waystation-Watch` and `Waystation-Hint` as RFC 9651
//! dictionaries.

use sfv::{BareItem, DictSerializer, Dictionary, KeyRef, ListEntry, Parser, RefBareItem, StringRef};

use crate::code::Code;
use crate::id::{Digest, GroupId, IncidentId, StreamId};
use crate::media::{Media, Priority, Profile, Variant};
use crate::message::{Hint, StartAt, StartWord};
use crate::offer::{Offer, Timestamp, parse_role};

/// Longest header value read, in bytes.
pub const MAX_HEADER_BYTES: usize = 4096;

/// Reads `Waystation-Chunk` with the digest of `Repr-Digest` and the length of the request.
/// `content_length` is that of a complete body; it and the dictionary's `length` must agree where
/// both are there (`wire.md`, "Native HTTP").
///
/// # Errors
/// The code of the first rule that is broken.
pub fn parse_offer(header: &str, sha256: Digest, content_length: Option<u64>) -> Result<Offer, Code> {
    let fields = Fields::parse(header).ok_or(Code::InvalidChunkHeader)?;
    let length = match (fields.integer("length")?, content_length) {
        (Some(a), Some(b)) if a != b => return Err(Code::LengthMismatch),
        (Some(a), _) => a,
        (None, Some(b)) => b,
        (None, None) => return Err(Code::LengthRequired),
    };
    let offer = Offer {
        incident: IncidentId::new(fields.need("incident")?).map_err(|_| Code::InvalidIdentifier)?,
        stream: StreamId::new(fields.need("stream")?).map_err(|_| Code::InvalidIdentifier)?,
        index: fields.integer("index")?.ok_or(Code::InvalidChunkIndex)?,
        media: Media::parse(fields.need("media")?).ok_or(Code::InvalidMediaType)?,
        started: Timestamp::parse(fields.need("started")?)?,
        ended: Timestamp::parse(fields.need("ended")?)?,
        length,
        sha256,
        name: fields.display("name")?,
        role: fields.string("role")?.map(parse_role).transpose()?,
        group: fields.string("group")?.map(GroupId::new).transpose().map_err(|_| Code::InvalidIdentifier)?,
        segment: fields.string("segment")?.map(Into::into),
        sequence: fields.integer("sequence")?,
        source: fields.string("source")?.map(Into::into),
        clock: fields.string("clock")?.map(Into::into),
        profile: fields.word("profile", Profile::parse)?,
        priority: fields.word("priority", Priority::parse)?,
        attempt: fields.integer("attempt")?.unwrap_or(1),
        sig: fields.signature()?,
    };
    offer.check()?;
    Ok(offer)
}

/// Writes `Waystation-Chunk`. An identifier that no string can carry is left out, and the relay
/// then refuses the offer by name.
#[must_use]
pub fn write_offer(offer: &Offer) -> String {
    let mut dict = DictSerializer::new();
    let mut text = |key: &str, value: &str| {
        if let (Ok(key), Ok(value)) = (KeyRef::from_str(key), StringRef::from_str(value)) {
            dict.bare_item(key, value);
        }
    };
    text("incident", offer.incident.as_str());
    text("stream", offer.stream.as_str());
    text("media", offer.media.as_str());
    text("started", offer.started.as_str());
    text("ended", offer.ended.as_str());
    let optional = [
        ("role", offer.role.map(Variant::as_str)),
        ("group", offer.group.as_ref().map(GroupId::as_str)),
        ("segment", offer.segment.as_deref()),
        ("source", offer.source.as_deref()),
        ("clock", offer.clock.as_deref()),
        ("profile", offer.profile.map(Profile::as_str)),
        ("priority", offer.priority.map(Priority::as_str)),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            text(key, value);
        }
    }
    let numbers = [
        ("index", Some(offer.index)),
        ("length", Some(offer.length)),
        ("sequence", offer.sequence),
        ("attempt", Some(offer.attempt)),
    ];
    for (key, value) in numbers {
        let value = value.and_then(|value| sfv::Integer::try_from(value).ok());
        if let (Ok(key), Some(value)) = (KeyRef::from_str(key), value) {
            dict.bare_item(key, value);
        }
    }
    if !offer.name.is_empty()
        && let Ok(key) = KeyRef::from_str("name")
    {
        dict.bare_item(key, RefBareItem::DisplayString(&offer.name));
    }
    if let (Some(sig), Ok(key)) = (&offer.sig, KeyRef::from_str("sig")) {
        dict.bare_item(key, &sig[..]);
    }
    dict.finish().unwrap_or_default()
}

/// Reads the SHA-256 of `Repr-Digest` (RFC 9530 §3); other algorithms are ignored.
///
/// # Errors
/// [`Code::InvalidDigest`] if there is none, or it is not 32 bytes.
pub fn parse_digest(header: &str) -> Result<Digest, Code> {
    let fields = Fields::parse(header).ok_or(Code::InvalidDigest)?;
    match fields.get("sha-256") {
        Some(BareItem::ByteSequence(bytes)) => bytes.as_slice().try_into().map(Digest).map_err(|_| Code::InvalidDigest),
        _ => Err(Code::InvalidDigest),
    }
}

/// Writes `Repr-Digest`.
#[must_use]
pub fn write_digest(digest: &Digest) -> String {
    use base64::Engine as _;
    format!("sha-256=:{}:", base64::engine::general_purpose::STANDARD.encode(digest.0))
}

/// Writes `Waystation-Hint`: the members of `HINT` (`protocol.md`, 7.2), shares of room with two
/// decimals.
#[must_use]
pub fn write_hint(hint: &Hint) -> String {
    let mut members = Vec::new();
    let numbers = [("core_limited_s", hint.core_limited_s), ("rate", hint.rate), ("chunk_ms", hint.chunk_ms)];
    for (key, value) in numbers {
        // An RFC 9651 integer has at most 15 digits.
        members.extend(value.map(|value| format!("{key}={}", value.min(999_999_999_999_999))));
    }
    if hint.core_away == Some(true) {
        members.push("core_away".into());
    }
    if let Some(pressure) = hint.pressure {
        let shares = pressure.map(|share| format!("{:.2}", share.clamp(0.0, 1.0)));
        members.push(format!("pressure=({})", shares.join(" ")));
    }
    if let Some(lanes) = &hint.lanes {
        let lanes: Vec<_> = lanes.iter().map(|lane| format!("\"{lane}\"")).collect();
        members.push(format!("lanes=({})", lanes.join(" ")));
    }
    members.join(", ")
}

/// What `Waystation-Watch` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchHeader {
    /// Which variants; `None`: every watchable lane.
    pub lanes: Option<Vec<Variant>>,
    /// Where to begin.
    pub from: Option<StartAt>,
    /// Cursor of an earlier subscription.
    pub cursor: Option<String>,
    /// The contact asks for the bytes of each chunk by itself: none are sent here.
    pub bare: bool,
}

/// Reads `Waystation-Watch: lanes=("audio_priority"), from="oldest", cursor="…"`. A chunk to
/// begin at is `from="<stream>/<index>"`; `pieces=?0` asks for no bytes.
///
/// # Errors
/// [`Code::ProtocolError`] for anything that is not that.
pub fn parse_watch(header: &str) -> Result<WatchHeader, Code> {
    let fields = Fields::parse(header).ok_or(Code::ProtocolError)?;
    let lanes = match fields.dict.get("lanes") {
        None => None,
        Some(ListEntry::InnerList(list)) => {
            let read = |item: &sfv::Item| {
                item.bare_item.as_string().and_then(|text| Variant::parse(text.as_str())).ok_or(Code::ProtocolError)
            };
            Some(list.items.iter().map(read).collect::<Result<Vec<_>, _>>()?)
        }
        Some(ListEntry::Item(_)) => return Err(Code::ProtocolError),
    };
    let bad = |_| Code::ProtocolError;
    let from = match fields.string("from").map_err(bad)? {
        None => None,
        Some("live") => Some(StartAt::Word(StartWord::Live)),
        Some("oldest") => Some(StartAt::Word(StartWord::Oldest)),
        Some(at) => {
            let (stream, index) = at.rsplit_once('/').ok_or(Code::ProtocolError)?;
            let stream = StreamId::new(stream).map_err(|_| Code::ProtocolError)?;
            Some(StartAt::At { stream, index: index.parse().map_err(|_| Code::ProtocolError)? })
        }
    };
    let bare = match fields.dict.get("pieces").map(|_| fields.get("pieces")) {
        None => false,
        Some(Some(BareItem::Boolean(pieces))) => !pieces,
        Some(_) => return Err(Code::ProtocolError),
    };
    Ok(WatchHeader { lanes, from, cursor: fields.string("cursor").map_err(bad)?.map(Into::into), bare })
}

/// A parsed dictionary and typed look-ups in it.
struct Fields {
    dict: Dictionary,
}

impl Fields {
    fn parse(header: &str) -> Option<Self> {
        if header.len() > MAX_HEADER_BYTES {
            return None;
        }
        Parser::new(header).parse().ok().map(|dict| Self { dict })
    }

    fn get(&self, key: &str) -> Option<&BareItem> {
        match self.dict.get(key)? {
            ListEntry::Item(item) => Some(&item.bare_item),
            ListEntry::InnerList(_) => None,
        }
    }

    fn string(&self, key: &str) -> Result<Option<&str>, Code> {
        match self.dict.get(key).map(|_| self.get(key)) {
            None => Ok(None),
            Some(Some(BareItem::String(text))) => Ok(Some(text.as_str())),
            Some(_) => Err(Code::InvalidChunkHeader),
        }
    }

    fn need(&self, key: &str) -> Result<&str, Code> {
        self.string(key)?.ok_or(Code::InvalidChunkHeader)
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, Code> {
        match self.dict.get(key).map(|_| self.get(key)) {
            None => Ok(None),
            Some(Some(BareItem::Integer(value))) => {
                u64::try_from(i64::from(*value)).map(Some).map_err(|_| Code::InvalidChunkHeader)
            }
            Some(_) => Err(Code::InvalidChunkHeader),
        }
    }

    fn display(&self, key: &str) -> Result<String, Code> {
        match self.dict.get(key).map(|_| self.get(key)) {
            None => Ok(String::new()),
            Some(Some(BareItem::DisplayString(text))) => Ok(text.clone()),
            Some(_) => Err(Code::InvalidChunkHeader),
        }
    }

    fn word<T>(&self, key: &str, parse: fn(&str) -> Option<T>) -> Result<Option<T>, Code> {
        self.string(key)?.map(|text| parse(text).ok_or(Code::InvalidChunkHeader)).transpose()
    }

    fn signature(&self) -> Result<Option<[u8; 64]>, Code> {
        match self.dict.get("sig").map(|_| self.get("sig")) {
            None => Ok(None),
            Some(Some(BareItem::ByteSequence(bytes))) => {
                bytes.as_slice().try_into().map(Some).map_err(|_| Code::SignatureInvalid)
            }
            Some(_) => Err(Code::SignatureInvalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = r#"incident="inc_1", stream="str_1", index=1, media="video", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;

    fn sha() -> Digest {
        Digest([7; 32])
    }

    #[test]
    fn the_shortest_header_is_enough_with_a_content_length() {
        let offer = parse_offer(HEADER, sha(), Some(10)).unwrap();
        assert_eq!((offer.index, offer.length, offer.attempt), (1, 10, 1));
        assert_eq!(parse_offer(HEADER, sha(), None), Err(Code::LengthRequired));
        assert_eq!(parse_offer(&format!("{HEADER}, length=9"), sha(), Some(10)), Err(Code::LengthMismatch));
        assert_eq!(parse_offer(&format!("{HEADER}, length=9"), sha(), None).unwrap().length, 9);
        assert!(parse_offer(&format!("{HEADER}, later=?1;x=1"), sha(), Some(10)).is_ok(), "unknown keys are ignored");
    }

    #[test]
    fn each_broken_rule_has_its_code() {
        let cases = [
            (HEADER.replace("index=1", "index=0"), Code::InvalidChunkIndex),
            (HEADER.replace("index=1", "index=-1"), Code::InvalidChunkHeader),
            (HEADER.replace("\"video\"", "\"film\""), Code::InvalidMediaType),
            (HEADER.replace("12:00:02Z", "11:00:02Z"), Code::InvalidTime),
            (HEADER.replace("inc_1", "inc 1"), Code::InvalidIdentifier),
            (HEADER.replace("inc_1", ""), Code::InvalidIdentifier),
            (format!("{HEADER}, attempt=0"), Code::InvalidAttempt),
            (format!("{HEADER}, role=\"preview_only\""), Code::RoleRefused),
            (format!("{HEADER}, role=\"x\""), Code::InvalidRole),
            (format!("{HEADER}, sig=:AAAA:"), Code::SignatureInvalid),
            (format!("{HEADER}, name=\"plain string\""), Code::InvalidChunkHeader),
            ("incident=".into(), Code::InvalidChunkHeader),
            ("x".repeat(MAX_HEADER_BYTES + 1), Code::InvalidChunkHeader),
        ];
        for (header, code) in cases {
            assert_eq!(parse_offer(&header, sha(), Some(1)), Err(code), "{header}");
        }
    }

    #[test]
    fn a_hint_is_a_dictionary() {
        let hint = Hint {
            core_limited_s: Some(60),
            core_away: Some(true),
            pressure: Some([0.0, 0.125, 1.5, f32::NAN]),
            rate: Some(u64::MAX),
            lanes: Some(vec![Variant::AudioPriority, Variant::LivePreview]),
            chunk_ms: Some(4000),
        };
        let text = write_hint(&hint);
        let read: Dictionary = Parser::new(&text).parse().unwrap();
        assert_eq!(read.keys().count(), 6);
        let Some(ListEntry::InnerList(lanes)) = read.get("lanes") else { panic!("{text}") };
        assert_eq!(lanes.items.len(), 2);
        let calm = Hint { core_away: Some(false), ..Hint::default() };
        assert_eq!(write_hint(&calm), "");
        assert_eq!(write_hint(&Hint { pressure: Some([0.0; 4]), ..calm }), "pressure=(0.00 0.00 0.00 0.00)");
    }

    #[test]
    fn digests_and_watch_headers() {
        assert_eq!(parse_digest(&write_digest(&sha())), Ok(sha()));
        assert_eq!(parse_digest("sha-512=:AAAA:"), Err(Code::InvalidDigest));
        assert_eq!(parse_digest("sha-256=:AAAA:"), Err(Code::InvalidDigest));
        let watch = parse_watch(r#"lanes=("audio_priority"), from="oldest", cursor="abc""#).unwrap();
        assert_eq!(watch.lanes, Some(vec![Variant::AudioPriority]));
        assert_eq!(watch.from, Some(StartAt::Word(StartWord::Oldest)));
        assert_eq!(parse_watch(""), Ok(WatchHeader::default()));
        assert!(parse_watch("lanes=(\"x\")").is_err());
        assert!(parse_watch("pieces=?0").unwrap().bare);
        assert!(!parse_watch("pieces").unwrap().bare);
        assert!(parse_watch("pieces=0").is_err());
    }

    proptest! {
        #[test]
        fn offers_round_trip(
            index in 1u64..1_000_000, length in 1u64..1 << 40, attempt in 1u64..99,
            name in "[a-zé \"%]{0,20}", sequence in prop::option::of(0u64..1 << 40), role in 0usize..5, signed: bool,
        ) {
            let mut offer = parse_offer(HEADER, sha(), Some(length)).unwrap();
            offer.index = index;
            offer.attempt = attempt;
            offer.name = name;
            offer.sequence = sequence;
            offer.role = Some(Variant::ALL[role]);
            offer.profile = Some(Profile::FullQuality);
            offer.priority = Some(Priority::Preservation);
            offer.group = GroupId::new("grp").ok();
            offer.segment = Some("s".into());
            offer.sig = signed.then_some([9; 64]);
            prop_assert_eq!(parse_offer(&write_offer(&offer), sha(), None), Ok(offer));
        }

        #[test]
        fn no_header_panics(text in ".{0,300}") {
            let _ = parse_offer(&text, sha(), Some(1));
            let _ = parse_digest(&text);
            let _ = parse_watch(&text);
        }
    }
}
