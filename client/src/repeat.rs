//! A UDP socket that sends twice what much depends on: the packets of a handshake, the first bytes when a path
//! that was silent is heard again, and what was lost of sound.
//!
//! Of a handshake each packet counts: the client's first, the relay's, and the client's second, without
//! which the relay can read nothing of what follows. Where 15 % is lost, one of the three is in
//! four handshakes of ten, and what QUIC knows of the path by then makes it wait for half a second. A
//! second copy of 1.2 KB costs less than that, and less than the requests that went in vain. To
//! QUIC it is a packet that the network doubled: it is dropped (RFC 9000 §12.3).
//!
//! Where several handshakes are tried at once, each has a socket of its own, and the one that is answered first
//! counts. The others wait until it is through or over, a second at most, and what waited goes once. Those that are not
//! needed any more say so once, and later: their farewells, padded to 1.2 KB and said again at each word of the relay,
//! would fill a thin link just when it is back.
//!
//! On a link so thin that a copy takes longer than it may save, beside a connection that may go on, nothing of a handshake
//! goes twice.
//!
//! The first packet's copy goes a little later, when a burst of losses is over. The second's goes at
//! once, before the requests that can't be read without it; and a third time when the relay, a while later,
//! still sends its part of the handshake. QUIC itself does so after a time that doubles with each
//! packet that was lost before: in an outage to many seconds.
//!
//! After an outage the first packet with bytes fills the gap behind which everything else waits. If it is lost, that
//! is seen a round trip and three packets later, which on a thin link is more than a second. The same goes for what was
//! lost of sound: [`Gauge::urgent`].

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;
use tokio::time::Instant;
use waystation_congestion::Gauge;

/// The first packet's copy goes so much later.
const LATER: Duration = Duration::from_millis(25);
/// What the relay sends of a handshake so long after the second flight tells that it may not have it; before, it is
/// the rest of its answer.
const STILL: Duration = Duration::from_millis(70);
/// Where the relay answered a handshake that is not needed any more, it is told so much later.
const FAREWELL: Duration = Duration::from_secs(2);
/// What is tried beside a handshake that is answered waits so long for it, and so many packets at most: the rest is
/// dropped, as a network would.
const AWAITED: (Duration, u32) = (Duration::from_secs(1), 4);
/// What was sent is heard of only after so long: the path was away. So many of the next packets that are larger than
/// this go twice.
const AWAY: (Duration, u32, usize) = (Duration::from_secs(3), 2, 1000);
/// No packet that has an acknowledgement and nothing else is larger, unless its gaps are many.
const ALONE: usize = 100;
/// Packets that are sent twice in a socket's life before anything came, and after it.
const MOST: [u32; 2] = [2, 4];

/// Handshakes that are tried at once: which of them was answered first, and when. None once it came to nothing.
#[derive(Debug)]
pub(crate) struct Tries {
    first: Mutex<Option<(usize, Instant)>>,
    /// Whoever waits looks again.
    changed: Notify,
    /// What each of them may send twice.
    most: [u32; 2],
}

impl Default for Tries {
    fn default() -> Self {
        Self { first: Mutex::default(), changed: Notify::new(), most: MOST }
    }
}

impl Tries {
    /// Nothing goes twice.
    pub(crate) fn once() -> Self {
        Self { most: [0; 2], ..Self::default() }
    }

    fn first(&self) -> MutexGuard<'_, Option<(usize, Instant)>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long one waits for another, which was answered first.
    fn waits(&self, which: usize) -> Option<Duration> {
        let (first, at) = (*self.first())?;
        if first == which { None } else { AWAITED.0.checked_sub(at.elapsed()) }
    }

