//! A capture client whose connection is lost and made again: what it sends with its first flight.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_client::capture::{Capture, Event};
use waystation_client::connect::Transport;
use waystation_proto::{ChunkState, Variant, varint};
use waystation_tests::wire::soon;
use waystation_tests::{Setup, World};

use crate::ends::capture;

/// Long enough for a connection to be a good one.
const GOOD: Duration = Duration::from_secs(5);

/// Everything that a client's sockets send goes through it, each socket by an address of its own.
struct Way {
    at: SocketAddr,
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
    /// Nothing goes through on new sockets.
    cut: bool,
    flows: HashMap<SocketAddr, Flow>,
    /// The client's names of its connections, and of those that began with early data.
    begun: HashSet<Vec<u8>>,
    early: HashSet<Vec<u8>>,
}

/// What one of the client's sockets sent.
struct Flow {
    back: Arc<UdpSocket>,
    /// Nothing goes through any more.
    dead: bool,
    _reader: AbortOnDropHandle<()>,
}

impl Way {
    async fn to(world: &World) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = front.local_addr().unwrap();
        let state = Mutex::default();
        let shared = Arc::new(Shared { relay: world.public(), front, state });
        let forward = Arc::clone(&shared);
        Self { at, shared, _task: AbortOnDropHandle::new(tokio::spawn(async move { forward.forward().await })) }
    }

    /// Nothing goes through on the sockets that there are, and on new ones.
    fn cut(&self, new: bool) {
        let mut state = self.shared.state.lock().unwrap();
        state.cut = new;
        state.flows.values_mut().for_each(|flow| flow.dead = true);
    }

    /// Everything goes through again.
    fn mends(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.cut = false;
        state.flows.values_mut().for_each(|flow| flow.dead = false);
    }

    /// How many connections were begun, and how many of them with early data.
    fn connections(&self) -> (usize, usize) {
        let state = self.shared.state.lock().unwrap();
        (state.begun.len(), state.early.len())
    }
}

impl Shared {
    async fn forward(self: Arc<Self>) {
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = self.front.recv_from(&mut datagram).await {
            let datagram = &datagram[..len];
            let known = self.state.lock().unwrap().flows.contains_key(&from);
            if !known && datagram[0] & 0x80 == 0 {
                // A lost connection from another port is lost.
                continue;
            }
            if !known {
                self.begin(from).await;
            }
            let back = {
                let mut state = self.state.lock().unwrap();
                state.learn(datagram);
                state.flows.get(&from).filter(|flow| !flow.dead).map(|flow| Arc::clone(&flow.back))
            };
            if let Some(back) = back {
                let _ = back.send(datagram).await;
            }
        }
    }

    async fn begin(self: &Arc<Self>, client: SocketAddr) {
        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        back.connect(self.relay).await.unwrap();
        let (shared, reads) = (Arc::clone(self), Arc::clone(&back));
        let reader = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut datagram = [0; 2048];
            loop {
                let Ok(len) = reads.recv(&mut datagram).await else { return };
                let dead = shared.state.lock().unwrap().flows.get(&client).is_none_or(|flow| flow.dead);
                if !dead {
                    let _ = shared.front.send_to(&datagram[..len], client).await;
                }
            }
        }));
        let mut state = self.state.lock().unwrap();
        let flow = Flow { back, dead: state.cut, _reader: reader };
        state.flows.insert(client, flow);
    }
}

impl State {
    /// Reads the heads of a datagram's packets (RFC 9000, 17.2), as far as they are long ones.
    fn learn(&mut self, mut rest: &[u8]) -> Option<()> {
        const INITIAL: u8 = 0;
        const EARLY: u8 = 1;
        while rest.first()? & 0x80 != 0 {
            let kind = (rest[0] >> 4) & 3;
            rest = rest.get(5..)?;
            let (_to, after) = rest.get(1..)?.split_at_checked(rest[0].into())?;
            let (name, after) = after.get(1..)?.split_at_checked(after[0].into())?;
            rest = after;
            if kind == INITIAL {
                self.begun.insert(name.into());
                let token = varint::get(&mut rest)?;
                rest = rest.get(usize::try_from(token).ok()?..)?;
            } else if kind == EARLY {
                self.early.insert(name.into());
            }
            let length = varint::get(&mut rest)?;
            rest = rest.get(usize::try_from(length).ok()?..)?;
        }
        None
    }
}

/// A recording over HTTP/3, and what becomes of it.
struct Phone {
    capture: Capture,
    events: mpsc::Receiver<Event>,
    cut: u8,
}

impl Phone {
    async fn through(world: &World, way: &Way) -> Self {
        let (capture, events) = capture(world, way.at, world.certificate(), Transport::H3).await;
        Self { capture, events, cut: 0 }
    }

    /// Cuts a chunk; it is confirmed over the connection that there is, or over the next.
    async fn brings_one(&mut self) {
        let (n, ms) = (self.cut, i64::from(self.cut) * 2000);
        self.cut += 1;
        self.capture.chunk(Variant::AudioPriority, vec![n; 3000], ms, ms + 2000).await.unwrap();
        self.until(|event| matches!(event, Event::State { state: ChunkState::Confirmed, .. })).await;
    }

    /// Records until its connection has lasted for long.
    async fn is_at_work(&mut self) {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < GOOD {
            self.brings_one().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn until(&mut self, is: impl Fn(&Event) -> bool) {
        let waiting = async { while !is(&self.events.recv().await.expect("the session goes on")) {} };
        soon("what was to be told", waiting).await;
    }

    /// What was told since and nobody asked for.
    fn losses(&mut self) -> usize {
        let told = std::iter::from_fn(|| self.events.try_recv().ok());
        told.filter(|event| matches!(event, Event::Disconnected { .. })).count()
    }
}

/// A relay whose silent connections are soon lost.
async fn world() -> World {
    let toml = "[limits]\nidle_timeout = \"2s\"\n".into();
    World::with(Setup { toml, ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_made_again_with_the_first_requests_in_it() {
    let world = world().await;
    let way = Way::to(&world).await;
    let mut phone = Phone::through(&world, &way).await;
    phone.is_at_work().await;
    assert_eq!(way.connections(), (1, 0), "nobody is known at first");
    way.cut(false);
    phone.until(|event| matches!(event, Event::Disconnected { .. })).await;
    phone.brings_one().await;
    assert_eq!((way.connections(), phone.losses()), ((2, 1), 0), "and the relay took it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_early_in_vain_is_not_sent_so_again() {
    let world = world().await;
    let way = Way::to(&world).await;
    let mut phone = Phone::through(&world, &way).await;
    phone.is_at_work().await;
    way.cut(true);
    phone.until(|event| matches!(event, Event::Disconnected { .. })).await;
    // The one with early data is given up too.
    phone.until(|event| matches!(event, Event::Disconnected { .. })).await;
    way.mends();
    phone.brings_one().await;
    let (made, early) = way.connections();
    assert!(made > 2 && early == 1, "{early} of {made}");
}
