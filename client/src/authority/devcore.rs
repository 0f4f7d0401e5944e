//! The client API of devcore, over HTTP with an account token.

use std::sync::{Mutex, PoisonError};

use http::{Method, Request, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use waystation_proto::id::{GroupId, IncidentId, StreamId};
use waystation_proto::{Media, Variant};

use super::{Answer, Authority, AuthorityError, TokenForm};
use crate::connect::Endpoint;
use crate::http::Client;
use crate::keys::ClientKey;
use crate::receipt::Jwks;
use crate::session::Session;
use crate::token::Token;

/// Time to make an incident and a group, in seconds: nobody records yet, so giving up is fine.
const SET_UP_SECONDS: u64 = 10;

/// What to ask of the core's capabilities; the core decides.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Life of a capability, in seconds.
    pub ttl_s: Option<u64>,
    /// Highest index of a stream.
    pub max_chunks: Option<u64>,
    /// Key that upload capabilities are bound to.
    pub client_key: Option<ClientKey>,
    /// Which format of upload capability to use.
    pub form: TokenForm,
}

/// Speaks to a core on behalf of one recording.
pub struct DevcoreAuthority {
    core: Client,
    account: SecretString,
    incident: IncidentId,
    group: GroupId,
    wishes: Wishes,
    /// Relay session of the upload capabilities: kept over renewals, because a relay shows a
    /// chunk's offset only to the session that offered it.
    sid: Mutex<Option<String>>,
    watch_sid: Mutex<Option<String>>,
}

#[derive(Deserialize)]
struct Made {
    id: String,
}

#[derive(Deserialize)]
struct Minted {
    capability: String,
    #[serde(default)]
    sid: Option<String>,
}

impl DevcoreAuthority {
    /// Makes an incident and a capture group, and speaks for them.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub async fn create(core: &Endpoint, account: SecretString, wishes: Wishes) -> Result<Self, AuthorityError> {
        let client = Client::new(core);
        let work = async {
            let made: Made = post(&client, &account, "/v1/incidents", serde_json::json!({}), "incident").await?;
            let path = format!("/v1/incidents/{}/groups", made.id);
            let group: Made = post(&client, &account, &path, serde_json::json!({}), "group").await?;
            Ok((made.id, group.id))
        };
        let limit = std::time::Duration::from_secs(SET_UP_SECONDS);
        let (incident, group) = tokio::time::timeout(limit, work).await.map_err(|_| AuthorityError::Away)??;
        let odd = |_| AuthorityError::Refused("an answer holds an odd identifier".into());
        let incident = IncidentId::new(&incident).map_err(odd)?;
        let group = GroupId::new(&group).map_err(odd)?;
        Ok(Self::of(core, account, incident, group, wishes))
    }

    /// Speaks for a group that exists.
    #[must_use]
    pub fn of(core: &Endpoint, account: SecretString, incident: IncidentId, group: GroupId, wishes: Wishes) -> Self {
        let (sid, watch_sid) = (Mutex::default(), Mutex::default());
        Self { core: Client::new(core), account, incident, group, wishes, sid, watch_sid }
    }

    /// The incident.
    #[must_use]
    pub const fn incident(&self) -> &IncidentId {
        &self.incident
    }

    /// The capture group.
    #[must_use]
    pub const fn group(&self) -> &GroupId {
        &self.group
    }

    /// A session file for a contact of this group, with a capability to watch.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub async fn session_for_contact(&self, core_url: &str) -> Result<Session, AuthorityError> {
        Ok(Session {
            core: Some(core_url.into()),
            incident: self.incident.clone(),
            group: self.group.clone(),
            streams: Vec::new(),
            upload_capability: None,
            fanout_capability: Some(self.fanout_capability().await?.as_str().into()),
            sid: None,
        })
    }

    async fn mint(&self, body: serde_json::Value, sid: &Mutex<Option<String>>) -> Result<Token, AuthorityError> {
        let mut body = body;
        let known = sid.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (key, value) in [
            ("ttl_s", self.wishes.ttl_s.map(Into::into)),
            ("max_chunks", self.wishes.max_chunks.map(Into::into)),
            ("sid", known.map(serde_json::Value::from)),
        ] {
            if let Some(value) = value {
                body[key] = value;
            }
        }
        let path = format!("{}/capabilities", self.group_path());
        let minted: Minted = parse(post_raw(&self.core, &self.account, &path, body).await?)?;
        if let Some(given) = &minted.sid {
            *sid.lock().unwrap_or_else(PoisonError::into_inner) = Some(given.clone());
        }
        token(&minted)
    }

    /// An unchanged core's tokens: one for each stream (contract A.1).
    async fn relay_sessions(&self, streams: &[StreamId]) -> Result<Vec<Token>, AuthorityError> {
        let mut tokens = Vec::with_capacity(streams.len());
        for stream in streams {
            let path = format!("/v1/incidents/{}/streams/{}/relay-session", self.incident.as_str(), stream.as_str());
            let minted: Minted = post(&self.core, &self.account, &path, serde_json::json!({}), "relay_session").await?;
            tokens.push(token(&minted)?);
        }
        Ok(tokens)
    }

    fn group_path(&self) -> String {
        format!("/v1/incidents/{}/groups/{}", self.incident.as_str(), self.group.as_str())
    }
}