    /// This one is through, or over.
    fn settled(&self, which: usize, through: bool) {
        let mut first = self.first();
        if through {
            *first = Some((which, Instant::now()));
        } else if first.is_some_and(|(first, _)| first == which) {
            *first = None;
        }
        drop(first);
        self.changed.notify_waiters();
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Repeating {
    socket: Arc<dyn AsyncUdpSocket>,
    tries: Arc<Tries>,
    /// Which of them this is.
    which: usize,
    left: [AtomicU32; 2],
    awaited: AtomicU32,
    /// Something came.
    heard: AtomicBool,
    /// What was sent first since something came. An acknowledgement alone has no answer.
    asked: Mutex<Option<Instant>>,
    again: AtomicU32,
    /// Of its connection.
    gauge: Arc<Gauge>,
    /// Nobody needs it any more, and whether that was said.
    mute: Arc<AtomicBool>,
    farewell: AtomicU32,
    second: Mutex<Second>,
}

/// Keeps a socket from sending anything but a late farewell once this is dropped, unless the handshake was completed.
#[derive(Debug)]
pub(crate) struct Needed {
    tries: Arc<Tries>,
    which: usize,
    mute: Option<Arc<AtomicBool>>,
}

impl Needed {
    /// The handshake is complete.
    pub(crate) fn for_good(mut self) {
        self.mute = None;
    }
}

impl Drop for Needed {
    fn drop(&mut self) {
        if let Some(mute) = &self.mute {
            mute.store(true, Ordering::Relaxed);
        }
        self.tries.settled(self.which, self.mute.is_none());
    }
}

/// The second flight.
#[derive(Debug, Default)]
struct Second {
    /// The newest packet of a handshake since the relay answered, until it went a third time.
    packet: Option<Kept>,
    over: bool,
}

/// A packet that may go again.
#[derive(Debug)]
struct Kept {
    sent: Instant,
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    contents: Vec<u8>,
}

impl Repeating {
    /// The socket of one of several tries, and what it is needed by.
    pub(crate) fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        gauge: Arc<Gauge>,
        tries: Arc<Tries>,
        which: usize,
    ) -> (Arc<Self>, Needed) {
        let mute = Arc::new(AtomicBool::new(false));
        let needed = Needed { tries: Arc::clone(&tries), which, mute: Some(Arc::clone(&mute)) };
        let (left, awaited) = (tries.most.map(AtomicU32::new), AtomicU32::new(AWAITED.1));
        let (heard, second) = (AtomicBool::new(false), Mutex::default());
        let (asked, again, farewell) = (Mutex::default(), AtomicU32::new(0), AtomicU32::new(1));
        let this = Self { socket, tries, which, left, awaited, heard, asked, again, gauge, mute, farewell, second };
        (Arc::new(this), needed)
    }

    /// A socket for a connection that goes on from another address.
    pub(crate) fn moved(socket: Arc<dyn AsyncUdpSocket>, gauge: Arc<Gauge>) -> Arc<Self> {
        let (moved, needed) = Self::new(socket, gauge, Arc::default(), 0);
        needed.for_good();
        moved.again.store(AWAY.1, Ordering::Relaxed);
        moved
    }

    fn asked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn second(&self) -> MutexGuard<'_, Second> {
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relay sends a packet of a handshake.
    fn came(&self) {
        if self.mute.load(Ordering::Relaxed) {
            return;
        }
        self.tries.first().get_or_insert_with(|| (self.which, Instant::now()));
        let mut second = self.second();
        let Some(kept) = second.packet.take_if(|kept| kept.sent.elapsed() >= STILL) else { return };
        second.over = true;
        drop(second);
        let Kept { destination, src_ip, contents, .. } = kept;
        let _ =
            self.socket.try_send(&Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip });
    }

    /// Sends a packet of a handshake again, at once or soon.
    fn repeat(&self, packet: &Transmit<'_>) {
        let heard = self.heard.load(Ordering::Relaxed);
        let mut second = self.second();
        if heard && !second.over && self.tries.most[1] > 0 {
            let (destination, src_ip, contents) = (packet.destination, packet.src_ip, packet.contents.to_vec());
            second.packet = Some(Kept { sent: Instant::now(), destination, src_ip, contents });
        }
        drop(second);
        if take(&self.left[usize::from(heard)]) {
            // It is a copy: what can't be sent now is not sent.
            if heard {
                let _ = self.socket.try_send(packet);
            } else {
                self.send_after(packet, false, tokio::time::sleep(LATER));
            }
        }
    }

    /// Sends a packet then, if the socket is needed or not needed as it is now.
    fn send_after(&self, packet: &Transmit<'_>, muted: bool, then: impl Future<Output = ()> + Send + 'static) {
        let (socket, mute, contents) = (Arc::clone(&self.socket), Arc::clone(&self.mute), packet.contents.to_vec());
        let (destination, ecn, src_ip) = (packet.destination, packet.ecn, packet.src_ip);
        tokio::spawn(async move {
            then.await;
            if mute.load(Ordering::Relaxed) == muted {
                let packet = Transmit { destination, ecn, src_ip, contents: &contents, segment_size: None };
                let _ = socket.try_send(&packet);
            }
        });
    }

