//! The requests for chunks: each in a task of its own, which tells what comes of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::id::{ChunkRef, Digest, IncidentId, StreamId};
use waystation_proto::{Offer, dictionary};

use crate::h3link::H3;
use crate::http::Broken;

/// How long the relay shall wait for a chunk to begin, in seconds: the most it grants.
const WAIT: &str = "wait=120";
/// A chunk's name.
pub(super) type Name = (StreamId, u64);

/// What happened to a request.
pub(super) enum News {
    /// What its answer says of it, and how many of a thousand packets are lost, where that is known.
    Begins(Box<Offer>, Option<u64>),
    Bytes(u64, Bytes),
    Whole,
    /// `true`: there is no such chunk now.
    Failed(bool),
}

/// Makes requests.
pub(super) struct Asker {
    pub(super) connection: Arc<H3>,
    pub(super) bearer: HeaderValue,
    pub(super) incident: IncidentId,
    pub(super) tell: mpsc::Sender<(u64, News)>,
}

impl Asker {
    /// One request, which tells what comes of it.
    pub(super) fn ask(&self, handle: u64, (stream, index): &Name) -> AbortOnDropHandle<()> {
        let chunk = ChunkRef::of(&self.incident, stream, *index);
        let request = Request::get(format!("/chunks/{chunk}"))
            .header(header::AUTHORIZATION, self.bearer.clone())
            .header("prefer", WAIT)
            .body(());
        let (connection, tell, incident) = (Arc::clone(&self.connection), self.tell.clone(), self.incident.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let fetched = match request {
                Ok(request) => fetch(&connection, request, &incident, handle, &tell).await,
                Err(_) => Err(false),
            };
            let _ = tell.send((handle, fetched.map_or_else(News::Failed, |()| News::Whole))).await;
        }))
    }
}

/// Brings one chunk; an error says whether there is none.
async fn fetch(
    connection: &H3,
    request: Request<()>,
    incident: &IncidentId,
    handle: u64,
    tell: &mpsc::Sender<(u64, News)>,
) -> Result<(), bool> {
    let (answer, mut body) = connection.open(request).await.map_err(|Broken| false)?;
    if !answer.status().is_success() {
        return Err(answer.status() == http::StatusCode::NOT_FOUND);
    }
    let of = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let digest: Option<Digest> = of("repr-digest").and_then(|text| dictionary::parse_digest(text).ok());
    let offer =
        of("waystation-chunk").zip(digest).and_then(|(text, sha)| dictionary::parse_offer(text, sha, None).ok());
    let offer = offer.filter(|offer| offer.incident == *incident).ok_or(false)?;
    let loss = of("waystation-loss").and_then(|text| text.parse().ok());
    let length = offer.length;
    tell.send((handle, News::Begins(Box::new(offer), loss))).await.map_err(|_| false)?;
    let mut offset = 0;
    while let Some(bytes) = body.data().await.map_err(|Broken| false)? {
        let came = bytes.len() as u64;
        tell.send((handle, News::Bytes(offset, bytes))).await.map_err(|_| false)?;
        offset += came;
    }
    if offset == length { Ok(()) } else { Err(false) }
}
