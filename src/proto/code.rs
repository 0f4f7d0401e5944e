//! The error table: every code the relay can answer, its HTTP status, what the asker may do next
//! and whose fault it is. `docs/errors.md` is this table in prose; a test compares them.

use crate::media::words;

words! {
    /// What the asker may do next (`wire.md`, "Native HTTP").
    Retry {
        /// Again at once.
        Now = "now",
        /// Again after `Retry-After`.
        Later = "later",
        /// With a new capability.
        Renew = "renew",
        /// Ask the core what it has (contract A.8).
        Reconcile = "reconcile",
        /// Not unchanged.
        Never = "never",
    }
}

/// Whose doing an error is: decides what may be held against a client (contract C23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The one who asked.
    Client,
    /// This relay: a limit, a full disk, a defect.
    Relay,
    /// The core, or the way to it.
    Core,
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Stable name, `[a-z0-9_]+`: the contract. Clients branch on it.
    pub name: &'static str,
    /// HTTP status.
    pub status: u16,
    /// What may be done next.
    pub retry: Retry,
    /// Whose doing it is.
    pub fault: Fault,
    /// Safe text for people; may change.
    pub message: &'static str,
}

macro_rules! codes {
    ($($variant:ident = $name:literal, $status:literal, $retry:ident, $fault:ident, $message:literal;)+) => {
        /// Every stable error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $message] $variant),+ }

        impl Code {
            /// Every code, in the table's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its line of the table.
            #[must_use]
            pub const fn spec(self) -> Spec {
                match self {
                    $(Self::$variant => Spec {
                        name: $name, status: $status, retry: Retry::$retry, fault: Fault::$fault, message: $message,
                    }),+
                }
            }

            /// Reads a code's name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

codes! {
    // The request as such.
    NotFound = "not_found", 404, Never, Client, "There is nothing here for this bearer.";
    MethodNotAllowed = "method_not_allowed", 405, Never, Client, "This method is not served here.";
    BadRequest = "bad_request", 400, Never, Client, "The request is not well formed.";
    OriginNotAllowed = "origin_not_allowed", 403, Never, Client, "This origin is not in the relay's list.";

    // Capabilities.
    CapabilityMissing = "capability_missing", 401, Renew, Client, "A capability is needed.";
    CapabilityInvalid = "capability_invalid", 401, Never, Client, "The capability is not valid.";
    CapabilityNotKnown = "capability_not_known", 401, Now, Client, "This connection knows no capability of that name; send it whole.";
    CapabilityExpired = "capability_expired", 401, Renew, Client, "The capability has run out.";
    CapabilityWrongUse = "capability_wrong_use", 403, Never, Client, "The capability is for another use.";
    CapabilityWrongBinding = "capability_wrong_binding", 403, Never, Client, "The capability is for something else.";
    CapabilityLimitExceeded = "capability_limit_exceeded", 403, Renew, Client, "The capability does not reach that far.";
    CapabilityRevoked = "capability_revoked", 403, Never, Client, "The capability was revoked.";
    CapabilityUnverifiable = "capability_unverifiable", 503, Later, Core, "The capability can't be verified without the core, which is away.";
    SignatureRequired = "signature_required", 403, Never, Client, "This capability asks for signed offers.";
    SignatureInvalid = "signature_invalid", 403, Never, Client, "The offer's signature does not verify.";

    // Offers.
    InvalidChunkHeader = "invalid_chunk_header", 400, Never, Client, "Waystation-Chunk is missing, malformed or incomplete.";
    InvalidIdentifier = "invalid_identifier", 400, Never, Client, "An identifier is empty, too long or has odd characters.";
    InvalidChunkIndex = "invalid_chunk_index", 400, Never, Client, "Chunk indexes count from 1.";
    InvalidMediaType = "invalid_media_type", 400, Never, Client, "Media is audio, video, location or metadata.";
    InvalidTime = "invalid_time", 400, Never, Client, "Times are RFC 3339, and the end does not precede the start.";
    InvalidDigest = "invalid_digest", 400, Never, Client, "A SHA-256 of the bytes is needed.";
    InvalidAttempt = "invalid_attempt", 400, Never, Client, "Attempts count from 1.";
    InvalidRole = "invalid_role", 400, Never, Client, "That is no variant role.";
    RoleRefused = "role_refused", 400, Never, Client, "This variant role is refused by name.";
    RefMismatch = "ref_mismatch", 400, Never, Client, "The URL names another chunk than the header.";
    LengthRequired = "length_required", 411, Never, Client, "A length is needed: Content-Length or the dictionary's.";
    LengthMismatch = "length_mismatch", 400, Never, Client, "The two lengths differ, or the length is zero.";
    ChunkTooLarge = "chunk_too_large", 413, Never, Client, "The chunk is larger than this relay or the capability takes.";

    // Bytes.
    HashMismatch = "hash_mismatch", 400, Now, Client, "The bytes are not those of the digest; they were dropped.";
    BodyTooLong = "body_too_long", 400, Never, Client, "More bytes came than were offered.";
    BodyIncomplete = "body_incomplete", 400, Now, Client, "Fewer bytes came than were offered; what came is kept, go on from the offset.";
    OffsetMismatch = "offset_mismatch", 409, Now, Client, "Go on from the offset in the answer.";
    BodyStalled = "body_stalled", 408, Now, Client, "No byte came for too long; what came is kept.";

    ChecksumMismatch = "checksum_mismatch", 460, Now, Client, "The part is not what its checksum says; it was dropped.";
    UnsupportedChecksum = "unsupported_checksum", 400, Never, Client, "Upload-Checksum is malformed, or of another algorithm than sha1 and sha256.";

    // Dialects.
    UnsupportedUploadVersion = "unsupported_upload_version", 400, Never, Client, "Tus-Resumable is needed, or an Upload-Draft-Interop-Version of 3, 5, 6 or 8; not both.";
    UnsupportedTusVersion = "unsupported_tus_version", 412, Never, Client, "Only tus 1.0.0 is spoken here.";
    UnsupportedMediaType = "unsupported_media_type", 415, Never, Client, "This dialect sends its parts as another media type.";
    InvalidUploadMetadata = "invalid_upload_metadata", 400, Never, Client, "Upload-Metadata is missing, malformed or incomplete.";
    UploadCompleted = "upload_completed", 400, Never, Client, "The chunk is confirmed; nothing can be appended to it.";

    // State.
    ChunkConflict = "chunk_conflict", 409, Reconcile, Client, "Other bytes are staged or confirmed under this identity.";
    ChunkStaged = "chunk_staged", 409, Never, Client, "The chunk is staged; no request deletes it.";
    AttemptSuperseded = "attempt_superseded", 409, Never, Client, "A newer attempt took over.";
    ConfirmationPending = "confirmation_pending", 503, Later, Relay, "The bytes are staged here; the core has not answered. Do not send them again.";
    AwaitingCapability = "awaiting_capability", 503, Renew, Client, "The bytes are staged here; their capability is good no longer. Another one releases them.";
    ChunkUnsettled = "chunk_unsettled", 409, Reconcile, Core, "The core may have stored it; only reconciling with the core tells.";
    ChunkExpired = "chunk_expired", 410, Now, Relay, "It stayed unconfirmed for too long and was let go.";
    CoreRejected = "core_rejected", 409, Never, Core, "The core refused it; core_code says why.";
    DuplicateChunk = "duplicate_chunk", 409, Reconcile, Core, "The core has a chunk under this identity; ask it which.";

    // The core.
    CoreUnavailable = "core_unavailable", 503, Later, Core, "The core does not answer.";
    CoreLimited = "core_limited", 503, Later, Core, "The core asks this relay to slow down.";
    CoreRefusesRelay = "core_refuses_relay", 503, Later, Core, "The core does not accept this relay; its operator is told.";
    AccountQuota = "account_quota", 507, Later, Core, "The account's storage at the core is full.";

    // Limits of this relay.
    StagingFull = "staging_full", 507, Later, Relay, "No room is left for this class of chunk.";
    SessionQuota = "session_quota", 507, Later, Relay, "This session holds its share of the room.";
    StagingFailed = "staging_failed", 503, Later, Relay, "The disk failed; nothing was kept.";
    InFlightPerSession = "in_flight_per_session", 429, Later, Client, "Too many chunks of this session are being received.";
    InFlightPerClient = "in_flight_per_client", 429, Later, Client, "Too many chunks from this address are being received.";
    ReceivingFull = "receiving_full", 503, Later, Relay, "Too many chunks are being received in all.";
    TooManyRequests = "too_many_requests", 429, Later, Client, "Too many requests from this address without a verified capability.";
    TooManyConnections = "too_many_connections", 503, Later, Relay, "Too many connections are open.";
    TooManyContacts = "too_many_contacts", 429, Later, Client, "Too many contacts watch this group.";
    HeaderTimeout = "header_timeout", 408, Now, Client, "The request did not come in time.";
    HeadersTooLarge = "headers_too_large", 431, Never, Client, "The headers are too large.";
    Draining = "draining", 503, Later, Relay, "This relay is going away; use another or come back.";
    NotReady = "not_ready", 503, Later, Relay, "This relay takes no bytes now.";
    InternalError = "internal_error", 500, Later, Relay, "Something went wrong here.";

    // Watching.
    NotWatchable = "not_watchable", 403, Never, Client, "This lane is not shown to contacts.";
    ChunkNotInWindow = "chunk_not_in_window", 404, Later, Relay, "The chunk is not in the window.";
    ContactTooSlow = "contact_too_slow", 408, Now, Client, "The contact read nothing for too long.";

    // Frames.
    ProtocolError = "protocol_error", 400, Never, Client, "A frame is malformed or out of order.";
    FrameTooLarge = "frame_too_large", 413, Never, Client, "A frame is larger than the relay takes.";
    FirstMessageTimeout = "first_message_timeout", 408, Now, Client, "The first message did not come in time.";
    UnsupportedProtocol = "unsupported_protocol", 400, Never, Client, "Only protocol 1 is spoken here.";
    UnknownHandle = "unknown_handle", 400, Never, Client, "No offer has this handle.";
    CreditExceeded = "credit_exceeded", 400, Never, Client, "More bytes came than credit was given for.";
    TooManyOffers = "too_many_offers", 429, Later, Client, "Too many offers are open on this connection.";
    TooManyCapabilities = "too_many_capabilities", 429, Later, Client, "Too many capabilities are held by this connection.";

    // Drop-in routes (contract B.3, B.4): names and statuses are the existing relay's.
    InvalidMultipart = "invalid_multipart", 400, Never, Client, "The body is not multipart, or broken.";
    UnexpectedField = "unexpected_field", 400, Never, Client, "A field is not known here.";
    DuplicateField = "duplicate_field", 400, Never, Client, "A field came twice.";
    MetadataTooLarge = "metadata_too_large", 400, Never, Client, "A field is over 65,536 bytes.";
    MetadataAfterFile = "metadata_after_file", 400, Never, Client, "Fields come before the file.";
    DuplicateFile = "duplicate_file", 400, Never, Client, "One file is taken.";
    MissingFile = "missing_file", 400, Never, Client, "The file is missing.";
    InvalidRelayRequest = "invalid_relay_request", 400, Never, Client, "A field is missing.";
    InvalidStartedAt = "invalid_started_at", 400, Never, Client, "started_at is not RFC 3339.";
    InvalidEndedAt = "invalid_ended_at", 400, Never, Client, "ended_at is not RFC 3339 or precedes started_at.";
    InvalidByteSize = "invalid_byte_size", 400, Never, Client, "byte_size is a positive number.";
    InvalidSha256Hex = "invalid_sha256_hex", 400, Never, Client, "sha256_hex is 64 characters 0-9a-f.";
    UploadTooLarge = "upload_too_large", 413, Never, Client, "The chunk is larger than this relay takes.";
    ByteSizeMismatch = "byte_size_mismatch", 400, Never, Client, "The file is not byte_size long.";
    RelayChunkInProgress = "relay_chunk_in_progress", 409, Later, Client, "This chunk is being received.";
    RelaySessionInFlight = "relay_session_in_flight_limit_exceeded", 429, Later, Client, "Too many chunks of this session are being received.";
    RelayClientInFlight = "relay_client_in_flight_limit_exceeded", 429, Later, Client, "Too many chunks from this address are being received.";
    CorePreflightRejected = "core_preflight_rejected", 409, Never, Core, "The core refused the offer.";
    CoreCommitRejected = "core_commit_rejected", 409, Never, Core, "The core refused the chunk.";
    CoreFanoutRejected = "core_fanout_rejected", 403, Never, Core, "The core refused the subscription.";
    CorePreflightUnavailable = "core_preflight_unavailable", 503, Later, Core, "The core did not answer the offer.";
    CoreCommitUnavailable = "core_commit_unavailable", 503, Later, Core, "The core did not answer the commit.";
    CoreFanoutUnavailable = "core_fanout_unavailable", 503, Later, Core, "The core did not answer the subscription.";
    CoreCommitInvalidResponse = "core_commit_invalid_response", 502, Later, Core, "The core's answer can't be read.";
    RelayTempStagingQuota = "relay_temp_staging_quota_exceeded", 507, Later, Relay, "No room is left.";
    RelayStagingFailed = "relay_staging_failed", 503, Later, Relay, "The disk failed, or the body broke off.";
    RelayCoreNotConfigured = "relay_core_not_configured", 503, Later, Relay, "No core is configured.";
    InvalidRelayFanoutRequest = "invalid_relay_fanout_request", 400, Never, Client, "A header is missing.";
    RelayFanoutLimit = "relay_fanout_limit_exceeded", 429, Later, Client, "Too many contacts watch this group.";
    RelayInternalError = "relay_internal_error", 500, Later, Relay, "Something went wrong here.";
}

impl Code {
    /// Stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.spec().status
    }

    /// What may be done next.
    #[must_use]
    pub const fn retry(self) -> Retry {
        self.spec().retry
    }

    /// WebSocket and QUIC application close code: 4000 + HTTP status, in the range RFC 6455
    /// leaves to applications.
    #[must_use]
    pub const fn close(self) -> u16 {
        4000 + self.spec().status
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            let spec = code.spec();
            assert!(seen.insert(spec.name), "{} twice", spec.name);
            assert!(spec.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            assert!((400..600).contains(&spec.status));
            assert_eq!(Code::parse(spec.name), Some(*code));
        }
    }
}