    /// Ends when this one need not wait any longer.
    fn turn(&self) -> impl Future<Output = ()> + Send + 'static {
        let (tries, which) = (Arc::clone(&self.tries), self.which);
        async move {
            loop {
                let changed = tries.changed.notified();
                let Some(wait) = tries.waits(which) else { return };
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(wait) => return,
                }
            }
        }
    }

    /// What is not needed any more says so once, if anybody is there to hear it.
    fn part(&self, transmit: &Transmit<'_>) {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let Some(contents) = transmit.contents.chunks(size).find(|packet| is_handshake(packet)) else { return };
        if self.heard.load(Ordering::Relaxed) && take(&self.farewell) {
            let packet = Transmit { contents, segment_size: None, ..*transmit };
            self.send_after(&packet, true, tokio::time::sleep(FAREWELL));
        }
    }

    /// Sends one packet, and what it needs besides.
    fn send(&self, packet: &Transmit<'_>) -> io::Result<()> {
        if !is_handshake(packet.contents) {
            self.socket.try_send(packet)?;
            let first = packet.contents.len() > AWAY.2 && self.heard.load(Ordering::Relaxed) && take(&self.again);
            if first || (packet.contents.len() > ALONE && take(self.gauge.again())) {
                let _ = self.socket.try_send(packet);
            }
            return Ok(());
        }
        if self.tries.waits(self.which).is_some() {
            if take(&self.awaited) {
                self.send_after(packet, false, self.turn());
            }
            return Ok(());
        }
        self.socket.try_send(packet)?;
        self.repeat(packet);
        Ok(())
    }
}

/// Takes one of what is left, if any is.
fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// Whether a packet is of a handshake: a long header, type Initial or Handshake (RFC 9000 §17.2).
fn is_handshake(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0x80 != 0 && matches!((first >> 4) & 3, 0 | 2))
}

