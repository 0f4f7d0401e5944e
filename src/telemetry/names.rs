//! Every metric name and every label value: the one place that names metrics. `docs/metrics.md`
//! lists them; a test compares.

/// Prefix of every name.
pub const PREFIX: &str = "waystation";

/// Names with what they are; the kind and the meaning stand where each is registered.
macro_rules! names {
    ($($name:ident = $text:literal),+ $(,)?) => {
        $(#[doc = concat!("`waystation_", $text, "`")] pub const $name: &str = $text;)+
    };
}

/// A closed set of label values.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The value as it is printed.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl prometheus_client::encoding::EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                use std::fmt::Write as _;
                encoder.write_str(self.as_str())
            }
        }
    };
}

label! {
    /// How a client is connected.
    Transport {
        /// HTTP/1.1.
        H1 = "h1",
        /// HTTP/2.
        H2 = "h2",
        /// HTTP/3.
        H3 = "h3",
        /// WebSocket.
        Ws = "ws",
    }
}

// Staging.
/// Gauge, seconds.
pub const OLDEST_UNCONFIRMED: &str = "oldest_unconfirmed_seconds";
/// Gauge.
pub const STAGED_CHUNKS: &str = "staged_chunks";
/// Gauge, bytes.
pub const STAGED_BYTES: &str = "staged_bytes";
/// Gauge, seconds.
pub const NEXT_EXPIRY: &str = "next_expiry_seconds";
/// Counter.
pub const CHUNK_ENDINGS: &str = "chunk_endings";
/// Gauge, bytes.
pub const STAGING_USED: &str = "staging_used_bytes";
/// Gauge, bytes.
pub const STAGING_QUOTA: &str = "staging_quota_bytes";
/// Gauge, ratio.
pub const STAGING_PRESSURE: &str = "staging_pressure_ratio";
/// Gauge.
pub const RECEIVING: &str = "receiving_chunks";
/// Counter.
pub const OFFERS_REFUSED: &str = "offers_refused";
/// Counter.
pub const DISK_ERRORS: &str = "disk_errors";
/// Counter.
pub const RECOVERED: &str = "recovered";
/// Counter.
pub const RELEASED: &str = "released_chunks";
/// Gauge, bytes.
pub const FRESH: &str = "staging_memory_bytes";
/// Counter.
pub const CLOCK_JUMPS: &str = "clock_jumps";
/// Commits whose answer is awaited.
pub const CORE_COMMITS_UNDER_WAY: &str = "core_commits_under_way";

// Calls to the core.
names! {
    CORE_REQUESTS = "core_requests",
    CORE_REQUEST_SECONDS = "core_request_seconds",
    CORE_LIMITED_SECONDS = "core_limited_seconds",
    CORE_BUDGET_PER_MINUTE = "core_budget_per_minute",
    CORE_REACHABLE = "core_reachable",
}

// Connections and requests.
names! {
    CONNECTIONS = "connections",
    CONNECTIONS_REFUSED = "connections_refused",
    HANDSHAKES_FAILED = "handshakes_failed",
    REQUESTS = "requests",
    WEBSOCKET_SESSIONS = "websocket_sessions",
    WEBSOCKET_SESSIONS_ENDED = "websocket_sessions_ended",
    RECEIVED_BYTES = "received_bytes",
    BODIES_DROPPED = "bodies_dropped",
    CAPTURE_REFUSED = "capture_refused",
    CAPABILITIES_NAMED = "capabilities_named",
}

// Contacts and windows.
names! {
    FANOUT_CONTACTS = "fanout_contacts",
    FANOUT_READERS = "fanout_readers",
    FANOUT_GROUPS = "fanout_groups",
    FANOUT_WINDOW = "fanout_window",
    FANOUT_DELIVERED_FRAMES = "fanout_delivered_frames",
    FANOUT_DELIVERED_BYTES = "fanout_delivered_bytes",
    FANOUT_OMITTED_CHUNKS = "fanout_omitted_chunks",
    FANOUT_WITHDRAWN_CHUNKS = "fanout_withdrawn_chunks",
    FANOUT_EVICTED_CHUNKS = "fanout_evicted_chunks",
    FANOUT_SUBSCRIPTION_ENDINGS = "fanout_subscription_endings",
    FANOUT_UNLABELLED_CHUNKS = "fanout_unlabelled_chunks",
    FANOUT_RECHECKS = "fanout_rechecks",
    FANOUT_PROOFLINE_CAPABILITIES = "fanout_proofline_capabilities",
    FANOUT_RECHECKS_OVERDUE = "fanout_rechecks_overdue",
}

