//! The commands: parse, log, build, bind, announce, wait for a signal, drain, exit code.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use waystation::clock::Clock;
use waystation::config::{Config, DEFAULT_TOML};
use waystation::relay::Relay;

/// Largest answer of the ops listener that is read, in bytes.
const MAX_STATUS: usize = 256 * 1024;

/// A near relay for encrypted evidence: stages, fans out, forwards; confirms nothing by itself.
#[derive(Debug, clap::Parser)]
#[command(name = "waystation", version)]
pub(crate) enum Command {
    /// Runs the relay.
    Serve {
        /// The configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Checks or prints a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Asks a running relay what waits, why, how long, and what to do.
    Status {
        /// Where its ops listener is: listen.ops.
        #[arg(long, default_value = "127.0.0.1:9090")]
        ops: SocketAddr,
        /// Prints the relay's JSON as it is.
        #[arg(long)]
        json: bool,
    },
}

/// `waystation config`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Reads a configuration and names every mistake.
    Check {
        /// The configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Prints a complete, commented configuration with every default.
    Default,
}

/// Runs a command.
pub(crate) async fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve { config } => serve(config).await,
        Command::Config(ConfigCommand::Default) => say(DEFAULT_TOML),
        Command::Config(ConfigCommand::Check { config }) => match Config::load(&config) {
            Ok(_) => say("The configuration is sound.\n"),
            Err(mistakes) => {
                complain(&format!("{mistakes}\n"));
                ExitCode::FAILURE
            }
        },
        Command::Status { ops, json } => status(ops, json).await,
    }
}

async fn serve(file: PathBuf) -> ExitCode {
    start_log();
    let config = match Config::load(&file) {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in &mistakes.0 {
                error!(component = "relay", startup_stage = "config_validate", error_category = "config", "{mistake}");
            }
            return ExitCode::from(2);
        }
    };
    warn_of(&config);
    // Before anybody is told where it listens: from then on a stop must be a graceful one.
    let shutdown = CancellationToken::new();
    let term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    tokio::spawn(stop_on_signal(term, shutdown.clone()));
    let relay = match Relay::bind(config, Clock::system()).await {
        Ok(relay) => relay,
        Err(error) => {
            error!(component = "relay", startup_stage = "http_listen", error_category = "config", "{error}");
            return ExitCode::FAILURE;
        }
    };
    let Ok(addresses) = serde_json::to_string(&relay.addresses()) else { return ExitCode::FAILURE };
    say(&format!("{addresses}\n"));
    info!(component = "relay", startup_stage = "http_listen", "serving");
    let outcome = relay.run(shutdown).await;
    info!(
        component = "relay",
        startup_stage = "shutdown",
        cut = outcome.cut,
        "stopped; what is staged goes on at the next start"
    );
    ExitCode::SUCCESS
}

/// What an operator should know of a configuration that is sound.
fn warn_of(config: &Config) {
    let (component, startup_stage) = ("relay", "config_validate");
    if config.capability.proofline_secret.is_some() {
        warn!(
            component,
            startup_stage,
            config_key_class = "secret_config",
            "the core's capability secret is configured: whoever takes this relay can mint capabilities"
        );
    }
    for config_key in config.without_tls() {
        warn!(
            component,
            startup_stage,
            config_key,
            "http, and not to this machine: who is on the way reads tokens and can forge answers and keys"
        );
    }
}

/// JSON lines on stderr. Libraries are silent: theirs name peers (promise 7).
fn start_log() {
    let level = std::env::var("WAYSTATION_LOG")
        .ok()
        .filter(|level| matches!(level.as_str(), "error" | "warn" | "info" | "debug" | "trace"));
    let filter = format!("off,waystation={}", level.as_deref().unwrap_or("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(io::stderr)
        .init();
}

/// A panic is told by its place in the source alone: its text may hold what it was about
/// (promise 7, contract C12), and the default hook would print that.
pub(crate) fn hush_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()));
        if tracing::dispatcher::has_been_set() {
            error!(component = "relay", error_category = "panic", place, "a panic");
        } else {
            complain(&format!("a panic at {place}\n"));
        }
    }));
}

async fn stop_on_signal(term: io::Result<tokio::signal::unix::Signal>, shutdown: CancellationToken) {
    match term {
        Ok(mut term) => tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => _ = tokio::signal::ctrl_c().await,
    }
    info!(component = "relay", startup_stage = "shutdown", "draining");
    shutdown.cancel();
}

