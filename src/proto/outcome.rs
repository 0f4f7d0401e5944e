//! What an answer of the core means (contract A.2-A.6): one table from route, status and code to
//! what happens next. Pure; the relay's `core` module brings the bytes.

use serde_json::{Map, Value};

use crate::media::words;
use crate::offer::Offer;
use crate::receipt::MAX_RECEIPT_BYTES;

/// Longest `Retry-After` that is passed on, in seconds.
pub const MAX_RETRY_AFTER_S: u64 = 3600;
/// Longest code of the core that is passed on, in bytes.
const MAX_CODE_BYTES: usize = 64;
/// What is passed on of `relay_commit` (contract B.3).
const COMMIT_MEMBERS: [&str; 9] = [
    "status",
    "chunk_id",
    "incident_id",
    "stream_id",
    "chunk_index",
    "media_type",
    "byte_size",
    "sha256_hex",
    "created_at",
];

words! {
    /// The core's routes that a relay calls.
    Route {
        /// `POST /v1/relay/preflight`
        Preflight = "preflight",
        /// `POST /v1/relay/fanout-authorize`
        FanoutAuthorize = "fanout_authorize",
        /// `POST /v1/relay/commit`
        Commit = "commit",
    }
}

impl Route {
    /// Its path, after the core's base URL.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Preflight => "/v1/relay/preflight",
            Self::FanoutAuthorize => "/v1/relay/fanout-authorize",
            Self::Commit => "/v1/relay/commit",
        }
    }
}

/// What a request was about; a successful answer may not name anything else.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    /// May this chunk come?
    Preflight(&'a Offer),
    /// May this stream of this incident be watched?
    FanoutAuthorize {
        /// Incident.
        incident: &'a str,
        /// Stream.
        stream: &'a str,
    },
    /// Here is this chunk.
    Commit(&'a Offer),
}

/// An answer as it came.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, if there was exactly one.
    pub retry_after: Option<&'a str>,
    /// The body; `None` if it was too long or broke off.
    pub body: Option<&'a [u8]>,
}

/// What the core said against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its status, mapped as contract B.3 says: 400, 401, 403, 404, 409, 413, 429 and 507 as they
    /// are, other 5xx as 503, anything else as 502.
    pub status: u16,
    /// Its code, if it is made of `[a-z0-9_]`.
    pub code: Option<Box<str>>,
    /// When to come back, in seconds, 1 to [`MAX_RETRY_AFTER_S`].
    pub retry_after_s: Option<u64>,
}

/// A confirmed chunk.
#[derive(Clone, PartialEq)]
pub struct Confirmed {
    /// 200 or 201.
    pub status: u16,
    /// It is an empty object, which any box on the way can answer too.
    pub bare: bool,
    /// The core's signed receipt, unread: `relay_commit.receipt`.
    pub receipt: Option<Box<str>>,
    /// The members of `relay_commit` that are passed on; empty if the core sent none.
    pub relay_commit: Map<String, Value>,
}

impl std::fmt::Debug for Confirmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Confirmed").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Why nothing is known for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// The request did not get out whole: no connection, or it broke on the way.
    NotSent,
    /// The relay itself could not bring the bytes.
    Source,
    /// The request went out whole; no answer came.
    Lost,
    /// The core failed (5xx without a meaning of its own).
    Server(Refusal),
    /// Neither success nor an error in the core's form: something between answered, or it is a
    /// redirect, which is never followed.
    Foreign(Refusal),
    /// A success that can't be read, or that names another chunk.
    Unreadable,
}

/// What became of a call (contract A.6).
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Preflight or authorisation: yes.
    Accepted,
    /// Commit: the core has these bytes.
    Confirmed(Confirmed),
    /// No, and not unchanged again.
    Refused(Refusal),
    /// The capability ran out; for a commit, the core does not take it, for whatever reason.
    Renew(Refusal),
    /// The core has a chunk under this identity.
    Duplicate(Refusal),
    /// The account is full.
    Blocked(Refusal),
    /// The relay or the core is set up wrongly; not the client's doing.
    Operator(Refusal),
    /// The relay calls too often: its whole limiter class pauses.
    Limited(Refusal),
    /// Not now.
    Wait(Refusal),
    /// Nobody knows; the complete chunk goes again.
    Ambiguous(Doubt),
}

