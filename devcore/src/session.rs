//! Makes what a recording needs at a running devcore: incident, group, streams and both kinds of capability.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use waystation_proto::media::{Media, Variant};

use crate::http_client::Account;
use crate::routes::groups::media_of;

/// The lanes of an ordinary recording.
pub const DEFAULT_LANES: [Variant; 4] =
    [Variant::AudioPriority, Variant::LivePreview, Variant::EvidenceMaster, Variant::LocationContext];

/// What is asked for.
#[derive(Clone)]
pub struct Request {
    /// Base URL of the core.
    pub core: String,
    /// Bearer token of the account.
    pub account_token: String,
    /// One stream for each.
    pub lanes: Vec<Variant>,
    /// Life of the JWT capabilities, in seconds; the core's own if absent.
    pub ttl_s: Option<u32>,
    /// Highest chunk index of the JWT capabilities; the core's own if absent.
    pub max_chunks: Option<u32>,
    /// The capture client's Ed25519 key, bound into the upload capability.
    pub client_key: Option<[u8; 32]>,
    /// Certificates that vouch for an `https` core, PEM.
    pub authority: Option<PathBuf>,
}

impl Request {
    /// The ordinary lanes, with the core's own limits.
    #[must_use]
    pub fn new(core: impl Into<String>, account_token: impl Into<String>) -> Self {
        Self {
            core: core.into(),
            account_token: account_token.into(),
            lanes: DEFAULT_LANES.to_vec(),
            ttl_s: None,
            max_chunks: None,
            client_key: None,
            authority: None,
        }
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

/// What was made. It holds capabilities: it is for the one who asked, not for a log.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Base URL of the core.
    pub core: String,
    /// Incident.
    pub incident: String,
    /// Capture group.
    pub group: String,
    /// Streams, in the order of the lanes asked for.
    pub streams: Vec<Stream>,
    /// JWT to upload to all of them; absent where the core is the unchanged one.
    pub upload_capability: Option<String>,
    /// JWT to watch the group; absent where the core is the unchanged one.
    pub fanout_capability: Option<String>,
    /// Relay session of the JWTs.
    pub sid: Option<String>,
    /// When the JWTs expire, Unix seconds.
    pub expires_at: Option<i64>,
}

/// One stream of a session.
#[derive(Clone, Serialize, Deserialize)]
pub struct Stream {
    /// Its id.
    pub stream: String,
    /// Its role.
    pub variant: Variant,
    /// Its media type.
    pub media: Media,
    /// Proofline's tokens for it; absent where the core has no secret for them.
    pub proofline: Option<Proofline>,
}

/// Proofline's tokens for one stream.
#[derive(Clone, Serialize, Deserialize)]
pub struct Proofline {
    /// Relay session.
    pub relay_session_id: String,
    /// Token to upload.
    pub upload: String,
    /// Token to watch.
    pub fanout: String,
    /// When both expire, RFC 3339.
    pub expires_at: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("variant", &self.variant).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Proofline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proofline(…)")
    }
}

/// Why no session was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The core's URL is none.
    #[error("the core's URL can't be used")]
    InvalidUrl,
    /// An https core needs the certificates that vouch for it.
    #[error("an https core needs a readable --ca-file")]
    NoAuthority,
    /// The core does not answer.
    #[error("the core does not answer")]
    Unreachable,
    /// The core's answer can't be read.
    #[error("the core's answer can't be read")]
    Unreadable,
    /// The core refused.
    #[error("the core refused with {0} {1}")]
    Refused(u16, String),
}

