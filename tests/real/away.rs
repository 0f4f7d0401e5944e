//! A phone that comes back and one that moves: aioquic with 0-RTT, and with another connection ID
//! and another address in the middle of an upload.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::Variant;
use waystation_tests::wire::soon;
use waystation_tests::{Chunk, Setup, World};

use crate::program::{Program, bytes_of, described, merge, said, upload};

/// Datagrams of a client on their way to the relay: kept, and passed on or not.
struct Forwarder {
    port: u16,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    relay: SocketAddr,
    front: UdpSocket,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    client: Option<SocketAddr>,
    back: Option<Back>,
    holds: bool,
    /// What the client sent since [`Forwarder::record`].
    flight: Vec<Vec<u8>>,
    /// Datagrams of the relay that came through the present address.
    came_back: u64,
}

/// The address that the relay sees.
#[derive(Clone)]
struct Back {
    socket: Arc<UdpSocket>,
    _reader: Arc<AbortOnDropHandle<()>>,
}

impl Forwarder {
    async fn before(world: &World) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = front.local_addr().unwrap().port();
        let shared = Arc::new(Shared { relay: world.public(), front, state: Mutex::default() });
        shared.rebind().await;
        let forward = Arc::clone(&shared);
        let task = AbortOnDropHandle::new(tokio::spawn(async move { forward.upwards().await }));
        Self { port, shared, _task: task }
    }

    /// From now on the client has another address, as behind a NAT that forgot it.
    async fn rebind(&self) {
        self.shared.rebind().await;
    }

    /// Keeps what the client sends next; `holds` lets none of it through.
    fn record(&self, holds: bool) {
        let mut state = self.shared.state.lock().unwrap();
        state.holds = holds;
        state.flight.clear();
    }

    /// The client's flight of so many datagrams or more.
    async fn flight(&self, least: usize) -> Vec<Vec<u8>> {
        let waiting = async {
            loop {
                let flight = self.shared.state.lock().unwrap().flight.clone();
                if flight.len() >= least {
                    return flight;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon("the flight", waiting).await
    }

    fn came_back(&self) -> u64 {
        self.shared.state.lock().unwrap().came_back
    }

    /// The parameters of a program that goes through it.
    fn through(&self, mut params: Value) -> Value {
        merge(&mut params, json!({ "url": format!("https://127.0.0.1:{}", self.port) }));
        params
    }
}

impl Shared {
    async fn rebind(self: &Arc<Self>) {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        socket.connect(self.relay).await.unwrap();
        let (shared, reads) = (Arc::clone(self), Arc::clone(&socket));
        let reader = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while let Ok(len) = reads.recv(&mut datagram).await {
                let client = {
                    let mut state = shared.state.lock().unwrap();
                    state.came_back += 1;
                    state.client
                };
                if let Some(client) = client {
                    let _ = shared.front.send_to(&datagram[..len], client).await;
                }
            }
        }));
        let mut state = self.state.lock().unwrap();
        state.came_back = 0;
        state.back = Some(Back { socket, _reader: Arc::new(reader) });
    }

    async fn upwards(&self) {
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = self.front.recv_from(&mut datagram).await {
            let back = {
                let mut state = self.state.lock().unwrap();
                state.client = Some(from);
                state.flight.push(datagram[..len].to_vec());
                state.back.clone().filter(|_| !state.holds)
            };
            if let Some(back) = back {
                let _ = back.socket.send(&datagram[..len]).await;
            }
        }
    }
}

/// What the relay counted of requests, offers, bytes and chunks.
async fn doings(world: &World) -> Vec<String> {
    const OF: [&str; 5] = [
        "waystation_requests_total",
        "waystation_offers",
        "waystation_received_bytes_total{transport=\"h3\"}",
        "waystation_staging",
        "waystation_chunks",
    ];
    let text = world.metrics().await;
    let mut lines: Vec<_> =
        text.lines().filter(|line| OF.iter().any(|name| line.starts_with(name))).map(String::from).collect();
    lines.push(format!("{:?}", world.core.stats().await.stored_chunks));
    lines
}

async fn failed_handshakes(world: &World) -> f64 {
    let classes = ["timeout", "closed", "protocol"];
    let mut failed = 0.0;
    for class in classes {
        let name = format!("waystation_handshakes_failed_total{{handshake=\"quic\",class=\"{class}\"}}");
        failed += world.metric(&name).await;
    }
    failed
}

