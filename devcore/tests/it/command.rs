//! The program as people run it.

use std::io::Read as _;
use std::process::Command;

use serde_json::Value;
use waystation_devcore::session::Session;
use waystation_devcore::{Devcore, Effect, Fault, FaultRoute, Options};

use crate::restart::Program;
use crate::support::{Bench, exchange};

fn session(flags: &[&str]) -> Result<Session, String> {
    let out = Command::new(env!("CARGO_BIN_EXE_waystation-devcore")).arg("session").args(flags).output().unwrap();
    if !out.status.success() {
        return Err(String::from_utf8(out.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&out.stdout).unwrap())
}

#[tokio::test]
async fn serve_and_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut program =
        Program::serve(dir.path(), &["--max-chunks", "8", "--capability-ttl", "1m", "--audience", "here"]);
    let (url, token) = (program.line["url"].as_str().unwrap(), program.line["account_token_file"].as_str().unwrap());
    let key = dir.path().join("client-key");
    std::fs::write(&key, r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#).unwrap();
    let (key, dir_text) = (key.to_str().unwrap(), dir.path().to_str().unwrap());
    let made = session(&[
        "--core",
        url,
        "--account-token-file",
        token,
        "--lanes",
        "audio_priority,evidence_master",
        "--ttl",
        "20",
        "--max-chunks",
        "3",
        "--client-key-file",
        key,
    ])
    .unwrap();
    let roles: Vec<_> = made.streams.iter().map(|stream| (stream.variant.as_str(), stream.media.as_str())).collect();
    assert_eq!(roles, [("audio_priority", "audio"), ("evidence_master", "video")]);
    let payload = made.upload_capability.as_ref().unwrap().split('.').nth(1).unwrap();
    let payload = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 20);
    assert_eq!((&claims["aud"], &claims["lanes"][0]["max_chunks"]), (&"here".into(), &3.into()));
    assert_eq!(claims["cnf"]["jwk"]["x"], "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    let refused =
        session(&["--core", url, "--account-token-file", program.line["service_token_file"].as_str().unwrap()]);
    assert!(refused.unwrap_err().contains("authentication_required"));

    let id = program.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert!(program.child.wait().unwrap().success(), "SIGTERM is a clean end");
    let mut log = String::new();
    program.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let account = std::fs::read_to_string(token).unwrap();
    for secret in [made.incident.as_str(), &made.group, &made.streams[0].stream, account.trim(), dir_text, url] {
        assert!(!log.contains(secret), "the log names nothing");
    }
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "the log is JSON");
    }
}

#[tokio::test]
async fn tls_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("certificate.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let options = Options { tls: Some((certificate.clone(), key)), ..Options::new(dir.path().join("data")) };
    let core = Devcore::start(options).await.unwrap();
    assert!(core.url().starts_with("https://"));
    let mut request = waystation_devcore::session::Request::new(core.url(), core.account_token());
    assert!(waystation_devcore::session::open(&request).await.is_err(), "no authority");
    request.authority = Some(certificate);
    let session = waystation_devcore::session::open(&request).await.unwrap();
    assert_eq!(session.streams.len(), 4);
    core.stop().await;
}

#[tokio::test]
async fn http2_is_spoken_without_asking() {
    let bench = Bench::start().await;
    let stream = tokio::net::TcpStream::connect(bench.core.addr()).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let handshake = hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    let driver = tokio::spawn(connection);
    let uri = format!("{}/v1/relay/jwks", bench.core.url());
    let request = http::Request::get(uri).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
    // A stream that hangs holds up neither the core's end nor its data.
    bench.core.faults().add(Fault::new(FaultRoute::Jwks, Effect::Delay { ms: 600_000 }).times(1));
    let uri = format!("{}/v1/relay/jwks", bench.core.url());
    let request = http::Request::get(uri).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let hanging = tokio::spawn(sender.send_request(request));
    while !bench.core.faults().waiting().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let plain = http::Request::get("/v1/relay/jwks").header("host", "core").body(bytes::Bytes::new()).unwrap();
    assert_eq!(exchange(bench.core.addr(), plain).await.unwrap().said(), "200");
    bench.core.faults().set_away(true);
    assert!(hanging.await.unwrap().is_err());
    driver.abort();
    bench.core.stop().await;
}
