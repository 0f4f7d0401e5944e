use super::*;
use proptest::prelude::*;
use serde_json::json;

fn offer() -> Offer {
    let header = r#"incident="i", stream="s", index=7, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;
    crate::dictionary::parse_offer(header, crate::Digest([0xa5; 32]), Some(336)).unwrap()
}

fn asked(route: Route, offer: &Offer) -> Asked<'_> {
    match route {
        Route::Preflight => Asked::Preflight(offer),
        Route::FanoutAuthorize => Asked::FanoutAuthorize { incident: "i", stream: "s" },
        Route::Commit => Asked::Commit(offer),
    }
}

fn ask(route: Route, status: u16, retry_after: Option<&str>, body: &str) -> Outcome {
    read(asked(route, &offer()), Answer { status, retry_after, body: Some(body.as_bytes()) })
}

fn refused(route: Route, status: u16, code: &str) -> Outcome {
    ask(route, status, None, &json!({"error": {"code": code, "message": "m"}}).to_string())
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted => "accepted",
        Outcome::Confirmed(_) => "confirmed",
        Outcome::Refused(_) => "no",
        Outcome::Renew(_) => "renew",
        Outcome::Duplicate(_) => "reconcile",
        Outcome::Blocked(_) => "blocked",
        Outcome::Operator(_) => "operator",
        Outcome::Limited(_) => "limited",
        Outcome::Wait(_) => "wait",
        Outcome::Ambiguous(Doubt::Server(_)) => "ambiguous",
        Outcome::Ambiguous(Doubt::Foreign(_)) => "foreign",
        Outcome::Ambiguous(_) => "unreadable",
    }
}

/// Contract A.2, row by row: status, code, what it means.
const PREFLIGHT: &[(u16, &str, &str)] = &[
    (429, "rate_limited", "limited"),
    (503, "rate_limit_unavailable", "wait"),
    (503, "relay_service_auth_not_configured", "operator"),
    (401, "relay_service_auth_required", "operator"),
    (413, "request_too_large", "no"),
    (400, "invalid_json", "no"),
    (400, "invalid_relay_request", "no"),
    (400, "invalid_chunk_index", "no"),
    (400, "invalid_media_type", "no"),
    (400, "invalid_started_at", "no"),
    (400, "invalid_ended_at", "no"),
    (400, "invalid_time_range", "no"),
    (400, "invalid_byte_size", "no"),
    (400, "invalid_sha256_hex", "no"),
    (413, "upload_too_large", "no"),
    (503, "relay_capability_not_configured", "operator"),
    (401, "relay_capability_invalid", "no"),
    (401, "relay_capability_expired", "renew"),
    (403, "relay_capability_wrong_role", "no"),
    (403, "relay_capability_wrong_binding", "no"),
    (403, "relay_capability_limit_exceeded", "no"),
    (404, "incident_not_found", "no"),
    (409, "incident_deleting", "no"),
    (409, "incident_closed", "no"),
    (404, "stream_not_found", "no"),
    (409, "stream_not_open", "no"),
    (400, "stream_media_type_mismatch", "no"),
    (507, "account_storage_quota_exceeded", "blocked"),
    (409, "duplicate_chunk", "reconcile"),
    (500, "internal_error", "ambiguous"),
];

/// Contract A.3: the rows that preflight has not.
const COMMIT: &[(u16, &str, &str)] = &[
    (400, "invalid_multipart", "no"),
    (507, "upload_staging_quota_exceeded", "wait"),
    (400, "invalid_field", "no"),
    (400, "duplicate_file", "no"),
    (400, "missing_file", "no"),
    (400, "byte_size_mismatch", "no"),
    (400, "hash_mismatch", "no"),
    (400, "invalid_envelope", "no"),
    (409, "upload_in_progress", "wait"),
    (503, "upload_coordination_unavailable", "wait"),
];

/// Contract A.4: the rows that preflight has not.
const FANOUT: &[(u16, &str, &str)] = &[(400, "invalid_relay_fanout_request", "no")];

#[test]
fn every_row_of_the_contract_has_its_class() {
    for (route, rows) in [
        (Route::Preflight, PREFLIGHT),
        (Route::Commit, PREFLIGHT),
        (Route::Commit, COMMIT),
        (Route::FanoutAuthorize, PREFLIGHT),
        (Route::FanoutAuthorize, FANOUT),
    ] {
        for (status, code, class) in rows {
            let outcome = refused(route, *status, code);
            // The bytes of a commit are staged: what the core holds against their capability leaves
            // them waiting for another one.
            let of_token = matches!(*status, 401 | 403) && code.starts_with("relay_capability_");
            let class = if of_token && route == Route::Commit { "renew" } else { class };
            assert_eq!(kind(&outcome), class, "{route} {status} {code}");
            let refusal = outcome.refusal().unwrap();
            assert_eq!(refusal.code.as_deref(), Some(*code));
            assert_eq!(refusal.status, mapped_status(*status));
        }
    }
}

