//! Chunks on their way through the session: accepted, placed and sealed, given to the connection.

use crate::capture::event::{Event, Label};
use crate::capture::lane::Place;
use crate::capture::link::{Job, ToLink};
use crate::capture::seal::{self, Subject};
use crate::capture::{ChunkError, Cut};
use crate::clock;
use crate::token::Token;

use super::{Engine, MAX_UNSEALED, Unsealed};

impl Engine {
    pub(super) fn accept(&mut self, cut: Cut) -> Result<u64, ChunkError> {
        let lane = self.lanes.iter().position(|lane| lane.variant == cut.variant).ok_or(ChunkError::NoLane)?;
        if self.unsealed_bytes + cut.plaintext.len() > MAX_UNSEALED {
            return Err(ChunkError::Full);
        }
        let lane_seq = self.lane_seqs[lane];
        self.lane_seqs[lane] += 1;
        self.unsealed_bytes += cut.plaintext.len();
        let Cut { plaintext, started_ms, ended_ms, .. } = cut;
        self.unsealed.push_back(Unsealed { lane, lane_seq, plaintext, started_ms, ended_ms });
        Ok(lane_seq)
    }

    /// Seals every chunk whose lane has a place for it, each lane in order.
    pub(super) async fn seal_waiting(&mut self) {
        let mut blocked = vec![false; self.lanes.len()];
        for chunk in std::mem::take(&mut self.unsealed) {
            let place = if blocked[chunk.lane] { None } else { self.lanes[chunk.lane].place() };
            match place {
                Some(place) => {
                    self.unsealed_bytes -= chunk.plaintext.len();
                    self.seal(&chunk, place).await;
                }
                None if self.lanes[chunk.lane].is_over() => {
                    self.unsealed_bytes -= chunk.plaintext.len();
                    self.lose(&chunk);
                }
                None => {
                    blocked[chunk.lane] = true;
                    self.unsealed.push_back(chunk);
                }
            }
        }
        self.ask_for_streams();
    }

    pub(super) async fn seal(&mut self, chunk: &Unsealed, place: Place) {
        let lane = &self.lanes[chunk.lane];
        let (variant, media, id) = (lane.variant, lane.media, self.next_id);
        let subject = Subject {
            variant,
            media,
            lane_seq: chunk.lane_seq,
            sequence: id + 1,
            plaintext: &chunk.plaintext,
            started_ms: chunk.started_ms,
            ended_ms: chunk.ended_ms,
        };
        let sealed = clock::random().and_then(|nonce| seal::seal(&self.config, &place, &subject, nonce));
        let Some((frame, offer)) = sealed else { return self.lose(chunk) };
        let label = Label {
            variant,
            lane_seq: chunk.lane_seq,
            stream_no: place.stream_no,
            index: place.index,
            started_ms: chunk.started_ms,
            length: offer.length,
        };
        if self.store.put(id, frame).await.is_err() {
            return self.lose(chunk);
        }
        self.next_id += 1;
        self.summary.bytes += offer.length;
        self.book.add(id, label, variant.class(), offer, self.now_ms());
        if place.rolled {
            self.summary.rolls += 1;
            self.emit(Event::Rolled { variant, stream_no: place.stream_no });
        }
        self.emit(Event::Cut(label));
    }

    pub(super) fn lose(&mut self, chunk: &Unsealed) {
        self.summary.lost += 1;
        let variant = self.lanes[chunk.lane].variant;
        self.emit(Event::Lost { variant, lane_seq: chunk.lane_seq });
    }

    /// Gives the connection what it has room for.
    pub(super) async fn give(&mut self) {
        let now_ms = self.now_ms();
        while let Some(room) = self.link.as_ref().filter(|link| link.jobs.capacity() > 1).map(|link| link.room) {
            self.book.hold(self.policy.turns(now_ms));
            let Some(next) = self.book.take(now_ms, room) else { return };
            let live = |token: &&Token| !token.expired(clock::unix_ms());
            let token = self.wallet.covering(&next.offer.stream).filter(live).cloned();
            let bytes = self.store.get(next.id).await;
            let (Some(token), Some(bytes)) = (token, bytes) else {
                self.wallet.want();
                self.book.give_back(next.id, now_ms + 1000);
                continue;
            };
            let id = next.id;
            let job = Job { id, rank: next.rank, offer: next.offer, bytes, token, resume: next.resume };
            let given = self.link.as_ref().is_some_and(|link| link.jobs.try_send(ToLink::Job(Box::new(job))).is_ok());
            if !given {
                self.book.give_back(id, now_ms);
                return;
            }
        }
    }
}
