//! One connection, whatever its transport, and one request on it.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Service;
use super::bearer::Known;
use super::gate::Place;
use super::io::Sign;
use super::ticket::Ticket;
use crate::telemetry::ingress::ByTransport;
use crate::telemetry::names::{RefusedConnection, Transport};

/// Bytes of a connection's chunks that may come before their `SEND`, all together.
pub(super) const EARLY: usize = 128 * 1024;

/// Where a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    /// `listen.public`, TCP.
    Public,
    /// `listen.public`, UDP.
    Quic,
    /// `listen.plain`.
    Plain,
}

/// An open connection. Sessions that outlive the HTTP connection they came over hold it too, so
/// that its place is taken until the last of them ends.
pub(super) struct Conn {
    pub(super) service: Arc<Service>,
    pub(super) listener: Listener,
    pub(super) place: Place,
    /// Ends this connection at once: the only way to be rid of an HTTP/2 stream whose peer gives
    /// no window, since nothing polls its body then.
    pub(super) cut: CancellationToken,
    transport: Transport,
    born_ms: u64,
    open: AtomicUsize,
    seen: AtomicBool,
    last_ms: AtomicU64,
    /// When a byte of a body last came. A session in one request's bodies lives as long as its
    /// client brings anything on any other.
    pub(super) sign: Arc<Sign>,
    /// Room for bytes of chunks whose `SEND` is not said yet, of all its sessions.
    pub(super) early_room: Arc<Semaphore>,
    /// The capabilities that came over it, by name.
    pub(super) known: Known,
    /// The last open request ended: the deadline is another now.
    quiet: Notify,
}

impl Conn {
    pub(super) fn open(service: Arc<Service>, listener: Listener, transport: Transport, place: Place) -> Arc<Self> {
        let now = service.shared.clock.now_ms();
        Self::open_since(service, listener, transport, place, now)
    }

    /// The same for a connection whose handshake began at `born_ms`: `header_timeout` runs from
    /// there.
    pub(super) fn open_since(
        service: Arc<Service>,
        listener: Listener,
        transport: Transport,
        place: Place,
        born_ms: u64,
    ) -> Arc<Self> {
        service.shared.metrics.ingress.connections.get_or_create(&ByTransport { transport }).inc();
        Arc::new(Self {
            listener,
            place,
            cut: CancellationToken::new(),
            transport,
            born_ms,
            open: AtomicUsize::new(0),
            seen: AtomicBool::new(false),
            last_ms: AtomicU64::new(born_ms),
            sign: Sign::new(service.shared.clock.clone()),
            early_room: Arc::new(Semaphore::new(EARLY)),
            known: Known::default(),
            quiet: Notify::new(),
            service,
        })
    }

    /// A request begins; it lasts until the guard is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.seen.store(true, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Ends when the connection has been of no use for too long: no request within
    /// `header_timeout`, or none for `idle_timeout` after the last.
    pub(super) async fn watchdog(&self) -> RefusedConnection {
        let clock = &self.service.shared.clock;
        let header = millis(self.service.limits.header_timeout);
        let idle = millis(self.service.limits.idle_timeout);
        loop {
            let now = clock.now_ms();
            let seen = self.seen.load(Ordering::Relaxed);
            let deadline = if self.open.load(Ordering::Relaxed) > 0 {
                now + idle
            } else if seen {
                self.last_ms.load(Ordering::Relaxed) + idle
            } else {
                self.born_ms + header
            };
            if now >= deadline {
                return if seen { RefusedConnection::Idle } else { RefusedConnection::HeaderTimeout };
            }
            tokio::select! {
                () = clock.sleep(Duration::from_millis(deadline - now)) => {}
                () = self.quiet.notified() => {}
            }
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let transport = ByTransport { transport: self.transport };
        self.service.shared.metrics.ingress.connections.get_or_create(&transport).dec();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One open request of a connection.
pub(super) struct Busy(Arc<Conn>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.last_ms.store(self.0.service.shared.clock.now_ms(), Ordering::Relaxed);
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.quiet.notify_one();
        }
    }
}

/// One request: its connection, how it came, and who is limited for it.
#[derive(Clone)]
pub(super) struct Ctx {
    pub(super) conn: Arc<Conn>,
    pub(super) transport: Transport,
    /// The client's address as limits know it.
    pub(super) client: IpAddr,
    /// What is written down of it.
    pub(super) ticket: Arc<Ticket>,
}

impl std::ops::Deref for Ctx {
    type Target = Service;
    fn deref(&self) -> &Service {
        &self.conn.service
    }
}

impl Ctx {
    /// `future`, unless `limit` passes first.
    pub(super) async fn within<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.shared.clock.sleep(limit) => None,
        }
    }

    /// `future`, unless nothing happens for `idle_timeout`.
    pub(super) async fn unless_idle<F: Future>(&self, future: F) -> Option<F::Output> {
        self.within(self.limits.idle_timeout, future).await
    }
}

/// The address that limits know a client by: the socket's peer, or on `plain` the last hop that
/// a trusted proxy names.
pub(super) fn client_key(peer: IpAddr, headers: &HeaderMap, listener: Listener, trusted: &[IpAddr]) -> IpAddr {
    let peer = peer.to_canonical();
    let believed = listener == Listener::Plain && trusted.iter().any(|proxy| proxy.to_canonical() == peer);
    let named = believed.then(|| last_hop(headers)).flatten();
    network(named.unwrap_or(peer))
}

/// The address as limits count it: IPv4 whole, IPv6 by /64, since one host commonly has that many.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn last_hop(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn key(peer: &str, forwarded: &[&'static str], listener: Listener) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", HeaderValue::from_static(value));
        }
        let trusted = ["10.0.0.1".parse().unwrap()];
        client_key(peer.parse().unwrap(), &headers, listener, &trusted).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_on_plain_names_a_client() {
        let chain = ["1.1.1.1", "2.2.2.2, 203.0.113.9"];
        assert_eq!(key("10.0.0.1", &chain, Listener::Plain), "203.0.113.9");
        assert_eq!(key("::ffff:10.0.0.1", &chain, Listener::Plain), "203.0.113.9");
        assert_eq!(key("10.0.0.2", &chain, Listener::Plain), "10.0.0.2");
        assert_eq!(key("10.0.0.1", &chain, Listener::Public), "10.0.0.1");
        assert_eq!(key("10.0.0.1", &["nonsense"], Listener::Plain), "10.0.0.1");
        assert_eq!(key("10.0.0.1", &[], Listener::Plain), "10.0.0.1");
    }

    #[test]
    fn ipv6_counts_by_its_first_64_bits() {
        assert_eq!(key("2001:db8:1:2:3:4:5:6", &[], Listener::Quic), "2001:db8:1:2::");
        assert_eq!(key("10.0.0.1", &["2001:db8:1:2:ffff::1"], Listener::Plain), "2001:db8:1:2::");
    }
}
