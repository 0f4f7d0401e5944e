//! A TCP connection, and what is asked of the kernel for it. Each wish is made where the platform knows it; one that
//! is refused costs order or time, not correctness.

use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

/// Connects. `bbr`: the kernel is asked for it.
pub(crate) async fn connect(address: SocketAddr, bbr: bool) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    kernel::wish(&socket, bbr);
    let stream = socket.connect(address).await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Whether the kernel has the congestion control that [`crate::Transport::Ws`] wants.
pub(crate) fn has_bbr() -> bool {
    kernel::has_bbr()
}

/// Asks the kernel to end a connection by itself when what is sent is not acknowledged; none where it can't.
pub(crate) use kernel::Watch;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod kernel {
    use std::time::Duration;

    use rustix::net::sockopt::set_tcp_congestion;
    use socket2::{Domain, SockRef, Socket, Type};
    use tokio::net::{TcpSocket, TcpStream};

    /// Bytes that the kernel takes beyond what it may send: what lies there can't be overtaken by a
    /// sound chunk, so it is small.
    const UNSENT: u32 = 16 * 1024;
    /// The congestion control that the kernel is asked for. It is not put off by loss.
    const BBR: &str = "bbr";
    /// What is not acknowledged for so long from its first repetition on ends the connection (`TCP_USER_TIMEOUT`, RFC
    /// 5482). On a path of 700 ms that is six seconds after it was sent, and another connection is through two and a
    /// half later. Contacts hear after 15 s without a sign that the phone is silent; the last one came 4.5 s before
    /// the one that was lost.
    const BORNE: Duration = Duration::from_secs(4);

    pub(super) fn wish(socket: &TcpSocket, bbr: bool) {
        let options = SockRef::from(socket);
        let _ = options.set_tcp_notsent_lowat(UNSENT);
        if bbr {
            let _ = set_tcp_congestion(socket, BBR);
        }
    }

    pub(super) fn has_bbr() -> bool {
        Socket::new(Domain::IPV4, Type::STREAM, None).is_ok_and(|socket| set_tcp_congestion(socket, BBR).is_ok())
    }

    /// A handle to the socket of a connection.
    pub(crate) struct Watch {
        socket: Socket,
        watched: bool,
    }

    impl Watch {
        /// That of `stream`, which is not watched yet.
        pub(crate) fn new(stream: &TcpStream) -> Option<Self> {
            let socket = SockRef::from(stream);
            socket.tcp_user_timeout().ok()?;
            socket.try_clone().ok().map(|socket| Self { socket, watched: false })
        }

        /// Whether it is watched from now on.
        pub(crate) fn set(&mut self, watched: bool) {
            if std::mem::replace(&mut self.watched, watched) != watched {
                let _ = self.socket.set_tcp_user_timeout(watched.then_some(BORNE));
            }
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod kernel {
    use tokio::net::{TcpSocket, TcpStream};

    pub(super) const fn wish(_: &TcpSocket, _bbr: bool) {}

    pub(super) const fn has_bbr() -> bool {
        false
    }

    pub(crate) struct Watch;

    impl Watch {
        pub(crate) const fn new(_: &TcpStream) -> Option<Self> {
            None
        }

        pub(crate) const fn set(&mut self, _watched: bool) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[tokio::test]
    async fn a_connection_is_watched_as_long_as_it_is_asked_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = connect(listener.local_addr().unwrap(), true).await.unwrap();
        let borne = || socket2::SockRef::from(&stream).tcp_user_timeout().unwrap();
        let mut watch = Watch::new(&stream).unwrap();
        assert_eq!(borne(), None, "not while bytes of chunks go");
        watch.set(true);
        assert_eq!(borne(), Some(std::time::Duration::from_secs(4)));
        watch.set(false);
        assert_eq!(borne(), None);
    }
}
