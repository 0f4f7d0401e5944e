//! What a capture session shows of itself at any time: its state, its chunks' states, how far it
//! is. Pure.

use waystation_proto::Variant;

/// A closed word list, as it stands in the queue and on the command line.
macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every state.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

states! {
    /// Where a session is.
    #[derive(Default)]
    SessionState {
        /// Nothing was cut yet.
        #[default]
        Initiated = "initiated",
        /// It records, or what was recorded is on its way.
        InProgress = "in_progress",
        /// It records; nothing is sent until it is resumed.
        Paused = "paused",
        /// It was finished, and all of it is confirmed.
        Completed = "completed",
        /// It was finished, and some of it can't be confirmed any more.
        Failed = "failed",
        /// It was canceled.
        Canceled = "canceled",
    }
}

states! {
    /// Where a chunk is, for its owner.
    ItemState {
        /// It waits for its turn, or for the names it is sealed with.
        Queued = "queued",
        /// Its bytes are on their way, or the relay holds them and the core has not answered.
        Uploading = "uploading",
        /// Confirmed by the core.
        Complete = "complete",
        /// A try failed; the next one has its time.
        Retrying = "retrying",
        /// Every try failed, or it was refused for good. Its bytes are kept.
        Failed = "failed",
        /// It waits because the session is paused, offline or low on battery.
        Paused = "paused",
    }
}

/// What can be asked of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Go on, or begin.
    Resume,
    /// Stop sending.
    Pause,
    /// All of it is confirmed.
    Complete,
    /// Some of it can't be confirmed any more.
    Fail,
    /// Stop for good.
    Cancel,
}

impl SessionState {
    /// Whether nothing follows.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }

    /// The state after a step; none if it can't be taken from here.
    #[must_use]
    pub const fn after(self, step: Step) -> Option<Self> {
        match (self, step) {
            (Self::Initiated | Self::Paused | Self::InProgress, Step::Resume) => Some(Self::InProgress),
            (Self::Initiated | Self::InProgress | Self::Paused, Step::Pause) => Some(Self::Paused),
            (Self::Initiated | Self::InProgress, Step::Complete) => Some(Self::Completed),
            (Self::Initiated | Self::InProgress | Self::Paused, Step::Fail) => Some(Self::Failed),
            (Self::Initiated | Self::InProgress | Self::Paused, Step::Cancel) => Some(Self::Canceled),
            _ => None,
        }
    }
}

/// Which network the device is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkKind {
    /// Nobody says: as much is sent at once as the transport takes.
    #[default]
    Unknown,
    /// Two chunks at once.
    Wifi,
    /// One chunk at once.
    Cellular,
    /// Nothing is sent, and nothing counts as a failure.
    None,
}

/// What the device says of its network and battery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Network {
    /// Which network.
    pub kind: NetworkKind,
    /// The battery is low: as without a network.
    pub battery_low: bool,
}

impl Network {
    /// Chunks whose bytes may move at once, as far as the network says so.
    #[must_use]
    pub const fn bodies(self) -> usize {
        match (self.kind, self.battery_low) {
            (NetworkKind::None, _) | (_, true) => 0,
            (NetworkKind::Cellular, _) => 1,
            (NetworkKind::Wifi, _) => 2,
            (NetworkKind::Unknown, _) => usize::MAX,
        }
    }

    /// Whether anything may be sent.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        self.bodies() > 0
    }
}

/// One chunk that is not confirmed, for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its lane.
    pub variant: Variant,
    /// Running number in the lane, from 0.
    pub lane_seq: u64,
    /// Where it is.
    pub state: ItemState,
    /// Bytes that a relay was seen to hold; never goes back.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Tries that failed and count; at most five.
    pub retries: u32,
}

/// A session at a glance. Neither count of bytes ever goes back, over restarts too (a power cut
/// may take back what was noted of the last seconds).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Where it is.
    pub session: SessionState,
    /// The relay has held something whole: help can be called with something to show. Says
    /// nothing of the rest, and waits for none of it.
    pub evidence_ready: bool,
    /// Chunks cut, without the manifest.
    pub chunks: u64,
    /// Confirmed by the core.
    pub complete: u64,
    /// Waiting for their turn.
    pub queued: u64,
    /// On their way or at the relay.
    pub uploading: u64,
    /// Waiting for their next try.
    pub retrying: u64,
    /// Failed for now, or refused for good.
    pub failed: u64,
    /// Waiting because nothing is sent now.
    pub paused: u64,
    /// Gone from the device before they were sent.
    pub lost: u64,
    /// Bytes that a relay was seen to hold, or that are confirmed.
    pub done_bytes: u64,
    /// Bytes of all chunks cut.
    pub total_bytes: u64,
}

impl Status {
    /// Counts a chunk.
    pub(crate) fn count(&mut self, state: ItemState) {
        *match state {
            ItemState::Queued => &mut self.queued,
            ItemState::Uploading => &mut self.uploading,
            ItemState::Complete => &mut self.complete,
            ItemState::Retrying => &mut self.retrying,
            ItemState::Failed => &mut self.failed,
            ItemState::Paused => &mut self.paused,
        } += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_over_stays_so_and_one_that_is_not_can_be_canceled() {
        use Step::{Cancel, Complete, Fail, Pause, Resume};
        for state in SessionState::ALL {
            for step in [Resume, Pause, Complete, Fail, Cancel] {
                let after = state.after(step);
                assert!(!(state.is_over() && after.is_some()), "{state} {step:?}");
            }
            assert_eq!(state.after(Cancel).is_none(), state.is_over(), "{state}");
        }
        assert_eq!(SessionState::Paused.after(Complete), None, "resumed first");
        assert_eq!(SessionState::Paused.after(Resume), Some(SessionState::InProgress));
    }

    #[test]
    fn the_network_says_how_much_moves_at_once() {
        let bodies = |kind, battery_low| Network { kind, battery_low }.bodies();
        assert_eq!(bodies(NetworkKind::Wifi, false), 2);
        assert_eq!(bodies(NetworkKind::Cellular, false), 1);
        assert_eq!(bodies(NetworkKind::None, false), 0);
        assert_eq!(bodies(NetworkKind::Wifi, true), 0);
        assert!(!Network { kind: NetworkKind::Unknown, battery_low: true }.is_usable());
    }
}
