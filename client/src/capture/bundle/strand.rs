//! One of the connections of a bundle, and what it was given.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::Class;

use crate::capture::link::ToLink;

/// One of the connections.
pub(super) struct Strand {
    pub(super) jobs: mpsc::Sender<ToLink>,
    pub(super) given: HashMap<u64, Given>,
    /// Since when nothing is known to have come, in milliseconds; none: it is heard.
    pub(super) silent_ms: Option<u64>,
    _task: AbortOnDropHandle<()>,
}

/// A chunk that a connection was given.
pub(super) struct Given {
    pub(super) attempt: u64,
    /// As [`crate::capture::queue::Rank::class`].
    pub(super) class: usize,
    /// It has bytes to bring.
    pub(super) moves: bool,
    /// All its bytes went out on this connection.
    pub(super) sent: bool,
}

/// The connection that is given one more chunk of this class, if one is heard and free: each brings one of a class at a
/// time, and its plan says which of its chunks goes first. Where as many move as may, the next is offered behind one of
/// its class, or behind another, and its turn comes there; but a master has its place as in
/// [`crate::capture::plan::Plan::limit`]. What the relay may hold (`resume`) is only asked about.
pub(super) fn for_one_more(
    strands: &mut HashMap<usize, Strand>,
    class: usize,
    resume: bool,
    most: usize,
) -> Option<&mut Strand> {
    let heard = || strands.values().filter(|strand| !strand.is_silent());
    let first_master = class == Class::Master.rank() && !heard().any(|strand| strand.brings(Some(class)));
    let full = !first_master && heard().map(|strand| strand.moving(class)).sum::<usize>() >= most;
    let ahead = full && !resume;
    let free = strands.values_mut().filter(|strand| !strand.is_silent());
    let free = free.filter(|strand| resume || full || !strand.brings(Some(class)));
    free.min_by_key(|strand| {
        let (same, any) = (strand.brings(Some(class)), strand.brings(None));
        (ahead && !same, any != ahead, strand.given.len())
    })
}

impl Strand {
    pub(super) fn new(jobs: mpsc::Sender<ToLink>, task: AbortOnDropHandle<()>) -> Self {
        Self { jobs, given: HashMap::new(), silent_ms: None, _task: task }
    }

    pub(super) const fn is_silent(&self) -> bool {
        self.silent_ms.is_some()
    }

    /// Whether it brings a chunk, of this class if one is named.
    pub(super) fn brings(&self, class: Option<usize>) -> bool {
        self.given.values().any(|given| given.moves && class.is_none_or(|class| class == given.class))
    }

    /// Chunks of this class and higher ones that it brings.
    pub(super) fn moving(&self, class: usize) -> usize {
        self.given.values().filter(|given| given.moves && given.class <= class).count()
    }

    /// What it was given, if it still is this attempt.
    pub(super) fn given(&mut self, id: u64, attempt: u64) -> Option<&mut Given> {
        self.given.get_mut(&id).filter(|given| given.attempt == attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIO: usize = 0;
    const PREVIEW: usize = 1;

    fn strands(brings: &[&[usize]]) -> HashMap<usize, Strand> {
        let strand = |classes: &[usize]| {
            let (jobs, _) = tokio::sync::mpsc::channel(1);
            let mut strand = Strand::new(jobs, AbortOnDropHandle::new(tokio::spawn(async {})));
            for (id, class) in classes.iter().enumerate() {
                strand.given.insert(id as u64, Given { attempt: 1, class: *class, moves: true, sent: false });
            }
            strand
        };
        brings.iter().map(|classes| strand(classes)).enumerate().collect()
    }

    fn chosen(brings: &[&[usize]], class: usize, resume: bool, most: usize) -> Option<usize> {
        let mut strands = strands(brings);
        let chosen: *const Strand = for_one_more(&mut strands, class, resume, most)?;
        strands.iter().find(|(_, strand)| std::ptr::eq(*strand, chosen)).map(|(at, _)| *at)
    }

    #[tokio::test]
    async fn each_brings_one_of_a_class_and_the_next_waits_behind_its_own() {
        let master = Class::Master.rank();
        let unbounded = usize::MAX;
        assert_eq!(chosen(&[&[PREVIEW], &[]], PREVIEW, false, unbounded), Some(1));
        assert_eq!(chosen(&[&[PREVIEW], &[PREVIEW]], PREVIEW, false, unbounded), None);
        assert!(chosen(&[&[PREVIEW], &[PREVIEW]], AUDIO, false, unbounded).is_some());
        for brings in [[&[PREVIEW][..], &[AUDIO]], [&[PREVIEW, PREVIEW], &[AUDIO]], [&[PREVIEW], &[]]] {
            assert_eq!(chosen(&brings, PREVIEW, false, 1), Some(0), "behind its class: {brings:?}");
        }
        assert_eq!(chosen(&[&[AUDIO], &[]], PREVIEW, false, 1), Some(0), "behind what is more merciful");
        assert_eq!(chosen(&[&[AUDIO], &[]], master, false, 1), Some(1), "a master has its place");
        assert_eq!(chosen(&[&[AUDIO, master], &[AUDIO]], master, false, 1), Some(0));
        assert_eq!(chosen(&[&[AUDIO], &[]], PREVIEW, true, 1), Some(1), "only asked about");
    }
}
