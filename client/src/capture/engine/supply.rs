//! What the session needs of its authority: streams, capabilities, the core's keys.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use waystation_proto::id::StreamId;

use crate::authority::{self, AuthorityError};
use crate::capture::event::Event;
use crate::capture::lane::Lane;
use crate::capture::link::ToLink;
use crate::clock;
use crate::token::Token;

use super::{AUTHORITY_PAUSE_MS, Engine, KEYS_PAUSE_MS, MAX_STREAMS, Told};

impl Engine {
    pub(super) fn ask_for_streams(&mut self) {
        if clock::unix_ms() < self.retry_streams_ms {
            return;
        }
        for (n, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(follows) = lane.wants_stream() {
                lane.asked();
                let (authority, variant, media) = (Arc::clone(&self.authority), lane.variant, lane.media);
                self.tasks.spawn(async move { Told::Stream(n, authority.next_stream(variant, media, follows).await) });
            }
        }
    }

    pub(super) fn ask_for_capability(&mut self) {
        // Lanes tend to roll together: one capability for all of their new streams.
        if self.lanes.iter().all(|lane| !lane.is_asking())
            && self.lanes.iter().any(|lane| lane.uncovered().next().is_some())
        {
            self.wallet.want();
        }
        let now_ms = clock::unix_ms();
        if self.wallet.ask_at().is_none_or(|at| at > now_ms) {
            return;
        }
        let streams = self.streams_in_use();
        if streams.is_empty() {
            return;
        }
        self.wallet.asked(now_ms);
        let authority = Arc::clone(&self.authority);
        self.tasks.spawn(async move { Told::Capability(authority.upload_capability(streams).await) });
    }

    /// Streams that the next capability must reach: those being filled, then those with chunks
    /// that are not ended, those first that no capability reaches now.
    pub(super) fn streams_in_use(&self) -> Vec<StreamId> {
        let now_ms = clock::unix_ms();
        let mut seen = HashSet::new();
        let filling = self.lanes.iter().flat_map(Lane::streams).cloned();
        let mut pending: Vec<StreamId> = self.book.open().map(|entry| entry.offer.stream.clone()).collect();
        pending.dedup();
        pending.sort_by_cached_key(|stream| self.wallet.covers(stream, now_ms));
        filling.chain(pending).filter(|stream| seen.insert(stream.clone())).take(MAX_STREAMS).collect()
    }

    pub(super) fn fetch_keys(&mut self, after: Duration) {
        self.keys_asked = true;
        let authority = Arc::clone(&self.authority);
        self.tasks.spawn(async move { Told::Keys(authority::keys(authority, after).await) });
    }

    /// A receipt named an unknown key: a core that changed its key is asked, but a relay that
    /// makes up keys can't make a storm of it.
    pub(super) fn fetch_keys_again(&mut self) {
        if !self.keys_asked {
            let now_ms = clock::unix_ms();
            let at = self.keys_not_before_ms.max(now_ms);
            self.keys_not_before_ms = at + KEYS_PAUSE_MS;
            self.fetch_keys(Duration::from_millis(at.abs_diff(now_ms)));
        }
    }

    pub(super) async fn told(&mut self, told: Told) {
        let now_ms = clock::unix_ms();
        match told {
            Told::Stream(lane, Ok(stream)) => self.lanes[lane].opened(stream),
            Told::Stream(lane, Err(error)) => {
                self.lanes[lane].refused(matches!(error, AuthorityError::Refused(_)));
                self.retry_streams_ms = now_ms + AUTHORITY_PAUSE_MS;
                self.emit(Event::Authority { error: error.to_string() });
            }
            Told::Capability(Ok(tokens)) => self.renewed(&tokens, now_ms),
            Told::Capability(Err(error)) => {
                self.wallet.failed(now_ms + AUTHORITY_PAUSE_MS);
                self.emit(Event::Authority { error: error.to_string() });
            }
            Told::Keys(answer) => {
                self.keys_asked = false;
                let effects = self.book.set_keys(answer);
                self.act(effects).await;
            }
            Told::Connected(result) => self.connected(result),
        }
    }

    pub(super) fn renewed(&mut self, tokens: &[Token], now_ms: i64) {
        let first = self.wallet.live(i64::MIN).is_empty();
        self.wallet.add(tokens, now_ms);
        for lane in &mut self.lanes {
            let streams: Vec<StreamId> = lane.streams().cloned().collect();
            for stream in streams {
                if let Some(max) = tokens.iter().find_map(|token| token.max_chunks(&stream)) {
                    lane.covered(&stream, max);
                }
            }
        }
        if let Some(link) = &self.link {
            for token in tokens {
                // A full channel means a dying connection; the next one's HELLO brings it.
                let _ = link.jobs.try_send(ToLink::Capability(token.clone()));
            }
        }
        self.book.renewed(self.now_ms());
        if !first {
            self.summary.renewals += 1;
            self.emit(Event::Renewed);
        }
    }
}
