//! A UDP socket that sends the packets of a handshake twice.
//!
//! Of a handshake each packet counts: the client's first, the relay's, and the client's second, without
//! which the relay can read nothing of what follows. Where 15 % is lost, one of the three is in
//! four handshakes of ten, and what QUIC knows of the path by then makes it wait for half a second. A
//! second copy of 1.2 KB costs less than that, and less than the requests that went in vain. To
//! QUIC it is a packet that the network doubled: it is dropped (RFC 9000 §12.3).
//!
//! Where several handshakes are tried at once, the relay's connection that answers first is the one that counts: what
//! goes to the others, which is mostly that they are not needed, padded to 1.2 KB, goes later.
//!
//! The first packet's copy goes a little later, when a burst of losses is over. The second's goes at
//! once, before the requests that can't be read without it; and a third time when the relay, a while later,
//! still sends its part of the handshake. QUIC itself does so after a time that doubles with each
//! packet that was lost before: in an outage to many seconds.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::Instant;

/// The first packet's copy goes so much later.
const LATER: Duration = Duration::from_millis(25);
/// What the relay sends of a handshake so long after the second flight tells that it may not have it; before, it is
/// the rest of its answer.
const STILL: Duration = Duration::from_millis(70);
/// What goes to others than the relay's connection that answered first goes so much later, and so many packets of it
/// at most: the rest is dropped, as a network would.
const OTHERS: (Duration, u32) = (Duration::from_secs(1), 8);
/// Packets that are sent twice in a socket's life before anything came, and after it.
const MOST: [u32; 2] = [2, 4];

/// See the module.
#[derive(Debug)]
pub(crate) struct Repeating {
    socket: Arc<dyn AsyncUdpSocket>,
    left: [AtomicU32; 2],
    /// Something came.
    heard: AtomicBool,
    second: Mutex<Second>,
    others_left: AtomicU32,
}

/// The second flight.
#[derive(Debug, Default)]
struct Second {
    /// The relay that answered first, by the name it gave its connection.
    peer: Option<Vec<u8>>,
    /// The newest packet of a handshake that went to it, until it went a third time.
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

/// The connection IDs of a packet with a long header: its receiver's and its sender's (RFC 9000 §17.2).
fn names(packet: &[u8]) -> Option<[&[u8]; 2]> {
    let (length, rest) = packet.get(5..)?.split_first()?;
    let (receiver, rest) = rest.split_at_checked((*length).into())?;
    let (length, rest) = rest.split_first()?;
    Some([receiver, rest.get(..(*length).into())?])
}

impl Repeating {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        let left = MOST.map(AtomicU32::new);
        let others_left = AtomicU32::new(OTHERS.1);
        Self { socket, left, heard: AtomicBool::new(false), second: Mutex::default(), others_left }
    }

