//! A contact that comes back, by whatever way, with the cursor of another one.

use waystation_devcore::session::Session;
use waystation_proto::Variant;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{Cursor, Omitted};
use waystation_tests::contact::{Contact, Eye};
use waystation_tests::peer::{Upload, Way, bring};
use waystation_tests::wire::Http;
use waystation_tests::{Chunk, World};

/// Every way to go on, after every way to begin.
fn pairs() -> impl Iterator<Item = (Eye, Eye)> {
    Eye::ALL.into_iter().flat_map(|from| Eye::ALL.map(|to| (from, to)))
}

/// Reads until the first chunk is whole and counted. By WebTransport the cursor may be read first.
async fn counted(contact: &mut Contact) -> String {
    let (mut cursor, mut whole) = (None, false);
    loop {
        let frame = contact.frame().await.expect("a cursor");
        whole |= frame.kind == kind::COMPLETE;
        if frame.kind == kind::CURSOR {
            cursor = Some(frame::control::<Cursor>(&frame).unwrap().cursor);
        }
        if let Some(cursor) = cursor.take_if(|_| whole) {
            return cursor;
        }
    }
}

/// A recording, a contact that has its first chunk, and the cursor that says so.
async fn watching(world: &World, eye: Eye) -> (Session, Contact, String) {
    let session = world.session().await;
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 20_000);
    let told = bring(world, Way::Http(Http::H2), &first, session.upload_capability.as_ref().unwrap()).await;
    assert_eq!(told.status, 201);
    let mut contact = Contact::open(world, eye, session.fanout_capability.as_ref().unwrap()).await;
    let cursor = counted(&mut contact).await;
    (session, contact, cursor)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_back_by_another_way_in_the_middle_of_a_chunk_has_it_whole_and_nothing_twice() {
    let world = World::new().await;
    for (from, to) in pairs() {
        let (session, mut contact, cursor) = watching(&world, from).await;
        let (capability, fanout) =
            (session.upload_capability.as_ref().unwrap(), session.fanout_capability.as_ref().unwrap());
        let chunk = |index| Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        let second = chunk(2);
        let (mut upload, _) = Upload::begin(&world, Way::Http(Http::H2), &second, capability).await;
        upload.send(second.bytes.slice(..10_000)).await;
        let handle = contact.begins().await.handle;
        contact.until_so("half of it", |contact| contact.held(handle) > 0).await;
        drop(contact);
        let mut back = Contact::resume(&world, to, fanout, &cursor).await;
        let again = back.begins().await;
        assert_eq!(again.index, 2, "{from:?}, {to:?}: the first was delivered");
        upload.send(second.bytes.slice(10_000..)).await;
        assert_eq!(upload.told().await.status, 201);
        back.until(kind::COMPLETE).await;
        assert!(back.bytes[&again.handle] == second.bytes, "{from:?}, {to:?}");
        assert_eq!(bring(&world, Way::Http(Http::H2), &chunk(3), capability).await.status, 201);
        assert_eq!(back.begins().await.index, 3, "{from:?}, {to:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_back_to_a_relay_that_restarted_hears_what_is_gone() {
    let mut world = World::new().await;
    for (from, to) in Eye::ALL.into_iter().zip(Eye::ALL.into_iter().cycle().skip(1)) {
        let (session, contact, cursor) = watching(&world, from).await;
        let (capability, fanout) =
            (session.upload_capability.as_ref().unwrap(), session.fanout_capability.as_ref().unwrap());
        let chunk = |index| Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        drop(contact);
        assert_eq!(bring(&world, Way::Http(Http::H2), &chunk(2), capability).await.status, 201);
        world.restart_relay().await;
        let mut back = Contact::resume(&world, to, fanout, &cursor).await;
        assert_eq!(bring(&world, Way::Http(Http::H2), &chunk(3), capability).await.status, 201);
        let omitted: Omitted = frame::control(&back.until(kind::OMITTED).await).unwrap();
        assert!(back.chunks.is_empty(), "{from:?}, {to:?}: it is named first");
        assert_eq!((omitted.from, omitted.to), (2, 2), "{from:?}, {to:?}");
        assert_eq!(back.begins().await.index, 3, "{from:?}, {to:?}");
    }
}
