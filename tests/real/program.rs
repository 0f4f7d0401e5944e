//! Starts a program of `tests/clients`, tells it what to do and reads what it saw.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use waystation_devcore::session::Session;
use waystation_proto::Variant;
use waystation_tests::{Chunk, World};

/// What a program is given for all it has to do; it says itself how far it came.
const LIFE_S: u64 = 60;
/// How long its next line may take: longer than its life.
const PATIENCE: Duration = Duration::from_secs(LIFE_S + 20);

/// A running program. It ends with this value.
pub(crate) struct Program {
    child: Child,
    group: u32,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: ChildStderr,
}

impl Program {
    /// A program in Python, with the packages of `requirements.txt`.
    pub(crate) fn python(script: &str) -> Self {
        let python = root().join("target/clients/bin/python");
        there(&python, "the Python clients");
        Self::start(&python, script)
    }

    /// A program in Bash around curl.
    pub(crate) fn curl(script: &str) -> Self {
        for tool in ["curl", "jq", "python3"] {
            there(&in_path(tool), tool);
        }
        Self::start(Path::new("bash"), script)
    }

    /// Chromium, driven by Node.
    pub(crate) fn browser() -> Self {
        Self::chromium("browser.mjs")
    }

    /// Chromium with the contact's page.
    pub(crate) fn page() -> Self {
        Self::chromium("page.mjs")
    }

    /// The same, where a command that ends with `node` runs: at a bad link's far end, for one.
    pub(crate) fn page_by(node: std::process::Command) -> Self {
        there(Path::new("/usr/bin/chromium"), "chromium");
        Self::launch(node.into(), "page.mjs")
    }

    fn chromium(script: &str) -> Self {
        there(Path::new("/usr/bin/chromium"), "chromium");
        there(&root().join("tests/clients/node_modules/playwright-core"), "playwright-core");
        let node = in_path("node");
        there(&node, "node");
        Self::start(&node, script)
    }

    /// tus-js-client, in Node.
    pub(crate) fn tus_js() -> Self {
        there(&root().join("tests/clients/node_modules/tus-js-client"), "tus-js-client");
        let node = in_path("node");
        there(&node, "node");
        Self::start(&node, "tus_js.mjs")
    }

    /// eventsource, in Node.
    pub(crate) fn sse() -> Self {
        there(&root().join("tests/clients/node_modules/eventsource"), "eventsource");
        let node = in_path("node");
        there(&node, "node");
        Self::start(&node, "sse_watch.mjs")
    }

    fn start(interpreter: &Path, script: &str) -> Self {
        Self::launch(Command::new(interpreter), script)
    }

    fn launch(mut command: Command, script: &str) -> Self {
        let mut child = command
            .arg(root().join("tests/clients").join(script))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let group = child.id().unwrap();
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take().unwrap());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, group, stdin, lines, stderr }
    }

    /// Tells it what to do.
    pub(crate) async fn told(mut self, mut params: Value) -> Self {
        params["timeout"] = LIFE_S.into();
        params["progress"] = true.into();
        self.write(format!("{params}\n").as_bytes()).await;
        self
    }

    /// Writes to its standard input.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).await.unwrap();
    }

    /// Lets a sender that has stopped go on.
    pub(crate) async fn go_on(&mut self) {
        self.write(b"go on\n").await;
    }

    /// Its next line.
    pub(crate) async fn line(&mut self) -> Value {
        let line =
            tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("the program is silent").unwrap();
        let Some(line) = line else {
            let mut said = String::new();
            let _ = self.stderr.read_to_string(&mut said).await;
            panic!("the program ended without a result: {said}");
        };
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"))
    }

    /// Waits for a progress line that `is` it.
    pub(crate) async fn event(&mut self, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.line().await;
            assert!(line.get("event").is_some(), "it ended before: {line}");
            if is(&line) {
                return line;
            }
        }
    }

    /// Waits for the progress line of this name.
    pub(crate) async fn named(&mut self, event: &str) -> Value {
        self.event(|line| line["event"] == event).await
    }

    /// Waits for its end: what it saw, and whether that is what was asked for.
    pub(crate) async fn end(mut self) -> (bool, Value) {
        self.stdin = None;
        let result = loop {
            let line = self.line().await;
            if line.get("ok").is_some() {
                break line;
            }
        };
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it stays").unwrap();
        assert_eq!(result["ok"], status.success(), "{result}");
        (status.success(), result)
    }

    /// Waits for its end, which must be what was asked for.
    pub(crate) async fn done(self) -> Value {
        let (ok, result) = self.end().await;
        assert!(ok, "{result}");
        result
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // With what it started, curl for one. An id that was waited for may be somebody else's.
        if self.child.id().is_some() {
            let _ = std::process::Command::new("sh").args(["-c", &format!("kill -KILL -{}", self.group)]).status();
        }
    }
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A client that is missing must not look like a test that passed.
fn there(path: &Path, what: &str) {
    assert!(path.exists(), "{what} is not installed; run ./test install");
}

