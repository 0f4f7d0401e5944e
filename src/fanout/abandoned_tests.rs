//! Chunks that nobody brings any more.

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn half(world: &World, index: u64) -> Publication {
    let publication = world.hub.publish(&group(), audio(index, 100));
    publication.push(0, &Bytes::from_static(&[7; 50]));
    publication
}

#[tokio::test]
async fn what_nobody_brings_any_more_is_withdrawn_and_the_recording_can_end() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    drop(half(&world, 1));
    world.hub.ended(&group());
    world.clock.advance(PATIENCE - Duration::from_millis(1));
    assert!(kinds(&drain(&mut contact).await).contains(&kind::CHUNK));
    world.clock.advance(Duration::from_millis(1));
    let got = drain(&mut contact).await;
    let withdrawn: Vec<message::Withdrawn> = all(&got, kind::WITHDRAWN);
    assert_eq!(withdrawn[0].reason, WithdrawnReason::Stalled);
    assert_eq!(ending(&got), "ended");
    assert_eq!(world.metric("fanout_withdrawn_chunks_total{reason=\"stalled\"}"), 1);
}

#[tokio::test]
async fn a_waiting_contact_hears_of_it_by_time_alone() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    let publication = half(&world, 1);
    drain(&mut contact).await;
    let hears = tokio::spawn(async move {
        loop {
            let step = contact.next().await;
            if kinds(&frames(&step)).contains(&kind::WITHDRAWN) {
                return;
            }
        }
    });
    tokio::task::yield_now().await;
    drop(publication);
    tokio::task::yield_now().await;
    // The device's own silence is told earlier.
    world.clock.advance(Duration::from_secs(20));
    tokio::task::yield_now().await;
    world.clock.advance(Duration::from_secs(10));
    tokio::time::timeout(Duration::from_secs(30), hears).await.expect("WITHDRAWN").unwrap();
}

#[tokio::test]
async fn whoever_comes_back_in_time_goes_on_and_whoever_is_late_shows_it_anew() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    drop(half(&world, 1));
    drop(half(&world, 2));
    let chunks: Vec<message::ChunkBegins> = all(&drain(&mut contact).await, kind::CHUNK);
    world.clock.advance(PATIENCE / 2);
    let resumed = world.hub.publish(&group(), audio(1, 100));
    world.clock.advance(PATIENCE / 2);
    let withdrawn: Vec<message::Withdrawn> = all(&drain(&mut contact).await, kind::WITHDRAWN);
    assert_eq!(withdrawn.len(), 1, "the first one is being brought");
    assert_eq!((chunks[1].index, withdrawn[0].handle), (2, chunks[1].handle));
    resumed.push(50, &Bytes::from_static(&[7; 50]));
    resumed.complete();
    let late = world.hub.publish(&group(), audio(2, 100));
    late.push(50, &Bytes::from_static(&[7; 50]));
    late.complete();
    drop((resumed, late));
    world.clock.advance(PATIENCE * 2);
    let got = drain(&mut contact).await;
    assert_eq!(begun(&got), [("audio".to_owned(), 2, false)], "under a new handle");
    assert_eq!(all::<message::Complete>(&got, kind::COMPLETE).len(), 2);
    assert!(!kinds(&got).contains(&kind::WITHDRAWN), "what is whole is not left");
}

#[tokio::test]
async fn what_is_gone_at_the_relay_is_withdrawn_at_once() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    let _half = half(&world, 1);
    world.whole(audio(2, 100));
    world.whole(audio(3, 100));
    world.hub.state(audio(3, 0).chunk, ContactState::Confirmed, None, None);
    drain(&mut contact).await;
    for index in 1..=4 {
        world.hub.dropped(audio(index, 0).chunk);
    }
    let withdrawn: Vec<message::Withdrawn> = all(&drain(&mut contact).await, kind::WITHDRAWN);
    assert_eq!(withdrawn.len(), 2, "what the core has stays");
    world.whole(audio(2, 100));
    assert_eq!(begun(&drain(&mut contact).await), [("audio".to_owned(), 2, false)]);
}

#[tokio::test]
async fn a_reader_of_one_chunk_is_told_too() {
    let world = World::new();
    drop(half(&world, 1));
    let mut reader = world.hub.read(&grant(600), audio(1, 0).chunk).unwrap();
    assert!(reader.begins().await.is_ok());
    assert_eq!(reader.next().await.unwrap().unwrap().len(), 50);
    world.clock.advance(PATIENCE);
    assert_eq!(reader.next().await, Err(Code::BodyStalled));
}