// Tokens.
names! {
    CAPABILITY_READS = "capability_reads",
    CAPABILITY_CACHE_HITS = "capability_cache_hits",
    CAPABILITY_FETCHES = "capability_fetches",
    CAPABILITY_REVOKED = "capability_revoked",
}

label! {
    /// A step on the staging disk.
    DiskStep {
        /// Creating, writing or reopening a partial.
        Write = "write",
        /// Making a chunk durable.
        Commit = "commit",
        /// Reading a staged chunk.
        Read = "read",
        /// Removing what ended.
        Remove = "remove",
        /// A staged chunk whose bytes are not what they were.
        Corrupt = "corrupt",
    }
}

label! {
    /// What was found on the disk at start.
    Recovered {
        /// Whole chunks.
        Staged = "staged",
        /// Partials whose bytes can be trusted.
        Partial = "partial",
        /// Files that this seal key does not open: left where they are.
        Unreadable = "unreadable",
        /// Leftovers that were removed.
        Removed = "removed",
    }
}

label! {
    /// The core's routes that the relay calls.
    CoreRoute {
        /// Preflight.
        Preflight = "preflight",
        /// Authorisation of a contact.
        FanoutAuthorize = "fanout_authorize",
        /// Commit.
        Commit = "commit",
    }
}

label! {
    /// What became of a call to the core.
    CoreOutcome {
        /// Preflight or authorisation: yes.
        Accepted = "accepted",
        /// Commit: the core has the bytes.
        Confirmed = "confirmed",
        /// No, for good.
        Refused = "refused",
        /// The capability ran out.
        Renew = "renew",
        /// The core has a chunk under that identity.
        Duplicate = "duplicate",
        /// The account is full.
        Blocked = "blocked",
        /// Relay or core are set up wrongly.
        Operator = "operator",
        /// 429.
        Limited = "limited",
        /// Not now.
        Wait = "wait",
        /// The request did not get out whole.
        NotSent = "not_sent",
        /// The relay could not bring the bytes.
        Source = "source_failed",
        /// No answer to a whole request.
        Lost = "lost",
        /// The core failed.
        Server = "server_error",
        /// Something else than the core answered.
        Foreign = "foreign",
        /// A success that can't be read.
        Unreadable = "unreadable",
    }
}

label! {
    /// The core's limiter classes.
    CoreLimiter {
        /// Preflights and authorisations.
        Stream = "stream",
        /// Commits.
        Upload = "upload",
    }
}

label! {
    /// A capability's format.
    CapabilityFormat {
        /// Our JWT, or what is read as one.
        Jwt = "jwt",
        /// Proofline's HMAC token.
        Proofline = "proofline",
        /// Not read at all: too long.
        None = "none",
    }
}

label! {
    /// What came out of reading a capability.
    CapabilityResult {
        /// Its signature verified here.
        Verified = "verified",
        /// Only read; the core is asked.
        Claimed = "claimed",
        /// Malformed, wrongly signed, or with claims that can't be.
        Invalid = "invalid",
        /// Past its `exp`.
        Expired = "expired",
        /// For a use that is none.
        WrongUse = "wrong_use",
        /// On the revocation list.
        Revoked = "revoked",
        /// Its key is unknown and the core did not tell.
        Unverifiable = "unverifiable",
    }
}

label! {
    /// What is fetched without the service token.
    CapabilitySource {
        /// The JWKS.
        Keys = "keys",
        /// The revocation list.
        Revocations = "revocations",
    }
}

label! {
    /// How such a fetch ended.
    CapabilityFetch {
        /// Taken over.
        Ok = "ok",
        /// There is nothing at that URL.
        Absent = "absent",
        /// No usable answer; what was known stays.
        Failed = "failed",
        /// An answer that can't be read; what was known stays.
        Unreadable = "unreadable",
    }
}

label! {
    /// A lane that contacts watch.
    Lane {
        /// `audio_priority`.
        AudioPriority = "audio_priority",
        /// `live_preview`.
        LivePreview = "live_preview",
    }
}

label! {
    /// Why a chunk was left out for a contact.
    Omission {
        /// The window has moved on.
        Evicted = "evicted",
        /// The contact takes too little, or asks for too much at once.
        Slow = "slow",
        /// Larger than `fanout.max_chunk`.
        TooLarge = "too_large",
        /// Withdrawn before the contact came to it.
        Withdrawn = "withdrawn",
    }
}

