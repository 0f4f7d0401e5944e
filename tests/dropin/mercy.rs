//! Drop-in uploads in the order of mercy (design, promise 5).

use serde_json::json;

use crate::core::Forced;
use crate::form::{Form, token_with};
use crate::world::{World, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_is_committed_before_what_waited_longer() {
    const WAITING: u64 = 6;
    let world = World::with("", "[limits]\nin_flight_per_session = 64\nin_flight_per_client = 64").await;
    // Commits pause for everybody; what comes meanwhile stands in one line.
    let pause = vec![("retry-after", "10".to_owned())];
    world.core.force("/v1/relay/commit", Forced::Answer(429, String::new(), pause));
    assert_eq!(world.upload(&Form::chunk(1, 100)).await.status, 429);
    world.core.relent();

    let token = token_with("upload", |claims| claims["allowed_media_types"] = json!(["audio", "location"]));
    let (at, mut uploads) = (world.plain(), tokio::task::JoinSet::new());
    let mut upload = |index: u64, media: &str| {
        let request = Form::chunk(index, 100).with("media_type", media).with("capability", &token).request();
        uploads.spawn(waystation_tests::http::send(at, request));
    };
    for index in 2..2 + WAITING {
        upload(index, "location");
    }
    until("they wait", || world.core.calls("/v1/relay/preflight") == 1 + WAITING as usize).await;
    upload(50, "audio");
    until("a commit goes", || world.core.calls("/v1/relay/commit") == 2).await;
    let seen = world.core.seen();
    let commits: Vec<_> = seen.iter().filter(|seen| seen.path == "/v1/relay/commit").collect();
    assert_eq!(commits[1].field("media_type"), Some("audio"));
}
