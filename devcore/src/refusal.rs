//! Every refusal of the core: status, code, text (contract A.1-A.4, A.8). Callers branch on the code.

use std::borrow::Cow;

/// A refusal on its way to the caller.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: &'static str,
    /// Seconds, as `Retry-After`.
    pub(crate) retry_after_s: Option<u64>,
    /// A member that stands beside `error` in the answer.
    pub(crate) beside: Option<(&'static str, serde_json::Value)>,
}

impl Refusal {
    pub(crate) const fn new(status: u16, code: &'static str, message: &'static str) -> Self {
        Self { status, code: Cow::Borrowed(code), message, retry_after_s: None, beside: None }
    }

    /// A refusal that somebody asked for (`PUT /devcore/faults`).
    pub(crate) fn on_request(status: u16, code: String, retry_after_s: Option<u64>) -> Self {
        Self { status, code: code.into(), message: "Refused on request.", retry_after_s, beside: None }
    }

    pub(crate) fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

macro_rules! refusals {
    ($($name:ident = $status:literal, $code:literal, $message:literal;)+) => {
        $(pub(crate) const $name: Refusal = Refusal::new($status, $code, $message);)+
    };
}

refusals! {
    NOT_FOUND = 404, "not_found", "There is nothing here.";
    INTERNAL_ERROR = 500, "internal_error", "The core failed.";
    RATE_LIMITED = 429, "rate_limited", "Too many calls in this window.";

    SERVICE_AUTH_NOT_CONFIGURED = 503, "relay_service_auth_not_configured", "No relay service token is configured.";
    SERVICE_AUTH_REQUIRED = 401, "relay_service_auth_required", "A relay service token is required.";
    AUTHENTICATION_REQUIRED = 401, "authentication_required", "An account session is required.";
    AMBIGUOUS_CREDENTIALS = 400, "ambiguous_credentials", "Send a bearer token or a cookie, not both.";

    REQUEST_TOO_LARGE = 413, "request_too_large", "The body is larger than 64 KiB.";
    INVALID_JSON = 400, "invalid_json", "The body is not the JSON object expected here.";
    INVALID_RELAY_REQUEST = 400, "invalid_relay_request", "Session, capability, incident and stream are required.";
    INVALID_RELAY_FANOUT_REQUEST = 400, "invalid_relay_fanout_request", "Session, capability, incident and stream are required.";
    INVALID_CHUNK_REQUEST = 400, "invalid_chunk_request", "A stream is required.";
    INVALID_CHUNK_INDEX = 400, "invalid_chunk_index", "chunk_index counts from 1.";
    INVALID_MEDIA_TYPE = 400, "invalid_media_type", "media_type is audio, video, location or metadata.";
    INVALID_STARTED_AT = 400, "invalid_started_at", "started_at is not RFC 3339.";
    INVALID_ENDED_AT = 400, "invalid_ended_at", "ended_at is not RFC 3339.";
    INVALID_TIME_RANGE = 400, "invalid_time_range", "ended_at precedes started_at.";
    INVALID_BYTE_SIZE = 400, "invalid_byte_size", "byte_size is a positive number.";
    INVALID_SHA256_HEX = 400, "invalid_sha256_hex", "sha256_hex is 64 lower-case hexadecimal digits.";
    UPLOAD_TOO_LARGE = 413, "upload_too_large", "The chunk is larger than this core takes.";

    CAPABILITY_NOT_CONFIGURED = 503, "relay_capability_not_configured", "No relay capability secret is configured.";
    CAPABILITY_INVALID = 401, "relay_capability_invalid", "The capability is not valid.";
    CAPABILITY_EXPIRED = 401, "relay_capability_expired", "The capability has run out.";
    CAPABILITY_REVOKED = 403, "relay_capability_revoked", "The capability was revoked.";
    CAPABILITY_WRONG_ROLE = 403, "relay_capability_wrong_role", "The capability is for another use.";
    CAPABILITY_WRONG_BINDING = 403, "relay_capability_wrong_binding", "The capability is for something else.";
    CAPABILITY_LIMIT_EXCEEDED = 403, "relay_capability_limit_exceeded", "The capability does not reach that far.";
    CAPABILITY_SIGNATURE_INVALID = 403, "relay_capability_signature_invalid", "The chunk is not signed by the capability's key.";

    INCIDENT_NOT_FOUND = 404, "incident_not_found", "There is no such incident.";
    INCIDENT_DELETING = 409, "incident_deleting", "The incident is being deleted.";
    INCIDENT_CLOSED = 409, "incident_closed", "The incident is closed.";
    GROUP_NOT_FOUND = 404, "group_not_found", "There is no such capture group.";
    STREAM_NOT_FOUND = 404, "stream_not_found", "There is no such stream.";
    STREAM_NOT_OPEN = 409, "stream_not_open", "The stream is not open.";
    STREAM_MEDIA_TYPE_MISMATCH = 400, "stream_media_type_mismatch", "The stream carries another media type.";
    ACCOUNT_QUOTA = 507, "account_storage_quota_exceeded", "The account's storage is full.";
    DUPLICATE_CHUNK = 409, "duplicate_chunk", "A chunk with this identity is stored.";
    DUPLICATE_CHUNK_CONFLICT = 409, "duplicate_chunk_conflict", "Another chunk is stored under this identity.";
    CHUNK_NOT_FOUND = 404, "chunk_not_found", "There is no such chunk.";

    INVALID_MULTIPART = 400, "invalid_multipart", "The body is not readable as multipart/form-data.";
    STAGING_QUOTA = 507, "upload_staging_quota_exceeded", "Too many uploads are being received.";
    INVALID_FIELD = 400, "invalid_field", "A field is larger than 64 KiB.";
    DUPLICATE_FILE = 400, "duplicate_file", "There is more than one file part.";
    MISSING_FILE = 400, "missing_file", "There is no file part.";
    BYTE_SIZE_MISMATCH = 400, "byte_size_mismatch", "The file has another length than declared.";
    HASH_MISMATCH = 400, "hash_mismatch", "The file has another SHA-256 than declared.";
    INVALID_ENVELOPE = 400, "invalid_envelope", "The file does not begin with a fitting payload frame.";

    INVALID_IDEMPOTENCY_KEY = 400, "invalid_idempotency_key", "Idempotency-Key is 1 to 255 visible ASCII characters.";
    IDEMPOTENCY_CONFLICT = 409, "idempotency_conflict", "This Idempotency-Key was used for something else.";
    INVALID_EXPECTED_CHUNK_COUNT = 400, "invalid_expected_chunk_count", "expected_chunk_count is a positive number.";
    STREAM_ALREADY_COMPLETE = 409, "stream_already_complete", "The stream is complete.";
    STREAM_FAILED = 409, "stream_failed", "The stream has failed.";
    STREAM_CHUNKS_INCOMPLETE = 409, "stream_chunks_incomplete", "Chunks are missing.";
    STREAM_CHUNKS_NOT_CONTIGUOUS = 409, "stream_chunks_not_contiguous", "The indexes are not 1 to the expected count.";
    STREAM_CHUNK_FILE_MISSING = 409, "stream_chunk_file_missing", "The bytes of a chunk are missing.";

    INVALID_ROLE = 400, "invalid_role", "That is no variant role.";
    ROLE_REFUSED = 400, "role_refused", "This variant role is not served.";
    INVALID_FOLLOWS = 400, "invalid_follows", "follows names a stream of the same group and variant.";
    INVALID_CAPABILITY_REQUEST = 400, "invalid_capability_request", "use, streams, ttl_s, max_chunks, client_key or sid can't be served.";
    INVALID_JTI = 400, "invalid_jti", "jti is required.";
    INVALID_STATE = 400, "invalid_state", "state is open, closed or deleting.";
    INVALID_FAULTS = 400, "invalid_faults", "The list of faults is not understood.";
    GRANT_UNKNOWN = 401, "grant_unknown", "There is no such grant.";
    GRANT_REVOKED = 403, "grant_revoked", "The grant was revoked.";
    GRANT_EXPIRED = 403, "grant_expired", "The grant has run out.";
    GRANT_NOT_FOUND = 404, "grant_not_found", "There is no such grant.";
    TOO_MANY_GRANTS = 507, "too_many_grants", "The group has as many grants as it may.";
    CONTACT_INCIDENT_CLOSED = 403, "incident_closed", "The incident is closed.";
    INVALID_PAGE = 400, "invalid_page", "after is what next said, limit a positive number.";
    TOO_MANY_REVOCATIONS = 507, "too_many_revocations", "The revocation list is full.";
}
