//! A token that was taken is known by its name, on its connection and nowhere else.

use http::Request;
use waystation_proto::known::CapabilityName;
use waystation_proto::{ChunkState, Variant};
use waystation_tests::http::put;
use waystation_tests::peer::{Capture, Told, post};
use waystation_tests::wire::{Http, Joint};
use waystation_tests::{Chunk, Setup, World};

use crate::capability::{claims, revoke};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capability_is_known_by_name_where_it_came_whole() {
    let toml = "[fanout]\nreauthorize_every = \"1s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    for (revoked, http) in [(1.0, Http::H2), (2.0, Http::H3)] {
        let session = world.session().await;
        let capability = session.upload_capability.clone().unwrap();
        let name = format!("Waystation-Known {}", CapabilityName::of(&capability));
        let whole = format!("Bearer {capability}");
        let chunks: Vec<_> = (1..=4).map(|index| Chunk::sealed(&session, Variant::AudioPriority, index, 300)).collect();

        let mut joint = Joint::open(&world, http).await;
        assert_eq!(bring(&mut joint, &chunks[0], &name).await, "capability_not_known", "{http:?}");
        let mut capture = Capture::over(joint.ask(post()).await).await;
        let welcome = capture.greet(&[&capability]).await;
        assert!(welcome.limits.known > 0, "{http:?}");
        for chunk in &chunks[..3] {
            assert_eq!(bring(&mut joint, chunk, &name).await, "confirmed", "{http:?}");
        }

        let mut other = Joint::open(&world, http).await;
        assert_eq!(bring(&mut other, &chunks[0], &name).await, "capability_not_known", "{http:?}");
        assert_eq!(bring(&mut other, &chunks[0], &whole).await, "confirmed", "{http:?}");
        assert_eq!(bring(&mut other, &chunks[1], &name).await, "confirmed", "{http:?}: the request taught it");

        revoke(&world, claims(&capability)["jti"].as_str().unwrap()).await;
        world.until_metric("waystation_capability_revoked", |entries| entries >= revoked).await;
        assert_eq!(bring(&mut joint, &chunks[3], &name).await, "capability_revoked", "{http:?}: looked at anew");
    }
    assert_eq!(world.metric("waystation_capabilities_named_total{code=\"ok\"}").await, 10.0);
    assert_eq!(world.metric("waystation_capabilities_named_total{code=\"capability_not_known\"}").await, 4.0);
}

/// `PUT` of a chunk with this `Authorization`: that it is confirmed, or why not.
async fn bring(joint: &mut Joint, chunk: &Chunk, bearer: &str) -> String {
    let mut request: Request<()> = put(chunk, "", 20).header("content-length", chunk.offer.length).body(()).unwrap();
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    let mut upload = joint.ask(request).await;
    upload.send(chunk.bytes.clone()).await;
    upload.end().await;
    let told = Told::from(upload.answer().await);
    if told.state == Some(ChunkState::Confirmed) { "confirmed".into() } else { told.code }
}
