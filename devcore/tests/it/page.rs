//! The host of the contact's page.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use bytes::Bytes;
use http::Request;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use waystation_devcore::PageHost;

use crate::restart::Program;
use crate::support::{Reply, exchange};

const MARKUP: &str = "<!doctype html><meta http-equiv=\"Content-Security-Policy\" \
     content=\"default-src 'none'; script-src 'sha256-x'\"><title>page</title>";
const CANARY: &str = "not for anybody";

/// A page's directory with something beside it.
fn site() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let dist = dir.path().join("dist");
    std::fs::create_dir_all(dist.join("sub")).unwrap();
    std::fs::write(dir.path().join("secret.txt"), CANARY).unwrap();
    for (name, content) in [
        ("index.html", MARKUP),
        ("app.js", "let a;"),
        ("style.css", "a{}"),
        ("hashes.txt", "x"),
        ("sub/blob", "b"),
        (".hidden", CANARY),
    ] {
        std::fs::write(dist.join(name), content).unwrap();
    }
    std::os::unix::fs::symlink("../secret.txt", dist.join("link.txt")).unwrap();
    dir
}

async fn host(dir: &TempDir) -> PageHost {
    PageHost::start(&dir.path().join("dist"), ([127, 0, 0, 1], 0).into(), None).await.unwrap()
}

async fn ask(addr: SocketAddr, method: &str, path: &str) -> Reply {
    let request = Request::builder().method(method).uri(path).header("host", "page").body(Bytes::new()).unwrap();
    exchange(addr, request).await.unwrap()
}

#[tokio::test]
async fn files_are_served_with_what_a_browser_must_know() {
    let dir = site();
    let host = host(&dir).await;
    for (path, kind, content) in [
        ("/", "text/html; charset=utf-8", MARKUP),
        ("/index.html", "text/html; charset=utf-8", MARKUP),
        ("/?a=b", "text/html; charset=utf-8", MARKUP),
        ("/app.js", "text/javascript; charset=utf-8", "let a;"),
        ("/style.css", "text/css; charset=utf-8", "a{}"),
        ("/hashes.txt", "text/plain; charset=utf-8", "x"),
        ("/sub/blob", "application/octet-stream", "b"),
    ] {
        let reply = ask(host.addr(), "GET", path).await;
        assert_eq!((reply.status, &reply.bytes[..]), (200, content.as_bytes()), "{path}");
        assert_eq!(reply.headers["content-type"], kind);
        let head = ask(host.addr(), "HEAD", path).await;
        assert_eq!((head.status, head.bytes.len()), (200, 0));
        assert_eq!(head.headers["content-length"], content.len().to_string());
        assert_eq!(head.headers["content-type"], kind);
    }
    host.stop().await;
}

#[tokio::test]
async fn every_answer_is_strict() {
    let dir = site();
    let host = host(&dir).await;
    for (method, path, status) in
        [("GET", "/", 200), ("HEAD", "/app.js", 200), ("GET", "/none", 404), ("PUT", "/", 405)]
    {
        let reply = ask(host.addr(), method, path).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(
            reply.headers["content-security-policy"],
            "default-src 'none'; script-src 'sha256-x'; frame-ancestors 'none'",
            "what the page says of itself, and what only a header can say"
        );
        for (name, value) in [
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(reply.headers[name], value);
        }
        assert!(reply.headers["permissions-policy"].to_str().unwrap().contains("camera=()"));
        assert!(!reply.headers.contains_key("set-cookie"));
        assert_eq!(reply.headers.get("allow").is_some(), status == 405);
    }
}

#[tokio::test]
async fn a_page_that_says_nothing_of_itself_may_do_nothing() {
    let dir = site();
    std::fs::write(dir.path().join("dist/index.html"), "<title>page</title>").unwrap();
    let host = host(&dir).await;
    let reply = ask(host.addr(), "GET", "/").await;
    let policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    assert_eq!(reply.headers["content-security-policy"], policy);
}

#[tokio::test]
async fn nothing_beside_the_page_is_served() {
    let dir = site();
    let host = host(&dir).await;
    for path in [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/sub/%2e%2e/%2e%2e/secret.txt",
        "//secret.txt",
        "/.hidden",
        "/link.txt",
        "/sub/",
        "/sub",
        "/app.js/",
        "/APP.JS",
    ] {
        let reply = ask(host.addr(), "GET", path).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(!String::from_utf8_lossy(&reply.bytes).contains(CANARY));
    }
    // What a client library would tidy away first.
    let mut raw = tokio::net::TcpStream::connect(host.addr()).await.unwrap();
    raw.write_all(b"GET ../secret.txt HTTP/1.1\r\nhost: page\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 40") && !answer.contains(CANARY));
}

#[tokio::test]
async fn the_core_serves_the_page_at_an_origin_of_its_own() {
    let (dir, data) = (site(), tempfile::tempdir().unwrap());
    let dist = dir.path().join("dist");
    let program = Program::serve(data.path(), &["--page", dist.to_str().unwrap(), "--page-listen", "127.0.0.1:0"]);
    let url = program.line["page_url"].as_str().unwrap();
    let addr: SocketAddr = url.strip_prefix("http://").unwrap().trim_end_matches('/').parse().unwrap();
    assert_ne!(addr, program.addr());
    assert_eq!(ask(addr, "GET", "/").await.bytes, MARKUP);
    assert_eq!(ask(addr, "GET", "/v1/relay/jwks").await.status, 404);
    assert_eq!(ask(program.addr(), "GET", "/index.html").await.status, 404);
}

#[test]
fn the_page_is_served_without_a_core() {
    let dir = site();
    let mut child = Command::new(env!("CARGO_BIN_EXE_waystation-devcore"))
        .args(["page", "--listen", "127.0.0.1:0", "--page"])
        .arg(dir.path().join("dist"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let addr = line["page_url"].as_str().unwrap().strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(ask(addr.parse().unwrap(), "GET", "/")).bytes, MARKUP);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn the_page_comes_over_tls_when_the_core_does() {
    let dir = site();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("certificate.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let files = (certificate, key);
    let host = PageHost::start(&dir.path().join("dist"), ([127, 0, 0, 1], 0).into(), Some(&files)).await.unwrap();
    assert!(host.url().starts_with("https://127.0.0.1:"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(host.addr()).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: page\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).ends_with(MARKUP));
}
