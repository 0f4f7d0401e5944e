//! Somebody between client and relay: counts connections, falls silent, refuses.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, copy_bidirectional, sink};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use waystation_client::connect::{Endpoint, Transport, Trust};

use super::relay::{Relay, spawn};

/// What it saw, and what it does.
#[derive(Default)]
pub struct Seen {
    /// Connections made, those of them that are not closed, and those refused.
    pub opened: usize,
    pub open: usize,
    pub refused: usize,
    /// Connections let through at once.
    most: usize,
    /// So many of the first are silent.
    silent: usize,
}

/// The way to a relay's port without TLS.
pub struct Proxy {
    port: u16,
    seen: Arc<watch::Sender<Seen>>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Lets so many connections through at once.
    pub async fn before(relay: &Relay, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(watch::Sender::new(Seen { most, ..Seen::default() }));
        let url = relay.url(Transport::WsPlain);
        let to = url.strip_prefix("http://").unwrap().to_owned();
        let counts = Arc::clone(&seen);
        let task = spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                running.spawn(through(client, to.clone(), Arc::clone(&counts)));
            }
        });
        Self { port, seen, _task: task }
    }

    pub fn endpoint(&self) -> Endpoint {
        let trust = Trust::certificates(Vec::new()).unwrap();
        Endpoint::parse(&format!("http://127.0.0.1:{}", self.port), trust).unwrap()
    }

    pub fn with<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.borrow())
    }

    /// Nothing comes back any more on the first connections; their clients are not told.
    pub fn silence(&self, first: usize) {
        self.seen.send_modify(|seen| seen.silent = first);
    }

    pub async fn until(&self, is_so: impl FnMut(&Seen) -> bool) {
        let mut seen = self.seen.subscribe();
        tokio::time::timeout(2 * super::LIMIT, seen.wait_for(is_so)).await.expect("it does not come to be").unwrap();
    }
}

async fn through(mut client: TcpStream, to: String, seen: Arc<watch::Sender<Seen>>) {
    let (mut takes, mut number) = (true, 0);
    seen.send_modify(|seen| {
        (takes, number) = (seen.open < seen.most, seen.opened);
        seen.opened += 1;
        seen.open += 1;
    });
    if takes {
        let (mut relay, mut silence) = (TcpStream::connect(to).await.unwrap(), seen.subscribe());
        let silent = async { silence.wait_for(|seen| seen.silent > number).await.is_ok() };
        let silent = tokio::select! {
            _ = copy_bidirectional(&mut client, &mut relay) => false,
            silent = silent => silent,
        };
        if silent {
            drop(relay);
            let _ = copy(&mut client, &mut sink()).await;
        }
    } else {
        let _ = client.read(&mut [0; 4096]).await;
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 500\r\ncontent-length: 0\r\n\r\n";
        let _ = client.write_all(answer).await;
        seen.send_modify(|seen| seen.refused += 1);
    }
    seen.send_modify(|seen| seen.open -= 1);
}

/// Somebody between client and relay who lets UDP through, or not. TCP does not pass here: it goes to the same
/// port of the relay itself.
pub struct Udp {
    shut: Arc<watch::Sender<bool>>,
    looks: Arc<Mutex<Looks>>,
    _task: AbortOnDropHandle<()>,
}

impl Udp {
    /// Stands at the port where the relay serves WebSockets over TLS.
    pub async fn before(relay: &Relay, shut: bool) -> Self {
        let own = UdpSocket::bind(relay.secure()).await.unwrap();
        let shut = Arc::new(watch::Sender::new(shut));
        let looks = Arc::default();
        let task = spawn(datagrams(own, relay.quic(), shut.subscribe(), Arc::clone(&looks)));
        Self { shut, looks, _task: task }
    }

    /// Of the client's next large packets these are lost.
    pub fn lose(&self, which: std::ops::Range<usize>) {
        *self.looks.lock().unwrap() = Looks { lose: which, ..Looks::default() };
    }

    /// How many of its packets came more than once since then.
    pub fn twice(&self) -> usize {
        self.looks.lock().unwrap().twice
    }

    /// From now on nothing passes; or it does.
    pub fn shut(&self, shut: bool) {
        self.shut.send_replace(shut);
    }
}

/// What the client's packets are looked at for.
#[derive(Default)]
struct Looks {
    lose: std::ops::Range<usize>,
    large: usize,
    came: HashSet<Vec<u8>>,
    twice: usize,
}

impl Looks {
    const LARGE: usize = 1000;

    /// Whether a packet goes on. Those of a handshake always do, and may come twice.
    fn lets(&mut self, packet: &[u8]) -> bool {
        if packet[0] & 0x80 != 0 {
            return true;
        }
        self.twice += usize::from(!self.came.insert(packet.to_vec()));
        self.large += usize::from(packet.len() > Self::LARGE);
        packet.len() <= Self::LARGE || !self.lose.contains(&self.large)
    }
}

/// Each client's port has one of its own here, so that the relay can tell them apart.
async fn datagrams(own: UdpSocket, to: SocketAddr, shut: watch::Receiver<bool>, looks: Arc<Mutex<Looks>>) {
    let own = Arc::new(own);
    let (mut ways, mut running) = (HashMap::new(), tokio::task::JoinSet::new());
    let mut packet = vec![0; 65_536];
    loop {
        let (length, from) = own.recv_from(&mut packet).await.unwrap();
        if *shut.borrow() || !looks.lock().unwrap().lets(&packet[..length]) {
            continue;
        }
        let way = match ways.entry(from) {
            Entry::Occupied(way) => way.into_mut(),
            Entry::Vacant(place) => {
                let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                way.connect(to).await.unwrap();
                running.spawn(back(Arc::clone(&way), Arc::clone(&own), from, shut.clone()));
                place.insert(way)
            }
        };
        let _ = way.send(&packet[..length]).await;
    }
}

async fn back(way: Arc<UdpSocket>, own: Arc<UdpSocket>, to: SocketAddr, shut: watch::Receiver<bool>) {
    let mut packet = vec![0; 65_536];
    while let Ok(length) = way.recv(&mut packet).await {
        if !*shut.borrow() {
            let _ = own.send_to(&packet[..length], to).await;
        }
    }
}