/// Sends a flight from an address of its own until the relay has given up on it.
async fn replay(world: &World, flight: &[Vec<u8>]) -> UdpSocket {
    let before = failed_handshakes(world).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(world.public()).await.unwrap();
    let giving_up = async {
        while failed_handshakes(world).await == before {
            for datagram in flight {
                socket.send(datagram).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    soon("the end of the replayed handshake", giving_up).await;
    socket
}

async fn world() -> World {
    let toml = "[limits]\nheader_timeout = \"1s\"\n".into();
    World::with(Setup { toml, ..Setup::default() }).await
}

/// Parameters of two visits that bring a chunk each.
fn visits(world: &World, chunks: &[Chunk; 2], capability: &str) -> Value {
    let second = json!({ "file": bytes_of(world, &chunks[1]), "chunk": described(&chunks[1]) });
    upload(world, &chunks[0], capability, json!({ "second": second }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_return_with_0_rtt_is_served_and_its_replay_changes_nothing() {
    let world = world().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunks = [1, 2].map(|index| Chunk::sealed(&session, Variant::AudioPriority, index, 3_000));
    let forwarder = Forwarder::before(&world).await;
    let mut program =
        Program::python("aioquic_return.py").told(forwarder.through(visits(&world, &chunks, capability))).await;
    program.named("stopped").await;
    forwarder.record(false);
    program.go_on().await;
    let answer = program.done().await;
    assert_eq!((said(&answer).0, &answer["early"]), (201, &json!(true)), "the request came as early data");
    world.until_metric("waystation_connections{transport=\"h3\"}", |open| open == 0.0).await;

    let (flight, before) = (forwarder.flight(2).await, doings(&world).await);
    assert!(flight.iter().map(Vec::len).sum::<usize>() > 3_000, "the flight holds the request");
    replay(&world, &flight).await;
    assert_eq!(doings(&world).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_data_whose_handshake_never_ends_changes_nothing() {
    let world = world().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunks = [1, 2].map(|index| Chunk::sealed(&session, Variant::AudioPriority, index, 3_000));
    let forwarder = Forwarder::before(&world).await;
    let mut program =
        Program::python("aioquic_return.py").told(forwarder.through(visits(&world, &chunks, capability))).await;
    program.named("stopped").await;
    world.until_metric("waystation_connections{transport=\"h3\"}", |open| open == 0.0).await;
    let before = doings(&world).await;
    // Somebody on the way keeps the flight to himself and brings it in the client's stead: the
    // session is not taken yet, so that its early data can be read.
    forwarder.record(true);
    program.go_on().await;
    let mut flight = forwarder.flight(1).await;
    while flight.iter().map(Vec::len).sum::<usize>() < 4_000 {
        flight = forwarder.flight(flight.len() + 1).await;
    }
    drop(program);
    let socket = replay(&world, &flight).await;
    let mut heard = [0; 2048];
    assert!(soon("the relay's half of the handshake", socket.recv(&mut heard)).await.unwrap() > 0);
    assert_eq!(doings(&world).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_connection_id_and_another_address_in_an_upload_cost_no_handshake() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let forwarder = Forwarder::before(&world).await;
    for (index, change_id, moves) in [(1, true, false), (2, false, true), (3, true, true)] {
        let chunk = Chunk::sealed(&session, Variant::EvidenceMaster, index, 1 << 20);
        let more = json!({ "stop_at": chunk.bytes.len() / 2, "change_id": change_id });
        let params = forwarder.through(upload(&world, &chunk, capability, more));
        let mut program = Program::python("aioquic_put.py").told(params).await;
        program.named("stopped").await;
        if moves {
            forwarder.rebind().await;
        }
        program.go_on().await;
        let answer = program.done().await;
        // aioquic makes no second connection: an answer is that of the first.
        assert_eq!(said(&answer), (201, "", "confirmed", chunk.bytes.len() as u64), "{change_id} {moves}");
        assert!(!moves || forwarder.came_back() > 0, "the relay follows the client to its new address");
    }
    assert_eq!(failed_handshakes(&world).await, 0.0);
}
