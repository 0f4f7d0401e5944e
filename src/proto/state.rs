//! The states of a chunk, as the uploader and as a contact see it (design, "Words").

use crate::media::words;

words! {
    /// What the relay says of a chunk to those who upload.
    ChunkState {
        /// Bytes are coming or are awaited.
        Receiving = "receiving",
        /// Whole, hashed and synced here. Not evidence, not saved, not safe.
        Staged = "staged",
        /// Being sent to the core.
        Forwarding = "forwarding",
        /// Its capability ran out; any capability for that stream releases it.
        AwaitingCapability = "awaiting_capability",
        /// The core may have stored it: an answer was lost and the retry says "duplicate".
        Unsettled = "unsettled",
        /// The core answered 200 or 201 for these bytes.
        Confirmed = "confirmed",
        /// The core refused these bytes for good.
        Rejected = "rejected",
        /// It stayed unconfirmed for `keep_for`.
        Expired = "expired",
    }
}

impl ChunkState {
    /// The relay holds the complete bytes.
    #[must_use]
    pub const fn held(self) -> bool {
        matches!(self, Self::Staged | Self::Forwarding | Self::AwaitingCapability | Self::Unsettled)
    }

    /// Nothing follows.
    #[must_use]
    pub const fn ended(self) -> bool {
        matches!(self, Self::Confirmed | Self::Rejected | Self::Expired)
    }
}

words! {
    /// What the relay says of a chunk to a contact.
    ContactState {
        /// Its first bytes are here, its last are not.
        Arriving = "arriving",
        /// Whole at the relay; the core has not answered.
        NearLiveUnconfirmed = "near_live_unconfirmed",
        /// The core confirmed it.
        Confirmed = "confirmed",
        /// The core refused it.
        Rejected = "rejected",
        /// The core may have it.
        Unsettled = "unsettled",
        /// It expired here, unconfirmed.
        TerminalFailure = "terminal_failure",
        /// What arrived is not that chunk.
        Withdrawn = "withdrawn",
    }
}

impl From<ChunkState> for ContactState {
    fn from(state: ChunkState) -> Self {
        match state {
            ChunkState::Receiving => Self::Arriving,
            ChunkState::Staged | ChunkState::Forwarding | ChunkState::AwaitingCapability => Self::NearLiveUnconfirmed,
            ChunkState::Unsettled => Self::Unsettled,
            ChunkState::Confirmed => Self::Confirmed,
            ChunkState::Rejected => Self::Rejected,
            ChunkState::Expired => Self::TerminalFailure,
        }
    }
}
