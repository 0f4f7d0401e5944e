//! After a restart: what was whole and unconfirmed is shown again, since a contact may have
//! missed it.

use std::collections::{HashMap, HashSet};

use super::Admission;
use crate::config;
use crate::fanout::{ChunkMeta, GroupKey};
use crate::proto::Variant;
use crate::staging::Meta;

impl Admission {
    /// Shows recovered chunks again: of each lane those within the window, the newest as far as the
    /// windows' memory goes. Of the others, and of bytes that can't be read, only the verdict is
    /// told.
    pub async fn show_again(&self, recovered: &[Meta], fanout: &config::Fanout) {
        let mut room = fanout.memory;
        let edges = edges(recovered, i64::try_from(fanout.window.as_millis()).unwrap_or(i64::MAX));
        let fits = |meta: &&Meta| {
            let within =
                self.shows(meta) && edges.get(&lane(meta)).is_some_and(|edge| meta.offer.ended.unix_ms() >= *edge);
            let fits = within && meta.offer.length <= self.0.max_shown.min(room);
            room -= if fits { meta.offer.length } else { 0 };
            fits
        };
        let read: HashSet<_> = recovered.iter().rev().filter(fits).map(|meta| meta.offer.chunk_ref()).collect();
        for meta in recovered.iter().filter(|meta| !self.shows(meta)) {
            self.0.hidden.remember(meta.offer.chunk_ref(), &lane(meta).0);
        }
        for meta in recovered.iter().filter(|meta| self.shows(meta)) {
            let chunk = meta.offer.chunk_ref();
            let age = self.0.parts.clock.unix_ms().saturating_sub(meta.accepted_unix_ms);
            let age = u64::try_from(age).unwrap_or(0);
            let publication = self.0.parts.hub.publish_again(&lane(meta).0, shown_as(meta), age);
            if read.contains(&chunk)
                && let Ok(bytes) = self.0.parts.staging.read_whole(chunk).await
            {
                publication.push(0, &bytes);
            }
            // Without its bytes too: who was shown it before is told its verdict.
            publication.complete();
        }
    }

    fn shows(&self, meta: &Meta) -> bool {
        let labelled = meta.grant.lane(&meta.offer.stream).is_some_and(|lane| lane.variant.is_some());
        meta.variant.watchable() && (labelled || self.0.allow_unlabelled)
    }
}

fn lane(meta: &Meta) -> (GroupKey, Variant) {
    (GroupKey::of(&meta.grant, &meta.offer.stream), meta.variant)
}

/// Where the window of each lane begins.
fn edges(recovered: &[Meta], window_ms: i64) -> HashMap<(GroupKey, Variant), i64> {
    let mut edges = HashMap::new();
    for meta in recovered {
        let edge = edges.entry(lane(meta)).or_insert(i64::MIN);
        *edge = (*edge).max(meta.offer.ended.unix_ms().saturating_sub(window_ms));
    }
    edges
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
