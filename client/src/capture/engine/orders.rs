//! What the session's owner asks for, and what is shown to them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, Finishing, LaneQueue};
use crate::capture::Command;
use crate::capture::event::{Event, Summary};
use crate::capture::link::{Link, ToLink};
use crate::capture::status::{ItemState, Network, SessionState, Status, Step};
use crate::capture::store::Store;
use crate::capture::store::record::{Manifest, Record, State};

/// Time for `END` and what is queued before it to go out.
const CLOSING_LIMIT: Duration = Duration::from_secs(2);

impl Engine {
    /// False ends the session's task.
    pub(super) async fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Chunk(cut, reply) => self.accept(cut, reply).await,
            Command::Finish(limit, reason, reply) => {
                self.close();
                self.finishing = Some(Finishing { deadline: Instant::now() + limit, reason, reply });
            }
            Command::Network(network) => self.network(network),
            Command::Pause => self.step(Step::Pause),
            Command::Resume => {
                self.step(Step::Resume);
                self.connect_at = Instant::now();
            }
            Command::Retry => self.retry_all(),
            Command::Items(reply) => {
                let _ = reply.send(self.items());
            }
            Command::Cancel { discard, done } => {
                self.cancel(discard).await;
                let _ = done.send(());
                return false;
            }
            Command::Close(done) => {
                self.write_down().await;
                // Whoever asks may take the queue as soon as it is answered.
                self.store.let_go();
                let _ = done.send(());
                return false;
            }
        }
        true
    }

    pub(super) fn step(&mut self, step: Step) {
        let Some(state) = self.session.after(step).filter(|state| *state != self.session) else { return };
        self.session = state;
        self.records.push(Record::Session { state });
        self.emit(Event::Session(state));
        if state == SessionState::Paused {
            self.stop_sending();
        }
    }

    /// Nothing more is cut but the manifest.
    fn close(&mut self) {
        if !self.closing {
            self.closing = true;
            self.records.push(Record::Closing);
        }
        self.recording.store(self.recorded, Ordering::Relaxed);
    }

    fn network(&mut self, network: Network) {
        let before = std::mem::replace(&mut self.network, network);
        if network != before && network.is_usable() {
            self.failures = 0;
            self.early = self.connections > 0;
            self.retry_all();
        }
        if network.battery_low && !before.battery_low {
            // Not so without a network: the connection goes on over the next one.
            self.stop_sending();
        }
        if let Some(link) = self.link.as_ref().filter(|_| network.kind != before.kind && network.is_usable()) {
            // A full channel has a stalled connection behind it, which finds out by itself.
            let _ = link.jobs.try_send(ToLink::Moved);
        }
    }

    /// The connection goes, and with it what is under way.
    fn stop_sending(&mut self) {
        self.let_go();
        let now_ms = self.now_ms();
        self.book.disconnected(now_ms);
    }

    /// Everything is tried and asked for at once, whoever said to wait.
    fn retry_all(&mut self) {
        self.connect_at = Instant::now();
        (self.not_before_ms.ids, self.not_before_ms.streams) = (0, 0);
        self.wallet.retry();
        self.lanes.iter_mut().for_each(LaneQueue::ask_again);
        let now_ms = self.now_ms();
        let effects = self.book.retry_all(now_ms);
        self.act(effects);
    }

    async fn cancel(&mut self, discard: bool) {
        self.step(Step::Cancel);
        self.say_end("canceled".into()).await;
        self.write_down().await;
        if discard {
            // What the disk does not give up now is given up with the directory.
            let _ = self.store.work(Store::discard).await;
        }
        self.show_now();
        self.store.let_go();
        if let Some(finishing) = self.finishing.take() {
            let _ = finishing.reply.send(self.sum());
        }
    }

    // === what is shown ===

    pub(super) fn show(&mut self) {
        if self.changed && self.shown_at.elapsed() >= super::SHOW_AFTER {
            self.show_now();
        }
    }

    fn show_now(&mut self) {
        (self.changed, self.shown_at) = (false, Instant::now());
        let (before, mut now) = (*self.shows.borrow(), self.status());
        // The sizes of plaintexts and envelopes differ a little, and a lost chunk's bytes are gone.
        now.total_bytes = now.total_bytes.max(before.total_bytes);
        now.done_bytes = now.done_bytes.max(before.done_bytes);
        self.shows.send_if_modified(|status| std::mem::replace(status, now) != now);
    }

    fn status(&self) -> Status {
        let idle = self.is_idle();
        let mut status = self.store.look(|state| status_of(state, false));
        self.book.add_to(&mut status, idle);
        let unsealed: usize = self.lanes.iter().map(|queue| queue.unsealed.len()).sum();
        *(if idle { &mut status.paused } else { &mut status.queued }) += unsealed as u64;
        Status { session: self.session, evidence_ready: self.ready, ..status }
    }

    fn items(&self) -> Vec<crate::capture::Item> {
        let idle = self.is_idle();
        let state = if idle { ItemState::Paused } else { ItemState::Queued };
        let unsealed = self.store.look(|kept| {
            let unsealed = kept.items.values().filter(|item| item.sealed.is_none());
            unsealed.map(|item| item.shown(state)).collect::<Vec<_>>()
        });
        self.book.items(idle).chain(unsealed).collect()
    }

    // === end ===

    pub(super) fn is_done(&self) -> bool {
        let sealed = self.lanes.iter().all(|queue| queue.unsealed.is_empty() || queue.is_stuck());
        sealed
            && self.book.all_ended()
            && (self.some_are_held() || !self.manifest_is_due())
            && self.records.is_empty()
            && self.reconciling.is_empty()
    }

    pub(super) async fn finished(mut self) {
        let summary = self.sum();
        let over = summary.pending == 0 && summary.unsettled == 0 && summary.manifest != Some(false);
        let whole = summary.confirmed == summary.chunks;
        if over && self.session != SessionState::Paused {
            self.step(if whole { Step::Complete } else { Step::Fail });
        }
        self.write_down().await;
        let Some(finishing) = self.finishing.take() else { return };
        self.say_end(finishing.reason).await;
        self.show_now();
        self.store.let_go();
        // Whoever asked may have given up waiting.
        let _ = finishing.reply.send(Summary { events_missed: self.summary.events_missed, ..summary });
    }

    async fn say_end(&mut self, reason: String) {
        // A connection that comes to be from now on shall not say that it goes on.
        self.recording.store(false, Ordering::Relaxed);
        let Some(Link { jobs, mut news, task, .. }) = self.link.take() else { return };
        let closing = async {
            let _ = jobs.send(ToLink::End(reason)).await;
            while news.recv().await.is_some() {}
            let _ = task.await;
        };
        let _ = tokio::time::timeout(CLOSING_LIMIT, closing).await;
    }

    fn sum(&self) -> Summary {
        let count = self.book.count();
        let (totals, manifest, manifest_waits) = self.store.look(|state| match state.manifest {
            Manifest::Cut(id) => (state.totals, Some(!state.items.contains_key(&id)), state.items.contains_key(&id)),
            _ => (state.totals, None, false),
        });
        let unsealed: usize = self.lanes.iter().map(|queue| queue.unsealed.len()).sum();
        let pending = self.book.open().count() as u64 + unsealed as u64;
        Summary {
            chunks: totals.chunks,
            confirmed: totals.confirmed,
            unsettled: count.unsettled,
            rejected: count.rejected,
            expired: count.expired,
            pending: pending - u64::from(manifest_waits).min(pending),
            failed: count.failed,
            lost: totals.lost,
            manifest,
            bytes: totals.bytes,
            ..self.summary
        }
    }
}

/// A status from what is remembered alone; `items` counts the chunks in it too.
pub(in crate::capture) fn status_of(state: &State, items: bool) -> Status {
    let unsealed: u64 = state.items.values().filter(|item| item.sealed.is_none()).map(|item| item.size).sum();
    let mut status = Status {
        session: state.session,
        evidence_ready: state.ready,
        chunks: state.totals.chunks,
        complete: state.totals.confirmed,
        lost: state.totals.lost,
        done_bytes: state.totals.confirmed_bytes,
        total_bytes: state.totals.bytes + unsealed,
        ..Status::default()
    };
    for item in state.items.values().filter(|_| items) {
        let known = item.shown(ItemState::Queued);
        status.count(known.state);
        status.done_bytes += known.done;
    }
    status
}