/// Makes a session.
///
/// # Errors
/// [`Error`].
pub async fn open(request: &Request) -> Result<Session, Error> {
    let account = Account {
        core: request.core.clone(),
        token: request.account_token.clone(),
        authority: request.authority.clone(),
    };
    let incident = text(&created(&account, "/v1/incidents", &json!({})).await?["incident"]["id"])?;
    let groups = format!("/v1/incidents/{incident}/groups");
    let group = text(&created(&account, &groups, &json!({})).await?["group"]["id"])?;
    let mut streams = Vec::with_capacity(request.lanes.len());
    for variant in &request.lanes {
        streams.push(stream(&account, &incident, &group, *variant).await?);
    }
    let capabilities = format!("{groups}/{group}/capabilities");
    let upload = upload_capability(&account, &capabilities, request, &streams).await?;
    let mut ask = json!({ "use": "fanout", "streams": [], "sid": upload.as_ref().map(|upload| &upload["sid"]) });
    if let Some(ttl_s) = request.ttl_s {
        ask["ttl_s"] = ttl_s.into();
    }
    let fanout = optional(&account, &capabilities, &ask).await?;
    let of = |answer: &Option<Value>, name: &str| answer.as_ref().map(|answer| text(&answer[name])).transpose();
    Ok(Session {
        core: request.core.clone(),
        incident,
        group,
        streams,
        upload_capability: of(&upload, "capability")?,
        fanout_capability: of(&fanout, "capability")?,
        sid: of(&upload, "sid")?,
        expires_at: upload.as_ref().and_then(|upload| upload["expires_at"].as_i64()),
    })
}

async fn stream(account: &Account, incident: &str, group: &str, variant: Variant) -> Result<Stream, Error> {
    let media = media_of(variant);
    let path = format!("/v1/incidents/{incident}/groups/{group}/streams");
    let made = created(account, &path, &json!({ "variant": variant, "media": media })).await?;
    let stream = text(&made["stream"]["id"])?;
    let path = format!("/v1/incidents/{incident}/streams/{stream}/relay-session");
    let proofline = match optional(account, &path, &json!({})).await? {
        None => None,
        Some(answer) => {
            let session = &answer["relay_session"];
            Some(Proofline {
                relay_session_id: text(&session["relay_session_id"])?,
                upload: text(&session["capability"])?,
                fanout: text(&session["fanout_capability"])?,
                expires_at: text(&session["expires_at"])?,
            })
        }
    };
    Ok(Stream { stream, variant, media, proofline })
}

async fn upload_capability(
    account: &Account,
    path: &str,
    request: &Request,
    streams: &[Stream],
) -> Result<Option<Value>, Error> {
    let ids: Vec<&str> = streams.iter().map(|stream| stream.stream.as_str()).collect();
    let mut ask = json!({ "use": "upload", "streams": ids });
    for (name, limit) in [("ttl_s", request.ttl_s), ("max_chunks", request.max_chunks)] {
        if let Some(limit) = limit {
            ask[name] = limit.into();
        }
    }
    if let Some(key) = &request.client_key {
        ask["client_key"] = URL_SAFE_NO_PAD.encode(key).into();
    }
    optional(account, path, &ask).await
}

async fn created(account: &Account, path: &str, body: &Value) -> Result<Value, Error> {
    match account.post(path, body).await? {
        (200 | 201, answer) => Ok(answer),
        (status, answer) => Err(refused(status, &answer)),
    }
}

/// `None` where this core does not do that.
async fn optional(account: &Account, path: &str, body: &Value) -> Result<Option<Value>, Error> {
    match account.post(path, body).await? {
        (200 | 201, answer) => Ok(Some(answer)),
        (404, answer) if answer["error"]["code"] == "not_found" => Ok(None),
        (503, answer) if answer["error"]["code"] == "relay_capability_not_configured" => Ok(None),
        (status, answer) => Err(refused(status, &answer)),
    }
}

fn refused(status: u16, answer: &Value) -> Error {
    Error::Refused(status, answer["error"]["code"].as_str().unwrap_or("no code").to_owned())
}

fn text(value: &Value) -> Result<String, Error> {
    value.as_str().map(str::to_owned).ok_or(Error::Unreadable)
}
