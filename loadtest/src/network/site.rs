//! One run's world: a link, a relay and a core at its server's end, and everything that can be
//! asked of them. All of it ends when the site is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;
use waystation_client::GroupKey;
use waystation_client::envelope::{self, Identity};
use waystation_client::session::Session;
use waystation_netlab::{Link, Options, Profile, SERVER, Side};
use waystation_proto::Variant;
use waystation_proto::id::StreamId;

use super::content;
use super::offsets::Offsets;
use super::phone::{Plan, Recorded};
use super::transport::Transport;
use crate::Failure;
use crate::rig::{self, Program};

/// Chunks that a stream may have, and life of capabilities in seconds: more than any run needs, so
/// that a phone never has to ask its core.
const MAX_CHUNKS: &str = "100000000";
const TTL_S: &str = "86400";
/// How long the relay may take to bring everything to a core that answers at once.
const FORWARDING_LIMIT: Duration = Duration::from_secs(60);
/// Pause between questions.
const POLL: Duration = Duration::from_millis(50);
/// A relay that finds its address or directory still held is started again, so often.
const START_TRIES: u32 = 50;

/// What a site is made of.
pub(super) struct Setup {
    pub(super) profile: Profile,
    pub(super) seed: u64,
    pub(super) link: Options,
    pub(super) transport: Transport,
    /// The phone says that its network is a cellular one.
    pub(super) cellular: bool,
    /// Where the run's directory is made.
    pub(super) above: Option<PathBuf>,
    /// The directory stays, with the programs' logs.
    pub(super) keep: bool,
}

/// The run's world. Programs end before the link, and the files last.
pub(super) struct Site {
    relay: Option<Program>,
    _core: Program,
    pub(super) link: Link,
    core_at: SocketAddr,
    core_url: String,
    account_token: String,
    service_token: String,
    public: SocketAddr,
    plain: SocketAddr,
    ops: SocketAddr,
    session: Session,
    group_key: GroupKey,
    seed: u64,
    transport: Transport,
    cellular: bool,
    dir: TempDir,
}

/// A commit that the core confirmed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Commit {
    /// When its bytes had all come from the relay's side: the chunk was staged by then.
    pub(super) arrived_ms: f64,
}

/// Chunks of a run by lane and number.
pub(super) type Chunks<T> = BTreeMap<(Variant, u64), T>;

/// What the core holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Chunks whose plaintext is what was recorded.
    pub(super) equal: BTreeSet<(Variant, u64)>,
    /// Chunks that are something else.
    pub(super) other: u64,
}

impl Held {
    /// Chunks of `wanted` that the core does not have as they were recorded. What a phone was told
    /// right before it was killed nobody knows.
    pub(super) fn missing(&self, wanted: u64) -> u64 {
        wanted.saturating_sub(self.equal.len() as u64) + self.other
    }

    /// Chunks of `wanted` that the phone was not told of, or that are not what was recorded.
    pub(super) fn lost(&self, told: &Chunks<f64>, wanted: u64) -> u64 {
        let safe = self.equal.iter().filter(|key| told.contains_key(key)).count() as u64;
        wanted.saturating_sub(safe) + self.other
    }
}

#[derive(Deserialize)]
struct Stats {
    commits: Vec<Noted>,
}

#[derive(Deserialize)]
struct Noted {
    stream: StreamId,
    index: u64,
    arrived_ms: i64,
    outcome: String,
}

#[derive(Deserialize)]
struct List {
    chunks: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    stream: StreamId,
    index: u64,
}

