//! What the session needs of its authority: streams, capabilities, the core's keys.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use waystation_proto::id::StreamId;

use crate::authority::{self, AuthorityError, Ids, Reconciled};
use crate::capture::event::Event;
use crate::capture::link::ToLink;
use crate::capture::store::record::Record;
use crate::clock;
use crate::token::Token;

use super::{Engine, KEYS_PAUSE_MS, MAX_RECONCILING, MAX_STREAMS, PAUSE_MS, REFUSED_PAUSE_MS, Told};

/// How long not to ask an authority again that gave nothing.
const fn pause_after(error: &AuthorityError) -> i64 {
    match error {
        AuthorityError::Away => PAUSE_MS,
        AuthorityError::NotNow(_) | AuthorityError::Refused(_) => REFUSED_PAUSE_MS,
    }
}

impl Engine {
    /// Asks what the recording is called: at the start, and until somebody says. What an earlier
    /// run was told is said along, so that the authority speaks for it.
    pub(super) fn ask_for_ids(&mut self) {
        if self.ids_asked || !self.network.is_usable() || clock::unix_ms() < self.not_before_ms.ids {
            return;
        }
        self.ids_asked = true;
        let (authority, kept) = (Arc::clone(&self.authority), self.ids.clone());
        self.tasks.spawn(async move { Told::Ids(authority.ids(kept).await) });
    }

    pub(super) fn ask_for_streams(&mut self) {
        if !self.can_ask() || clock::unix_ms() < self.not_before_ms.streams {
            return;
        }
        for (n, queue) in self.lanes.iter_mut().enumerate() {
            let lane = &mut queue.lane;
            if let Some(follows) = lane.wants_stream() {
                lane.asked();
                let (authority, variant, media) = (Arc::clone(&self.authority), lane.variant, lane.media);
                self.tasks.spawn(async move { Told::Stream(n, authority.next_stream(variant, media, follows).await) });
            }
        }
    }

    pub(super) fn ask_for_capability(&mut self) {
        // Lanes tend to roll together: one capability for all of their new streams.
        if self.lanes.iter().all(|queue| !queue.lane.is_asking())
            && self.lanes.iter().any(|queue| queue.lane.uncovered().next().is_some())
        {
            self.wallet.want();
        }
        let now_ms = clock::unix_ms();
        if !self.can_ask() || self.wallet.ask_at().is_none_or(|at| at > now_ms) {
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
        let filling = self.lanes.iter().flat_map(|queue| queue.lane.streams()).cloned();
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
            let at = self.not_before_ms.keys.max(now_ms);
            self.not_before_ms.keys = at + KEYS_PAUSE_MS;
            self.fetch_keys(Duration::from_millis(at.abs_diff(now_ms)));
        }
    }

    /// Asks the core what it has of a chunk; not more of them at once than are bearable: the others
    /// wait for their turn.
    pub(super) fn reconcile(&mut self, id: u64) {
        if !self.reconciling.contains(&id) {
            self.unasked.insert(id);
        }
        while self.reconciling.len() < MAX_RECONCILING
            && let Some(id) = self.unasked.pop_first()
        {
            let Some(offer) = self.book.offer(id) else { continue };
            self.reconciling.insert(id);
            let authority = Arc::clone(&self.authority);
            self.tasks.spawn(async move { Told::Reconciled(id, authority.reconcile(offer).await) });
        }
    }

    /// The core said what it has of a chunk, or nothing: then those that wait come up again with
    /// the relay's next word.
    fn reconciled(&mut self, id: u64, answer: Result<Reconciled, AuthorityError>) {
        self.reconciling.remove(&id);
        let Ok(core) = answer else { return self.unasked.clear() };
        let now_ms = self.now_ms();
        let effects = self.book.reconciled(id, core, now_ms);
        self.act(effects);
        if let Some(next) = self.unasked.pop_first() {
            self.reconcile(next);
        }
    }

    pub(super) fn told(&mut self, told: Told) {
        let now_ms = clock::unix_ms();
        match told {
            Told::Ids(Ok(ids)) => self.are_named(ids),
            Told::Ids(Err(error)) => {
                self.ids_asked = false;
                self.not_before_ms.ids = now_ms + pause_after(&error);
                self.emit(Event::Authority { error: error.to_string() });
            }
            Told::Stream(n, Ok(stream)) => {
                let lane = &mut self.lanes[n].lane;
                self.records.push(Record::Stream { variant: lane.variant, stream: stream.clone() });
                lane.opened(stream);
            }
            Told::Stream(n, Err(error)) => {
                let for_good = matches!(error, AuthorityError::Refused(_));
                self.lanes[n].lane.refused(for_good);
                // This lane is not asked for again by itself; the others are.
                self.not_before_ms.streams = now_ms + if for_good { PAUSE_MS } else { pause_after(&error) };
                self.emit(Event::Authority { error: error.to_string() });
            }
            Told::Capability(Ok(tokens)) => self.renewed(&tokens, now_ms),
            Told::Capability(Err(error)) => {
                self.wallet.failed(now_ms + pause_after(&error));
                self.emit(Event::Authority { error: error.to_string() });
            }
            Told::Reconciled(id, answer) => self.reconciled(id, answer),
            Told::Keys(answer) => {
                self.keys_asked = false;
                let effects = self.book.set_keys(answer, self.now_ms());
                self.act(effects);
            }
            Told::Connected(result) => self.connected(result),
        }
    }

    fn are_named(&mut self, ids: Ids) {
        self.named = true;
        if self.ids.as_ref() != Some(&ids) {
            self.records.push(Record::Ids { ids: ids.clone() });
            self.ids = Some(ids);
        }
        self.emit(Event::Named);
    }

    /// The relay session outlives this run: what it was told of chunks counts for the next too.
    fn remember_session(&mut self, tokens: &[Token]) {
        let Some(sid) = tokens.iter().find_map(|token| token.sid.clone()) else { return };
        if let Some(ids) = self.ids.as_mut().filter(|ids| ids.sid.as_ref() != Some(&sid)) {
            ids.sid = Some(sid);
            self.records.push(Record::Ids { ids: ids.clone() });
        }
    }

    pub(super) fn renewed(&mut self, tokens: &[Token], now_ms: i64) {
        let first = self.wallet.live(i64::MIN).is_empty();
        self.wallet.add(tokens, now_ms);
        self.remember_session(tokens);
        for lane in self.lanes.iter_mut().map(|queue| &mut queue.lane) {
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
