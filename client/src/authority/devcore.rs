//! The client API of devcore, over HTTP with an account token.

use std::sync::{Mutex, PoisonError};

use http::{Method, Request, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use waystation_proto::id::{GroupId, IncidentId, SessionId, StreamId};
use waystation_proto::{Media, Offer, Variant};

use super::{Answer, Authority, AuthorityError, Ids, Reconciled, TokenForm};
use crate::connect::Endpoint;
use crate::http::Client;
use crate::keys::ClientKey;
use crate::receipt::Jwks;
use crate::session::Session;
use crate::token::Token;

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
    wishes: Wishes,
    /// The recording's names, once they are known: by whoever made this, by the queue of an
    /// earlier run, or made at the core.
    ids: tokio::sync::Mutex<Option<Ids>>,
    watch_sid: Mutex<Option<String>>,
}

#[derive(Deserialize)]
struct Made {
    id: String,
}

/// What one contact may watch with, until it is revoked.
pub struct Grant {
    /// Its name, to revoke it by.
    pub id: String,
    /// What the contact shows. The core shows it once.
    pub secret: SecretString,
}

#[derive(Deserialize)]
struct Minted {
    capability: String,
    #[serde(default)]
    sid: Option<String>,
}

impl DevcoreAuthority {
    /// Speaks for a recording that has no names yet: an incident and a capture group are made
    /// when they are first asked for, unless an earlier run made them. Nothing is sent before.
    #[must_use]
    pub fn new(core: &Endpoint, account: SecretString, wishes: Wishes) -> Self {
        Self { core: Client::new(core), account, wishes, ids: Default::default(), watch_sid: Mutex::default() }
    }

    /// Speaks for a group that exists.
    #[must_use]
    pub fn of(core: &Endpoint, account: SecretString, incident: IncidentId, group: GroupId, wishes: Wishes) -> Self {
        let ids = tokio::sync::Mutex::new(Some(Ids { incident, group, sid: None }));
        Self { ids, ..Self::new(core, account, wishes) }
    }

    /// The recording's names, made if need be.
    async fn names(&self) -> Result<Ids, AuthorityError> {
        let mut ids = self.ids.lock().await;
        if let Some(ids) = &*ids {
            return Ok(ids.clone());
        }
        let made: Made = post(&self.core, &self.account, "/v1/incidents", serde_json::json!({}), "incident").await?;
        let path = format!("/v1/incidents/{}/groups", made.id);
        let group: Made = post(&self.core, &self.account, &path, serde_json::json!({}), "group").await?;
        let odd = |_| AuthorityError::Refused("an answer holds an odd identifier".into());
        let incident = IncidentId::new(&made.id).map_err(odd)?;
        let group = GroupId::new(&group.id).map_err(odd)?;
        Ok(ids.insert(Ids { incident, group, sid: None }).clone())
    }

    /// A session file for a contact of this group, with a capability to watch.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub async fn session_for_contact(&self, core_url: &str) -> Result<Session, AuthorityError> {
        let ids = self.names().await?;
        Ok(Session {
            core: Some(core_url.into()),
            incident: ids.incident,
            group: ids.group,
            streams: Vec::new(),
            upload_capability: None,
            fanout_capability: Some(self.fanout_capability().await?.as_str().into()),
            sid: None,
        })
    }

    /// A new grant for one contact of this group.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub async fn contact_grant(&self) -> Result<Grant, AuthorityError> {
        #[derive(Deserialize)]
        struct Granted {
            id: String,
            secret: String,
        }
        let path = format!("{}/grants", group_path(&self.names().await?));
        let granted: Granted = post(&self.core, &self.account, &path, serde_json::json!({}), "grant").await?;
        Ok(Grant { id: granted.id, secret: granted.secret.into() })
    }

    /// Revokes a contact's grant.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub async fn revoke(&self, grant: &str) -> Result<(), AuthorityError> {
        let path = format!("{}/grants/{grant}/revoke", group_path(&self.names().await?));
        post_raw(&self.core, &self.account, &path, serde_json::json!({})).await.map(drop)
    }

    async fn mint(&self, body: serde_json::Value, sid: Option<String>) -> Result<Minted, AuthorityError> {
        let mut body = body;
        for (key, value) in [
            ("ttl_s", self.wishes.ttl_s.map(Into::into)),
            ("max_chunks", self.wishes.max_chunks.map(Into::into)),
            ("sid", sid.map(serde_json::Value::from)),
        ] {
            if let Some(value) = value {
                body[key] = value;
            }
        }
        let path = format!("{}/capabilities", group_path(&self.names().await?));
        parse(post_raw(&self.core, &self.account, &path, body).await?)
    }

    /// Mints for uploading, in the relay session of the capabilities before.
    async fn upload(&self, body: serde_json::Value) -> Result<Token, AuthorityError> {
        let sid = self.names().await?.sid.map(|sid| sid.as_str().to_owned());
        let minted = self.mint(body, sid).await?;
        if let (Some(sid), Some(ids)) = (&minted.sid, &mut *self.ids.lock().await) {
            ids.sid = SessionId::new(sid).ok();
        }
        token(&minted)
    }

    /// An unchanged core's tokens: one for each stream (contract A.1).
    async fn relay_sessions(&self, streams: &[StreamId]) -> Result<Vec<Token>, AuthorityError> {
        let incident = self.names().await?.incident;
        let mut tokens = Vec::with_capacity(streams.len());
        for stream in streams {
            let path = format!("/v1/incidents/{}/streams/{}/relay-session", incident.as_str(), stream.as_str());
            let minted: Minted = post(&self.core, &self.account, &path, serde_json::json!({}), "relay_session").await?;
            tokens.push(token(&minted)?);
        }
        Ok(tokens)
    }
}

