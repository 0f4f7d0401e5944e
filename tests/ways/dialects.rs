//! tus and resumable uploads, alike on every version of HTTP.

use bytes::Bytes;
use http::{Method, Request};
use serde_json::Value;
use waystation_devcore::session::Session;
use waystation_proto::{Variant, dictionary, tus};
use waystation_tests::contact::{Contact, Eye};
use waystation_tests::http::Answer;
use waystation_tests::peer::{Way, bring};
use waystation_tests::wire::{Exchange, Http, Ws, ask};
use waystation_tests::{Chunk, Setup, World};

type Headers<'a> = &'a [(&'a str, &'a str)];

const VERSIONS: [u8; 4] = [3, 5, 6, 8];
const PART: (&str, &str) = ("content-type", "application/partial-upload");
const TUS_PART: (&str, &str) = ("content-type", "application/offset+octet-stream");

/// One who uploads: which dialect, over what, with whose capability.
struct Uploader<'a> {
    world: &'a World,
    http: Http,
    capability: String,
    /// A version of resumable uploads, or tus.
    version: Option<u8>,
}

impl<'a> Uploader<'a> {
    fn new(world: &'a World, http: Http, session: &Session, version: Option<u8>) -> Self {
        Self { world, http, capability: session.upload_capability.clone().unwrap(), version }
    }

