//! What is answered without admission, on every transport.

use http::{Method, StatusCode};

use super::harness::{ALL, Headers, Via, get, limits, request, start, start_with};

const CHUNK: &str = r#"incident="canary-incident", stream="canary-stream", index=1, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;
const DIGEST: &str = "sha-256=:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=:";
const REF: &str = "/chunks/AAAAAAAAAAAAAAAAAAAAAA";

#[tokio::test]
async fn health_is_the_contracts() {
    let relay = start(limits()).await;
    for via in ALL {
        let live = relay.ask(via, get("/health/live"), "").await;
        assert_eq!(live.status, 200);
        assert_eq!(live.json(), serde_json::json!({"service": "stream-ingress", "status": "ok"}));
        let ready = relay.ask(via, get("/health/ready?x=y"), "").await;
        assert_eq!(ready.status, 200);
        assert_eq!(
            ready.json(),
            serde_json::json!({
                "service": "stream-ingress", "status": "ready", "uploads": "ready", "core": "configured",
                "temp_staging": "ok", "relay_identity_configured": true, "region_configured": false,
            })
        );
        for answer in [live, ready] {
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
            assert_eq!(answer.headers["content-type"], "application/json");
            assert_eq!(answer.headers.contains_key("alt-svc"), matches!(via, Via::H1 | Via::H2), "{via:?}");
        }
    }
    relay.counted("waystation_requests_total{route=\"health_live\",status=\"2xx\",code=\"ok\"} 4").await;
    for transport in ["h1", "h2", "h3"] {
        assert!(relay.metrics.text().contains(&format!("waystation_connections{{transport=\"{transport}\"}}")));
    }
}

#[tokio::test]
async fn what_is_not_served_is_said_alike_everywhere() {
    let relay = start(limits()).await;
    for via in ALL {
        for path in
            ["/", "/index.html", "/metrics", "/v1/incidents", "/health/live/", "/chunks/", "/i/canary-token", "/watch/"]
        {
            let answer = relay.ask(via, get(path), "").await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "not_found"), "{via:?} {path}");
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert!(!String::from_utf8_lossy(&answer.body).contains("canary"));
        }
        for (method, path, allow) in [
            (Method::POST, "/health/live", "GET"),
            (Method::HEAD, "/health/ready", "GET"),
            (Method::GET, "/upload/complete-chunk", "POST"),
            (Method::OPTIONS, "/upload/complete-chunk", "POST"),
            (Method::PUT, "/fanout/subscribe", "GET"),
            (Method::POST, REF, "GET, HEAD, PUT, PATCH, DELETE, OPTIONS"),
            (Method::GET, "/chunks", "POST, OPTIONS"),
            (Method::PUT, "/watch", "GET, OPTIONS"),
        ] {
            let answer = relay.ask(via, request(method.clone(), path, &[]), "").await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{via:?} {method} {path}");
            assert_eq!(answer.headers["allow"], allow);
            if method != Method::HEAD {
                assert_eq!(answer.code(), "method_not_allowed");
            }
        }
    }
}

#[tokio::test]
async fn a_bad_offer_has_its_code_on_every_transport() {
    const BEARER: (&str, &str) = ("authorization", "Bearer canary-token");
    let relay = start(limits()).await;
    let cases: [(Headers, &str, u16); 7] = [
        (&[], "capability_missing", 401),
        (&[("authorization", "Basic x")], "capability_missing", 401),
        (&[BEARER], "invalid_chunk_header", 400),
        (&[BEARER, ("waystation-chunk", CHUNK)], "invalid_digest", 400),
        (&[BEARER, ("waystation-chunk", "x=("), ("repr-digest", DIGEST)], "invalid_chunk_header", 400),
        (&[BEARER, ("waystation-chunk", CHUNK), ("repr-digest", DIGEST)], "ref_mismatch", 400),
        (&[BEARER, ("waystation-chunk", CHUNK), ("repr-digest", DIGEST), ("upload-offset", "x")], "bad_request", 400),
    ];
    for via in ALL {
        for (headers, code, status) in cases {
            let mut all = headers.to_vec();
            // HTTP/3 clients do not add it by themselves.
            if via == Via::H3 {
                all.push(("content-length", "4"));
            }
            let answer = relay.ask(via, request(Method::PUT, REF, &all), "body").await;
            assert_eq!((answer.code().as_str(), answer.status.as_u16()), (code, status), "{via:?}");
            assert_eq!(answer.json()["error"]["retry"], if status == 401 { "renew" } else { "never" });
            assert_eq!(answer.headers["waystation-node"], "node-1");
            assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
            assert!(!String::from_utf8_lossy(&answer.body).contains("canary"));
        }
    }
    relay.counted("waystation_requests_total{route=\"chunk_put\",status=\"4xx\",code=\"ref_mismatch\"} 4").await;
}

