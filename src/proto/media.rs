//! Media types, variant roles, priorities, profiles, and the order of mercy they lead to.

/// A closed word list on the wire: the enum, its text, and how to read it back.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every word, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Reads a word; `None` for any other text.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::parse(&text).ok_or_else(|| serde::de::Error::custom("unknown word"))
            }
        }
    };
}
pub(crate) use words;

words! {
    /// The core's media types (contract A.2).
    Media {
        /// Sound.
        Audio = "audio",
        /// Picture, with or without sound.
        Video = "video",
        /// Encrypted location context.
        Location = "location",
        /// Encrypted other context.
        Metadata = "metadata",
    }
}

words! {
    /// The variant role of a lane (design, "Words").
    Variant {
        /// Sound first: watchable.
        AudioPriority = "audio_priority",
        /// Picture at a low rate: watchable.
        LivePreview = "live_preview",
        /// Encrypted location.
        LocationContext = "location_context",
        /// Encrypted other context.
        MetadataContext = "metadata_context",
        /// Full quality; may come late.
        EvidenceMaster = "evidence_master",
    }
}

/// Roles that Waystation refuses by name, because each promises a deletion or a plaintext that
/// must not be (contract D, "Rejected roles").
pub const REFUSED_VARIANTS: [&str; 3] = ["preview_only", "delete_after_master", "gps_plaintext_live"];

impl Variant {
    /// Only these two are shown to contacts.
    #[must_use]
    pub const fn watchable(self) -> bool {
        matches!(self, Self::AudioPriority | Self::LivePreview)
    }

    /// What a capability that names no role counts as (design, "Words").
    #[must_use]
    pub const fn of_unlabelled(media: Media) -> Self {
        match media {
            Media::Audio => Self::AudioPriority,
            Media::Video => Self::LivePreview,
            Media::Location => Self::LocationContext,
            Media::Metadata => Self::MetadataContext,
        }
    }

    /// The role after the client's claim: a claim may take a lane out of sight, never into it.
    #[must_use]
    pub fn narrowed(self, claimed: Option<Self>) -> Self {
        match claimed {
            Some(claim) if self.watchable() && !claim.watchable() => claim,
            _ => self,
        }
    }

    /// Its class in the order of mercy.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::AudioPriority => Class::Audio,
            Self::LivePreview => Class::Preview,
            Self::LocationContext | Self::MetadataContext => Class::Context,
            Self::EvidenceMaster => Class::Master,
        }
    }
}

words! {
    /// The order of mercy (design, promise 5): what goes first when not everything can.
    Class {
        /// `audio_priority`.
        Audio = "audio",
        /// `live_preview`.
        Preview = "preview",
        /// `location_context` and `metadata_context`.
        Context = "context",
        /// `evidence_master`.
        Master = "master",
    }
}

impl Class {
    /// How many classes there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its place in arrays indexed by class; 0 goes first.
    #[must_use]
    pub const fn rank(self) -> usize {
        self as usize
    }
}

words! {
    /// Upload priority, as the client states it; forwarded to nobody, kept for the client.
    Priority {
        /// Wanted by contacts now.
        NearLive = "near_live",
        /// Wanted by the core soon.
        Preservation = "preservation",
        /// Whenever there is room.
        BackgroundQueue = "background_queue",
    }
}

words! {
    /// Quality profile of the rendition.
    Profile {
        /// Rate follows the link.
        AdaptiveLowLatency = "adaptive_low_latency",
        /// As recorded.
        FullQuality = "full_quality",
        /// Sound first.
        AudioPriority = "audio_priority",
        /// Location.
        LocationContext = "location_context",
        /// Other context.
        MetadataContext = "metadata_context",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_only_narrows() {
        use Variant::{AudioPriority, EvidenceMaster, LivePreview};
        assert_eq!(LivePreview.narrowed(Some(EvidenceMaster)), EvidenceMaster);
        assert_eq!(EvidenceMaster.narrowed(Some(LivePreview)), EvidenceMaster);
        assert_eq!(LivePreview.narrowed(Some(AudioPriority)), LivePreview);
        assert_eq!(LivePreview.narrowed(None), LivePreview);
    }

    #[test]
    fn refused_roles_are_no_words() {
        for name in REFUSED_VARIANTS {
            assert_eq!(Variant::parse(name), None);
        }
    }

    #[test]
    fn mercy_puts_sound_first_and_masters_last() {
        assert!(Class::Audio < Class::Preview);
        assert!(Class::Preview < Class::Context);
        assert!(Class::Context < Class::Master);
    }
}
