//! What the core holds at the end: every chunk is fetched, opened with the group key and compared
//! with the recording.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use waystation_client::envelope::{self, Identity};
use waystation_client::keys::GroupKey;
use waystation_client::playback::Recording;
use waystation_client::session::Session;
use waystation_proto::id::StreamId;
use waystation_proto::{Media, Variant, offer};

use super::Error;
use super::parts::Core;
use super::place::Place;

/// Longest answer of the core that is read, in bytes: a chunk, or the list of all.
const MAX_ANSWER: usize = 64 << 20;

/// A recording without such a lane has one chunk in it: the manifest.
const LANE_OF_MANIFEST: Variant = Variant::MetadataContext;

/// What the core holds.
#[derive(Default)]
pub(super) struct Held {
    /// Chunks that open, and are what was recorded: lane and running number.
    pub(super) equal: BTreeSet<(Variant, u64)>,
    /// Chunks that do not open, are something else, or are there twice.
    pub(super) other: u64,
}

#[derive(Deserialize)]
struct List {
    chunks: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    stream: StreamId,
    index: u64,
    media: Media,
}

/// Fetches and compares everything. Chunks of the recording's first pass are written down, opened,
/// so that they can be played.
pub(super) async fn all(
    core: &Core<'_>,
    place: &Place,
    session: &Session,
    recording: &Recording,
) -> Result<Held, Error> {
    let token = std::fs::read_to_string(core.account_token_file())?;
    let fetch = |path: String| get(core.address(), path, token.trim().to_owned());
    let base = format!("/v1/incidents/{}/chunks", session.incident.as_str());
    let list: List = serde_json::from_slice(&fetch(base.clone()).await?)?;
    let key = place.group_key()?;
    let mut held = Held::default();
    for listed in list.chunks {
        let frame = fetch(format!("{base}/{}/{}", listed.stream.as_str(), listed.index)).await?;
        let opened = open(&key, session, listed, &frame);
        match opened {
            Some((variant, seq, plaintext)) if recorded(recording, variant, seq).await? == Some(plaintext.clone()) => {
                if seq < recording.chunks() {
                    write(place, variant, seq, &plaintext)?;
                }
                held.other += u64::from(!held.equal.insert((variant, seq)));
            }
            Some((LANE_OF_MANIFEST, ..)) if !recording.has(LANE_OF_MANIFEST) => {}
            _ => held.other += 1,
        }
    }
    Ok(held)
}

/// The bytes that were recorded as chunk `seq` of a lane.
pub(super) async fn recorded(recording: &Recording, variant: Variant, seq: u64) -> Result<Option<Vec<u8>>, Error> {
    match recording.lanes.iter().find(|lane| lane.variant == variant) {
        Some(lane) => Ok(Some(lane.chunk(seq).await?)),
        None => Ok(None),
    }
}

fn open(key: &GroupKey, session: &Session, listed: Listed, frame: &[u8]) -> Option<(Variant, u64, Vec<u8>)> {
    let stream_key = key.stream_key(&listed.stream)?;
    let identity = Identity {
        incident: session.incident.clone(),
        stream: listed.stream,
        media: listed.media,
        index: listed.index,
    };
    let opened = envelope::open(&stream_key, &identity, frame).ok()?;
    let (name, seq) = opened.envelope_id.rsplit_once('.')?;
    Some((offer::parse_role(name).ok()?, seq.parse().ok()?, opened.plaintext))
}

fn write(place: &Place, variant: Variant, seq: u64, plaintext: &[u8]) -> Result<(), Error> {
    let dir = place.at_core(variant);
    std::fs::create_dir_all(&dir)?;
    Ok(std::fs::write(dir.join(format!("{seq:06}.mp4")), plaintext)?)
}

async fn get(core: SocketAddr, path: String, token: String) -> Result<Bytes, Error> {
    let stream = tokio::net::TcpStream::connect(core).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, core.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if !answer.status().is_success() {
        return Err(format!("the core answers {} where it is asked for what it holds", answer.status()).into());
    }
    Ok(Limited::new(answer.into_body(), MAX_ANSWER).collect().await?.to_bytes())
}
