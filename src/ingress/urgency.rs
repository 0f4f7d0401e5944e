//! In which order the answers on one HTTP/3 connection go out: as the request's `priority` asks (RFC
//! 9218), else sound before picture. A contact asks for the next chunk of each lane ahead, and a lost
//! packet of one answer holds up no other.

use http::HeaderMap;

use crate::proto::Variant;

/// From 0, which goes first, to 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Urgency(u8);

impl Urgency {
    /// What a request has that says nothing.
    const USUAL: u8 = 3;

    /// A chunk of this lane, where its request says nothing.
    pub(super) const fn of_lane(variant: Variant) -> Self {
        match variant {
            Variant::AudioPriority => Self(Self::USUAL - 1),
            _ => Self(Self::USUAL + 1),
        }
    }

    /// What a request asks for.
    pub(super) fn asked(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all("priority").iter().filter_map(|value| value.to_str().ok());
        let mut members = values.flat_map(|value| value.split(',')).map(str::trim);
        // Of a key that comes twice the last one counts (RFC 9651).
        let urgency = members.rfind(|member| member.starts_with("u="))?.get(2..)?;
        urgency.parse().ok().filter(|urgency| *urgency <= 7).map(Self)
    }

    /// The same for a QUIC stream: the higher goes first. Of equal ones the older request does.
    pub(super) fn priority(self, stream: u64) -> i32 {
        const STEP: i32 = 1 << 24;
        let age = i32::try_from((stream / 4) % (1 << 20)).unwrap_or(0);
        (i32::from(Self::USUAL) - i32::from(self.0)) * STEP - age
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn of(values: &[&str]) -> Option<u8> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("priority", HeaderValue::from_str(value).unwrap());
        }
        Urgency::asked(&headers).map(|urgency| urgency.0)
    }

    #[test]
    fn a_request_may_say_how_urgent_it_is() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["i"]), None);
        assert_eq!(of(&["u=0"]), Some(0));
        assert_eq!(of(&["u=7, i"]), Some(7));
        assert_eq!(of(&["i, u=5"]), Some(5));
        assert_eq!(of(&["u=1", "u=6"]), Some(6));
        for wrong in ["u=8", "u=-1", "u=", "u=x", "U=1", "u"] {
            assert_eq!(of(&[wrong]), None, "{wrong}");
        }
    }

    #[test]
    fn sound_goes_before_pictures_and_the_older_request_before_the_newer() {
        let (sound, picture) = (Urgency::of_lane(Variant::AudioPriority), Urgency::of_lane(Variant::LivePreview));
        assert!(sound.priority(4 * 900_000) > picture.priority(0));
        assert!(sound.priority(0) > sound.priority(4));
        assert!(Urgency(0).priority(4000) > sound.priority(0) && picture.priority(0) > Urgency(7).priority(0));
        assert!(sound.priority(8) > 0 && picture.priority(8) < 0, "on both sides of what has no order");
    }

    proptest! {
        #[test]
        fn no_header_panics(value in prop::collection::vec(0x20u8..=0xff, 0..40), stream in any::<u64>()) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let headers = HeaderMap::from_iter([(http::HeaderName::from_static("priority"), value)]);
                let _ = Urgency::asked(&headers).map(|urgency| urgency.priority(stream));
            }
        }
    }
}
