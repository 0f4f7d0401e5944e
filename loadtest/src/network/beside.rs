//! The client beside one TCP flow with cubic, for which the same link is the narrowest: who gets
//! how much of it.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use waystation_netlab::{Profile, SERVER, Side};
use waystation_proto::Variant;

use super::handset::Handset;
use super::output::{Line, median, percentile};
use super::phone::Recorded;
use super::site::Site;
use super::{Args, bars};
use crate::Failure;

const LANE: Variant = Variant::EvidenceMaster;
const CHUNK_BYTES: usize = 128 * 1024;
/// Whoever is second begins so much later.
const HEAD_START: Duration = Duration::from_secs(5);
/// After so long beside each other they are counted, for so long.
const SETTLES: Duration = Duration::from_secs(10);
const COUNTED: Duration = Duration::from_secs(60);
/// The kernel's ordinary congestion control.
const CUBIC: &[u8] = b"cubic";

/// The client's part of what both brought, with the seed's parity deciding who begins: even ones
/// let the client begin.
pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let shares = args.each(|seed| one(args, profile, seed)).await?;
    let shares: Vec<Option<f64>> = shares.into_iter().map(Some).collect();
    let line = Line::default()
        .word("scenario", "beside")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .figure("share_min", percentile(&shares, 0))
        .figure("share_median", median(&shares))
        .figure("share_max", percentile(&shares, 100))
        .bar("share_bar", percentile(&shares, 100), Some(bars::MOST_BESIDE_CUBIC))
        .all("all_shares", &shares);
    let starved = shares.iter().flatten().any(|share| *share < bars::LEAST_BESIDE_CUBIC);
    Ok(line.failing(starved))
}

async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<f64, Failure> {
    let seconds = (HEAD_START + SETTLES + COUNTED).as_secs_f64();
    let chunks = (profile.up.rate / 8.0 * seconds / CHUNK_BYTES as f64) as u64 + 2;
    let lanes = [Recorded { variant: LANE, bytes: CHUNK_BYTES, every_ms: 0, from: 0, to: chunks }];
    let site = Site::start(args.setup(profile, seed), &[LANE]).await?;
    let plan = site.plan(&lanes, Duration::from_secs_f64(seconds * 2.0));
    let (mut phone, flow);
    if seed.is_multiple_of(2) {
        phone = Handset::start(&site, &plan).await?;
        tokio::time::sleep(HEAD_START).await;
        flow = Flow::start(&site).await?;
    } else {
        flow = Flow::start(&site).await?;
        tokio::time::sleep(HEAD_START).await;
        phone = Handset::start(&site, &plan).await?;
    }
    tokio::time::sleep(SETTLES).await;
    let before = (site.received().await?, flow.received());
    let until = Instant::now() + COUNTED;
    // What it says is read, so that it never waits for its listener.
    let _ = phone.until(COUNTED, |_| false).await?;
    tokio::time::sleep_until(until).await;
    let after = (site.received().await?, flow.received());
    phone.kill().await?;
    let (ours, theirs) = ((after.0 - before.0) as f64, (after.1 - before.1) as f64);
    Ok(ours / (ours + theirs).max(1.0))
}

/// A TCP connection from the client's end to the server's, always full.
struct Flow {
    received: tokio::sync::watch::Receiver<u64>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Flow {
    async fn start(site: &Site) -> Result<Self, Failure> {
        let listen = || {
            let listener = TcpListener::bind(SocketAddr::from((SERVER, 0)))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = site.link.inside(Side::Server, listen).and_then(tokio::net::TcpListener::from_std);
        let listener = listener.map_err(Failure::io("a flow beside"))?;
        let at = listener.local_addr().map_err(Failure::io("a flow beside"))?;
        let connect = move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_tcp_congestion(CUBIC)?;
            socket.connect(&at.into())?;
            socket.set_nonblocking(true)?;
            Ok(std::net::TcpStream::from(socket))
        };
        let (sender, accepted) = tokio::join!(
            async {
                tokio::task::block_in_place(|| site.link.inside(Side::Client, connect)).and_then(TcpStream::from_std)
            },
            listener.accept()
        );
        let mut sender = sender.map_err(Failure::io("a flow beside"))?;
        let (mut receiver, _) = accepted.map_err(Failure::io("a flow beside"))?;
        let (count, received) = tokio::sync::watch::channel(0);
        let sending = tokio::spawn(async move { while sender.write_all(&[0; 16 * 1024]).await.is_ok() {} });
        let receiving = tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = receiver.read(&mut buffer).await {
                count.send_modify(|count| *count += n as u64);
            }
        });
        Ok(Self { received, _tasks: [sending, receiving].map(AbortOnDropHandle::new) })
    }

    fn received(&self) -> u64 {
        *self.received.borrow()
    }
}
