//! Two real ends of QUIC, joined by a link in virtual time: nothing of it depends on how fast the machine is.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, UdpPoller};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};

use super::{Beat, Factory, Gauge, Owes, Pulse, ask_for_acknowledgement};

const MS: Duration = Duration::from_millis(1);
/// One way.
const DELAY: Duration = Duration::from_millis(100);
const WINDOW: u32 = 100_000;
/// Bytes a second, each way, where it matters.
const RATE: u32 = 30_000;

#[derive(Debug, Default)]
struct Inbox {
    packets: VecDeque<Vec<u8>>,
    waker: Option<Waker>,
}

/// One end of the link.
#[derive(Debug)]
struct End {
    at: SocketAddr,
    peer: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
    outbox: Arc<Mutex<Inbox>>,
    /// When packets were sent, and of how many bytes.
    sent: Mutex<Vec<(Instant, usize)>>,
    /// The next packet of 500 bytes and more is lost.
    loses: AtomicBool,
    /// All are.
    away: AtomicBool,
    /// Bytes a second.
    rate: u32,
    /// Until when what was sent keeps the link busy.
    busy: Mutex<Instant>,
    /// The longest that was.
    backlog: Mutex<Duration>,
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl End {
    fn pair(rate: u32) -> [Arc<Self>; 2] {
        let at = |port| SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), port));
        let boxes: [Arc<Mutex<Inbox>>; 2] = Default::default();
        [0, 1].map(|own: usize| {
            Arc::new(Self {
                at: at(1 + own as u16),
                peer: at(2 - own as u16),
                inbox: Arc::clone(&boxes[own]),
                outbox: Arc::clone(&boxes[1 - own]),
                sent: Mutex::default(),
                loses: AtomicBool::new(false),
                away: AtomicBool::new(false),
                rate,
                busy: Mutex::new(Instant::now()),
                backlog: Mutex::default(),
            })
        })
    }

    fn sent_since(&self, since: Instant) -> Vec<usize> {
        self.sent.lock().unwrap().iter().filter(|(at, _)| *at > since).map(|(_, bytes)| *bytes).collect()
    }
}