label! {
    /// Why a chunk was withdrawn.
    Withdrawal {
        /// The bytes are not those of the digest.
        HashMismatch = "hash_mismatch",
        /// No byte came for too long.
        Stalled = "stalled",
        /// A newer attempt brings other bytes.
        Superseded = "superseded",
    }
}

label! {
    /// Why a chunk left a window.
    Eviction {
        /// Source time moved on.
        Window = "window",
        /// `fanout.memory` was reached.
        Memory = "memory",
        /// `fanout.memory_per_session` was reached.
        Session = "session",
        /// A lane follows no more chunks.
        Chunks = "chunks",
        /// Bytes before its first are not here.
        Gap = "gap",
        /// Its group gave no sign for a day, or gave way to another.
        Linger = "linger",
    }
}

label! {
    /// How a subscription ended.
    SubscriptionEnding {
        /// The capability ran out.
        Expired = "expired",
        /// The recording ended.
        Ended = "ended",
        /// The capability was revoked.
        Revoked = "revoked",
        /// The contact took nothing for too long.
        TooSlow = "too_slow",
        /// The relay is going away.
        Draining = "draining",
        /// The contact left.
        Left = "left",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// What came of asking the core again about a contact's capability.
    Reauthorized {
        /// It said yes.
        Authorized = "authorized",
        /// It said no: what was watched with it ended.
        Refused = "refused",
        /// It said neither; it is asked again.
        Unanswered = "unanswered",
    }
}

label! {
    /// Media shown without a role in the capability.
    UnlabelledMedia {
        /// Sound, shown as `audio_priority`.
        Audio = "audio",
        /// Picture, shown as `live_preview`.
        Video = "video",
    }
}

// === ingress ===

label! {
    /// What a request was for; never its path.
    Route {
        /// `PUT /chunks/{ref}`.
        ChunkPut = "chunk_put",
        /// `GET /chunks/{ref}`.
        ChunkGet = "chunk_get",
        /// `HEAD /chunks/{ref}`.
        ChunkHead = "chunk_head",
        /// `DELETE /chunks/{ref}`.
        ChunkDelete = "chunk_delete",
        /// `PATCH /chunks/{ref}`, of either dialect that has it.
        ChunkPatch = "chunk_patch",
        /// `POST /chunks`, of either dialect that has it.
        ChunkPost = "chunk_post",
        /// `OPTIONS` of a native route.
        Options = "options",
        /// `/capture`.
        Capture = "capture",
        /// `/watch`.
        Watch = "watch",
        /// `GET /health/live`.
        HealthLive = "health_live",
        /// `GET /health/ready`.
        HealthReady = "health_ready",
        /// `POST /upload/complete-chunk`.
        Upload = "upload",
        /// `GET /fanout/subscribe`.
        Subscribe = "subscribe",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// How an answer ended.
    StatusClass {
        /// 1xx: an upgrade.
        Upgraded = "1xx",
        /// 2xx.
        Success = "2xx",
        /// 3xx; not answered by this relay.
        Redirect = "3xx",
        /// 4xx.
        Client = "4xx",
        /// 5xx.
        Server = "5xx",
        /// The asker left before there was an answer.
        Gone = "gone",
    }
}

label! {
    /// Why a connection was not served, or not served any longer.
    RefusedConnection {
        /// `limits.connections` are open.
        Full = "full",
        /// `limits.handshakes_per_second`.
        HandshakeRate = "handshake_rate",
        /// Its address has its share of the places or of the handshakes already.
        AddressShare = "address_share",
        /// Many handshakes are unfinished: it must show first that its address is its own (QUIC
        /// Retry).
        Retried = "retried",
        /// No complete request head within `limits.header_timeout`.
        HeaderTimeout = "header_timeout",
        /// No request for `limits.idle_timeout`.
        Idle = "idle",
        /// The system gave no socket (`EMFILE` and its kin).
        AcceptFailed = "accept_failed",
        /// Its HTTP/3 broke the protocol, or declared a frame that is too large to be held.
        Broken = "broken",
    }
}

label! {
    /// Which handshake.
    Handshake {
        /// TLS over TCP.
        Tls = "tls",
        /// QUIC.
        Quic = "quic",
    }
}

label! {
    /// Why a handshake failed.
    HandshakeFailure {
        /// Not done within `limits.header_timeout`.
        Timeout = "timeout",
        /// The peer left.
        Closed = "closed",
        /// The peer's TLS or QUIC was not acceptable, or ours not to it.
        Protocol = "protocol",
    }
}
