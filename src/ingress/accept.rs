//! TCP accept loops: who gets a place, the TLS handshake, and back-off when the system has no
//! more sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use waystation_congestion::Flights;

use super::conn::{Conn, Listener};
use super::gate::Place;
use super::io::Stalling;
use super::{Service, serve};
use crate::telemetry::names::{Handshake, HandshakeFailure, RefusedConnection, Transport};

/// Connections the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;
/// Bytes the kernel may hold for one peer until they are acknowledged (it takes twice that).
const SEND_BUFFER: u32 = 256 * 1024;
/// Bytes it may hold that are not sent yet. Small, for two reasons: what a contact on a thin link
/// is sent next is decided here and late; and the kernel says that there is room again when half
/// of it is free, which at 1 kB/s must happen within `idle_timeout`.
const UNSENT: u32 = 32 * 1024;
/// The congestion control that the kernel is asked for: one that is not put off by loss.
const BBR: &[u8] = b"bbr";
/// Bytes that TLS takes at once, and holds for a peer that takes nothing: the largest batch of
/// messages to a contact ([`super::watch`]), so that it goes out in one write.
pub(super) const TLS_BUFFER: usize = 72 * 1024;
/// First and longest wait after the system refused a socket.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Binds a TCP listener.
pub(super) fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Accepts until the relay drains. `tls` is `None` on the plain listener.
pub(super) async fn run(service: Arc<Service>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    let mut wait = BACK_OFF.0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = service.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                wait = BACK_OFF.0;
                admit(&service, stream, peer, tls.as_ref());
            }
            Err(error) if left_already(&error) => {}
            Err(_) => {
                // EMFILE and its kin: the connection stays in the backlog, so trying at once
                // again would only spin.
                service.shared.metrics.ingress.refuse_connection(RefusedConnection::AcceptFailed);
                service.shared.clock.sleep(wait).await;
                wait = (wait * 2).min(BACK_OFF.1);
            }
        }
    }
}

/// The peer went away between connecting and being accepted.
fn left_already(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

fn admit(service: &Arc<Service>, stream: TcpStream, peer: SocketAddr, tls: Option<&TlsAcceptor>) {
    let metrics = &service.shared.metrics.ingress;
    let place = if tls.is_some() { service.admit(peer.ip()) } else { service.gate.enter(None) };
    let place = match place {
        Ok(place) => place,
        Err(reason) => return metrics.refuse_connection(reason),
    };
    if place.courtesy {
        metrics.refuse_connection(RefusedConnection::Full);
    }
    // Without it small frames wait for acknowledgements of earlier ones.
    let _ = stream.set_nodelay(true);
    let options = socket2::SockRef::from(&stream);
    let _ = options.set_tcp_notsent_lowat(UNSENT);
    // A kernel without it keeps its own. Not on the listener: a route's own would go before that.
    let _ = options.set_tcp_congestion(BBR);
    let (service, tls) = (Arc::clone(service), tls.cloned());
    let tasks = service.tasks.clone();
    tasks.spawn(async move {
        let cut = service.cut.clone();
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = Box::pin(connect(service, stream, peer, tls, place)) => {}
        }
    });
}

async fn connect(service: Arc<Service>, stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>, place: Place) {
    let stream = Stalling::new(stream, service.limits.idle_timeout);
    let Some(tls) = tls else {
        let conn = Conn::open(service, Listener::Plain, Transport::H1, place);
        return serve::serve(conn, stream, peer.ip()).await;
    };
    let header_timeout = service.limits.header_timeout;
    let started = service.shared.clock.now_ms();
    let shaken = tokio::select! {
        shaken = tls.accept(Flights::new(stream)).into_fallible() => shaken,
        () = service.shared.clock.sleep(header_timeout) => {
            return service.shared.metrics.ingress.fail_handshake(Handshake::Tls, HandshakeFailure::Timeout);
        }
        () = service.drain.cancelled() => return,
    };
    let stream = match shaken {
        Ok(mut stream) => {
            let (flights, tls) = stream.get_mut();
            flights.done();
            tls.set_buffer_limit(Some(TLS_BUFFER));
            stream
        }
        Err((error, mut flights)) => {
            flights.failed();
            let class = match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => HandshakeFailure::Protocol,
                _ => HandshakeFailure::Closed,
            };
            return service.shared.metrics.ingress.fail_handshake(Handshake::Tls, class);
        }
    };
    let transport = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Transport::H2,
        _ => Transport::H1,
    };
    let conn = Conn::open_since(service, Listener::Public, transport, place, started);
    serve::serve(conn, stream, peer.ip()).await;
}