impl AsyncUdpSocket for Repeating {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.mute.load(Ordering::Relaxed) {
            self.part(transmit);
            return Ok(());
        }
        if transmit.contents.len() > ALONE {
            self.asked().get_or_insert_with(Instant::now);
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let again = self.again.load(Ordering::Relaxed) + self.gauge.again().load(Ordering::Relaxed);
        if again == 0 && !transmit.contents.chunks(size).any(is_handshake) {
            return self.socket.try_send(transmit);
        }
        // One by one: a copy goes before what needs it. If one can't be sent quinn sends all again, which is a
        // copy more.
        transmit
            .contents
            .chunks(size)
            .try_for_each(|contents| self.send(&Transmit { contents, segment_size: None, ..*transmit }))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let came = self.socket.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = came {
            self.heard.store(true, Ordering::Relaxed);
            if self.asked().take().is_some_and(|asked| asked.elapsed() >= AWAY.0) {
                self.again.store(AWAY.1, Ordering::Relaxed);
            }
            let mut packets = bufs.iter().zip(meta.iter()).take(count).flat_map(|(buf, meta)| {
                let stride = meta.stride.max(1);
                buf[..meta.len.min(buf.len())].chunks(stride)
            });
            if packets.any(is_handshake) {
                self.came();
            }
        }
        came
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use quinn::Runtime as _;

    use super::*;

    #[test]
    fn what_belongs_to_a_handshake_is_known_by_its_first_byte() {
        for (first, is) in [(0xc3, true), (0x82, true), (0xe1, true), (0xd0, false), (0xf0, false), (0x40, false)] {
            assert_eq!(is_handshake(&[first, 0, 0, 0, 1]), is, "{first:#x}");
        }
        assert!(!is_handshake(&[]));
    }

    /// A socket, and who is at the other end.
    struct Rig {
        socket: Arc<Repeating>,
        needed: Option<Needed>,
        peer: tokio::net::UdpSocket,
    }

    impl Rig {
        async fn new() -> Self {
            Self::of(Arc::default(), 0).await
        }

        async fn of(tries: Arc<Tries>, which: usize) -> Self {
            let peer = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let socket = quinn::TokioRuntime.wrap_udp_socket(socket).unwrap();
            let (socket, needed) = Repeating::new(socket, Arc::new(Gauge::new()), tries, which);
            let mut ready = Arc::clone(&socket).create_io_poller();
            std::future::poll_fn(|cx| ready.as_mut().poll_writable(cx)).await.unwrap();
            Self { socket, needed: Some(needed), peer }
        }

        fn send(&self, contents: &[u8], segment_size: Option<usize>) {
            let destination = self.peer.local_addr().unwrap();
            self.socket.try_send(&Transmit { destination, ecn: None, contents, segment_size, src_ip: None }).unwrap();
        }

        /// The peer sends a packet, and it is read.
        async fn answer(&self, packet: &[u8]) {
            let mut came = [0; 64];
            let (mut bufs, mut meta) = ([IoSliceMut::new(&mut came)], [RecvMeta::default()]);
            self.peer.send_to(packet, self.socket.local_addr().unwrap()).await.unwrap();
            std::future::poll_fn(|cx| self.socket.poll_recv(cx, &mut bufs, &mut meta)).await.unwrap();
        }

        /// The next packet at the peer, without its first byte.
        async fn next(&self) -> String {
            let mut packet = [0; 2 * AWAY.2];
            let length = self.peer.recv(&mut packet).await.unwrap();
            String::from_utf8_lossy(&packet[1..length]).into_owned()
        }

        async fn next_few<const N: usize>(&self) -> [String; N] {
            let mut all = [const { String::new() }; N];
            for packet in &mut all {
                *packet = self.next().await;
            }
            all
        }

        /// All that is at the peer, without first bytes.
        async fn all(&self) -> String {
            let mark = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            mark.send_to(b"\x40!", self.peer.local_addr().unwrap()).unwrap();
            let mut all = String::new();
            loop {
                match self.next().await.as_str() {
                    "!" => return all,
                    packet => all += packet,
                }
            }
        }
    }

    /// Time goes by, and what was put off happens.
    async fn pass(duration: Duration) {
        tokio::time::sleep(duration).await;
        tokio::task::yield_now().await;
    }

    #[tokio::test]
    async fn a_handshake_goes_twice_and_nothing_else_does() {
        let rig = Rig::new().await;
        rig.send(b"\xc0first", None);
        rig.send(b"\x40bytes", None);
        assert_eq!(rig.next_few().await, ["first", "bytes", "first"]);
        rig.answer(b"answer").await;
        rig.send(b"\xe0second", None);
        rig.send(b"\x40bytes", None);
        assert_eq!(rig.next_few().await, ["second", "second", "bytes"]);
        // A batch: each is followed by its copy.
        rig.send(b"\xe0one\xe0two\x40end", Some(4));
        assert_eq!(rig.next_few().await, ["one", "one", "two", "two", "end"]);
        for _ in 0..3 {
            rig.send(b"\xe0again", None);
        }
        rig.send(b"\x40end", None);
        let mut again = 0;
        while rig.next().await != "end" {
            again += 1;
        }
        assert_eq!(again, 4, "three, and the last copy of a socket's life");
    }

    #[tokio::test]
    async fn on_a_thin_link_nothing_of_a_handshake_goes_twice() {
        let rig = Rig::of(Arc::new(Tries::once()), 0).await;
        rig.send(b"\xc0first", None);
        pass(2 * LATER).await;
        rig.answer(b"answer").await;
        rig.send(b"\xe0second", None);
        rig.send(b"\x40bytes", None);
        pass(STILL).await;
        rig.answer(b"\xe0still").await;
        rig.send(b"\x40end", None);
        assert_eq!(rig.next_few().await, ["first", "second", "bytes", "end"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_flight_goes_a_third_time_if_the_relay_still_sends_its_own() {
        let rig = Rig::new().await;
        rig.answer(b"\xc01").await;
        // What is acknowledged of the first part of its answer, the rest of which comes at once.
        rig.send(b"\xc0A", None);
        rig.answer(b"\xe02").await;
        rig.send(b"\xe0F", None);
        tokio::time::advance(STILL - Duration::from_millis(1)).await;
        rig.answer(b"\xe02").await;
        tokio::time::advance(Duration::from_millis(1)).await;
        rig.answer(b"\x40bytes").await;
        assert_eq!(rig.next_few().await, ["A", "A", "F", "F"]);
        rig.answer(b"\xe02").await;
        rig.answer(b"\xe02").await;
        rig.send(b"\x40!", None);
        assert_eq!(rig.next_few().await, ["F", "!"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_go_twice_when_a_path_is_heard_again() {
        let bytes = |name: u8| [&[0x40, name][..], &[b'.'; AWAY.2]].concat();
        let rig = Rig::new().await;
        // Nothing was asked.
        rig.answer(b"\x40").await;
        pass(AWAY.0).await;
        rig.answer(b"\x40").await;
        rig.send(&bytes(b'1'), None);
        pass(AWAY.0 - Duration::from_millis(1)).await;
        rig.answer(b"\x40").await;
        rig.send(&bytes(b'2'), None);
        rig.send(b"\x40p", None);
        pass(AWAY.0).await;
        rig.send(&bytes(b'3'), None);
        rig.answer(b"\x40").await;
        rig.send(b"\x40p", None);
        rig.send(&[bytes(b'4'), bytes(b'5'), bytes(b'6')].concat(), Some(AWAY.2 + 2));
        assert_eq!(rig.all().await.replace('.', ""), "12p3p44556");
        // What only acknowledges has no answer.
        rig.answer(b"\x40").await;
        rig.send(b"\x40a", None);
        pass(AWAY.0).await;
        rig.answer(b"\x40").await;
        rig.send(&bytes(b'x'), None);
        assert_eq!(rig.all().await.replace('.', ""), "ax");
        // On another network what is sent before anything is heard goes in vain.
        let moved = Repeating::moved(Arc::clone(&rig.socket.socket), Arc::new(Gauge::new()));
        let rig = Rig { socket: moved, ..rig };
        rig.send(&bytes(b'7'), None);
        rig.answer(b"\x40").await;
        rig.send(&bytes(b'8'), None);
        assert_eq!(rig.all().await.replace('.', ""), "788");
    }

    #[tokio::test]
    async fn what_was_lost_of_sound_goes_twice() {
        let bytes = |name: u8| [&[0x40, name][..], &[b'.'; ALONE]].concat();
        let rig = Rig::new().await;
        rig.send(&bytes(b'1'), None);
        rig.socket.gauge.again().store(2, Ordering::Relaxed);
        rig.send(b"\x40a", None);
        rig.send(&[bytes(b'2'), bytes(b'3'), bytes(b'4')].concat(), Some(ALONE + 2));
        assert_eq!(rig.all().await.replace('.', ""), "1a22334");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_tried_beside_the_first_that_is_answered_waits() {
        let tries = Arc::default();
        let (late, first) = (Rig::of(Arc::clone(&tries), 0).await, Rig::of(Arc::clone(&tries), 1).await);
        late.send(b"\xc01", None);
        pass(LATER).await;
        first.answer(b"\xc0").await;
        late.answer(b"\xc0").await;
        pass(AWAITED.0 / 2).await;
        first.send(b"\xe0F", None);
        for _ in 0..2 * AWAITED.1 {
            late.send(b"\xe02", None);
        }
        late.send(b"\x40b", None);
        assert_eq!((first.all().await, late.all().await), ("FF".into(), "11b".into()));
        pass(AWAITED.0 / 2).await;
        assert_eq!(late.all().await, "2".repeat(AWAITED.1 as usize));
        // It waited long enough.
        pass(Duration::from_millis(1)).await;
        late.send(b"\xe03", None);
        assert_eq!(late.all().await, "33");
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_no_longer_when_it_is_through_or_the_first_is_over() {
        for through in [true, false] {
            let tries = Arc::default();
            let (mut late, mut first) = (Rig::of(Arc::clone(&tries), 0).await, Rig::of(Arc::clone(&tries), 1).await);
            first.answer(b"\xc0").await;
            late.answer(b"\xc0").await;
            late.send(b"\xe0F", None);
            pass(AWAITED.0 / 4).await;
            assert_eq!(late.all().await, "");
            if through {
                late.needed.take().unwrap().for_good();
            } else {
                drop(first.needed.take());
            }
            pass(Duration::ZERO).await;
            assert_eq!(late.all().await, "F");
            late.send(b"\xe0G", None);
            assert_eq!(late.all().await, "GG");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_needed_any_more_says_so_once_and_late_to_whoever_answered() {
        for complete in [false, true] {
            let mut rig = Rig::new().await;
            rig.send(b"\xc01", None);
            match rig.needed.take() {
                Some(needed) if complete => needed.for_good(),
                needed => drop(needed),
            }
            rig.send(b"\xc02", None);
            rig.send(b"\x403", None);
            pass(LATER).await;
            assert_eq!(rig.all().await, if complete { "12312" } else { "1" });
            pass(FAREWELL).await;
            assert_eq!(rig.all().await, "");
        }
        let mut rig = Rig::new().await;
        rig.answer(b"\xc0").await;
        drop(rig.needed.take());
        for _ in 0..3 {
            rig.send(b"\x401\xe02\x403", Some(2));
        }
        pass(FAREWELL - Duration::from_millis(1)).await;
        assert_eq!(rig.all().await, "");
        pass(Duration::from_millis(1)).await;
        assert_eq!(rig.all().await, "2");
    }
}
