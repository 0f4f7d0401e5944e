//! The requests for chunks: each in a task of its own, which tells what comes of it.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use tokio::sync::mpsc::{self, error::SendError};
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::id::{ChunkRef, Digest, IncidentId};
use waystation_proto::{Offer, dictionary};

use super::plan::{Failure, News};
use super::table::Name;
use crate::h3link::H3;
use crate::http::Broken;

/// How long the relay shall wait for a chunk to begin, in seconds: the most it grants.
const WAIT: &str = "wait=120";

/// Makes requests.
pub(super) struct Asker {
    pub(super) connection: Arc<H3>,
    pub(super) bearer: HeaderValue,
    pub(super) incident: IncidentId,
    pub(super) tell: mpsc::Sender<(u64, News)>,
}

impl Asker {
    /// One request, which tells what comes of it under its number. Dropping it ends it at the relay too.
    pub(super) fn ask(&self, number: u64, name: Name) -> AbortOnDropHandle<()> {
        let chunk = ChunkRef::of(&self.incident, &name.0, name.1);
        let request = Request::get(format!("/chunks/{chunk}"))
            .header(header::AUTHORIZATION, self.bearer.clone())
            .header("prefer", WAIT)
            .body(());
        let (connection, tell, incident) = (Arc::clone(&self.connection), self.tell.clone(), self.incident.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let fetched = match request {
                Ok(request) => fetch(&connection, request, (incident, name), |news| tell.send((number, news))).await,
                Err(_) => Err(Failure::Lost),
            };
            let _ = tell.send((number, fetched.map_or_else(News::Failed, |()| News::Whole))).await;
        }))
    }
}

/// Brings one chunk.
async fn fetch<T: Future<Output = Result<(), SendError<(u64, News)>>>>(
    connection: &H3,
    request: Request<()>,
    (incident, (stream, index)): (IncidentId, Name),
    tell: impl Fn(News) -> T,
) -> Result<(), Failure> {
    let (answer, mut body) = connection.open(request).await.map_err(|Broken| Failure::Lost)?;
    if !answer.status().is_success() {
        return Err(refusal(answer.status(), answer.headers()));
    }
    let of = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let digest: Option<Digest> = of("repr-digest").and_then(|text| dictionary::parse_digest(text).ok());
    let offer =
        of("waystation-chunk").zip(digest).and_then(|(text, sha)| dictionary::parse_offer(text, sha, None).ok());
    let named = |offer: &Offer| (&offer.incident, &offer.stream, offer.index) == (&incident, &stream, index);
    let offer = offer.filter(named).ok_or(Failure::Lost)?;
    let loss = of("waystation-loss").and_then(|text| text.parse().ok());
    let length = offer.length;
    tell(News::Begins(Box::new(offer), loss)).await.map_err(|_| Failure::Lost)?;
    let mut offset = 0;
    while let Some(bytes) = body.data().await.map_err(|Broken| Failure::Lost)? {
        let came = bytes.len() as u64;
        if came > length - offset {
            return Err(Failure::Lost);
        }
        tell(News::Bytes(offset, bytes)).await.map_err(|_| Failure::Lost)?;
        offset += came;
    }
    if offset == length { Ok(()) } else { Err(Failure::Lost) }
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> Failure {
    match status {
        StatusCode::NOT_FOUND => Failure::Absent,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Failure::Busy(crate::http::retry_after(headers).map(Duration::from_secs))
        }
        _ => Failure::Lost,
    }
}
