//! Which capability a chunk goes to the core with: its own as long as that is good; then any other
//! of its stream whose grant covers the chunk (and whose key signed it, where one is bound).

use std::io;
use std::sync::Arc;

use super::store::{Staging, blocking};
use super::{Meta, StreamCapability};
use crate::proto::capability::Capability;
use crate::proto::claims::Grant;
use crate::proto::ledger::StreamKey;
use crate::proto::{ChunkRef, Offer, StreamId};
use crate::telemetry::names::DiskStep;

impl Staging {
    /// A capability for its streams: releases what waits for one, and is kept for what is held.
    pub async fn present(&self, capability: &Capability) {
        for lane in &capability.grant.lanes {
            self.present_for(capability, &lane.stream).await;
        }
    }

    /// A capability for one of its streams.
    pub async fn present_for(&self, capability: &Capability, stream: &StreamId) {
        let (key, token) = (self.stream_key(&capability.grant.incident, stream), &*capability.token);
        let known = self.tokens().get(key, token).is_some();
        if known {
            return;
        }
        let record = StreamCapability::new(stream.clone(), token.to_owned(), (*capability.grant).clone());
        let new = self.tokens().learn(key, record, self.token_hash(token), self.0.clock.unix_s());
        if new {
            let chunks = self.ledger().shorter(key, capability.grant.commit_exp);
            self.carry(key, token, &chunks).await;
        }
    }

    /// A chunk that such a capability would release, or carry longer than its own does.
    pub async fn waits_for(&self, grant: &Grant) -> Option<Offer> {
        for lane in &grant.lanes {
            let chunks = self.ledger().shorter(self.stream_key(&grant.incident, &lane.stream), grant.commit_exp);
            for chunk in chunks {
                let meta = self.meta_of(chunk).await.ok();
                if let Some(meta) = meta.filter(|meta| grant.reaches(&meta.offer).is_ok()) {
                    return Some(meta.offer.clone());
                }
            }
        }
        None
    }

    /// A chunk that is here was offered again. Where the capability binds its holder's key, that
    /// holder's signature lets it carry the chunk.
    pub(super) async fn offered_again(&self, offer: &Offer, capability: &Capability) {
        let grant = &capability.grant;
        let (Some(client), Some(sig)) = (grant.client_key, &offer.sig) else { return };
        let chunk = offer.chunk_ref();
        let key = self.stream_key(&grant.incident, &offer.stream);
        let helps = self.ledger().shorter(key, grant.commit_exp).contains(&chunk);
        let signed = if helps { self.tokens().sign(key, client, offer.index, sig) } else { None };
        if let Some(token) = signed {
            self.carry(key, &token, &[chunk]).await;
        }
    }

    /// Those of `chunks` that this capability covers depend on it from now on.
    async fn carry(&self, key: StreamKey, token: &str, chunks: &[ChunkRef]) {
        let Some(record) = self.tokens().get(key, token) else { return };
        let mut covered = Vec::new();
        for chunk in chunks {
            let meta = self.meta_of(*chunk).await.ok();
            covered.extend(meta.and_then(|meta| record.carries(&meta.offer)).map(|_| *chunk));
        }
        if covered.is_empty() {
            return;
        }
        let now = self.0.clock.unix_s();
        let released = self.ledger().handle_capability(&covered, record.grant.commit_exp, now);
        self.0.metrics.staging.released.inc_by(released as u64);
        // What was released goes on at once, whatever becomes of this request and of the disk.
        for chunk in covered {
            self.changed_if_followed(chunk);
        }
        self.0.work.notify_waiters();
        let (this, token) = (self.clone(), token.to_owned());
        let _ = self.0.closing.spawn(async move { this.keep(key, &token).await }).await;
    }