#[test]
fn a_code_counts_only_with_its_status() {
    assert_eq!(kind(&refused(Route::Commit, 400, "relay_capability_expired")), "no");
    assert_eq!(kind(&refused(Route::Commit, 500, "duplicate_chunk")), "ambiguous");
    assert_eq!(kind(&refused(Route::Commit, 507, "something_new")), "ambiguous");
    assert_eq!(kind(&refused(Route::Commit, 429, "something_new")), "limited");
}

#[test]
fn a_revoked_capability_is_not_held_against_the_chunk() {
    assert_eq!(kind(&refused(Route::Commit, 403, "relay_capability_revoked")), "renew");
    assert_eq!(kind(&refused(Route::Commit, 403, "relay_capability_signature_invalid")), "renew");
    assert_eq!(kind(&refused(Route::Commit, 401, "odd")), "no");
}

#[test]
fn a_wrong_base_url_is_not_held_against_the_chunk() {
    assert_eq!(kind(&refused(Route::Commit, 404, "not_found")), "operator");
    assert_eq!(kind(&refused(Route::Commit, 405, "method_not_allowed")), "operator");
}

#[test]
fn what_is_not_in_the_cores_form_rejects_nothing() {
    for status in [300, 301, 307, 308, 400, 403, 404, 408, 413, 431] {
        for body in ["", "<html>", "{}", "[]", r#"{"error":"text"}"#, r#"{"error":{"code":7}}"#] {
            assert_eq!(kind(&ask(Route::Commit, status, None, body)), "foreign", "{status} {body}");
        }
    }
    assert_eq!(kind(&refused(Route::Commit, 301, "moved")), "foreign");
    assert_eq!(kind(&ask(Route::Commit, 502, None, "<html>")), "ambiguous");
    let long = read(Asked::Commit(&offer()), Answer { status: 403, retry_after: None, body: None });
    assert_eq!(kind(&long), "foreign");
}

#[test]
fn an_unsafe_code_is_not_passed_on() {
    for code in ["", "Has_Upper", "has space", "a/b", &"a".repeat(65)] {
        let outcome = refused(Route::Commit, 400, code);
        assert_eq!(kind(&outcome), "no");
        assert_eq!(outcome.refusal().unwrap().code, None, "{code}");
    }
}

#[test]
fn statuses_are_mapped_as_the_existing_relay_maps_them() {
    for status in [400, 401, 403, 404, 409, 413, 429, 507] {
        assert_eq!(mapped_status(status), status);
    }
    for status in [500, 501, 502, 503, 504, 599] {
        assert_eq!(mapped_status(status), 503);
    }
    for status in [100, 301, 402, 405, 408, 410, 418, 422, 451] {
        assert_eq!(mapped_status(status), 502);
    }
}