impl AsyncUdpSocket for End {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let packet = transmit.contents.to_vec();
        self.sent.lock().unwrap().push((Instant::now(), packet.len()));
        let departs = {
            let (mut busy, mut backlog) = (self.busy.lock().unwrap(), self.backlog.lock().unwrap());
            *busy = (*busy).max(Instant::now()) + Duration::from_secs(1) * packet.len() as u32 / self.rate;
            *backlog = (*backlog).max(*busy - Instant::now());
            *busy
        };
        if packet.len() >= 500 && self.loses.swap(false, Ordering::Relaxed) || self.away.load(Ordering::Relaxed) {
            return Ok(());
        }
        let to = Arc::clone(&self.outbox);
        tokio::spawn(async move {
            sleep_until(departs + DELAY).await;
            let mut to = to.lock().unwrap();
            to.packets.push_back(packet);
            if let Some(waker) = to.waker.take() {
                waker.wake();
            }
        });
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let Some(packet) = inbox.packets.pop_front() else {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        bufs[0][..packet.len()].copy_from_slice(&packet);
        meta[0] = RecvMeta { addr: self.peer, len: packet.len(), stride: packet.len(), ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }
}

/// A client that begins, and a server that waits for it.
fn begin(
    ends: &[Arc<End>; 2],
    gauges: [&Arc<Gauge>; 2],
) -> (Endpoint, quinn::Connecting, JoinHandle<(Endpoint, quinn::Connection)>) {
    let made = rcgen::generate_simple_self_signed(vec!["relay".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let transport = |factory| {
        let mut transport = TransportConfig::default();
        transport.receive_window(WINDOW.into()).congestion_controller_factory(Arc::new(factory));
        Arc::new(transport)
    };
    let mut served = quinn::ServerConfig::with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    served.transport_config(transport(Factory::unmetered(Arc::clone(gauges[1]))));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut client = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    client.transport_config(transport(Factory::metered(Arc::clone(gauges[0]))));
    let endpoint = |end: &Arc<End>, config| {
        let socket = Arc::<End>::clone(end);
        Endpoint::new_with_abstract_socket(EndpointConfig::default(), config, socket, Arc::new(TokioRuntime)).unwrap()
    };
    let (near, far) = (endpoint(&ends[0], None), endpoint(&ends[1], Some(served)));
    let serving = tokio::spawn(async move {
        let connection = far.accept().await.unwrap().await.unwrap();
        (far, connection)
    });
    let connecting = near.connect_with(client, ends[1].at, "relay").unwrap();
    (near, connecting, serving)
}

/// A client's and a server's connection with each other.
async fn connect(ends: &[Arc<End>; 2], gauges: [&Arc<Gauge>; 2]) -> (Endpoint, [quinn::Connection; 2]) {
    let (near, connecting, serving) = begin(ends, gauges);
    let connection = connecting.await.unwrap();
    let (far, served) = serving.await.unwrap();
    // Held by the connections from here on.
    drop(far);
    (near, [connection, served])
}

/// How long it takes to get an answer of one packet that is lost the first time, and how many small packets the server
/// sent until it was there and in ten seconds after.
async fn answer(asks: bool) -> (Duration, [usize; 2]) {
    let (ends, gauge) = (End::pair(u32::MAX), Arc::new(Gauge::new()));
    let (_near, [client, server]) = connect(&ends, [&Arc::new(Gauge::new()), &gauge]).await;
    sleep(20 * DELAY).await;
    let (asking, gauge) = (server.clone(), Arc::clone(&gauge));
    let asking = tokio::spawn(async move {
        loop {
            gauge.end().await;
            if asks {
                ask_for_acknowledgement(&asking, WINDOW);
            }
        }
    });
    ends[1].loses.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let mut stream = server.open_uni().await.unwrap();
    stream.write_all(&[7; 800]).await.unwrap();
    stream.finish().unwrap();
    let mut coming = client.accept_uni().await.unwrap();
    assert_eq!(coming.read_to_end(1000).await.unwrap(), [7; 800]);
    let (took, there) = (began.elapsed(), Instant::now());
    sleep(100 * DELAY).await;
    asking.abort();
    let small = |sent: Vec<usize>| sent.iter().filter(|bytes| **bytes < 100).count();
    (took, [small(ends[1].sent_since(began)), small(ends[1].sent_since(there + 2 * DELAY))])
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_lost_is_found_in_little_more_than_a_round_trip() {
    let ((asked, [small, later]), (waited, _)) = (answer(true).await, answer(false).await);
    // A round trip and a third until it is known, half of one until it is there.
    assert!(asked <= 3 * DELAY + 80 * MS, "{asked:?}");
    assert!(waited >= asked + 50 * MS, "{waited:?} by the time-out, {asked:?} when asked");
    assert!((2..=8).contains(&small), "{small} small packets");
    assert_eq!(later, 0, "and then there is silence");
}

#[tokio::test(start_paused = true)]
async fn a_poke_lets_one_packet_be_written_until_something_is_acknowledged() {
    let gauge = Gauge::new();
    let room = async || timeout(MS, gauge.room()).await.is_ok();
    let now = || Instant::now().into_std();
    gauge.started(now(), 10_000, 1000);
    gauge.written(14_000);
    assert!(!room().await);
    gauge.nudge(false);
    assert_eq!(gauge.beyond(), 1000);
    assert!(!room().await, "what only asks needs no bytes");
    gauge.nudge(true);
    assert!(room().await);
    gauge.written(1000);
    assert!(!room().await);
    gauge.acknowledged(now(), 10_000, 11_900, false, super::Path::default());
    assert_eq!(gauge.beyond(), 0, "the path is slow: what is in flight will come");
    assert!(!room().await);
    // After an outage it is given up when something sent later is acknowledged, and not before.
    for _ in 0..3 {
        gauge.nudge(true);
    }
    gauge.written(3000);
    sleep(20 * DELAY).await;
    gauge.acknowledged(now(), 8_000, 15_000, false, super::Path::default());
    assert_eq!(gauge.beyond(), 8000 + 1000, "what is over the window, and a packet");
    gauge.sent(now(), 40);
    gauge.acknowledged(now(), 8_000, 15_000, false, super::Path::default());
    assert_eq!(gauge.beyond(), 8000 + 1000, "also if another answer comes before it is sent");
    assert!(room().await);
    gauge.written(1000);
    assert!(!room().await);
    gauge.sent(now(), 1000);
    gauge.nudge(false);
    gauge.acknowledged(now(), 8_000, 15_000, false, super::Path::default());
    assert_eq!(gauge.beyond(), 8000, "no more than that, whatever was poked since");
    gauge.lost(now(), now(), 7000);
    assert_eq!(gauge.beyond(), 1000);
    gauge.acknowledged(now(), 8_000, 7_000, false, super::Path::default());
    assert_eq!(gauge.beyond(), 0);
    assert!(!room().await);
    // Another path: nothing of the old one counts.
    gauge.started(now(), 10_000, 1000);
    assert!(room().await);
}

/// Writes what there is room for, as a client does, and keeps the path alive.
async fn bring(client: quinn::Connection, gauge: Arc<Gauge>) {
    let writing = async {
        let mut stream = client.open_uni().await.unwrap();
        loop {
            gauge.room().await;
            stream.write_all(&[7; 1000]).await.unwrap();
            gauge.written(1000);
        }
    };
    let looking = async {
        let (mut pulse, mut tick) = (Pulse::default(), interval(100 * MS));
        loop {
            tick.tick().await;
            match pulse.look(gauge.silence(Owes::Bytes), gauge.path().rtt, Owes::Bytes) {
                Beat::Rest | Beat::Flows => continue,
                beat => gauge.nudge(beat != Beat::Ask),
            }
            ask_for_acknowledgement(&client, WINDOW);
        }
    };
    tokio::join!(writing, looking);
}

/// Bytes come for five seconds, then nothing does for twenty. A packet of the server is heard first, `early` the way
/// there comes back before it, else after it. How long the first bytes take from then on, how many come in
/// five seconds, and the longest queue.
async fn outage(early: bool) -> (Duration, usize, Duration) {
    let (ends, gauge) = (End::pair(RATE), Arc::new(Gauge::new()));
    let (_near, [client, server]) = connect(&ends, [&gauge, &Arc::new(Gauge::new())]).await;
    let bringing = tokio::spawn(bring(client, Arc::clone(&gauge)));
    let mut coming = server.accept_uni().await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let until = Instant::now() + 5 * 10 * DELAY;
    while Instant::now() < until {
        coming.read(&mut buffer).await.unwrap();
    }
    // The acknowledgements go first, so that some of what came is not known to have come.
    ends[1].away.store(true, Ordering::Relaxed);
    sleep(DELAY).await;
    ends[0].away.store(true, Ordering::Relaxed);
    while timeout(20 * 10 * DELAY, coming.read(&mut buffer)).await.is_ok() {}
    ends[1].away.store(false, Ordering::Relaxed);
    ask_for_acknowledgement(&server, WINDOW);
    sleep(DELAY - 10 * MS).await;
    ends[0].away.store(!early, Ordering::Relaxed);
    sleep(50 * MS).await;
    assert!(gauge.silence(Owes::Bytes).unwrap() < DELAY, "a late answer was heard");
    assert!(early || gauge.beyond() > 10_000, "and what was sent in vain is let be");
    ends[0].away.store(false, Ordering::Relaxed);
    *ends[0].backlog.lock().unwrap() = Duration::ZERO;
    let (back, mut bytes) = (Instant::now(), 0);
    coming.read(&mut buffer).await.unwrap();
    let first = back.elapsed();
    while back.elapsed() < 5 * 10 * DELAY {
        bytes += coming.read(&mut buffer).await.unwrap().unwrap();
    }
    bringing.abort();
    (first, bytes, *ends[0].backlog.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_is_heard_first_after_an_outage_may_be_an_answer_of_before_it() {
    // What follows it at once is lost, or is not: then it takes a round trip to find what is missing, and half of
    // one to bring it.
    for (early, most) in [(false, 15 * DELAY), (true, 4 * DELAY)] {
        let (first, bytes, backlog) = outage(early).await;
        assert!(first < most, "{first:?}");
        assert!(bytes > 3 * RATE as usize, "{bytes} bytes in five seconds");
        assert!(backlog < 6 * DELAY, "{backlog:?}");
    }
}

/// How long after its handshake a client that brings a chunk looks for another way; none if it does not. `lost`:
/// its last packets of the handshake are lost.
async fn looks_for_another_way(lost: bool) -> Option<Duration> {
    let (ends, gauge) = (End::pair(u32::MAX), Arc::new(Gauge::new()));
    let (_near, connecting, _serving) = begin(&ends, [&gauge, &Arc::new(Gauge::new())]);
    let near = Arc::clone(&ends[0]);
    tokio::spawn(async move {
        sleep(2 * DELAY - 5 * MS).await;
        near.away.store(lost, Ordering::Relaxed);
        sleep(15 * MS).await;
        near.away.store(false, Ordering::Relaxed);
    });
    let client = connecting.await.unwrap();
    let (began, mut pulse) = (Instant::now(), Pulse::default());
    let mut going = client.open_uni().await.unwrap();
    going.write_all(&[0; 500]).await.unwrap();
    gauge.written(500);
    while began.elapsed() < 3 * 10 * DELAY {
        sleep(DELAY).await;
        let owes = gauge.owes(true);
        if pulse.look(gauge.silence(owes), gauge.path().rtt, owes) == Beat::Stalls {
            return Some(began.elapsed());
        }
    }
    assert_eq!(gauge.owes(true), Owes::Bytes);
    None
}

/// What asks for it again comes ever more rarely where the handshake began in an outage.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_only_seems_done_is_given_up_soon() {
    assert_eq!(looks_for_another_way(false).await, None);
    let after = looks_for_another_way(true).await.expect("the peer can read nothing");
    assert!(after <= 8 * DELAY, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_while_urgent_bytes_are_under_way_is_told() {
    let gauge = Gauge::new();
    let now = || Instant::now().into_std();
    gauge.started(now(), 10_000, 1000);
    let told = || gauge.again().swap(0, std::sync::atomic::Ordering::Relaxed);
    gauge.lost(now(), now(), 1000);
    assert_eq!(told(), 0, "nothing is urgent");
    sleep(MS).await;
    gauge.urgent(1000);
    gauge.sent(now(), 1000);
    gauge.lost(now(), now(), 1900);
    gauge.lost(now(), now(), 1000);
    assert_eq!(told(), 2);
    gauge.started(now(), 10_000, 1000);
    gauge.lost(now(), now(), 1000);
    assert_eq!(told(), 0, "what was lost on another path goes on this one");
}
