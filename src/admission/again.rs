//! After a restart: what was whole and unconfirmed is shown again, since a contact may have
//! missed it.

use std::collections::HashMap;

use super::Admission;
use crate::fanout::{ChunkMeta, GroupKey};
use crate::proto::Variant;
use crate::staging::Meta;

impl Admission {
    /// Shows recovered chunks again: of each lane those within the window, as far as the windows'
    /// memory goes. Bytes that can't be read are left out; their verdict is still told.
    pub async fn show_again(&self, recovered: &[Meta], window_ms: i64) {
        let mut newest: HashMap<(GroupKey, Variant), i64> = HashMap::new();
        let lane = |meta: &Meta| (GroupKey::of(&meta.grant, &meta.offer.stream), meta.variant);
        for meta in recovered {
            let ended = newest.entry(lane(meta)).or_insert(i64::MIN);
            *ended = (*ended).max(meta.offer.ended.unix_ms());
        }
        for meta in recovered {
            let (group, variant) = lane(meta);
            let edge = newest.get(&(group.clone(), variant)).map_or(i64::MIN, |ended| ended.saturating_sub(window_ms));
            let labelled = meta.grant.lane(&meta.offer.stream).is_some_and(|lane| lane.variant.is_some());
            let shown = variant.watchable() && (labelled || self.0.allow_unlabelled);
            if !shown {
                self.0.hidden.remember(meta.offer.chunk_ref(), &group);
            }
            if !shown || meta.offer.ended.unix_ms() < edge || meta.offer.length > self.0.max_shown {
                continue;
            }
            if let Ok(bytes) = self.0.parts.staging.read_whole(meta.offer.chunk_ref()).await {
                let publication = self.0.parts.hub.publish(&group, shown_as(meta));
                publication.push(0, &bytes);
                publication.complete();
            }
        }
    }
}

fn shown_as(meta: &Meta) -> ChunkMeta {
    let offer = &meta.offer;
    ChunkMeta {
        chunk: offer.chunk_ref(),
        session: meta.grant.session.clone(),
        stream: offer.stream.clone(),
        variant: meta.variant,
        media: offer.media,
        index: offer.index,
        length: offer.length,
        sha256: offer.sha256,
        started: offer.started.clone(),
        ended: offer.ended.clone(),
    }
}