#[tokio::test]
async fn an_answer_reaches_its_asker_before_and_after_a_long_body() {
    let relay = start(limits()).await;
    for via in ALL {
        let answer = relay.ask(via, request(Method::PUT, REF, &[]), vec![0; 4 << 20]).await;
        assert_eq!(answer.code(), "capability_missing", "{via:?}");
    }
    relay.counted("waystation_received_bytes_total{transport=\"h3\"}").await;
    // Past the cap the rest is refused, not read.
    let answer = relay.ask(Via::H3, request(Method::PUT, REF, &[]), vec![0; 12 << 20]).await;
    assert_eq!(answer.code(), "capability_missing");
    relay.counted("waystation_bodies_dropped_total{transport=\"h3\"} 1").await;
}

#[tokio::test]
async fn browsers_hear_what_their_page_may_do() {
    let relay = start(limits()).await;
    let page = [("origin", "https://page.example"), ("access-control-request-method", "PUT")];
    for via in ALL {
        let answer = relay.ask(via, request(Method::OPTIONS, REF, &page), "").await;
        assert_eq!(answer.status, 204);
        assert_eq!(answer.headers["access-control-allow-origin"], "https://page.example");
        assert!(answer.headers["access-control-allow-headers"].to_str().unwrap().contains("Waystation-Chunk"));
        assert_eq!(answer.headers["vary"], "Origin");
        // What a page's tus-js-client sends and reads.
        let creation = [page[0], ("access-control-request-method", "POST")];
        let answer = relay.ask(via, request(Method::OPTIONS, "/chunks", &creation), "").await;
        for (header, names) in [
            ("access-control-allow-methods", "POST PATCH HEAD"),
            ("access-control-allow-headers", "Tus-Resumable Upload-Length Upload-Metadata Upload-Offset Authorization"),
            ("access-control-expose-headers", "Location Tus-Resumable Upload-Offset Upload-Length Upload-Expires"),
        ] {
            let said = answer.headers[header].to_str().unwrap().to_owned();
            assert!(names.split(' ').all(|name| said.split(", ").any(|one| one == name)), "{header}: {said}");
        }
        let other = request(Method::OPTIONS, REF, &[("origin", "https://other.example")]);
        let answer = relay.ask(via, other, "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "origin_not_allowed"));
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        let put = request(Method::PUT, REF, &page[..1]);
        let exposed = relay.ask(via, put, "").await.headers["access-control-expose-headers"].clone();
        assert!(exposed.to_str().unwrap().contains("Waystation-Node"));
    }
    let health = relay.ask(Via::Plain, request(Method::GET, "/health/live", &page[..1]), "").await;
    assert!(!health.headers.contains_key("access-control-allow-origin"), "the drop-in routes never had it");
}

/// What the log says.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_log_nor_metrics_hold_what_was_sent() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter("off,waystation=trace").with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    // While there is one subscriber, an event that another test's thread meets first is switched off
    // for all threads, since that one has none. Beside a second all subscribers are asked.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let relay = start(limits()).await;
    let headers = [
        ("authorization", "Bearer canary-token"),
        ("waystation-chunk", CHUNK),
        ("repr-digest", DIGEST),
        ("upload-offset", "canary"),
        ("x-forwarded-for", "203.0.113.9"),
        ("content-type", "multipart/form-data; boundary=canary"),
        ("x-proofline-relay-session-id", "canary"),
    ];
    for via in ALL {
        for (method, path) in [
            (Method::PUT, "/chunks/canary?canary=1"),
            (Method::GET, "/i/canary"),
            (Method::POST, "/upload/complete-chunk"),
            (Method::GET, "/fanout/subscribe?canary"),
            (Method::POST, "/chunks?tus"),
            (Method::PATCH, "/chunks/canary?tus"),
            (Method::POST, "/chunks?ietf"),
            (Method::PATCH, "/chunks/canary?ietf"),
        ] {
            let mut headers = headers.to_vec();
            if path.ends_with("?tus") {
                headers.extend([
                    ("tus-resumable", "1.0.0"),
                    ("upload-metadata", "incident Y2FuYXJ5,canary"),
                    ("upload-length", "9"),
                ]);
            } else if path.ends_with("?ietf") {
                headers.extend([("upload-draft-interop-version", "8"), ("upload-complete", "canary")]);
            }
            let answer = relay.ask(via, request(method, path, &headers), "--canary\r\n\r\ncanary").await;
            assert!(answer.status.is_client_error());
            assert!(!String::from_utf8_lossy(&answer.body).contains("canary"));
            assert!(!format!("{:?}", answer.headers).contains("canary"));
        }
    }
    relay.counted("waystation_requests_total{route=\"subscribe\"").await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("route_class") && log.contains("chunk_put"), "{log}");
    for canary in ["canary", "127.0.0.1", "203.0.113.9"] {
        assert!(!log.contains(canary), "{log}");
        assert!(!relay.metrics.text().contains(canary));
    }
}