impl Site {
    /// Starts link, core and relay, and makes a session with these lanes.
    pub(super) async fn start(setup: Setup, lanes: &[Variant]) -> Result<Self, Failure> {
        let Setup { profile, seed, mut link, transport, cellular, above, keep } = setup;
        let above = above.unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("waystation-net-").disable_cleanup(keep).tempdir_in(above);
        let dir = dir.map_err(Failure::io("the run's directory"))?;
        link.trace = keep.then(|| dir.path().to_owned());
        let started = tokio::task::spawn_blocking(move || Link::start(&profile, seed, &link)).await;
        let link = started.map_err(|_| Failure::Wire("the link could not be started"))??;
        let (core, said) = core(&link, dir.path()).await?;
        let account_file = PathBuf::from(rig::text(&said, "account_token_file")?);
        let account_token = std::fs::read_to_string(&account_file).map_err(Failure::io("the account token"))?;
        let core_url = rig::text(&said, "url")?;
        let session = session(&link, &core_url, &account_file, lanes).await?;
        session.write(&dir.path().join("session.json")).map_err(|_| Failure::Wire("the session can't be written"))?;
        std::fs::write(dir.path().join("group.key"), [seed as u8; 32]).map_err(Failure::io("the group key"))?;
        rig::certificate(dir.path(), &["localhost", &SERVER.to_string()])?;
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut site = Self {
            relay: None,
            _core: core,
            link,
            core_at: rig::address(&said, "listen")?,
            core_url,
            account_token: account_token.trim().to_owned(),
            service_token: rig::text(&said, "service_token_file")?,
            public: SocketAddr::from((SERVER, 0)),
            plain: unbound,
            ops: unbound,
            session,
            group_key: GroupKey::new([seed as u8; 32]),
            seed,
            transport,
            cellular,
            dir,
        };
        site.start_relay().await?;
        Ok(site)
    }

