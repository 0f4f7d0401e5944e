//! A relay and an authority made for these tests from the wire formats alone.

pub mod authority;
pub mod proxy;
pub mod relay;
mod web;
mod ws;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use waystation_client::GroupKey;
use waystation_client::capture::local::LocalKey;
use waystation_client::capture::{Config, Event, LaneSpec, Storage};
use waystation_client::connect::Transport;
use waystation_proto::id::IncidentId;
use waystation_proto::{Media, Variant};

pub const AUDIO: LaneSpec = LaneSpec { variant: Variant::AudioPriority, media: Media::Audio };
pub const MASTER: LaneSpec = LaneSpec { variant: Variant::EvidenceMaster, media: Media::Video };

/// A hung test fails after this.
pub const LIMIT: Duration = Duration::from_secs(20);

pub fn incident() -> IncidentId {
    IncidentId::new("incident_1").unwrap()
}

pub fn group_key() -> GroupKey {
    GroupKey::new([42; 32])
}

pub fn config(relay: &relay::Relay, transport: Transport, lanes: &[LaneSpec]) -> Config {
    Config {
        relays: vec![relay.endpoint(transport)],
        transport,
        group_key: group_key(),
        lanes: lanes.to_vec(),
        client_key: None,
        storage: Storage::Memory,
        manifest: false,
        wait_s: 5,
    }
}

/// A queue in a directory.
pub fn queue(path: &Path) -> Storage {
    Storage::directory(path, Arc::new(LocalKey::new([5; 32])))
}

/// Chunks that wait in a queue's directory.
pub fn files(path: &Path) -> usize {
    let names = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("upload_queue.")).count()
}

/// Takes events until one is found.
pub async fn until(events: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    let search = async {
        loop {
            let event = events.recv().await.expect("the session is over");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(LIMIT, search).await.expect("the event does not come")
}
