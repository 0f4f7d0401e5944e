//! From arguments to an authority.

use std::sync::Arc;

use secrecy::SecretString;
use waystation_proto::id::{GroupId, IncidentId};

use super::{CliError, CoreArgs};
use crate::authority::{Authority, DevcoreAuthority, FixedAuthority, TokenForm, Wishes};
use crate::keys::ClientKey;
use crate::receipt::Jwks;
use crate::session::Session;

/// What speaks for a recording.
pub(super) struct Source {
    pub(super) authority: Arc<dyn Authority>,
    pub(super) incident: IncidentId,
    pub(super) group: GroupId,
    /// What a contact needs, if it can be had.
    pub(super) for_contact: Option<Session>,
}

impl CoreArgs {
    /// The authority these arguments name. `make` allows a new incident where no session file
    /// names one.
    pub(super) async fn source(&self, client_key: Option<ClientKey>, make: bool) -> Result<Source, CliError> {
        let session = self.session_file.as_deref().map(Session::read).transpose()?;
        match (&self.core, session) {
            (Some(url), session) => self.of_core(url, session, client_key, make).await,
            (None, Some(session)) => self.fixed(session),
            (None, None) => Err(CliError::Usage("give --session-file, or --core with --account-token-file")),
        }
    }

    async fn of_core(
        &self,
        url: &str,
        session: Option<Session>,
        client_key: Option<ClientKey>,
        make: bool,
    ) -> Result<Source, CliError> {
        let path = self.account_token_file.as_ref().ok_or(CliError::Usage("--core needs --account-token-file"))?;
        let account = SecretString::from(std::fs::read_to_string(path)?.trim().to_owned());
        let core = super::endpoint(url, self.core_ca_file.as_deref())?;
        let wishes = Wishes { ttl_s: self.ttl, max_chunks: self.max_chunks, client_key, form: self.form() };
        let authority = match session {
            Some(session) => DevcoreAuthority::of(&core, account, session.incident, session.group, wishes),
            None if make => DevcoreAuthority::create(&core, account, wishes).await?,
            None => return Err(CliError::Usage("--core needs --session-file to know what to watch")),
        };
        let for_contact = if make && !self.proofline { Some(authority.session_for_contact(url).await?) } else { None };
        let (incident, group) = (authority.incident().clone(), authority.group().clone());
        Ok(Source { authority: Arc::new(authority), incident, group, for_contact })
    }

    const fn form(&self) -> TokenForm {
        if self.proofline { TokenForm::Proofline } else { TokenForm::Jwt }
    }

    fn fixed(&self, session: Session) -> Result<Source, CliError> {
        let jwks = match &self.jwks {
            None => None,
            Some(path) => Some(Jwks::parse(&std::fs::read(path)?).ok_or(CliError::Usage("--jwks has no Ed25519 key"))?),
        };
        let (incident, group) = (session.incident.clone(), session.group.clone());
        let for_contact = Some(session.clone());
        Ok(Source {
            authority: Arc::new(FixedAuthority::new(session, self.form(), jwks)),
            incident,
            group,
            for_contact,
        })
    }
}