fn group_path(ids: &Ids) -> String {
    format!("/v1/incidents/{}/groups/{}", ids.incident.as_str(), ids.group.as_str())
}

impl Authority for DevcoreAuthority {
    fn ids(&self, kept: Option<Ids>) -> Answer<'_, Ids> {
        Box::pin(async move {
            if let Some(kept) = kept {
                let mut ids = self.ids.lock().await;
                match &*ids {
                    Some(ids) if (&ids.incident, &ids.group) != (&kept.incident, &kept.group) => {
                        return Err(AuthorityError::Refused("the queue is of another recording".into()));
                    }
                    Some(Ids { sid: Some(_), .. }) => {}
                    _ => *ids = Some(kept),
                }
            }
            self.names().await
        })
    }

    fn next_stream(&self, variant: Variant, media: Media, follows: Option<StreamId>) -> Answer<'_, StreamId> {
        Box::pin(async move {
            let mut body = serde_json::json!({"variant": variant, "media": media});
            if let Some(follows) = follows {
                body["follows"] = follows.as_str().into();
            }
            let path = format!("{}/streams", group_path(&self.names().await?));
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
            Ok(vec![self.upload(body).await?])
        })
    }

    fn reconcile(&self, offer: Offer) -> Answer<'_, Reconciled> {
        Box::pin(async move {
            let path = format!("/v1/incidents/{}/chunks/reconcile", offer.incident.as_str());
            let body = serde_json::json!({"stream_id": offer.stream, "chunk_index": offer.index,
                "media_type": offer.media, "started_at": offer.started, "ended_at": offer.ended,
                "byte_size": offer.length, "sha256_hex": offer.sha256, "original_filename": offer.name});
            match post_raw(&self.core, &self.account, &path, body).await {
                Ok(answer) => {
                    let receipt = answer["reconciliation"]["receipt"].as_str().map(str::to_owned);
                    Ok(Reconciled::Stored { receipt })
                }
                Err(AuthorityError::Refused(code)) if code == "duplicate_chunk_conflict" => Ok(Reconciled::Conflict),
                Err(AuthorityError::Refused(code)) if code == "chunk_not_found" => Ok(Reconciled::Missing),
                Err(error) => Err(error),
            }
        })
    }

    fn fanout_capability(&self) -> Answer<'_, Token> {
        Box::pin(async move {
            let sid = self.watch_sid.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let minted = self.mint(serde_json::json!({"use": "fanout", "streams": []}), sid).await?;
            if let Some(sid) = &minted.sid {
                *self.watch_sid.lock().unwrap_or_else(PoisonError::into_inner) = Some(sid.clone());
            }
            token(&minted)
        })
    }

    fn jwks(&self) -> Answer<'_, Option<Jwks>> {
        Box::pin(keys_of(&self.core))
    }
}

impl std::fmt::Debug for DevcoreAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DevcoreAuthority(…)")
    }
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grant(…)")
    }
}

/// The core's public keys, if it has any.
pub(super) async fn keys_of(core: &Client) -> Result<Option<Jwks>, AuthorityError> {
    let request = Request::get("/v1/relay/jwks").body(()).map_err(|_| AuthorityError::Away)?;
    let reply = core.send(request, bytes::Bytes::new()).await.map_err(|_| AuthorityError::Away)?;
    match reply.status {
        status if status.is_success() => Ok(Jwks::parse(&reply.body)),
        // A core that knows no such route signs no receipts.
        http::StatusCode::NOT_FOUND => Ok(None),
        _ => Err(AuthorityError::Away),
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

pub(super) async fn post_raw(
    core: &Client,
    bearer: &SecretString,
    path: &str,
    body: serde_json::Value,
) -> Result<serde_json::Value, AuthorityError> {
    let mut bearer = http::HeaderValue::try_from(format!("Bearer {}", bearer.expose_secret()))
        .map_err(|_| AuthorityError::Refused("a bearer has odd characters".into()))?;
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
    Err(refusal(reply.status, &reply.body))
}

/// What an answer means that is none of the good ones. A login that ran out and a portal on the way
/// end nothing: the account may be let in again.
fn refusal(status: StatusCode, body: &[u8]) -> AuthorityError {
    let code = code_of(body, status);
    match status.as_u16() {
        401 | 403 | 407 | 408 | 425 => AuthorityError::NotNow(code),
        429 | 500..=599 => AuthorityError::Away,
        _ => AuthorityError::Refused(code),
    }
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