impl Outcome {
    /// What the core said, where it said no.
    #[must_use]
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal)
            | Self::Renew(refusal)
            | Self::Duplicate(refusal)
            | Self::Blocked(refusal)
            | Self::Operator(refusal)
            | Self::Limited(refusal)
            | Self::Wait(refusal)
            | Self::Ambiguous(Doubt::Server(refusal) | Doubt::Foreign(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// Whether the core may have stored the chunk although it did not say so: a `duplicate_chunk`
    /// after such a commit can be this chunk itself.
    #[must_use]
    pub const fn may_have_stored(&self) -> bool {
        matches!(self, Self::Ambiguous(Doubt::Lost | Doubt::Server(_) | Doubt::Foreign(_) | Doubt::Unreadable))
    }

    /// Whether the core, or what answers in its place, does nothing for anybody now: it says so
    /// itself, or its answer makes no sense.
    #[must_use]
    pub const fn troubled(&self) -> bool {
        matches!(self, Self::Ambiguous(Doubt::Server(_) | Doubt::Foreign(_) | Doubt::Unreadable))
    }

    /// Whether the core could not be reached: no answer, or a gateway's that has no core behind.
    #[must_use]
    pub const fn away(&self) -> bool {
        match self {
            Self::Ambiguous(Doubt::NotSent | Doubt::Lost) => true,
            Self::Ambiguous(Doubt::Server(refusal)) => refusal.code.is_none(),
            _ => false,
        }
    }
}

/// Reads an answer.
#[must_use]
pub fn read(asked: Asked<'_>, answer: Answer<'_>) -> Outcome {
    if (200..300).contains(&answer.status) {
        return success(asked, answer).unwrap_or(Outcome::Ambiguous(Doubt::Unreadable));
    }
    let error = answer.body.and_then(Error::read);
    let code = error.as_ref().and_then(|error| error.code.clone());
    let refusal = Refusal {
        status: mapped_status(answer.status),
        code: code.clone(),
        retry_after_s: answer.retry_after.and_then(parse_retry_after),
    };
    match (answer.status, code.as_deref().unwrap_or("")) {
        (429, _) => Outcome::Limited(refusal),
        (401, "relay_service_auth_required")
        | (503, "relay_service_auth_not_configured" | "relay_capability_not_configured") => Outcome::Operator(refusal),
        // The core's catch-all for an unknown path or method: the base URL is wrong, the chunk is not.
        (404, "not_found") | (405, _) => Outcome::Operator(refusal),
        (409, "upload_in_progress")
        | (503, "upload_coordination_unavailable" | "rate_limit_unavailable")
        | (507, "upload_staging_quota_exceeded") => Outcome::Wait(refusal),
        // Not in the contract: a core with a revocation list.
        (401, "relay_capability_expired") | (403, "relay_capability_revoked") => Outcome::Renew(refusal),
        // Said of the capability and not of the bytes, which are staged: another one may still bring
        // the chunk. A core whose secret was changed refuses every token of before.
        (401 | 403, code) if matches!(asked, Asked::Commit(_)) && code.starts_with("relay_capability_") => {
            Outcome::Renew(refusal)
        }
        (409, "duplicate_chunk") => Outcome::Duplicate(refusal),
        (507, "account_storage_quota_exceeded") => Outcome::Blocked(refusal),
        (500..=599, _) => Outcome::Ambiguous(Doubt::Server(refusal)),
        (400..=499, _) if error.is_some() => Outcome::Refused(refusal),
        _ => Outcome::Ambiguous(Doubt::Foreign(refusal)),
    }
}

/// The status that a client sees instead of the core's (contract B.3).
#[must_use]
pub const fn mapped_status(status: u16) -> u16 {
    match status {
        400 | 401 | 403 | 404 | 409 | 413 | 429 | 507 => status,
        500..=599 => 503,
        _ => 502,
    }
}

/// Whole seconds, at least 1 and at most [`MAX_RETRY_AFTER_S`]; `None` for anything else.
#[must_use]
pub fn parse_retry_after(text: &str) -> Option<u64> {
    let text = text.trim_matches([' ', '\t']);
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // All digits and still no number: longer than anybody waits.
    Some(text.parse().unwrap_or(MAX_RETRY_AFTER_S).clamp(1, MAX_RETRY_AFTER_S))
}

/// `{"error": {"code": …}}`, as the core writes every error.
struct Error {
    code: Option<Box<str>>,
}

impl Error {
    fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let code = body.get("error")?.get("code")?.as_str()?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let safe = !code.is_empty() && code.len() <= MAX_CODE_BYTES && code.bytes().all(plain);
        Some(Self { code: safe.then(|| code.into()) })
    }
}

/// `None` if it can't be taken for a success.
fn success(asked: Asked<'_>, answer: Answer<'_>) -> Option<Outcome> {
    let body: Map<String, Value> = serde_json::from_slice(answer.body?).ok()?;
    if body.values().any(|member| !member.is_object()) {
        return None;
    }
    match asked {
        Asked::Preflight(offer) => {
            let member = body.get("relay_preflight")?.as_object()?;
            let agrees = answer.status == 200 && says(member, "status", "accepted") && names(member, offer);
            agrees.then_some(Outcome::Accepted)
        }
        Asked::FanoutAuthorize { incident, stream } => {
            let member = body.get("relay_fanout")?.as_object()?;
            let agrees = answer.status == 200
                && says(member, "status", "authorized")
                && says(member, "incident_id", incident)
                && says(member, "stream_id", stream);
            agrees.then_some(Outcome::Accepted)
        }
        Asked::Commit(offer) => {
            // A core may leave it out, and then says nothing else either.
            let silent = body.is_empty();
            let mut member = match body.into_iter().find(|(name, _)| name == "relay_commit") {
                Some((_, Value::Object(member))) => member,
                _ if silent => Map::new(),
                _ => return None,
            };
            let agrees = matches!(answer.status, 200 | 201)
                && names(&member, offer)
                && counts(&member, "byte_size", offer.length)
                && says(&member, "sha256_hex", &offer.sha256.to_hex());
            if !agrees {
                return None;
            }
            let receipt = member.get("receipt").and_then(Value::as_str).filter(|text| text.len() <= MAX_RECEIPT_BYTES);
            let receipt = receipt.map(Into::into);
            member.retain(|name, _| COMMIT_MEMBERS.contains(&name.as_str()));
            Some(Outcome::Confirmed(Confirmed { status: answer.status, bare: silent, receipt, relay_commit: member }))
        }
    }
}

/// Names the offered chunk, as far as it names one.
fn names(member: &Map<String, Value>, offer: &Offer) -> bool {
    says(member, "incident_id", offer.incident.as_str())
        && says(member, "stream_id", offer.stream.as_str())
        && counts(member, "chunk_index", offer.index)
        && says(member, "media_type", offer.media.as_str())
}

fn says(member: &Map<String, Value>, name: &str, text: &str) -> bool {
    member.get(name).is_none_or(|value| value.as_str() == Some(text))
}

fn counts(member: &Map<String, Value>, name: &str, number: u64) -> bool {
    member.get(name).is_none_or(|value| value.as_u64() == Some(number))
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
