//! What the contact wrote, compared with the recording.

use waystation_client::playback::Recording;

use super::Error;
use super::board::is_near_live;
use super::held::recorded;
use super::place::Place;

/// Chunks of the near-live lanes.
#[derive(Default, Clone, Copy)]
pub(super) struct Watched {
    /// What the contact should have.
    pub(super) wanted: u64,
    /// What it has, byte for byte.
    pub(super) equal: u64,
    /// What is something else.
    pub(super) different: u64,
}

/// Reads every chunk that the contact should have written.
pub(super) async fn read(place: &Place, recording: &Recording, chunks: u64) -> Result<Watched, Error> {
    let mut watched = Watched::default();
    for lane in recording.lanes.iter().filter(|lane| is_near_live(lane.variant)) {
        for seq in 0..chunks {
            watched.wanted += 1;
            let Ok(bytes) = std::fs::read(place.contact().join(format!("{}/{seq:06}.mp4", lane.variant))) else {
                continue;
            };
            match recorded(recording, lane.variant, seq).await? {
                Some(wanted) if wanted == bytes => watched.equal += 1,
                _ => watched.different += 1,
            }
        }
    }
    Ok(watched)
}
