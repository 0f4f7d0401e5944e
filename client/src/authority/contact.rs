//! A contact's way to the core: with its grant, and nothing but that.

use secrecy::SecretString;
use serde::Deserialize;
use waystation_proto::id::{GroupId, IncidentId, StreamId};
use waystation_proto::{Media, Variant};

use super::devcore::{keys_of, post_raw};
use super::{Answer, Authority, AuthorityError, Ids};
use crate::connect::Endpoint;
use crate::http::Client;
use crate::receipt::Jwks;
use crate::token::Token;

/// Gets short capabilities to watch one group, for a contact's grant.
pub struct ContactAuthority {
    core: Client,
    grant: SecretString,
}

#[derive(Deserialize)]
struct Minted {
    capability: String,
    incident: IncidentId,
    group: GroupId,
}

impl ContactAuthority {
    /// Speaks to a core with this grant. Nothing is sent before something is asked.
    #[must_use]
    pub fn new(core: &Endpoint, grant: SecretString) -> Self {
        Self { core: Client::new(core), grant }
    }

    async fn mint(&self) -> Result<Minted, AuthorityError> {
        let answer = post_raw(&self.core, &self.grant, "/v1/contact/capability", serde_json::json!({})).await?;
        serde_json::from_value(answer).map_err(|_| AuthorityError::Refused("an answer can't be read".into()))
    }
}

impl Authority for ContactAuthority {
    fn ids(&self, _kept: Option<Ids>) -> Answer<'_, Ids> {
        Box::pin(async move {
            let Minted { incident, group, .. } = self.mint().await?;
            Ok(Ids { incident, group, sid: None })
        })
    }

    fn next_stream(&self, _: Variant, _: Media, _: Option<StreamId>) -> Answer<'_, StreamId> {
        Box::pin(async { Err(refused()) })
    }

    fn upload_capability(&self, _: Vec<StreamId>) -> Answer<'_, Vec<Token>> {
        Box::pin(async { Err(refused()) })
    }

    fn fanout_capability(&self) -> Answer<'_, Token> {
        Box::pin(async move {
            let minted = self.mint().await?;
            let none = |_| AuthorityError::Refused("an answer holds no capability".into());
            Token::parse(&minted.capability).map_err(none)
        })
    }

    fn jwks(&self) -> Answer<'_, Option<Jwks>> {
        Box::pin(keys_of(&self.core))
    }
}

fn refused() -> AuthorityError {
    AuthorityError::Refused("a contact only watches".into())
}

impl std::fmt::Debug for ContactAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContactAuthority(…)")
    }
}
