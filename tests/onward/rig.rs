//! What the tests of the way onward share: small worlds whose time is moved by hand.

use std::time::Duration;

use waystation::clock::Clock;
use waystation_devcore::Options;
use waystation_devcore::session::Session;
use waystation_proto::{ChunkState, Code, Retry, Variant};
use waystation_tests::http::{self, Answer};
use waystation_tests::world::PATIENCE;
use waystation_tests::{Chunk, Setup, World};

/// A relay whose clock a test moves. The core's clock is the machine's, so that capabilities stay good.
pub fn virtual_clock() -> Clock {
    Clock::at_unix_ms(Clock::system().unix_ms())
}

/// A world with a relay whose clock a test moves.
pub async fn slow_world(core: impl Fn(&mut Options) + Send + 'static) -> World {
    World::with(Setup { clock: virtual_clock(), core: Box::new(core), ..Setup::default() }).await
}

/// A sealed audio chunk.
pub fn audio(session: &Session, index: u64) -> Chunk {
    Chunk::sealed(session, Variant::AudioPriority, index, 3000)
}

/// The JWT to upload.
pub fn jwt(session: &Session) -> &str {
    session.upload_capability.as_deref().unwrap()
}

/// The JWT to watch.
pub fn fanout_jwt(session: &Session) -> &str {
    session.fanout_capability.as_deref().unwrap()
}

/// The Proofline token to upload to a lane.
pub fn proofline(session: &Session, variant: Variant) -> &str {
    let stream = session.streams.iter().find(|stream| stream.variant == variant).unwrap();
    &stream.proofline.as_ref().unwrap().upload
}

/// The Proofline token to watch a lane.
pub fn proofline_fanout(session: &Session, variant: Variant) -> &str {
    let stream = session.streams.iter().find(|stream| stream.variant == variant).unwrap();
    &stream.proofline.as_ref().unwrap().fanout
}

/// Code, retry word, core's code and state of a refusal.
pub struct Told {
    /// HTTP status.
    pub status: u16,
    /// Code.
    pub code: String,
    /// Retry word.
    pub retry: Retry,
    /// The core's code.
    pub core_code: Option<String>,
    /// The chunk's state.
    pub state: Option<ChunkState>,
    /// `Retry-After`, seconds.
    pub retry_after: Option<u64>,
}

/// Reads a refusal.
pub fn told(answer: &Answer) -> Told {
    let native = answer.native();
    let error = native.error.unwrap_or_else(|| panic!("no refusal: {:?}", answer.body));
    let retry_after = answer.headers.get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    Told {
        status: answer.status.as_u16(),
        code: error.code,
        retry: error.retry,
        core_code: error.core_code,
        state: native.chunk.map(|chunk| chunk.state),
        retry_after,
    }
}

/// Asks for a chunk again, as a client does that is not told yet: no byte is sent twice.
pub async fn again(world: &World, chunk: &Chunk, capability: &str) -> Answer {
    http::upload(world.plain(), chunk, capability, 0).await
}

/// Moves the relay's clock by `step` until `done` holds.
pub async fn tick_until(world: &World, step: Duration, what: &str, done: impl AsyncFn() -> bool) {
    let ticking = async {
        while !done().await {
            world.clock.advance(step);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, ticking).await.is_ok(), "{what} never came");
}

/// Moves the relay's clock until a chunk has one of its last states; returns the last answer.
pub async fn tick_until_state(world: &World, chunk: &Chunk, capability: &str, state: ChunkState) -> Answer {
    let is = async || head_state(world, chunk, capability).await == state.as_str();
    tick_until(world, Duration::from_millis(250), state.as_str(), is).await;
    again(world, chunk, capability).await
}

/// Moves the relay's clock until a refusal of a chunk has this code.
pub async fn tick_until_code(world: &World, chunk: &Chunk, capability: &str, code: Code) -> Told {
    let is = async || again(world, chunk, capability).await.code() == code.name();
    tick_until(world, Duration::from_millis(50), code.name(), is).await;
    told(&again(world, chunk, capability).await)
}

/// The state that `HEAD` tells.
pub async fn head_state(world: &World, chunk: &Chunk, capability: &str) -> String {
    let answer = http::ask(world.plain(), ::http::Method::HEAD, chunk, capability).await;
    answer.headers.get("waystation-state").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// Endings counted of a class.
pub async fn endings(world: &World, class: &str, ending: &str) -> f64 {
    world.metric(&format!("waystation_chunk_endings_total{{class=\"{class}\",ending=\"{ending}\"}}")).await
}

/// Calls counted by route and outcome.
pub async fn calls(world: &World, route: &str, outcome: &str) -> f64 {
    world.metric(&format!("waystation_core_requests_total{{route=\"{route}\",outcome=\"{outcome}\"}}")).await
}

/// The three gauges of a class and a reason: chunks, bytes, age of the oldest.
pub async fn held(world: &World, class: &str, reason: &str) -> (f64, f64, f64) {
    let labels = format!("{{class=\"{class}\",reason=\"{reason}\"}}");
    let text = world.metrics().await;
    let sample = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{labels} ")));
        line.unwrap_or_else(|| panic!("no {name}{labels}")).parse().unwrap()
    };
    (
        sample("waystation_staged_chunks"),
        sample("waystation_staged_bytes"),
        sample("waystation_oldest_unconfirmed_seconds"),
    )
}

/// A session whose capabilities outlive everything a test does to the relay's clock.
pub async fn long_session(world: &World) -> Session {
    world.session_with(|request| request.ttl_s = Some(3600)).await
}

/// Another upload capability for all streams of a session, as a second holder gets one.
pub async fn upload_capability(world: &World, session: &Session, ttl_s: u32) -> String {
    let streams: Vec<&str> = session.streams.iter().map(|stream| stream.stream.as_str()).collect();
    let ask = serde_json::json!({ "use": "upload", "streams": streams, "ttl_s": ttl_s });
    let path = format!("/v1/incidents/{}/groups/{}/capabilities", session.incident, session.group);
    account(world, &path, &ask).await["capability"].as_str().unwrap().to_owned()
}

/// A `POST` as the account; the answer is a success.
pub async fn account(world: &World, path: &str, ask: &serde_json::Value) -> serde_json::Value {
    let request = ::http::Request::post(path)
        .header("host", "test")
        .header("authorization", format!("Bearer {}", world.core.account_token()))
        .body(http_body_util::Full::from(ask.to_string()))
        .unwrap();
    let answer = http::send(world.core.addr(), request).await;
    assert!(answer.status.is_success(), "{path}: {:?}", answer.body);
    serde_json::from_slice(&answer.body).unwrap()
}
