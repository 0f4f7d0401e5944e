//! What is fetched without the service token: the core's keys and its revocation list.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri};

use super::body::Outgoing;
use super::http_client::{BuildError, Client};
use crate::clock::Clock;
use crate::config;

/// For the whole exchange; whoever waits is a client with its bytes ready.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest JWKS read, in bytes.
const MAX_JWKS: usize = 64 * 1024;
/// Largest revocation list read, in bytes: about 25,000 token ids of 40 characters.
const MAX_REVOCATIONS: usize = 1024 * 1024;

/// Fetches keys and revocations. Cheap to clone.
#[derive(Clone)]
pub struct Fetch {
    client: Option<Client>,
    jwks: Option<Uri>,
    revocations: Option<Uri>,
    clock: Clock,
}

/// Why nothing was fetched. What was known before stays good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No URL is configured.
    #[error("no URL is configured")]
    NotConfigured,
    /// There is nothing at that URL (404).
    #[error("there is nothing at that URL")]
    Absent,
    /// No answer, one other than 200, or one that is too long.
    #[error("no usable answer")]
    NoAnswer,
}

impl Fetch {
    /// `capability.jwks_url`, and the revocation list of `core.url`.
    ///
    /// # Errors
    /// [`BuildError`] if a URL can't be called.
    pub fn new(
        client: &Client,
        core: Option<&config::Core>,
        capability: &config::Capability,
        clock: Clock,
    ) -> Result<Self, BuildError> {
        let jwks = capability.jwks_url.as_deref().map(|url| client.uri(url)).transpose()?;
        // A core whose tokens are not ours has no such list, and three routes are all it is asked.
        let signs = capability.jwks_url.is_some() || capability.jwks_file.is_some();
        let revocations =
            core.filter(|_| signs).map(|core| client.uri(&format!("{}/v1/relay/revocations", core.url))).transpose()?;
        Ok(Self { client: Some(client.clone()), jwks, revocations, clock })
    }

    /// Fetches nothing: keys come from a file or not at all.
    #[must_use]
    pub fn nothing(clock: Clock) -> Self {
        Self { client: None, jwks: None, revocations: None, clock }
    }

    /// The JWKS.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn jwks(&self) -> Result<Bytes, FetchError> {
        self.get(self.jwks.as_ref(), MAX_JWKS).await
    }

    /// The revocation list.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn revocations(&self) -> Result<Bytes, FetchError> {
        self.get(self.revocations.as_ref(), MAX_REVOCATIONS).await
    }

    async fn get(&self, uri: Option<&Uri>, max: usize) -> Result<Bytes, FetchError> {
        let (Some(client), Some(uri)) = (&self.client, uri) else { return Err(FetchError::NotConfigured) };
        let request = Request::builder()
            .method(Method::GET)
            .uri(uri.clone())
            .header(http::header::ACCEPT, "application/json")
            .body(Outgoing::whole(Bytes::new(), &self.clock))
            .map_err(|_| FetchError::NoAnswer)?;
        let reply = client.exchange(request, &self.clock, TIMEOUT, max).await.map_err(|_| FetchError::NoAnswer)?;
        match reply.status {
            200 => reply.body.ok_or(FetchError::NoAnswer),
            404 => Err(FetchError::Absent),
            _ => Err(FetchError::NoAnswer),
        }
    }
}