    fn second(&self) -> MutexGuard<'_, Second> {
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relay sends a packet of a handshake.
    fn came(&self, packet: &[u8]) {
        let mut second = self.second();
        if second.peer.is_none() {
            second.peer = names(packet).map(|[_, sender]| sender.to_vec());
        }
        let Some(kept) = second.packet.take_if(|kept| kept.sent.elapsed() >= STILL) else { return };
        second.over = true;
        drop(second);
        let Kept { destination, src_ip, contents, .. } = kept;
        let _ =
            self.socket.try_send(&Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip });
    }

    /// Whether a packet goes to another connection of the relay's than the one that answered first.
    fn is_for_another(&self, packet: &[u8]) -> bool {
        let second = self.second();
        second.peer.is_some() && names(packet).map(|[receiver, _]| receiver) != second.peer.as_deref()
    }

    /// Sends a packet of a handshake again, at once or soon.
    fn repeat(&self, packet: &Transmit<'_>) {
        let heard = self.heard.load(Ordering::Relaxed);
        let left = &self.left[usize::from(heard)];
        let mut second = self.second();
        if second.peer.is_some() && !second.over {
            let (destination, src_ip, contents) = (packet.destination, packet.src_ip, packet.contents.to_vec());
            second.packet = Some(Kept { sent: Instant::now(), destination, src_ip, contents });
        }
        drop(second);
        if take(left) {
            // It is a copy: what can't be sent now is not sent.
            if heard { drop(self.socket.try_send(packet)) } else { self.send_later(packet, LATER) }
        }
    }

    fn send_later(&self, packet: &Transmit<'_>, later: Duration) {
        let (socket, contents) = (Arc::clone(&self.socket), packet.contents.to_vec());
        let (destination, ecn, src_ip) = (packet.destination, packet.ecn, packet.src_ip);
        tokio::spawn(async move {
            tokio::time::sleep(later).await;
            let _ = socket.try_send(&Transmit { destination, ecn, src_ip, contents: &contents, segment_size: None });
        });
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
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        if !transmit.contents.chunks(size).any(is_handshake) {
            return self.socket.try_send(transmit);
        }
        // One by one: a copy goes before what needs it. If one can't be sent quinn sends all again, which is a
        // copy more.
        for contents in transmit.contents.chunks(size) {
            let packet = Transmit { contents, segment_size: None, ..*transmit };
            if is_handshake(contents) && self.is_for_another(contents) {
                if take(&self.others_left) {
                    self.send_later(&packet, OTHERS.0);
                }
                continue;
            }
            self.socket.try_send(&packet)?;
            if is_handshake(contents) {
                self.repeat(&packet);
            }
        }
        Ok(())
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
            let mut packets = bufs.iter().zip(meta.iter()).take(count).flat_map(|(buf, meta)| {
                let stride = meta.stride.max(1);
                buf[..meta.len.min(buf.len())].chunks(stride)
            });
            if let Some(packet) = packets.find(|packet| is_handshake(packet)) {
                self.came(packet);
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
        peer: tokio::net::UdpSocket,
    }

    impl Rig {
        async fn new() -> Self {
            let peer = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let socket = Arc::new(Repeating::new(quinn::TokioRuntime.wrap_udp_socket(socket).unwrap()));
            let mut ready = Arc::clone(&socket).create_io_poller();
            std::future::poll_fn(|cx| ready.as_mut().poll_writable(cx)).await.unwrap();
            Self { socket, peer }
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
            let mut packet = [0; 64];
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

    #[test]
    fn a_packet_names_both_ends() {
        let packet = b"\xc0....\x02to\x04from rest";
        assert_eq!(names(packet), Some([&b"to"[..], b"from"]));
        for short in 0..packet.len() - 5 {
            assert_eq!(names(&packet[..short]), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_flight_goes_a_third_time_if_the_relay_still_sends_its_own() {
        let rig = Rig::new().await;
        let until_end = async || {
            let mut all = String::new();
            loop {
                match rig.next().await.pop().unwrap() {
                    '!' => return all,
                    last => all.push(last),
                }
            }
        };
        rig.answer(b"\xc0....\x02me\x05relay1").await;
        // What is acknowledged of the first part of its answer, the rest of which comes at once.
        rig.send(b"\xc0....\x05relay\x02me.A", None);
        rig.answer(b"\xe0....\x02me\x05relay2").await;
        rig.send(b"\xe0....\x05relay\x02me.F", None);
        // One that was tried beside it has time.
        rig.send(b"\xc0....\x05other\x02me.C", None);
        tokio::time::advance(STILL - Duration::from_millis(1)).await;
        rig.answer(b"\xe0....\x02me\x05relay2").await;
        tokio::time::advance(Duration::from_millis(1)).await;
        rig.answer(b"\x40bytes").await;
        rig.send(b"\x40 !", None);
        assert_eq!(until_end().await, "AAFF");
        rig.answer(b"\xe0....\x02me\x05relay2").await;
        rig.answer(b"\xe0....\x02me\x05relay2").await;
        rig.send(b"\x40 !", None);
        assert_eq!(until_end().await, "F");
        tokio::time::advance(OTHERS.0).await;
        assert_eq!(rig.next().await.pop(), Some('C'));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_much_is_kept_for_those_that_did_not_answer_first() {
        let rig = Rig::new().await;
        rig.answer(b"\xc0....\x02me\x05relay1").await;
        for _ in 0..20 {
            rig.send(b"\xc0....\x05other\x02me.C", None);
        }
        tokio::time::advance(OTHERS.0).await;
        for _ in 0..OTHERS.1 {
            assert_eq!(rig.next().await.pop(), Some('C'));
        }
        rig.send(b"\x40 !", None);
        assert_eq!(rig.next().await.pop(), Some('!'));
    }
}
