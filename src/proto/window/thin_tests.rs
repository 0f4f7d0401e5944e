//! A link that takes less than there is.

use std::sync::Arc;

use bytes::Bytes;

use super::out::THIN_STEP;
use super::tests::{empty, meta};
use super::*;
use crate::frame::{self, Frame, Piece, kind};
use crate::media::Variant;
use crate::message::{self, OmittedReason};

const LENGTH: usize = 90;

fn bring(window: &mut Window, variant: Variant, index: u64) {
    let name = if variant == Variant::AudioPriority { "sound" } else { "picture" };
    let meta = Arc::new(ChunkMeta { variant, ..meta(name, index, 0, LENGTH as u64) });
    let place = window.begin(&meta, index, index, 0, Some(0)).unwrap();
    window.push(place, 0, &[7; LENGTH], Some(0));
    window.complete(place, Some(0));
}

/// Polls until nothing comes; every step's media are bounded.
fn all(contact: &mut Contact, window: &mut Window, thin: bool) -> Vec<Frame> {
    let mut came = Vec::new();
    loop {
        let mut out = if thin { Out::thin() } else { Out::default() };
        contact.poll(window, 0, &mut out);
        if out.frames.is_empty() {
            return came;
        }
        let frames = frame::split_message(Bytes::from(out.frames.concat())).unwrap();
        let media: usize = frames.iter().filter(|frame| frame.kind == kind::PIECE).map(|frame| frame.body.len()).sum();
        assert!(!thin || media <= THIN_STEP + 32, "{media}");
        came.extend(frames);
    }
}

fn chunks(frames: &[Frame]) -> Vec<(Variant, u64)> {
    let begun = frames.iter().filter(|frame| frame.kind == kind::CHUNK);
    begun.map(|frame| frame::control::<message::ChunkBegins>(frame).unwrap()).map(|it| (it.variant, it.index)).collect()
}

#[test]
fn the_newest_preview_wins_sound_is_whole_and_what_is_left_out_is_named() {
    let mut window = empty();
    let mut contact = Contact::new(&window, View { lanes: [true, true], streams: None }, Start::Live, 0);
    for index in 1..=5 {
        bring(&mut window, Variant::AudioPriority, index);
        bring(&mut window, Variant::LivePreview, index);
    }
    let came = all(&mut contact, &mut window, true);
    let (audio, video) = (Variant::AudioPriority, Variant::LivePreview);
    assert_eq!(chunks(&came), [(audio, 1), (audio, 2), (audio, 3), (audio, 4), (audio, 5), (video, 5)]);
    let omitted: Vec<message::Omitted> =
        came.iter().filter(|frame| frame.kind == kind::OMITTED).map(|frame| frame::control(frame).unwrap()).collect();
    let named: Vec<_> = omitted.iter().map(|it| (it.stream.as_str(), it.from, it.to, it.reason)).collect();
    assert_eq!(named, [("picture", 1, 4, OmittedReason::Slow)]);
    assert_eq!(came.iter().filter(|frame| frame.kind == kind::COMPLETE).count(), 6);

    // What was left out is still there for who asks.
    contact.fetch(&window, &meta("picture", 2, 0, 1).stream, 2).unwrap();
    assert_eq!(chunks(&all(&mut contact, &mut window, true)), [(video, 2)]);

    // A replay is what somebody asked for, and a link that is not thin gets everything.
    let mut late = Contact::new(&window, View { lanes: [false, true], streams: None }, Start::Oldest, 0);
    assert_eq!(chunks(&all(&mut late, &mut window, true)).len(), 5);
    bring(&mut window, video, 6);
    bring(&mut window, video, 7);
    assert_eq!(chunks(&all(&mut late, &mut window, false)), [(video, 6), (video, 7)]);
}

#[test]
fn pieces_are_cut_and_a_link_may_turn_thin_and_back_inside_a_chunk() {
    let rules = Rules { max_chunk: 1 << 20, ..empty().rules };
    let mut window = Window::new(rules, crate::id::IncidentId::new("i").unwrap(), 1);
    let length = 150_000;
    let meta = Arc::new(ChunkMeta { variant: Variant::LivePreview, ..meta("picture", 1, 0, length) });
    let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    let place = window.begin(&meta, 1, 1, 0, Some(0)).unwrap();
    window.push(place, 0, &bytes, Some(0));
    window.complete(place, Some(0));
    let mut contact = Contact::new(&window, View { lanes: [true, true], streams: None }, Start::Oldest, 0);
    let mut wire = Vec::new();
    for turn in 0..60 {
        let mut out = if turn % 7 == 6 { Out::default() } else { Out::thin() };
        contact.poll(&mut window, 0, &mut out);
        wire.extend(out.frames.concat());
    }
    let mut came = Vec::new();
    for frame in frame::split_message(Bytes::from(wire)).unwrap() {
        if frame.kind == kind::PIECE {
            let piece = Piece::decode(frame.body).unwrap();
            assert_eq!(piece.offset, came.len() as u64);
            came.extend_from_slice(&piece.bytes);
        }
    }
    assert_eq!(came, bytes);
}
