//! One core: its settings, keys, store and counters, and the checks that need several of them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use waystation_proto::claims::{Audience, JwtClaims, PROOFLINE_PREFIX, Use};
use waystation_proto::{GroupId, IncidentId, SessionId};

use crate::capability::{Pass, Step, jwt, proofline};
use crate::clock::{Clock, random_id};
use crate::faults::Faults;
use crate::fields::Ids;
use crate::keys::{self, Kept, SigningKeys, Token};
use crate::limiter::{Class, Limiter};
use crate::options::{Options, Secret};
use crate::refusal::{self, Refusal};
use crate::running::StartError;
use crate::stats::Stats;
use crate::store::Store;
use crate::store::blobs::Blobs;

/// Header of the relay's service token.
const SERVICE_TOKEN: &str = "x-proofline-relay-service-token";
/// Opened capabilities remembered, so that a session's signature is verified once: about 2 KiB each.
const MAX_OPENED: usize = 1024;

/// The tasks of a core, and their end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Background {
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// One core.
pub(crate) struct Core {
    pub(crate) background: Background,
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    pub(crate) keys: SigningKeys,
    pub(crate) service_token: Kept,
    pub(crate) account_token: Token,
    pub(crate) account_token_file: Option<PathBuf>,
    pub(crate) capability_secret: Kept,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) faults: Arc<Faults>,
    pub(crate) stats: Stats,
    limiter: Mutex<Limiter>,
    opened: Mutex<HashMap<[u8; 32], JwtClaims>>,
    revoked: Mutex<HashSet<String>>,
}

impl Core {
    /// Reads or makes everything that lies in the data directory. Blocks.
    pub(crate) fn open(options: Options) -> Result<(Self, std::thread::JoinHandle<()>), StartError> {
        let dir = &options.data;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(StartError::Io)?;
        let keys = SigningKeys::open(dir)?;
        let account = keys::secret(dir, "account-token", &Secret::Generated)?;
        let blobs = Blobs::open(&dir.join("blobs"), options.staging_quota_bytes).map_err(StartError::Io)?;
        let (store, thread) = Store::open(dir, &blobs, options.account_quota_bytes)?;
        let core = Self {
            background: Background::default(),
            clock: options.clock.clone(),
            keys,
            service_token: keys::secret(dir, "service-token", &options.service_token)?,
            account_token: account.token.ok_or(StartError::SecretTooShort("account-token"))?,
            account_token_file: account.file,
            capability_secret: keys::secret(dir, "capability-secret", &options.capability_secret)?,
            store,
            blobs,
            faults: Arc::new(Faults::new()),
            stats: Stats::default(),
            limiter: Mutex::new(Limiter::new(options.calls_per_minute)),
            opened: Mutex::default(),
            revoked: Mutex::default(),
            options,
        };
        Ok((core, thread))
    }

    /// Reads the revocation list into memory: it is asked at every call.
    pub(crate) async fn load_revocations(&self) -> Result<(), crate::store::Failed> {
        let revoked = self.store.revoked(self.clock.unix_s()).await?;
        lock(&self.revoked).extend(revoked);
        Ok(())
    }

    pub(crate) async fn revoke(&self, jti: &str) -> Result<(), Refusal> {
        self.store.revoke(jti.to_owned()).await?;
        lock(&self.revoked).insert(jti.to_owned());
        Ok(())
    }

    /// Revokes a contact's grant, and its capabilities with it.
    pub(crate) async fn revoke_grant(&self, incident: &str, group: &str, id: &str) -> Result<(), Refusal> {
        let held = self.store.revoke_grant(incident, group, id, self.clock.unix_s()).await?;
        lock(&self.revoked).extend(held);
        Ok(())
    }

    /// Claims of a capability for a group from now on, that reach all its lanes; `None`: a name is none.
    pub(crate) fn claims(&self, use_: Use, incident: &str, group: &str, session: &str, exp: i64) -> Option<JwtClaims> {
        Some(JwtClaims {
            iss: self.options.issuer.clone(),
            aud: Audience::One(self.options.audience.clone()),
            iat: self.clock.unix_s(),
            exp,
            jti: random_id("jti_"),
            sid: SessionId::new(session).ok()?,
            use_,
            incident: IncidentId::new(incident).ok()?,
            group: GroupId::new(group).ok()?,
            lanes: Vec::new(),
            commit_exp: None,
            cnf: None,
        })
    }

    /// Row 1 of A.2 and A.3.
    pub(crate) fn limit(&self, class: Class, host: IpAddr) -> Result<(), Refusal> {
        let limited = |seconds| refusal::RATE_LIMITED.with_retry_after(seconds);
        lock(&self.limiter).call(class, host, self.clock.unix_ms()).map_err(limited)
    }

    pub(crate) fn set_calls_per_minute(&self, calls: u32) {
        lock(&self.limiter).set(calls);
    }

    /// Rows 2 and 3 of A.2: exactly one header, without white space around it.
    pub(crate) fn service(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let token = self.service_token.token.as_ref().ok_or(refusal::SERVICE_AUTH_NOT_CONFIGURED)?;
        let mut values = headers.get_all(SERVICE_TOKEN).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Err(refusal::SERVICE_AUTH_REQUIRED) };
        let shown = value.to_str().map_err(|_| refusal::SERVICE_AUTH_REQUIRED)?;
        if shown.is_empty() || shown.trim() != shown || !token.is(shown) {
            return Err(refusal::SERVICE_AUTH_REQUIRED);
        }
        Ok(())
    }

    /// The account's session: a bearer token.
    pub(crate) fn account(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let bearer = headers.get(AUTHORIZATION).ok_or(refusal::AUTHENTICATION_REQUIRED)?;
        if headers.contains_key(COOKIE) {
            return Err(refusal::AMBIGUOUS_CREDENTIALS);
        }
        let shown = bearer.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        if shown.is_some_and(|shown| self.account_token.is(shown.trim())) {
            return Ok(());
        }
        Err(refusal::AUTHENTICATION_REQUIRED)
    }

    /// Rows 12 and 13 of A.2: the capability, in either format.
    pub(crate) fn authorize(&self, ids: &Ids, step: Step) -> Result<Pass, Refusal> {
        let now = self.clock.unix_s();
        let of_proofline = ids.capability.split('.').next() == Some(PROOFLINE_PREFIX);
        if self.options.hmac_only || of_proofline {
            let secret = self.capability_secret.token.as_ref().ok_or(refusal::CAPABILITY_NOT_CONFIGURED)?;
            return proofline::verify(secret.as_str(), ids, step.wants(), now);
        }
        let claims = self.opened_claims(&ids.capability).ok_or(refusal::CAPABILITY_INVALID)?;
        if lock(&self.revoked).contains(&claims.jti) {
            return Err(refusal::CAPABILITY_REVOKED);
        }
        jwt::verify(claims, &self.options.audience, ids, step, now)
    }

    fn opened_claims(&self, token: &str) -> Option<JwtClaims> {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let name: [u8; 32] = digest.as_ref().try_into().ok()?;
        if let Some(claims) = lock(&self.opened).get(&name) {
            return Some(claims.clone());
        }
        let claims = jwt::open(token, |kid| self.keys.find(kid))?;
        let mut opened = lock(&self.opened);
        if opened.len() >= MAX_OPENED {
            opened.clear();
        }
        opened.insert(name, claims.clone());
        Some(claims)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