async fn status(ops: SocketAddr, json: bool) -> ExitCode {
    match ask(ops).await {
        Ok(body) if json => say(&format!("{body}\n")),
        Ok(body) => match serde_json::from_str(&body) {
            Ok(status) => say(&render(&status)),
            Err(_) => {
                complain("the ops listener answered something else than a status\n");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            complain(&format!("the ops listener can't be asked: {}\n", error.kind()));
            ExitCode::FAILURE
        }
    }
}

async fn ask(ops: SocketAddr) -> io::Result<String> {
    let other = |_| io::ErrorKind::InvalidData;
    let stream = tokio::net::TcpStream::connect(ops).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    tokio::spawn(connection);
    let request = http::Request::get("/status").header("host", "ops").body(Empty::<bytes::Bytes>::new());
    let answer = sender.send_request(request.map_err(|_| io::ErrorKind::InvalidInput)?).await.map_err(other)?;
    let body = Limited::new(answer.into_body(), MAX_STATUS).collect().await;
    let bytes = body.map_err(|_| io::ErrorKind::InvalidData)?.to_bytes();
    String::from_utf8(bytes.to_vec()).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The status as a table with advice.
fn render(status: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
    let ready = &status["ready"];
    let mut out = format!(
        "relay {}   core {}   staging {}   capabilities {}\n",
        text(&ready["status"]),
        text(&ready["core"]),
        text(&ready["staging"]),
        text(&ready["capabilities"]),
    );
    if let Some(what) = status["what_to_do"].as_str() {
        out.push_str(&format!("{what}\n"));
    }
    let waiting = status["waiting"].as_array().map(Vec::as_slice).unwrap_or_default();
    if waiting.is_empty() {
        out.push_str("nothing waits: everything received was confirmed, rejected or expired\n");
        return out;
    }
    out.push_str(&format!("\n{:<9}{:<20}{:>8}{:>14}{:>12}\n", "class", "reason", "chunks", "bytes", "oldest"));
    let mut advice: Vec<(String, String)> = Vec::new();
    for row in waiting {
        let (class, reason) = (text(&row["class"]), text(&row["reason"]));
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        out.push_str(&format!(
            "{class:<9}{reason:<20}{:>8}{:>14}{:>11}s\n",
            number("chunks"),
            number("bytes"),
            number("oldest_seconds")
        ));
        if !advice.iter().any(|(known, _)| *known == reason) {
            advice.push((reason, text(&row["what_to_do"])));
        }
    }
    if let Some(seconds) = status["next_expiry_seconds"].as_u64() {
        out.push_str(&format!("the next one is let go in {} h {} min\n", seconds / 3600, seconds % 3600 / 60));
    }
    out.push('\n');
    for (reason, what) in advice {
        out.push_str(&format!("{reason}: {what}\n"));
    }
    out
}

/// Standard output, in one place. A reader that went away is no reason to fail.
fn say(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANICS: &str = "WAYSTATION_TEST_PANICS";

    /// The process that panics. Without its environment it has nothing to do.
    #[test]
    fn one_that_panics() {
        let Some(how) = std::env::var_os(PANICS) else { return };
        hush_panics();
        if how == "log" {
            start_log();
        }
        assert!(std::thread::spawn(|| panic!("canary-{}", std::process::id())).join().is_err());
    }

    #[test]
    fn a_panic_tells_its_place_and_nothing_of_what_it_was_about() {
        for (how, wanted) in [("log", "\"error_category\":\"panic\""), ("none", "a panic at ")] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "cli::tests::one_that_panics", "--nocapture"])
                .env(PANICS, how)
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
            assert!(output.status.success(), "{said:?}");
            assert!(said[1].contains(wanted) && said[1].contains("src/cli.rs:"), "{said:?}");
            assert!(!said.concat().contains("canary"), "{said:?}");
        }
    }

    #[test]
    fn a_status_is_a_table_with_advice_once_for_each_reason() {
        let status = serde_json::json!({
            "ready": {"status": "degraded", "core": "away", "staging": "ok", "capabilities": "verified_here"},
            "waiting": [
                {"class": "audio", "reason": "core_unreachable", "chunks": 3, "bytes": 17000, "oldest_seconds": 12, "what_to_do": "Check the core."},
                {"class": "master", "reason": "core_unreachable", "chunks": 1, "bytes": 180_000, "oldest_seconds": 9, "what_to_do": "Check the core."},
            ],
            "next_expiry_seconds": 7260,
            "what_to_do": "Make room.",
        });
        let text = render(&status);
        assert!(text.contains("audio    core_unreachable           3         17000         12s"), "{text}");
        assert_eq!(text.matches("Check the core.").count(), 1);
        assert!(text.contains("in 2 h 1 min"));
        assert!(text.contains("verified_here\nMake room.\n"), "{text}");
    }
}