    fn head(&self, method: &str, path: &str, more: Headers<'_>) -> Request<()> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "test")
            .header("authorization", format!("Bearer {}", self.capability));
        request = match self.version {
            Some(version) => request.header("upload-draft-interop-version", version.to_string()),
            None => request.header("tus-resumable", "1.0.0"),
        };
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    async fn ask(&self, method: &str, path: &str, more: Headers<'_>, body: impl Into<Bytes>) -> Answer {
        ask(self.world, self.http, self.head(method, path, more), body).await
    }

    /// The flag in this version's words.
    fn complete(&self, yes: bool) -> (&'static str, &'static str) {
        match (self.version, yes) {
            (Some(3), yes) => ("upload-incomplete", if yes { "?0" } else { "?1" }),
            (_, yes) => ("upload-complete", if yes { "?1" } else { "?0" }),
        }
    }

    /// Says what the chunk is, with the dialect's own headers.
    async fn create(&self, chunk: &Chunk, more: Headers<'_>, body: impl Into<Bytes>) -> Answer {
        let (length, metadata) = (chunk.offer.length.to_string(), tus::write_metadata(&chunk.offer));
        let (digest, offer) = (dictionary::write_digest(&chunk.offer.sha256), dictionary::write_offer(&chunk.offer));
        let mut all = match self.version {
            None => vec![("upload-length", &*length), ("upload-metadata", &*metadata)],
            Some(_) => vec![("repr-digest", &*digest), ("waystation-chunk", &*offer)],
        };
        all.extend(more);
        self.ask("POST", "/chunks", &all, body).await
    }

    async fn append(&self, path: &str, offset: u64, complete: Option<bool>, body: impl Into<Bytes>) -> Answer {
        self.append_with(path, offset, complete, &[], body).await
    }

    async fn append_with(
        &self,
        path: &str,
        offset: u64,
        complete: Option<bool>,
        more: Headers<'_>,
        body: impl Into<Bytes>,
    ) -> Answer {
        let offset = offset.to_string();
        let mut all = vec![("upload-offset", &*offset), if self.version.is_some() { PART } else { TUS_PART }];
        all.extend(complete.map(|complete| self.complete(complete)));
        all.extend(more);
        self.ask("PATCH", path, &all, body).await
    }

    async fn stands(&self, path: &str) -> Answer {
        self.ask("HEAD", path, &[], "").await
    }

    /// Whether an answer says so, in this version's words.
    fn is_complete(&self, answer: &Answer) -> bool {
        let (name, yes) = self.complete(true);
        answer.headers[name] == yes
    }
}

fn path(chunk: &Chunk) -> String {
    format!("/chunks/{}", chunk.chunk_ref())
}

fn offset(answer: &Answer) -> u64 {
    answer.headers["upload-offset"].to_str().unwrap().parse().unwrap()
}

fn chunk(session: &Session, index: u64, length: usize) -> Chunk {
    Chunk::sealed(session, Variant::LivePreview, index, length)
}

/// Every version of HTTP with every version of resumable uploads, and a chunk for each.
fn all(session: &Session) -> impl Iterator<Item = (Http, u8, Chunk)> {
    let pairs = Http::ALL.into_iter().flat_map(|http| VERSIONS.map(|version| (http, version)));
    pairs.zip(1..).map(|((http, version), index)| (http, version, chunk(session, index, 40_000)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_interop_version_is_answered_in_kind() {
    let world = World::new().await;
    let session = world.session().await;
    for (http, version, chunk) in all(&session) {
        let uploader = Uploader::new(&world, http, &session, Some(version));
        let (path, length) = (path(&chunk), chunk.offer.length);
        let what = format!("{http:?} {version}");
        let created = uploader.create(&chunk, &[uploader.complete(false)], "").await;
        assert_eq!((created.status.as_u16(), &created.headers["location"]), (201, &path.parse().unwrap()), "{what}");
        assert_eq!(offset(&created), 0);
        assert!(!uploader.is_complete(&created));
        let limited = created.headers.get("upload-limit").map(|limit| limit.to_str().unwrap().to_owned());
        let age = if version == 6 { "expires=" } else { "max-age=" };
        assert_eq!(limited.is_some_and(|limit| limit.contains("max-size=") && limit.contains(age)), version >= 6);

        let first = uploader.append(&path, 0, Some(false), chunk.bytes.slice(..10_000)).await;
        assert_eq!(first.status.as_u16(), if version == 8 { 204 } else { 201 }, "{what}");
        assert_eq!((offset(&first), uploader.is_complete(&first)), (10_000, false));
        let stands = uploader.stands(&path).await;
        assert_eq!((stands.status.as_u16(), offset(&stands), uploader.is_complete(&stands)), (204, 10_000, false));
        assert_eq!(stands.headers.get("upload-length").is_some(), version >= 6);
        assert_eq!(stands.headers["cache-control"], "no-store");

        let last = uploader.append(&path, 10_000, Some(true), chunk.bytes.slice(10_000..)).await;
        assert_eq!((last.status.as_u16(), offset(&last)), (201, length), "{what} {:?}", last.body);
        assert!(uploader.is_complete(&last));
        assert!(last.native().chunk.unwrap().receipt.is_some(), "what a PUT is answered");
        let stands = uploader.stands(&path).await;
        assert_eq!((offset(&stands), uploader.is_complete(&stands)), (length, true));
        for answer in [&created, &first, &stands, &last] {
            assert_eq!(answer.headers["upload-draft-interop-version"], version.to_string().as_str());
            assert!(answer.headers.contains_key("waystation-node"));
        }
    }
    assert_eq!(world.core.stats().await.stored_chunks, 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_creation_is_one_request_by_post_and_by_put() {
    let world = World::new().await;
    let session = world.session().await;
    for (http, version, chunk) in all(&session) {
        let uploader = Uploader::new(&world, http, &session, Some(version));
        let length = chunk.offer.length.to_string();
        let (digest, said) = (dictionary::write_digest(&chunk.offer.sha256), dictionary::write_offer(&chunk.offer));
        let headers = [
            ("repr-digest", &*digest),
            ("waystation-chunk", &said),
            ("content-length", &length),
            uploader.complete(true),
        ];
        let by_put = version % 2 == 0;
        let (method, path) = if by_put { ("PUT", path(&chunk)) } else { ("POST", "/chunks".into()) };
        let answer = uploader.ask(method, &path, &headers, chunk.bytes.clone()).await;
        assert_eq!(answer.status, 201, "{http:?} {version} {:?}", answer.body);
        assert!(uploader.is_complete(&answer) && answer.headers.contains_key("location"));
        // Once more: it is confirmed already, and nothing of the body is needed.
        let again = uploader.ask(method, &path, &headers, chunk.bytes.clone()).await;
        assert_eq!((again.status.as_u16(), uploader.is_complete(&again)), (200, true));
    }
    assert_eq!(world.core.stats().await.stored_chunks, 12);
    let wrong = Uploader::new(&world, Http::H2, &session, Some(8));
    let chunk = chunk(&session, 90, 100);
    let (digest, said) = (dictionary::write_digest(&chunk.offer.sha256), dictionary::write_offer(&chunk.offer));
    let headers = [("repr-digest", &*digest), ("waystation-chunk", &said), ("upload-complete", "?0")];
    let other = wrong.ask("PUT", "/chunks/AAAAAAAAAAAAAAAAAAAAAA", &headers, "").await;
    assert_eq!((other.status.as_u16(), other.code().as_str()), (400, "ref_mismatch"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_complete_before_the_core_confirmed_and_an_empty_patch_asks() {
    let world = World::new().await;
    let session = world.session().await;
    world.core.faults().set_away(true);
    let mut waiting = Vec::new();
    for (http, version, chunk) in all(&session) {
        let uploader = Uploader::new(&world, http, &session, Some(version));
        let (path, length) = (path(&chunk), chunk.offer.length);
        uploader.create(&chunk, &[uploader.complete(false)], chunk.bytes.slice(..5_000)).await;
        let brought =
            uploader.append_with(&path, 5_000, Some(true), &[("prefer", "wait=0")], chunk.bytes.slice(5_000..)).await;
        assert_eq!(brought.status, 503, "{http:?} {version} {:?}", brought.body);
        assert_eq!((offset(&brought), uploader.is_complete(&brought)), (length, false));
        assert!(brought.headers.contains_key("retry-after"));
        let stands = uploader.stands(&path).await;
        assert_eq!((offset(&stands), uploader.is_complete(&stands)), (length, false), "the full offset is said");
        // Stock clients of version 6 take offset = length for success.
        assert_eq!(stands.headers.get("upload-length").is_some(), version == 8);
        let asked = uploader.append_with(&path, length, Some(true), &[("prefer", "wait=0")], "").await;
        assert_eq!((asked.status.as_u16(), uploader.is_complete(&asked)), (503, false));
        let more = uploader.append(&path, length, Some(false), "").await;
        assert!(more.status.is_success() && !uploader.is_complete(&more), "received, and no more than that");
        waiting.push((uploader, path, length));
    }
    world.core.faults().set_away(false);
    for (uploader, path, length) in waiting {
        let asked = uploader.append(&path, length, Some(true), "").await;
        assert!(matches!(asked.status.as_u16(), 200 | 201), "{:?}", asked.body);
        assert_eq!((offset(&asked), uploader.is_complete(&asked)), (length, true));
        let again = uploader.append(&path, length, Some(true), "").await;
        assert_eq!((again.status.as_u16(), uploader.is_complete(&again)), (200, true), "a lost answer comes again");
        let more = uploader.append(&path, length, Some(false), "").await;
        assert_eq!((more.status.as_u16(), more.code().as_str()), (400, "upload_completed"));
        let problem: Value = serde_json::from_slice(&more.body).unwrap();
        let kind = problem["type"].as_str().unwrap_or_default();
        assert_eq!(kind.ends_with("#completed-upload"), uploader.version >= Some(6), "{problem}");
        let refused = uploader.append(&path, 0, Some(true), "x").await;
        assert_eq!((refused.status.as_u16(), offset(&refused)), (409, length));
    }
    assert_eq!(world.core.stats().await.stored_chunks, 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_do_not_fit_are_refused_and_change_nothing() {
    let world = World::new().await;
    let session = world.session().await;
    for (http, version, chunk) in all(&session) {
        let uploader = Uploader::new(&world, http, &session, Some(version));
        let (path, length) = (path(&chunk), chunk.offer.length);
        uploader.create(&chunk, &[uploader.complete(false)], chunk.bytes.slice(..9_000)).await;
        let ahead = uploader.append(&path, 9_001, Some(false), "x").await;
        assert_eq!((ahead.status.as_u16(), ahead.code().as_str()), (409, "offset_mismatch"), "{http:?} {version}");
        assert_eq!((offset(&ahead), uploader.is_complete(&ahead)), (9_000, false));
        if version >= 6 {
            assert_eq!(ahead.headers["content-type"], "application/problem+json");
            let problem: Value = serde_json::from_slice(&ahead.body).unwrap();
            assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#mismatching-upload-offset");
            assert_eq!((&problem["expected-offset"], &problem["provided-offset"]), (&9_000.into(), &9_001.into()));
        }
        for more in [&[][..], &[("upload-offset", "x")], &[("upload-offset", "-1")]] {
            let headers = [&[PART, uploader.complete(false)], more].concat();
            let none = uploader.ask("PATCH", &path, &headers, "x").await;
            assert_eq!((none.status.as_u16(), none.code().as_str()), (400, "bad_request"));
        }
        let (short, long) = (chunk.bytes.slice(9_000..10_000), [&chunk.bytes[9_000..], b"x"].concat());
        for (body, complete) in [(short.clone(), true), (long.clone().into(), true), (long.into(), false)] {
            let content = body.len().to_string();
            let wrong = uploader.append_with(&path, 9_000, Some(complete), &[("content-length", &content)], body).await;
            assert_eq!((wrong.status.as_u16(), wrong.code().as_str()), (400, "length_mismatch"));
        }
        if version >= 6 {
            let other = [("upload-offset", "9000"), ("content-type", "application/octet-stream")];
            let wrong = uploader.ask("PATCH", &path, &other, "x").await;
            assert_eq!((wrong.status.as_u16(), wrong.code().as_str()), (415, "unsupported_media_type"));
            assert!(wrong.headers["accept-patch"].to_str().unwrap().contains("application/partial-upload"));
            let said = (length + 1).to_string();
            let wrong = uploader.append_with(&path, 9_000, None, &[("upload-length", &said)], short.clone()).await;
            assert_eq!(wrong.code(), "length_mismatch");
        }
        if version != 8 {
            let asked = uploader.ask("HEAD", &path, &[uploader.complete(true)], "").await;
            assert_eq!(asked.status, 400);
        }
        assert_eq!(offset(&uploader.stands(&path).await), 9_000, "nothing of all this counted");
        // Without the flag the length decides.
        let part = uploader.append(&path, 9_000, None, short).await;
        assert_eq!((part.status.is_success(), uploader.is_complete(&part)), (true, false));
        let rest = uploader.append(&path, 10_000, None, chunk.bytes.slice(10_000..)).await;
        assert!(rest.status == 201 && uploader.is_complete(&rest), "{:?}", rest.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_ends_what_is_received_and_nothing_that_is_staged() {
    let world = World::new().await;
    let session = world.session().await;
    world.core.faults().set_away(true);
    for (http, version, chunk) in all(&session) {
        let uploader = Uploader::new(&world, http, &session, Some(version));
        let path = path(&chunk);
        uploader.create(&chunk, &[uploader.complete(false)], chunk.bytes.slice(..9_000)).await;
        assert_eq!(uploader.ask("DELETE", &path, &[], "").await.status, 204);
        assert_eq!(uploader.stands(&path).await.status, 404);
        assert_eq!(uploader.append(&path, 9_000, None, "x").await.code(), "not_found");
        uploader.create(&chunk, &[uploader.complete(false)], chunk.bytes.clone()).await;
        let kept = uploader.ask("DELETE", &path, &[], "").await;
        assert_eq!((kept.status.as_u16(), kept.code().as_str()), (409, "chunk_staged"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http3_says_104_before_the_body() {
    let world = World::new().await;
    let session = world.session().await;
    for (version, index) in VERSIONS.into_iter().zip(1..) {
        let uploader = Uploader::new(&world, Http::H3, &session, Some(version));
        let chunk = chunk(&session, index, 20_000);
        let (digest, said) = (dictionary::write_digest(&chunk.offer.sha256), dictionary::write_offer(&chunk.offer));
        let length = chunk.offer.length.to_string();
        let headers = [
            ("repr-digest", &*digest),
            ("waystation-chunk", &said),
            ("content-length", &length),
            uploader.complete(true),
        ];
        let mut exchange = Exchange::open(&world, Http::H3, uploader.head("POST", "/chunks", &headers)).await;
        let interim = exchange.interim().await.expect("no 104 came");
        assert_eq!(interim["location"], path(&chunk).as_str());
        assert_eq!(interim["upload-draft-interop-version"], version.to_string().as_str());
        exchange.send(chunk.bytes.clone()).await;
        assert_eq!(exchange.head().await.status, 201);
    }
    // Who does not name a version is told nothing of it.
    let chunk = chunk(&session, 9, 20_000);
    let plain = waystation_tests::http::put(&chunk, session.upload_capability.as_deref().unwrap(), 20)
        .header("content-length", chunk.offer.length)
        .body(())
        .unwrap();
    let mut exchange = Exchange::open(&world, Http::H3, plain).await;
    exchange.send(chunk.bytes.clone()).await;
    assert!(exchange.interim().await.is_none());
    assert_eq!(exchange.head().await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tus_uploads_in_parts_and_succeeds_with_the_core() {
    let world = World::new().await;
    let session = world.session().await;
    for (http, index) in Http::ALL.into_iter().zip(1..) {
        let uploader = Uploader::new(&world, http, &session, None);
        let chunk = chunk(&session, index, 40_000);
        let (path, length) = (path(&chunk), chunk.offer.length);
        let created = uploader.create(&chunk, &[], "").await;
        assert_eq!((created.status.as_u16(), &created.headers["location"]), (201, &path.parse().unwrap()), "{http:?}");
        assert!(created.headers["upload-expires"].to_str().unwrap().ends_with(" GMT"));
        let first = uploader.append(&path, 0, None, chunk.bytes.slice(..10_000)).await;
        assert_eq!((first.status.as_u16(), offset(&first)), (204, 10_000));
        assert!(first.headers.contains_key("upload-expires"));
        let stands = uploader.stands(&path).await;
        assert_eq!((stands.status.as_u16(), offset(&stands)), (200, 10_000));
        assert_eq!(stands.headers["upload-length"], length.to_string().as_str());
        for wrong in [0, 9_999, 10_001, length] {
            let refused = uploader.append(&path, wrong, None, "x").await;
            assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "offset_mismatch"));
        }
        // The method by its other name.
        let headers = [("x-http-method-override", "PATCH"), ("upload-offset", "10000"), TUS_PART];
        let second = uploader.ask("POST", &path, &headers, chunk.bytes.slice(10_000..20_000)).await;
        assert_eq!((second.status.as_u16(), offset(&second)), (204, 20_000), "{:?}", second.body);

        world.core.faults().set_away(true);
        let last =
            uploader.append_with(&path, 20_000, None, &[("prefer", "wait=0")], chunk.bytes.slice(20_000..)).await;
        assert_eq!(last.status, 503, "{:?}", last.body);
        let stands = uploader.stands(&path).await;
        assert_eq!(offset(&stands), length - 1);
        assert!(stands.headers["waystation-state"] == "staged" || stands.headers["waystation-state"] == "forwarding");
        let nothing = uploader.append(&path, length - 1, None, "").await;
        assert_eq!((nothing.status.as_u16(), offset(&nothing)), (204, length - 1));
        assert_eq!(uploader.append(&path, length, None, "").await.status, 409);
        let again = uploader
            .append_with(&path, length - 1, None, &[("prefer", "wait=0")], chunk.bytes.slice(length as usize - 1..))
            .await;
        assert_eq!(again.status, 503, "the last byte asks for the verdict");
        let long = uploader.append(&path, length - 1, None, "xy").await;
        assert_eq!(long.code(), "body_too_long");

        world.core.faults().set_away(false);
        let last = uploader.append(&path, length - 1, None, chunk.bytes.slice(length as usize - 1..)).await;
        assert_eq!((last.status.as_u16(), offset(&last)), (204, length), "{:?}", last.body);
        assert!(!last.headers.contains_key("upload-expires"));
        assert_eq!(offset(&uploader.stands(&path).await), length);
        for (at, body) in [(length, Bytes::new()), (length - 1, chunk.bytes.slice(length as usize - 1..))] {
            let again = uploader.append(&path, at, None, body).await;
            assert_eq!((again.status.as_u16(), offset(&again)), (204, length), "a lost answer comes again");
        }
        let kept = uploader.ask("DELETE", &path, &[], "").await;
        assert_eq!((kept.status.as_u16(), kept.code().as_str()), (405, "method_not_allowed"), "no termination");
        for answer in [&created, &first, &stands, &last, &kept, &long] {
            assert_eq!(answer.headers["tus-resumable"], "1.0.0");
        }
    }
    assert_eq!(world.core.stats().await.stored_chunks, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tus_creation_may_bring_bytes_and_never_says_more_than_the_core() {
    let world = World::new().await;
    let session = world.session().await;
    for (http, index) in Http::ALL.into_iter().zip((1..).step_by(3)) {
        let uploader = Uploader::new(&world, http, &session, None);
        let [part, whole, early] = [0, 1, 2].map(|more| chunk(&session, index + more, 20_000));
        let created = uploader.create(&part, &[TUS_PART], part.bytes.slice(..7_000)).await;
        assert_eq!((created.status.as_u16(), offset(&created)), (201, 7_000), "{:?}", created.body);
        let created = uploader.create(&whole, &[TUS_PART], whole.bytes.clone()).await;
        assert_eq!((created.status.as_u16(), offset(&created)), (201, whole.offer.length));
        world.core.faults().set_away(true);
        let created = uploader.create(&early, &[TUS_PART, ("prefer", "wait=0")], early.bytes.clone()).await;
        assert_eq!((created.status.as_u16(), offset(&created)), (201, early.offer.length - 1));
        // What was begun is gone on with, whoever asks to begin it again.
        let again = uploader.create(&part, &[], "").await;
        assert_eq!((again.status.as_u16(), offset(&again)), (201, 7_000));
        world.core.faults().set_away(false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_whose_checksum_is_wrong_leaves_nothing() {
    let world = World::new().await;
    let session = world.session().await;
    for (http, index) in Http::ALL.into_iter().zip(1..) {
        let uploader = Uploader::new(&world, http, &session, None);
        let chunk = chunk(&session, index, 20_000);
        let path = path(&chunk);
        uploader.create(&chunk, &[], "").await;
        let (first, rest) = (chunk.bytes.slice(..6_000), chunk.bytes.slice(6_000..));
        let wrong = uploader.append_with(&path, 0, None, &[("upload-checksum", &*sha1(&rest))], first.clone()).await;
        assert_eq!((wrong.status.as_u16(), wrong.code().as_str()), (460, "checksum_mismatch"), "{http:?}");
        assert_eq!((offset(&wrong), offset(&uploader.stands(&path).await)), (0, 0));
        let odd = uploader.append_with(&path, 0, None, &[("upload-checksum", "md5 AAAA")], first.clone()).await;
        assert_eq!((odd.status.as_u16(), odd.code().as_str()), (400, "unsupported_checksum"));
        let right = uploader.append_with(&path, 0, None, &[("upload-checksum", &*sha1(&first))], first).await;
        assert_eq!((right.status.as_u16(), offset(&right)), (204, 6_000));
        let long = [&rest[..], b"x"].concat();
        let longer =
            uploader.append_with(&path, 6_000, None, &[("upload-checksum", &*sha256(&long))], long.clone()).await;
        assert_eq!((longer.code().as_str(), offset(&longer)), ("body_too_long", 6_000));
        let last = uploader.append_with(&path, 6_000, None, &[("upload-checksum", &*sha256(&rest))], rest).await;
        assert_eq!((last.status.as_u16(), offset(&last)), (204, chunk.offer.length), "{:?}", last.body);
    }
}

fn sha1(bytes: &[u8]) -> String {
    checksum("sha1", aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref())
}

fn sha256(bytes: &[u8]) -> String {
    checksum("sha256", aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

fn checksum(name: &str, digest: &[u8]) -> String {
    use base64::Engine as _;
    format!("{name} {}", base64::engine::general_purpose::STANDARD.encode(digest))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_takes_over_from_a_half_dead_one_at_once() {
    // Nobody waits for the old connection to be found dead: that would take this long.
    let toml = "[limits]\nidle_timeout = \"10m\"".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session().await;
    for ((http, version), index) in
        Http::ALL.into_iter().flat_map(|http| [(http, None), (http, Some(6)), (http, Some(8))]).zip(1..)
    {
        let uploader = Uploader::new(&world, http, &session, version);
        let chunk = chunk(&session, index, 50_000);
        let path = path(&chunk);
        let part = if version.is_some() { PART } else { TUS_PART };
        uploader.create(&chunk, &[uploader.complete(false)], "").await;
        let headers = [("upload-offset", "0"), part, uploader.complete(false)];
        let mut dying = Exchange::open(&world, http, uploader.head("PATCH", &path, &headers)).await;
        dying.send(chunk.bytes.slice(..20_000)).await;
        until_held(&world, &chunk, &uploader.capability, 20_000).await;

        let stands = uploader.stands(&path).await;
        assert_eq!(offset(&stands), 20_000, "{http:?} {version:?}");
        // What the old connection still brings counts no more: the offset that was said stands.
        dying.send(chunk.bytes.slice(20_000..30_000)).await;
        dying.end().await;
        let told = dying.answer().await;
        assert_eq!(told.code(), "attempt_superseded", "{:?}", told.body);
        let mut second = Exchange::open(&world, http, {
            let headers = [("upload-offset", "20000"), part, uploader.complete(false)];
            uploader.head("PATCH", &path, &headers)
        })
        .await;
        second.send(chunk.bytes.slice(20_000..25_000)).await;
        until_held(&world, &chunk, &uploader.capability, 25_000).await;
        // Without a question before it, too.
        let rest = uploader.append(&path, 25_000, Some(true), chunk.bytes.slice(25_000..)).await;
        assert!(rest.status.is_success(), "{:?}", rest.body);
        assert_eq!(offset(&rest), chunk.offer.length);
    }
}

/// Waits for an offset by the native `HEAD`, which ends no attempt.
async fn until_held(world: &World, chunk: &Chunk, capability: &str, held: u64) {
    let waiting = async {
        loop {
            let answer = waystation_tests::http::ask(world.plain(), Method::HEAD, chunk, capability).await;
            if answer.status == 200 && offset(&answer) == held {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    waystation_tests::wire::soon("the offset", waiting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_outlives_the_relay_and_changes_its_dialect() {
    let mut world = World::new().await;
    let session = world.session().await;
    let speakers = [None, Some(3), Some(5), Some(6), Some(8)];
    let chunks: Vec<_> = (1..).take(speakers.len()).map(|index| chunk(&session, index, 30_000)).collect();
    for (version, chunk) in speakers.into_iter().zip(&chunks) {
        let uploader = Uploader::new(&world, Http::H2, &session, version);
        assert_eq!(uploader.create(chunk, &[uploader.complete(false)], "").await.status, 201);
    }
    world.restart_relay().await;
    for (version, chunk) in speakers.into_iter().zip(&chunks) {
        let uploader = Uploader::new(&world, Http::H2, &session, version);
        assert_eq!(offset(&uploader.stands(&path(chunk)).await), 0, "{version:?}: created, and no byte came");
        let part = uploader.append(&path(chunk), 0, Some(false), chunk.bytes.slice(..11_000)).await;
        assert!(part.status.is_success(), "{:?}", part.body);
    }
    world.restart_relay().await;
    // Each is gone on with in the next one's words.
    for (version, chunk) in speakers.into_iter().cycle().skip(1).zip(&chunks) {
        let uploader = Uploader::new(&world, Http::H3, &session, version);
        assert_eq!(offset(&uploader.stands(&path(chunk)).await), 11_000);
        let last = uploader.append(&path(chunk), 11_000, Some(true), chunk.bytes.slice(11_000..)).await;
        assert!(last.status.is_success(), "{:?}", last.body);
        assert_eq!(offset(&last), chunk.offer.length);
    }
    assert_eq!(world.core.stats().await.stored_chunks, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_own_an_upload_learns_nothing_of_it() {
    let world = World::new().await;
    let (session, other) = (world.session().await, world.session().await);
    for (http, index) in Http::ALL.into_iter().zip((1..).step_by(5)) {
        for (version, more) in [None, Some(3), Some(5), Some(6), Some(8)].into_iter().zip(0..) {
            let owner = Uploader::new(&world, http, &session, version);
            let stranger = Uploader::new(&world, http, &other, version);
            let chunk = chunk(&session, index + more, 5_000);
            let refused = stranger.create(&chunk, &[owner.complete(false)], "").await;
            assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "capability_wrong_binding"));
            for there in [false, true] {
                if there {
                    owner.create(&chunk, &[owner.complete(false)], chunk.bytes.slice(..100)).await;
                }
                let stands = stranger.stands(&path(&chunk)).await;
                assert_eq!(stands.status, 404, "{http:?} {version:?}");
                assert!(!stands.headers.contains_key("upload-offset"));
                for (method, body) in [("PATCH", "x"), ("DELETE", "")] {
                    let part = if version.is_some() { PART } else { TUS_PART };
                    let headers: &[_] = if method == "PATCH" { &[("upload-offset", "0"), part] } else { &[] };
                    let answer = stranger.ask(method, &path(&chunk), headers, body).await;
                    let wanted = if version.is_none() && method == "DELETE" { 405 } else { 404 };
                    assert_eq!(answer.status.as_u16(), wanted, "{method} {version:?} {:?}", answer.body);
                    assert!(answer.native().chunk.is_none());
                }
            }
            let kept = owner.stands(&path(&chunk)).await;
            let held = if version.is_none() { 0 } else { 100 };
            assert_eq!(offset(&kept), held, "a creation of tus without its media type brings no bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_are_not_spoken_here_are_told_so() {
    let world = World::new().await;
    let session = world.session().await;
    let chunk = chunk(&session, 1, 5_000);
    for http in Http::ALL {
        let mut uploader = Uploader::new(&world, http, &session, None);
        for (method, path) in [("POST", "/chunks"), ("PATCH", &path(&chunk)), ("HEAD", &path(&chunk))] {
            let mut request = uploader.head(method, path, &[]);
            request.headers_mut().insert("tus-resumable", "0.2.2".parse().unwrap());
            let answer = ask(&world, http, request, "").await;
            assert_eq!(answer.status, 412, "{method}");
            assert_eq!(
                (&answer.headers["tus-version"], &answer.headers["tus-resumable"]),
                (&"1.0.0".parse().unwrap(), &"1.0.0".parse().unwrap())
            );
        }
        uploader.version = Some(7);
        for (method, path) in [("POST", "/chunks"), ("PATCH", &path(&chunk))] {
            let answer = uploader.ask(method, path, &[], "").await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "unsupported_upload_version"));
        }
        let both = uploader.ask("POST", "/chunks", &[("tus-resumable", "1.0.0")], "").await;
        assert_eq!(both.code(), "unsupported_upload_version");
        let wrong = uploader.ask("GET", "/chunks", &[], "").await;
        assert_eq!((wrong.status.as_u16(), &wrong.headers["allow"]), (405, &"POST, OPTIONS".parse().unwrap()));
        // A URI with an authority has no place for the asterisk.
        let asked: &[&str] = if http == Http::H1 { &["/chunks", "*"] } else { &["/chunks"] };
        for path in asked {
            let options = uploader.ask("OPTIONS", path, &[], "").await;
            assert_eq!(options.status, 204);
            for (name, holds) in [
                ("tus-version", "1.0.0"),
                ("tus-extension", "creation-with-upload"),
                ("tus-checksum-algorithm", "sha1"),
                ("tus-max-size", ""),
                ("accept-patch", "application/partial-upload"),
                ("upload-limit", "max-size="),
            ] {
                assert!(options.headers[name].to_str().unwrap().contains(holds), "{path} {name}");
            }
        }
    }
    // A version that is unknown is no reason to refuse an upload that needs none of it.
    let brought = bring(&world, Way::Http(Http::H1), &chunk, session.upload_capability.as_deref().unwrap()).await;
    assert_eq!(brought.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_only_the_core_can_read_reaches_its_upload_after_a_restart_too() {
    let mut world = World::new().await;
    let (session, other) = (world.session().await, world.session().await);
    fn of<'a>(world: &'a World, session: &Session, version: Option<u8>) -> Uploader<'a> {
        let lane = session.streams.iter().find(|stream| stream.variant == Variant::AudioPriority).unwrap();
        let capability = lane.proofline.as_ref().unwrap().upload.clone();
        Uploader { capability, ..Uploader::new(world, Http::H1, session, version) }
    }
    for (version, index) in [None, Some(8)].into_iter().zip(1..) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        let path = path(&chunk);
        let owner = of(&world, &session, version);
        assert_eq!(owner.create(&chunk, &[owner.complete(false)], "").await.status, 201);
        let part = owner.append(&path, 0, Some(false), chunk.bytes.slice(..8_000)).await;
        assert_eq!(offset(&part), 8_000);
        world.restart_relay().await;

        let stranger = of(&world, &other, version);
        assert_eq!(stranger.stands(&path).await.status, 404);
        assert_eq!(stranger.append(&path, 8_000, Some(true), "x").await.status, 404);
        let mut forged = of(&world, &session, version);
        forged.capability.replace_range(forged.capability.len() - 8.., "AAAAAAAA");
        assert_eq!(forged.stands(&path).await.status, 404, "it claims the chunk and the core does not know it");
        let owner = of(&world, &session, version);
        assert_eq!(offset(&owner.stands(&path).await), 8_000);
        let rest = owner.append(&path, 8_000, Some(true), chunk.bytes.slice(8_000..)).await;
        assert_eq!((rest.status.is_success(), offset(&rest)), (true, chunk.offer.length), "{:?}", rest.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_sees_a_chunk_that_comes_in_parts_whole() {
    let world = World::new().await;
    let session = world.session().await;
    let fanout = session.fanout_capability.clone().unwrap();
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H1), &fanout).await;
    for (version, index) in [None, Some(6)].into_iter().zip(1..) {
        let uploader = Uploader::new(&world, Http::H2, &session, version);
        let chunk = chunk(&session, index, 30_000);
        let path = path(&chunk);
        uploader.create(&chunk, &[uploader.complete(false)], "").await;
        uploader.append(&path, 0, Some(false), chunk.bytes.slice(..12_000)).await;
        assert_eq!(offset(&uploader.stands(&path).await), 12_000);
        let begins = contact.begins().await;
        assert_eq!(begins.sha256, chunk.offer.sha256);
        let first = begins.handle;
        contact.until_so("its first part, while no more is here", |contact| contact.held(first) == 12_000).await;
        let rest = uploader.append(&path, 12_000, Some(true), chunk.bytes.slice(12_000..)).await;
        assert!(rest.status.is_success());
        contact.until_so("all of it", |contact| contact.held(first) == chunk.bytes.len()).await;
    }
}