    /// Starts the relay; once more at the addresses it had, on the directory it had.
    pub(super) async fn start_relay(&mut self) -> Result<(), Failure> {
        let config = self.file("relay.toml");
        std::fs::write(&config, self.toml()).map_err(Failure::io("the configuration"))?;
        let program = rig::program::path("waystation")?;
        let mut tries = 0;
        let (relay, bound) = loop {
            let mut command = Command::from(self.link.command(Side::Server, &program));
            command.args(["serve", "--config"]).arg(&config);
            match Program::launch("waystation", command, self.dir.path()).await {
                Ok(started) => break started,
                Err(failure) if tries == START_TRIES => return Err(failure),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(POLL).await;
        };
        self.public = rig::address(&bound, "public")?;
        (self.plain, self.ops) = (rig::address(&bound, "plain")?, rig::address(&bound, "ops")?);
        self.relay = Some(relay);
        Ok(())
    }

    /// Kills the relay (`kill -9`).
    pub(super) async fn kill_relay(&mut self) -> Result<(), Failure> {
        match self.relay.take() {
            Some(mut relay) => relay.kill().await,
            None => Ok(()),
        }
    }

    fn toml(&self) -> String {
        let url = &self.core_url;
        format!(
            "[listen]\npublic = \"{}\"\nplain = \"{}\"\nops = \"{}\"\n\
             [tls]\ncertificate = {:?}\nprivate_key = {:?}\n\
             [core]\nurl = {url:?}\nservice_token_file = {:?}\n\
             [capability]\njwks_url = \"{url}/v1/relay/jwks\"\n\
             [staging]\ndirectory = {:?}\nseal_key_file = {:?}\n",
            self.public,
            self.plain,
            self.ops,
            self.file("tls.pem"),
            self.file("tls.key"),
            self.service_token,
            self.file("staging"),
            self.file("seal.key"),
        )
    }

    /// A file of the run.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a phone is to do here.
    pub(super) fn plan(&self, lanes: &[Recorded], finish: Duration) -> Plan {
        Plan {
            relay: format!("https://{}", self.public),
            certificate: self.file("tls.pem"),
            transport: self.transport,
            cellular: self.cellular,
            session: self.file("session.json"),
            group_key: self.file("group.key"),
            keep: None,
            seed: self.seed,
            lanes: lanes.to_vec(),
            finish_s: finish.as_secs(),
        }
    }

    // === what relay and core say ===

    /// Commits that the core has confirmed so far, by chunk; of each chunk the first.
    pub(super) async fn commits(&self) -> Result<Chunks<Commit>, Failure> {
        let stats: Stats = self.core_json("/devcore/stats").await?;
        let mut found = Chunks::new();
        for noted in stats.commits.iter().filter(|noted| matches!(noted.outcome.as_str(), "200" | "201")) {
            if let Some(key) = self.chunk(&noted.stream, noted.index) {
                found.entry(key).or_insert(Commit { arrived_ms: noted.arrived_ms as f64 });
            }
        }
        Ok(found)
    }

    /// Opens and compares every chunk that the core holds. `lanes` says how long each is.
    pub(super) async fn held(&self, lanes: &[Recorded]) -> Result<Held, Failure> {
        let base = format!("/v1/incidents/{}/chunks", self.session.incident.as_str());
        let list: List = self.core_json(&base).await?;
        let mut held = Held::default();
        for Listed { stream, index } in list.chunks {
            let frame = self.core(&format!("{base}/{}/{index}", stream.as_str())).await?;
            let key = self.chunk(&stream, index);
            let wanted = key.and_then(|(variant, seq)| {
                let lane = lanes.iter().find(|lane| lane.variant == variant && seq < lane.to)?;
                Some(content::plaintext(self.seed, variant, seq, lane.bytes))
            });
            match key.filter(|_| wanted.is_some() && self.open(stream, index, &frame) == wanted) {
                Some(key) => drop(held.equal.insert(key)),
                None => held.other += 1,
            }
        }
        Ok(held)
    }

    fn open(&self, stream: StreamId, index: u64, frame: &[u8]) -> Option<Vec<u8>> {
        let key = self.group_key.stream_key(&stream)?;
        let media = self.session.streams.iter().find(|one| one.stream == stream)?.media;
        let identity = Identity { incident: self.session.incident.clone(), stream, media, index };
        envelope::open(&key, &identity, frame).ok().map(|opened| opened.plaintext)
    }

    /// Lane and number of a chunk. No lane has more than one stream here.
    fn chunk(&self, stream: &StreamId, index: u64) -> Option<(Variant, u64)> {
        let found = self.session.streams.iter().find(|one| one.stream == *stream)?;
        Some((found.variant, index.checked_sub(1)?))
    }

    /// Bytes of bodies and messages that the relay has received since it was started.
    pub(super) async fn received(&self) -> Result<u64, Failure> {
        self.metric("waystation_received_bytes_total").await
    }

    /// Where a contact at the server's end finds the relay, and its capability.
    pub(super) fn watching(&self) -> Result<(SocketAddr, String), Failure> {
        let capability = self.session.fanout_capability.as_ref().ok_or(Failure::Wire("the core made no session"))?;
        Ok((self.plain, capability.clone()))
    }

    /// A connection that asks how much of each chunk of a lane the relay has.
    pub(super) async fn offsets(&self, lane: Variant, chunks: u64) -> Result<Offsets, Failure> {
        Offsets::of(self.connect(self.plain)?, self.plain, &self.session, lane, chunks).await
    }

    /// Waits until the relay holds nothing more that is whole and not confirmed.
    pub(super) async fn forwarded(&self) -> Result<(), Failure> {
        let empty = async {
            while self.metric("waystation_staged_chunks").await? > 0 {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        let late = Failure::Wire("what was whole at the relay did not come to the core");
        tokio::time::timeout(FORWARDING_LIMIT, empty).await.unwrap_or(Err(late))
    }

    /// Chunks that were whole at the relay and ended otherwise than confirmed.
    pub(super) async fn ended_badly(&self) -> Result<u64, Failure> {
        let text = self.get(self.ops, "/metrics", "").await?;
        let text = String::from_utf8_lossy(&text);
        let endings = ["rejected", "expired", "damaged"].map(|ending| format!("ending=\"{ending}\""));
        let bad = text.lines().filter(|line| endings.iter().any(|ending| line.contains(ending)));
        Ok(bad.filter_map(|line| sample(line, "waystation_chunk_endings_total")).sum::<f64>() as u64)
    }

    /// The sum of a metric's samples.
    async fn metric(&self, name: &str) -> Result<u64, Failure> {
        let text = self.get(self.ops, "/metrics", "").await?;
        Ok(String::from_utf8_lossy(&text).lines().filter_map(|line| sample(line, name)).sum::<f64>() as u64)
    }

    async fn core_json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        serde_json::from_slice(&self.core(path).await?).map_err(|_| Failure::Wire("the core's answer can't be read"))
    }

    async fn core(&self, path: &str) -> Result<Bytes, Failure> {
        self.get(self.core_at, path, &self.account_token).await
    }

    async fn get(&self, at: SocketAddr, path: &str, token: &str) -> Result<Bytes, Failure> {
        crate::link::get_over(self.connect(at)?, &at.to_string(), path, token).await
    }

    /// Connects to a program at the server's end: the socket is made there and used here.
    pub(super) fn connect(&self, at: SocketAddr) -> Result<TcpStream, Failure> {
        let made = self.link.inside(Side::Server, || {
            let stream = std::net::TcpStream::connect(at)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        made.and_then(TcpStream::from_std).map_err(Failure::io("a program at the server's end"))
    }

    /// The last line of a log.
    pub(super) fn last_words(&self, log: &str) -> String {
        let text = std::fs::read_to_string(self.file(log)).unwrap_or_default();
        text.lines().last().unwrap_or("it said nothing").to_owned()
    }
}

/// The value on a line of `/metrics`, if it is one of `name`.
fn sample(line: &str, name: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let value = match rest.strip_prefix('{') {
        Some(labelled) => labelled.rsplit_once("} ")?.1,
        None => rest.strip_prefix(' ')?,
    };
    value.trim().parse().ok()
}

async fn core(link: &Link, dir: &Path) -> Result<(Program, serde_json::Value), Failure> {
    let mut command = Command::from(link.command(Side::Server, rig::program::path("waystation-devcore")?));
    command.args(["serve", "--idempotent-commit", "--listen", "127.0.0.1:0", "--max-chunks", MAX_CHUNKS, "--data"]);
    command.arg(dir.join("core"));
    Program::launch("waystation-devcore", command, dir).await
}

async fn session(link: &Link, core_url: &str, token: &Path, lanes: &[Variant]) -> Result<Session, Failure> {
    let lanes: Vec<_> = lanes.iter().map(|lane| lane.as_str()).collect();
    let mut command = Command::from(link.command(Side::Server, rig::program::path("waystation-devcore")?));
    command.args(["session", "--core", core_url, "--lanes", &lanes.join(","), "--ttl", TTL_S]);
    command.args(["--max-chunks", MAX_CHUNKS, "--account-token-file"]).arg(token);
    let line = Program::finish("waystation-devcore", command).await?;
    serde_json::from_str(&line).map_err(|_| Failure::Wire("the core made no session"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_safe_if_the_core_has_it_and_the_phone_knows() {
        let key = |seq| (Variant::AudioPriority, seq);
        let told = Chunks::from([(key(0), 1.0), (key(1), 1.0), (key(2), 1.0)]);
        let held = |equal: &[u64], other| Held { equal: equal.iter().map(|seq| key(*seq)).collect(), other };
        assert_eq!(held(&[0, 1, 2], 0).lost(&told, 3), 0);
        assert_eq!(held(&[0, 1], 1).lost(&told, 3), 2, "one is missing, and something is there instead");
        assert_eq!(held(&[0, 1, 2, 3], 0).lost(&told, 4), 1, "the phone never knew of one");
    }

    #[test]
    fn samples_are_of_one_metric() {
        let name = "waystation_received_bytes_total";
        assert_eq!(sample("waystation_received_bytes_total{transport=\"h3\"} 42", name), Some(42.0));
        assert_eq!(sample("waystation_received_bytes_total 7.5", name), Some(7.5));
        assert_eq!(sample("waystation_received_bytes_total_more 7", name), None);
        assert_eq!(sample("# HELP waystation_received_bytes_total x", name), None);
    }
}