    /// Writes a capability down, unless the disk has it: what depends on it must find it after a
    /// restart.
    async fn keep(&self, key: StreamKey, token: &str) {
        let _one_at_a_time = self.0.puts.lock().await;
        let Some(record) = self.tokens().unkept(key, token) else { return };
        let (vault, written) = (self.0.vault.clone(), Arc::clone(&record));
        let put = blocking(move || vault.put_stream_capability(&written)).await;
        self.count(DiskStep::Write, &put);
        if put.is_ok() {
            self.tokens().kept(key, &record);
        }
    }

    /// A chunk is whole whose file names another capability than it was finished with.
    pub(super) async fn keep_for(&self, meta: &Meta) {
        let key = self.stream_key(&meta.grant.incident, &meta.offer.stream);
        let best = self.tokens().best(key, &meta.offer, self.0.clock.unix_s());
        if let Some((record, _)) = best {
            self.keep(key, &record.capability).await;
        }
    }

    /// The capability to bring a chunk to the core with, and the chunk as it brings it: `None` for
    /// its own, or `Err` if nothing is good for it.
    pub(super) fn other_capability(&self, meta: &Meta) -> Result<Option<(Arc<StreamCapability>, Offer)>, ()> {
        let key = self.stream_key(&meta.grant.incident, &meta.offer.stream);
        let now = self.0.clock.unix_s();
        let own = meta.grant.commit_exp > now;
        let tokens = self.tokens();
        if own && !tokens.is_refused(key, self.token_hash(&meta.capability)) {
            return Ok(None);
        }
        match tokens.best(key, &meta.offer, now) {
            Some(other) => Ok(Some(other)),
            // Refused for another chunk: each tries it once, before it waits for another one.
            None if own => Ok(None),
            None => Err(()),
        }
    }

    /// The core does not take this capability.
    pub(super) fn refuse(&self, meta: &Meta, token: &str) {
        let key = self.stream_key(&meta.grant.incident, &meta.offer.stream);
        self.tokens().refuse(key, token, self.token_hash(token));
    }

    /// A chunk waits for a capability: one that is known may do. True if it goes on.
    pub(super) async fn rescue(&self, chunk: ChunkRef) -> bool {
        let Some(key) = self.ledger().record(chunk).map(|record| record.terms.stream) else { return false };
        let any = self.tokens().any(key);
        if !any {
            return false;
        }
        let Ok(meta) = self.meta_of(chunk).await else { return false };
        let now = self.0.clock.unix_s();
        let best = self.tokens().best(key, &meta.offer, now);
        best.is_some_and(|(record, _)| self.ledger().handle_capability(&[chunk], record.grant.commit_exp, now) > 0)
    }

    /// What was offered, from memory or from the disk.
    pub(super) async fn meta_of(&self, chunk: ChunkRef) -> io::Result<Arc<Meta>> {
        if let Some(meta) = self.known_meta(chunk) {
            return Ok(meta);
        }
        let vault = self.0.vault.clone();
        let read = blocking(move || vault.meta(chunk)).await;
        self.count(DiskStep::Read, &read);
        read.map(Arc::new)
    }

    /// Capabilities found at start, and what of `staged` they carry.
    pub(super) fn recover_capabilities(&self, found: Vec<StreamCapability>, staged: &[Meta]) {
        let now = self.0.clock.unix_s();
        for record in found {
            if record.grant.commit_exp <= now {
                let removed = self.0.vault.remove_stream_capability(&record.stream, record.slot);
                self.count(DiskStep::Remove, &removed);
                continue;
            }
            let key = self.stream_key(&record.grant.incident, &record.stream);
            self.tokens().recovered(key, record);
        }
        for meta in staged {
            let key = self.stream_key(&meta.grant.incident, &meta.offer.stream);
            let best = self.tokens().best(key, &meta.offer, now);
            if let Some((record, _)) = best {
                let chunk = meta.offer.chunk_ref();
                self.ledger().handle_capability(&[chunk], record.grant.commit_exp, now);
            }
        }
    }
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
