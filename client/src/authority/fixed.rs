//! An authority that has only what a session file holds: no further streams, no renewal.

use waystation_proto::id::StreamId;
use waystation_proto::{Media, Variant};

use super::{Answer, Authority, AuthorityError, Ids};
use crate::receipt::Jwks;
use crate::session::Session;
use crate::token::Token;

/// Which of the two formats of capability to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TokenForm {
    /// Our JWT.
    #[default]
    Jwt,
    /// The core's HMAC token, one for each stream.
    Proofline,
}

/// Gives out what a session file holds.
#[derive(Debug)]
pub struct FixedAuthority {
    session: Session,
    form: TokenForm,
    jwks: Option<Jwks>,
}

impl FixedAuthority {
    /// Takes a session and, to verify receipts, the core's keys.
    #[must_use]
    pub fn new(session: Session, form: TokenForm, jwks: Option<Jwks>) -> Self {
        Self { session, form, jwks }
    }

    fn stream(&self, variant: Variant, media: Media, follows: Option<&StreamId>) -> Result<StreamId, AuthorityError> {
        let mut lane = self.session.streams.iter().filter(|s| s.variant == variant && s.media == media);
        let next = match follows {
            None => lane.next(),
            Some(before) => lane.skip_while(|s| s.stream != *before).nth(1),
        };
        let none = || refused("the session file has no further stream for a lane");
        next.map(|next| next.stream.clone()).ok_or_else(none)
    }

    fn upload(&self, streams: &[StreamId]) -> Result<Vec<Token>, AuthorityError> {
        let texts: Vec<&str> = match self.form {
            TokenForm::Jwt => self.session.upload_capability.iter().map(String::as_str).collect(),
            TokenForm::Proofline => {
                let wanted = self.session.streams.iter().filter(|s| streams.contains(&s.stream));
                wanted.filter_map(|s| s.proofline.as_ref()?.upload.as_deref()).collect()
            }
        };
        read_live(&texts)
    }

    fn fanout(&self) -> Result<Token, AuthorityError> {
        let proofline = || self.session.streams.iter().find_map(|s| s.proofline.as_ref()?.fanout.as_deref());
        let text = match self.form {
            TokenForm::Jwt => self.session.fanout_capability.as_deref(),
            TokenForm::Proofline => proofline(),
        };
        let mut tokens = read_live(&text.into_iter().collect::<Vec<_>>())?;
        tokens.pop().ok_or_else(|| refused("the session file has no capability to watch"))
    }
}

impl Authority for FixedAuthority {
    fn ids(&self, kept: Option<Ids>) -> Answer<'_, Ids> {
        Box::pin(async move {
            let (incident, group) = (self.session.incident.clone(), self.session.group.clone());
            match kept {
                Some(kept) if (&kept.incident, &kept.group) != (&incident, &group) => {
                    Err(refused("the queue is of another recording than the session file"))
                }
                _ => Ok(Ids { incident, group, sid: None }),
            }
        })
    }

    fn next_stream(&self, variant: Variant, media: Media, follows: Option<StreamId>) -> Answer<'_, StreamId> {
        Box::pin(async move { self.stream(variant, media, follows.as_ref()) })
    }

    fn upload_capability(&self, streams: Vec<StreamId>) -> Answer<'_, Vec<Token>> {
        Box::pin(async move { self.upload(&streams) })
    }

    fn fanout_capability(&self) -> Answer<'_, Token> {
        Box::pin(async move { self.fanout() })
    }

    fn jwks(&self) -> Answer<'_, Option<Jwks>> {
        Box::pin(async move { Ok(self.jwks.clone()) })
    }
}

fn read_live(texts: &[&str]) -> Result<Vec<Token>, AuthorityError> {
    let tokens: Vec<Token> = texts.iter().filter_map(|text| Token::parse(text).ok()).collect();
    if tokens.is_empty() {
        return Err(refused("the session file has no such capability"));
    }
    if tokens.iter().any(|token| token.expired(crate::clock::unix_ms())) {
        return Err(refused("a capability of the session file has run out"));
    }
    Ok(tokens)
}

fn refused(why: &str) -> AuthorityError {
    AuthorityError::Refused(why.into())
}
