//! A relay and an authority made for these tests from the wire formats alone.

pub mod authority;
pub mod relay;
mod web;
mod ws;

use std::time::Duration;

use tokio::sync::mpsc;
use waystation_client::GroupKey;
use waystation_client::capture::{Config, Event, LaneSpec};
use waystation_client::connect::Transport;
use waystation_proto::id::{GroupId, IncidentId};
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
        relay: relay.endpoint(transport),
        transport,
        group_key: group_key(),
        incident: incident(),
        group: GroupId::new("group_1").unwrap(),
        lanes: lanes.to_vec(),
        client_key: None,
        spool: None,
        wait_s: 5,
    }
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
