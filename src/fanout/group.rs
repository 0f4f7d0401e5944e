//! What a window belongs to.

use crate::proto::claims::Grant;
use crate::proto::{Code, GroupId, IncidentId, StreamId};

/// What contacts subscribe to. A Proofline token names no group: then each stream is its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GroupKey {
    /// A capture group of an incident.
    Group(IncidentId, GroupId),
    /// One stream of an incident.
    Stream(IncidentId, StreamId),
}

impl GroupKey {
    /// The group that a grant speaks of, for one of its streams.
    #[must_use]
    pub fn of(grant: &Grant, stream: &StreamId) -> Self {
        match &grant.group {
            Some(group) => Self::Group(grant.incident.clone(), group.clone()),
            None => Self::Stream(grant.incident.clone(), stream.clone()),
        }
    }

    /// The one group that a fan-out grant reaches.
    ///
    /// # Errors
    /// `NotWatchable` for a grant that names neither group nor stream.
    pub(crate) fn of_contact(grant: &Grant) -> Result<Self, Code> {
        match (&grant.group, grant.lanes.first()) {
            (Some(group), _) => Ok(Self::Group(grant.incident.clone(), group.clone())),
            (None, Some(lane)) => Ok(Self::Stream(grant.incident.clone(), lane.stream.clone())),
            (None, None) => Err(Code::NotWatchable),
        }
    }

    pub(super) const fn incident(&self) -> &IncidentId {
        match self {
            Self::Group(incident, _) | Self::Stream(incident, _) => incident,
        }
    }

    /// Its capabilities name no role: chunks are shown by media type.
    pub(super) const fn unlabelled(&self) -> bool {
        matches!(self, Self::Stream(..))
    }
}
