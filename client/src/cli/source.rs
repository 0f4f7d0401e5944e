//! From arguments to an authority.

use std::sync::Arc;

use secrecy::SecretString;
use waystation_proto::id::IncidentId;

use super::{CliError, CoreArgs};
use crate::authority::{Authority, AuthorityError, DevcoreAuthority, FixedAuthority, TokenForm, Wishes};
use crate::keys::ClientKey;
use crate::receipt::Jwks;
use crate::session::Session;

/// What speaks for a recording.
pub(super) struct Source {
    pub(super) authority: Arc<dyn Authority>,
    /// The incident, if it is known already.
    pub(super) incident: Option<IncidentId>,
    /// What a contact's session file is made of, if it can be had.
    pub(super) contact: Option<Contact>,
}

/// Where a contact's session file comes from.
pub(super) enum Contact {
    File(Box<Session>),
    Core { authority: Arc<DevcoreAuthority>, url: String },
}

impl Contact {
    /// The session file.
    pub(super) async fn session(&self) -> Result<Session, AuthorityError> {
        match self {
            Self::File(session) => Ok((**session).clone()),
            Self::Core { authority, url } => authority.session_for_contact(url).await,
        }
    }
}

impl CoreArgs {
    /// The authority these arguments name; nobody is asked yet. `make` allows a new incident where
    /// no session file names one.
    pub(super) fn source(&self, client_key: Option<ClientKey>, make: bool) -> Result<Source, CliError> {
        let session = self.session_file.as_deref().map(Session::read).transpose()?;
        match (&self.core, session) {
            (Some(url), session) => self.of_core(url, session, client_key, make),
            (None, Some(session)) => self.fixed(session),
            (None, None) => Err(CliError::Usage("give --session-file, or --core with --account-token-file")),
        }
    }

    fn of_core(
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
        let incident = session.as_ref().map(|session| session.incident.clone());
        let authority = Arc::new(match session {
            Some(session) => DevcoreAuthority::of(&core, account, session.incident, session.group, wishes),
            None if make => DevcoreAuthority::new(&core, account, wishes),
            None => return Err(CliError::Usage("--core needs --session-file to know what to watch")),
        });
        let contact = Contact::Core { authority: Arc::clone(&authority), url: url.into() };
        Ok(Source { authority, incident, contact: (make && !self.proofline).then_some(contact) })
    }

    const fn form(&self) -> TokenForm {
        if self.proofline { TokenForm::Proofline } else { TokenForm::Jwt }
    }

    fn fixed(&self, session: Session) -> Result<Source, CliError> {
        let jwks = match &self.jwks {
            None => None,
            Some(path) => Some(Jwks::parse(&std::fs::read(path)?).ok_or(CliError::Usage("--jwks has no Ed25519 key"))?),
        };
        let (incident, contact) = (Some(session.incident.clone()), Some(Contact::File(Box::new(session.clone()))));
        Ok(Source { authority: Arc::new(FixedAuthority::new(session, self.form(), jwks)), incident, contact })
    }
}
