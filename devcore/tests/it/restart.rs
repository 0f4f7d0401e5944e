//! Stopped or killed, started again: everything that was answered is there.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use waystation_devcore::{Clock, Devcore, Options};

use crate::support::{Bench, Chunk, NOON_S, exchange, sha256};

#[tokio::test]
async fn a_restart_keeps_everything() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    assert_eq!(bench.commit(&chunk).await.said(), "201");
    bench.core.rotate_signing_key().unwrap();
    bench.account("POST", "/v1/relay/revocations", json!({ "jti": "gone" })).await;
    let (jwks, addr) = (bench.get("/v1/relay/jwks").await.json(), bench.core.addr());
    let tokens = [bench.core.account_token().to_owned(), bench.core.service_token().to_owned()];
    let Bench { core, dir } = bench;
    core.stop().await;
    // What a crash between blob and row leaves.
    std::fs::write(dir.path().join("blobs/b_orphan"), b"x").unwrap();
    std::fs::write(dir.path().join("blobs/upload-b_cut"), b"x").unwrap();

    let options = Options { listen: addr, clock: Clock::manual(NOON_S * 1000), ..Options::new(dir.path()) };
    let bench = Bench { core: Devcore::start(options).await.unwrap(), dir };
    assert_eq!(bench.core.addr(), addr);
    assert_eq!(tokens, [bench.core.account_token(), bench.core.service_token()]);
    assert_eq!(bench.get("/v1/relay/jwks").await.json(), jwks);
    assert_eq!(bench.get("/v1/relay/revocations").await.json(), json!({ "revoked": ["gone"] }));
    assert_eq!(bench.commit(&chunk).await.said(), "409 duplicate_chunk");
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 2)).await.said(), "201", "old capabilities still verify");
    assert_eq!(bench.core.stats().await.stored_chunks, 2);
    assert_eq!(std::fs::read_dir(bench.dir.path().join("blobs")).unwrap().count(), 2, "leftovers are gone");
}

/// The program, killed when dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) line: Value,
}

impl Program {
    pub(crate) fn serve(data: &Path, flags: &[&str]) -> Self {
        Self::start(Command::new(env!("CARGO_BIN_EXE_waystation-devcore")), data, flags)
    }

    pub(crate) fn serve_logging(data: &Path, level: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waystation-devcore"));
        command.env("RUST_LOG", level);
        Self::start(command, data, &[])
    }

    fn start(mut command: Command, data: &Path, flags: &[&str]) -> Self {
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, line: serde_json::from_str(&line).unwrap() }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.line["listen"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn secret(&self, name: &str) -> String {
        std::fs::read_to_string(self.line[name].as_str().unwrap()).unwrap().trim().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn a_commit_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = None;
    let mut hashes = Vec::new();
    for round in 1..=5 {
        let mut program = Program::serve(dir.path(), &[]);
        let request = waystation_devcore::session::Request::new(
            program.line["url"].as_str().unwrap(),
            program.secret("account_token_file"),
        );
        if session.is_none() {
            session = Some(waystation_devcore::session::open(&request).await.unwrap());
        }
        let session = session.as_ref().unwrap();
        let chunk = Chunk::of(session, 0, round);
        let commit = http::Request::post("/v1/relay/commit")
            .header("host", "core")
            .header("content-type", "multipart/form-data; boundary=xyz")
            .header("x-proofline-relay-service-token", program.secret("service_token_file"))
            .body(chunk.form().finish().into());
        assert_eq!(exchange(program.addr(), commit.unwrap()).await.unwrap().said(), "201");
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        hashes.push(sha256(&chunk.bytes));
    }
    let (bench, session) =
        (Bench { core: Devcore::start(Options::new(dir.path())).await.unwrap(), dir }, session.unwrap());
    for (index, hash) in (1..).zip(hashes) {
        let path = format!("/v1/incidents/{}/chunks/{}/{index}", session.incident, session.streams[0].stream);
        assert_eq!(sha256(&bench.account("GET", &path, json!({})).await.bytes), hash);
    }
}