fn in_path(tool: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.exists());
    found.unwrap_or_else(|| PathBuf::from(tool))
}

/// Where a client finds the relay, and what vouches for it.
pub(crate) fn relay(world: &World) -> Value {
    json!({ "url": format!("https://127.0.0.1:{}", world.public().port()), "server_name": "localhost",
            "ca": world.certificate_file() })
}

/// The parameters of one upload, with `more`.
pub(crate) fn upload(world: &World, chunk: &Chunk, capability: &str, more: Value) -> Value {
    let file = bytes_of(world, chunk);
    let mut params = relay(world);
    merge(&mut params, json!({ "capability": capability, "file": file, "chunk": described(chunk) }));
    merge(&mut params, more);
    params
}

/// Its metadata as a client gives it, without digest and length.
pub(crate) fn described(chunk: &Chunk) -> Value {
    let offer = &chunk.offer;
    json!({
        "incident": offer.incident.as_str(), "stream": offer.stream.as_str(), "index": offer.index,
        "media": offer.media.as_str(), "started": offer.started.as_str(), "ended": offer.ended.as_str(),
    })
}

/// The file that holds its bytes.
pub(crate) fn bytes_of(world: &World, chunk: &Chunk) -> PathBuf {
    let file = world.dir.path().join(format!("{}.chunk", chunk.chunk_ref()));
    std::fs::write(&file, &chunk.bytes).unwrap();
    file
}

/// Adds members to an object.
pub(crate) fn merge(params: &mut Value, more: Value) {
    let Value::Object(more) = more else { panic!("no object") };
    params.as_object_mut().unwrap().extend(more);
}

/// The answer to a `PUT`: status, error code, state and offset of the chunk.
pub(crate) fn said(answer: &Value) -> (u64, &str, &str, u64) {
    let (error, chunk) = (&answer["body"]["error"], &answer["body"]["chunk"]);
    (
        answer["status"].as_u64().unwrap(),
        error["code"].as_str().unwrap_or_default(),
        chunk["state"].as_str().unwrap_or_default(),
        chunk["offset"].as_u64().unwrap_or_default(),
    )
}

/// A chunk of the master that a relay will not come to look at: any bytes.
pub(crate) fn master(session: &Session, index: u64, length: usize) -> Chunk {
    let stream = session.streams.iter().find(|stream| stream.variant == Variant::EvidenceMaster).unwrap();
    Chunk::of(&session.incident, &stream.stream, stream.media, index, vec![0x5a; length])
}

/// Asserts that a contact's program saw these chunks whole, in these bytes.
pub(crate) fn saw(result: &Value, chunks: &[&Chunk]) {
    for chunk in chunks {
        let all = result["chunks"].as_array().unwrap();
        let is = |one: &&Value| one["stream"] == chunk.offer.stream.as_str() && one["index"] == chunk.offer.index;
        let seen = all.iter().find(is).unwrap_or_else(|| panic!("not seen: {result}"));
        assert_eq!((&seen["intact"], &seen["received"]), (&json!(true), &json!(chunk.bytes.len())));
        assert_eq!(seen["sha256"], chunk.offer.sha256.to_hex());
    }
}

/// The states a contact's program was told of a chunk, in their order.
pub(crate) fn states<'a>(result: &'a Value, chunk: &Chunk) -> Vec<&'a str> {
    let name = format!("{}/{}", chunk.offer.stream.as_str(), chunk.offer.index);
    let states = result["states"][&name].as_array().unwrap_or_else(|| panic!("nothing of it: {result}"));
    states.iter().map(|state| state.as_str().unwrap()).collect()
}