impl Authority for DevcoreAuthority {
    fn next_stream(&self, variant: Variant, media: Media, follows: Option<StreamId>) -> Answer<'_, StreamId> {
        Box::pin(async move {
            let mut body = serde_json::json!({"variant": variant, "media": media});
            if let Some(follows) = follows {
                body["follows"] = follows.as_str().into();
            }
            let path = format!("{}/streams", self.group_path());
            let made: Made = post(&self.core, &self.account, &path, body, "stream").await?;
            StreamId::new(&made.id).map_err(|_| AuthorityError::Refused("an answer holds an odd identifier".into()))
        })
    }

    fn upload_capability(&self, streams: Vec<StreamId>) -> Answer<'_, Vec<Token>> {
        Box::pin(async move {
            if self.wishes.form == TokenForm::Proofline {
                return self.relay_sessions(&streams).await;
            }
            let mut body = serde_json::json!({"use": "upload", "streams": streams});
            if let Some(jwk) = self.wishes.client_key.as_ref().and_then(ClientKey::jwk) {
                body["client_key"] = jwk.x.into();
            }
            Ok(vec![self.mint(body, &self.sid).await?])
        })
    }

    fn fanout_capability(&self) -> Answer<'_, Token> {
        Box::pin(async move { self.mint(serde_json::json!({"use": "fanout", "streams": []}), &self.watch_sid).await })
    }

    fn jwks(&self) -> Answer<'_, Option<Jwks>> {
        Box::pin(async move {
            let request = Request::get("/v1/relay/jwks").body(()).map_err(|_| AuthorityError::Away)?;
            let reply = self.core.send(request, bytes::Bytes::new()).await.map_err(|_| AuthorityError::Away)?;
            match reply.status {
                status if status.is_success() => Ok(Jwks::parse(&reply.body)),
                // A core that knows no such route signs no receipts.
                http::StatusCode::NOT_FOUND => Ok(None),
                _ => Err(AuthorityError::Away),
            }
        })
    }
}

impl std::fmt::Debug for DevcoreAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DevcoreAuthority(…)")
    }
}

/// Posts and takes one member out of the answer.
async fn post<T: serde::de::DeserializeOwned>(
    core: &Client,
    account: &SecretString,
    path: &str,
    body: serde_json::Value,
    member: &str,
) -> Result<T, AuthorityError> {
    let mut answer = post_raw(core, account, path, body).await?;
    parse(answer[member].take())
}

async fn post_raw(
    core: &Client,
    account: &SecretString,
    path: &str,
    body: serde_json::Value,
) -> Result<serde_json::Value, AuthorityError> {
    let mut bearer = http::HeaderValue::try_from(format!("Bearer {}", account.expose_secret()))
        .map_err(|_| AuthorityError::Refused("the account token has odd characters".into()))?;
    bearer.set_sensitive(true);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::AUTHORIZATION, bearer)
        .header(header::CONTENT_TYPE, "application/json")
        .body(())
        .map_err(|_| AuthorityError::Refused("an identifier can't stand in a path".into()))?;
    let reply = core.send(request, body.to_string().into()).await.map_err(|_| AuthorityError::Away)?;
    if reply.status.is_success() {
        return serde_json::from_slice(&reply.body).map_err(|_| AuthorityError::Away);
    }
    let wait = reply.status.is_server_error() || reply.status == StatusCode::TOO_MANY_REQUESTS;
    Err(if wait { AuthorityError::Away } else { AuthorityError::Refused(code_of(&reply.body, reply.status)) })
}

/// The stable code of a refusal, which is all of it that may be shown.
fn code_of(body: &[u8], status: StatusCode) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match value["error"]["code"].as_str() {
        Some(code) => crate::wire::plain(code),
        None => format!("http_{}", status.as_u16()),
    }
}

fn token(minted: &Minted) -> Result<Token, AuthorityError> {
    Token::parse(&minted.capability).map_err(|_| AuthorityError::Refused("an answer holds no capability".into()))
}

fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, AuthorityError> {
    serde_json::from_value(value).map_err(|_| AuthorityError::Refused("an answer can't be read".into()))
}
