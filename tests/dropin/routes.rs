//! B.1 and B.2: which routes there are, and health.

use http::{Method, Request};
use http_body_util::Full;
use serde_json::json;

use crate::form::dressed;
use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_every_other_path_is_404_and_every_other_method_405() {
    let world = World::new().await;
    for path in [
        "/",
        "/health/live/",
        "/health/ready/",
        "/v1",
        "/v1/",
        "/v1/health/live",
        "/v1/incidents",
        "/v1/admin/accounts",
        "/v1/relay/preflight",
        "/v1/relay/commit",
        "/admin",
        "/admin/",
        "/admin/api/accounts",
        "/i/viewer-token",
        "/e/viewer-token",
        "/bundle",
        "/download",
        "/delete",
        "/retention",
        "/backup",
        "/restore",
        "/escrow",
        "/break-glass",
        "/decrypt",
        "/raw-key",
        "/operator",
        "/metrics",
        "/readyz",
        "/livez",
        "/status",
        "/upload/complete-chunk/",
        "/fanout/subscribe/",
        "/fanout",
        "/upload",
        "//upload/complete-chunk",
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS] {
            let request = dressed(Request::builder().method(method).uri(path)).body(Full::default()).unwrap();
            let answer = world.send(request).await;
            assert_eq!((answer.status.as_u16(), answer.code()), (404, "not_found".into()), "{path}");
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
    }
    for (path, allow) in [
        ("/health/live", "GET"),
        ("/health/ready", "GET"),
        ("/upload/complete-chunk", "POST"),
        ("/fanout/subscribe", "GET"),
    ] {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            if method.as_str() == allow {
                continue;
            }
            let request = dressed(Request::builder().method(method).uri(path))
                .header("origin", "https://page.example")
                .header("access-control-request-method", "POST");
            let answer = world.send(request.body(Full::default()).unwrap()).await;
            assert_eq!((answer.status.as_u16(), answer.code()), (405, "method_not_allowed".into()), "{path}");
            assert_eq!(answer.headers["allow"], allow);
            // The existing relay has no CORS here, whatever the native routes allow.
            assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control")));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b2_health_is_words_and_booleans() {
    let world = World::new().await;
    let live = world.get("/health/live").await;
    let body: serde_json::Value = serde_json::from_slice(&live.body).unwrap();
    assert_eq!((live.status.as_u16(), body), (200, json!({"service": "stream-ingress", "status": "ok"})));
    let ready = world.get("/health/ready").await;
    let body: serde_json::Value = serde_json::from_slice(&ready.body).unwrap();
    let expected = json!({"service": "stream-ingress", "status": "ready", "uploads": "ready", "core": "configured",
        "temp_staging": "ok", "relay_identity_configured": true, "region_configured": true});
    assert_eq!((ready.status.as_u16(), body), (200, expected));
}
