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
use tokio::time::{Instant, sleep, timeout};

use super::{Factory, Gauge, ask_for_acknowledgement};

const MS: Duration = Duration::from_millis(1);
/// One way.
const DELAY: Duration = Duration::from_millis(100);
const WINDOW: u32 = 100_000;

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
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl End {
    fn pair() -> [Arc<Self>; 2] {
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
        if packet.len() >= 500 && self.loses.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let to = Arc::clone(&self.outbox);
        tokio::spawn(async move {
            sleep(DELAY).await;
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

/// A client's and a server's connection with each other. `gauge` is the server's.
async fn connect(ends: &[Arc<End>; 2], gauge: &Arc<Gauge>) -> (Endpoint, [quinn::Connection; 2]) {
    let made = rcgen::generate_simple_self_signed(vec!["relay".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let mut transport = TransportConfig::default();
    transport
        .receive_window(WINDOW.into())
        .congestion_controller_factory(Arc::new(Factory::unmetered(Arc::clone(gauge))));
    let mut served = quinn::ServerConfig::with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    served.transport_config(Arc::new(transport));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    let endpoint = |end: &Arc<End>, config| {
        let socket = Arc::<End>::clone(end);
        Endpoint::new_with_abstract_socket(EndpointConfig::default(), config, socket, Arc::new(TokioRuntime)).unwrap()
    };
    let (near, far) = (endpoint(&ends[0], None), endpoint(&ends[1], Some(served)));
    let serving = tokio::spawn(async move {
        let connection = far.accept().await.unwrap().await.unwrap();
        (far, connection)
    });
    let connection = near.connect_with(client, ends[1].at, "relay").unwrap().await.unwrap();
    let (far, served) = serving.await.unwrap();
    // Held by the connections from here on.
    drop(far);
    (near, [connection, served])
}

/// How long it takes to get an answer of one packet that is lost the first time, and how many small packets the server
/// sent until it was there and in ten seconds after.
async fn answer(asks: bool) -> (Duration, [usize; 2]) {
    let (ends, gauge) = (End::pair(), Arc::new(Gauge::new()));
    let (_near, [client, server]) = connect(&ends, &gauge).await;
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
    gauge.acknowledged(now(), 10_000, 9_000, false, super::Path::default());
    assert_eq!(gauge.beyond(), 0);
    assert!(!room().await);
    // Another path: nothing of the old one counts.
    gauge.started(now(), 10_000, 1000);
    assert!(room().await);
}