fn form(parts: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in parts {
        out.push_str(&format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"));
    }
    out + "--B--\r\n"
}

#[tokio::test]
async fn drop_in_forms_are_refused_in_the_contracts_words() {
    let relay = start_with(limits(), true, 1024).await;
    let kind = ("content-type", "multipart/form-data; boundary=B");
    let long = "x".repeat(65_537);
    let cases = [
        ("text/plain", form(&[]), "invalid_multipart"),
        (kind.1, "nothing".into(), "invalid_multipart"),
        (kind.1, form(&[("canary", "1")]), "unexpected_field"),
        (kind.1, form(&[("stream_id", "1"), ("stream_id", "1")]), "duplicate_field"),
        (kind.1, form(&[("stream_id", &long)]), "metadata_too_large"),
        (kind.1, form(&[("stream_id", "1")]), "missing_file"),
        (kind.1, form(&[("file", "x")]), "invalid_relay_request"),
        (kind.1, form(&[("stream_id", &"x".repeat(60_000))]).repeat(40).replace("--B--", "--B"), "invalid_multipart"),
    ];
    for via in ALL {
        for (kind, body, code) in &cases {
            let upload = request(Method::POST, "/upload/complete-chunk", &[("content-type", kind)]);
            let answer = relay.ask(via, upload, body.clone()).await;
            assert_eq!((answer.code().as_str(), answer.status.as_u16()), (*code, 400), "{via:?}");
            assert_eq!(answer.json()["error"].as_object().unwrap().len(), 2, "code and message, no more");
        }
        let answer = relay.ask(via, get("/fanout/subscribe"), "").await;
        assert_eq!((answer.code().as_str(), answer.status.as_u16()), ("invalid_relay_fanout_request", 400));
    }
    let bare = start_with(limits(), false, 1024).await;
    for (method, path) in [(Method::POST, "/upload/complete-chunk"), (Method::GET, "/fanout/subscribe")] {
        let answer = bare.ask(Via::Plain, request(method, path, &[]), "").await;
        assert_eq!((answer.code().as_str(), answer.status.as_u16()), ("relay_core_not_configured", 503));
        assert!(answer.headers.contains_key("retry-after"));
    }
}