#[test]
fn retry_after_is_whole_seconds_in_bounds() {
    for (text, seconds) in [
        ("60", Some(60)),
        (" 7\t", Some(7)),
        ("0", Some(1)),
        ("3600", Some(3600)),
        ("3601", Some(3600)),
        ("99999999999999999999999", Some(3600)),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1, 2", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ] {
        assert_eq!(parse_retry_after(text), seconds, "{text}");
        let limited = ask(Route::Commit, 429, Some(text), r#"{"error":{"code":"rate_limited","message":""}}"#);
        assert_eq!(limited.refusal().unwrap().retry_after_s, seconds);
    }
}

fn committed() -> Value {
    json!({"relay_commit": {
        "status": "committed", "chunk_id": "chk_1", "incident_id": "i", "stream_id": "s", "chunk_index": 7,
        "media_type": "audio", "byte_size": 336, "sha256_hex": "a5".repeat(32), "created_at": "2026-06-10T12:00:03Z",
    }})
}

#[test]
fn a_commit_is_confirmed_by_200_and_201_alone() {
    for status in [200, 201] {
        match ask(Route::Commit, status, None, &committed().to_string()) {
            Outcome::Confirmed(confirmed) => {
                assert_eq!((confirmed.status, confirmed.receipt), (status, None));
                assert_eq!(Value::Object(confirmed.relay_commit), committed()["relay_commit"]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(kind(&ask(Route::Commit, status, None, "{}")), "confirmed");
    }
    for status in [202, 203, 204, 206, 299] {
        assert_eq!(kind(&ask(Route::Commit, status, None, &committed().to_string())), "unreadable");
    }
}

#[test]
fn a_receipt_and_nothing_unknown_is_passed_on() {
    let mut body = committed();
    body["relay_commit"]["receipt"] = "a.b.c".into();
    body["relay_commit"]["stored_path"] = "/somewhere".into();
    let Outcome::Confirmed(confirmed) = ask(Route::Commit, 201, None, &body.to_string()) else { panic!() };
    assert_eq!(confirmed.receipt.as_deref(), Some("a.b.c"));
    assert_eq!(Value::Object(confirmed.relay_commit), committed()["relay_commit"]);
    body["relay_commit"]["receipt"] = "x".repeat(MAX_RECEIPT_BYTES + 1).into();
    let Outcome::Confirmed(confirmed) = ask(Route::Commit, 201, None, &body.to_string()) else { panic!() };
    assert_eq!(confirmed.receipt, None);
}

#[test]
fn a_success_that_speaks_of_something_else_confirms_nothing() {
    for (name, value) in [
        ("incident_id", json!("j")),
        ("stream_id", json!("t")),
        ("chunk_index", json!(8)),
        ("chunk_index", json!("7")),
        ("media_type", json!("video")),
        ("byte_size", json!(335)),
        ("sha256_hex", json!("A5".repeat(32))),
        ("sha256_hex", json!(null)),
    ] {
        let mut body = committed();
        body["relay_commit"][name] = value;
        let outcome = ask(Route::Commit, 201, None, &body.to_string());
        assert_eq!(outcome, Outcome::Ambiguous(Doubt::Unreadable), "{name}");
        assert!(outcome.may_have_stored());
    }
    for body in [r#"{"error":{}}"#, r#"{"status":{}}"#] {
        assert_eq!(kind(&ask(Route::Commit, 200, None, body)), "unreadable", "{body}");
    }
    for body in ["", "null", "[]", "7", "<html>", r#"{"relay_commit":1}"#, r#"{"relay_commit":{}} x"#, r#"{"a":1}"#] {
        assert_eq!(kind(&ask(Route::Commit, 201, None, body)), "unreadable", "{body}");
    }
}

#[test]
fn preflight_and_authorisation_are_200_exactly() {
    let preflight = json!({"relay_preflight": {"status": "accepted", "incident_id": "i", "stream_id": "s",
        "chunk_index": 7, "media_type": "audio", "max_chunk_bytes": 1024, "max_chunks": 64}})
    .to_string();
    assert_eq!(ask(Route::Preflight, 200, None, &preflight), Outcome::Accepted);
    assert_eq!(kind(&ask(Route::Preflight, 201, None, &preflight)), "unreadable");
    assert_eq!(kind(&ask(Route::Preflight, 200, None, &preflight.replace("\"s\"", "\"t\""))), "unreadable");
    assert_eq!(kind(&ask(Route::Preflight, 200, None, "{}")), "unreadable");
    let fanout = json!({"relay_fanout": {"status": "authorized", "incident_id": "i", "stream_id": "s"}}).to_string();
    assert_eq!(ask(Route::FanoutAuthorize, 200, None, &fanout), Outcome::Accepted);
    assert_eq!(kind(&ask(Route::FanoutAuthorize, 200, None, &fanout.replace("\"i\"", "\"j\""))), "unreadable");
    assert_eq!(kind(&ask(Route::FanoutAuthorize, 200, None, &preflight)), "unreadable");
}

#[test]
fn doubts_say_what_may_be_stored_and_who_is_away() {
    let refusal = |code: Option<&str>| Refusal { status: 503, code: code.map(Into::into), retry_after_s: None };
    for (doubt, stored, away) in [
        (Doubt::NotSent, false, true),
        (Doubt::Source, false, false),
        (Doubt::Lost, true, true),
        (Doubt::Server(refusal(None)), true, true),
        (Doubt::Server(refusal(Some("internal_error"))), true, false),
        (Doubt::Foreign(refusal(None)), true, false),
        (Doubt::Unreadable, true, false),
    ] {
        let outcome = Outcome::Ambiguous(doubt);
        assert_eq!((outcome.may_have_stored(), outcome.away()), (stored, away), "{outcome:?}");
    }
    assert!(!refused(Route::Commit, 409, "duplicate_chunk").may_have_stored());
}

proptest! {
    #[test]
    fn only_200_and_201_ever_confirm(status in 100u16..600, body in ".{0,200}", good: bool) {
        let body = if good { committed().to_string() } else { body };
        let outcome = ask(Route::Commit, status, None, &body);
        let confirms = matches!(outcome, Outcome::Confirmed(_) | Outcome::Accepted);
        prop_assert!(!confirms || status == 200 || status == 201);
    }
}
