//! The header of the payload frame the core insists on (contract A.7). The ciphertext behind it is
//! never looked at.

/// First bytes of a frame: magic, line feed and version.
const MAGIC: &[u8] = b"PLPQENC1\n\x01";
/// Magic, version and header length.
const FIXED_BYTES: usize = 14;
/// Longest header.
const MAX_HEADER_BYTES: usize = 16_384;
/// As many first bytes of a file as [`accepts`] can need: all of the header and one more.
pub(crate) const HEAD_BYTES: usize = FIXED_BYTES + MAX_HEADER_BYTES + 1;

/// What the header must say of itself.
pub(crate) struct Identity<'a> {
    pub(crate) incident: &'a str,
    pub(crate) stream: &'a str,
    pub(crate) media: &'a str,
    pub(crate) index: u64,
}

/// Whether a file that begins with `head` (its first [`HEAD_BYTES`], or all of it) is a frame for
/// exactly this chunk.
pub(crate) fn accepts(head: &[u8], identity: &Identity<'_>) -> bool {
    fields(head).is_some_and(|fields| fit(&fields, identity))
}

/// The header's fields; `None` if it is not whole, too long, or nothing follows it.
fn fields(head: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let rest = head.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if length == 0 || length > MAX_HEADER_BYTES || rest.len() <= length {
        return None;
    }
    let mut header = &rest[..length];
    let mut fields = Vec::with_capacity(11);
    while !header.is_empty() {
        let (name_length, after) = header.split_first_chunk::<2>()?;
        let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*name_length)))?;
        let (value_length, after) = after.split_first_chunk::<4>()?;
        let value_length = usize::try_from(u32::from_be_bytes(*value_length)).ok()?;
        let (value, after) = after.split_at_checked(value_length)?;
        fields.push((name, value));
        header = after;
    }
    Some(fields)
}

fn fit(fields: &[(&[u8], &[u8])], identity: &Identity<'_>) -> bool {
    let index = identity.index.to_string();
    // `None`: any value will do.
    let expected: [(&str, Option<&str>); 11] = [
        ("scheme", Some("proofline-pq-envelope-v1")),
        ("suite_id", Some("proofline-pq-mlkem768-hkdfsha384-aes256gcm-v1")),
        ("digest", Some("SHA-384")),
        ("envelope_id", None),
        ("incident_id", Some(identity.incident)),
        ("stream_id", Some(identity.stream)),
        ("media_type", Some(identity.media)),
        ("chunk_index", Some(&index)),
        ("payload_type", Some("chunk")),
        ("payload_aead", Some("AES-256-GCM")),
        ("payload_nonce", None),
    ];
    let broken = |text: &str| text.contains(['\r', '\n']);
    if [identity.incident, identity.stream, identity.media].into_iter().any(broken) || identity.index == 0 {
        return false;
    }
    fields.len() == expected.len()
        && fields.iter().zip(expected).all(|((name, value), (wanted, text))| {
            let nonce = wanted != "payload_nonce" || value.len() == 12;
            *name == wanted.as_bytes() && text.is_none_or(|text| *value == text.as_bytes()) && nonce
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;

    #[test]
    fn every_frame_vector() {
        let vectors = vectors::load();
        let frames = &vectors["pq_payload_frame"];
        let (good, bad) = (frames["frames"].as_array().unwrap(), frames["rejected"].as_array().unwrap());
        assert_eq!((good.len(), bad.len()), (3, 13));
        for (cases, expected) in [(good, true), (bad, false)] {
            for case in cases {
                let frame = vectors::unhex(case["frame_hex"].as_str().unwrap());
                let id = &case["identity"];
                let identity = Identity {
                    incident: id["incident_id"].as_str().unwrap(),
                    stream: id["stream_id"].as_str().unwrap(),
                    media: id["media_type"].as_str().unwrap(),
                    index: id["chunk_index"].as_u64().unwrap(),
                };
                assert_eq!(accepts(&frame, &identity), expected, "{case}");
                assert_eq!(accepts(&frame[..frame.len().min(HEAD_BYTES)], &identity), expected);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let mut frame = MAGIC.to_vec();
            frame.extend(bytes);
            let identity = Identity { incident: "i", stream: "s", media: "audio", index: 1 };
            proptest::prop_assert!(!accepts(&frame, &identity));
        }
    }
}
