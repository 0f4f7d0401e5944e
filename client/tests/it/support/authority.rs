//! An authority that mints what clients read, and signs receipts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use waystation_client::ClientKey;
use waystation_client::authority::{Answer, Authority, AuthorityError, Ids, Reconciled};
use waystation_client::receipt::Jwks;
use waystation_client::token::Token;
use waystation_proto::Offer;
use waystation_proto::id::{GroupId, StreamId};
use waystation_proto::receipt::RECEIPT_TYP;
use waystation_proto::{Media, Variant};

pub struct TestAuthority {
    pub ttl_s: i64,
    pub max_chunks: u64,
    pub away: AtomicBool,
    /// It refuses further streams.
    pub refuses: AtomicBool,
    /// Its keys alone can't be had.
    pub keys_away: AtomicBool,
    pub key_id: Mutex<String>,
    /// What it has of a chunk; none: there is nobody to ask.
    pub has: Mutex<Option<Reconciled>>,
    pub reconciled: AtomicU64,
    streams: AtomicU64,
    minted: AtomicU64,
    /// Names that a session brought along.
    pub asked: Mutex<Vec<Option<Ids>>>,
    /// Streams in the order they were given, with the one each follows.
    pub given: Mutex<Vec<(String, Option<String>)>>,
}

impl TestAuthority {
    pub fn new(ttl_s: i64, max_chunks: u64) -> Self {
        Self {
            ttl_s,
            max_chunks,
            away: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            keys_away: AtomicBool::new(false),
            key_id: Mutex::new("k1".into()),
            has: Mutex::default(),
            reconciled: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            minted: AtomicU64::new(0),
            asked: Mutex::default(),
            given: Mutex::default(),
        }
    }

    pub fn minted(&self) -> u64 {
        self.minted.load(Ordering::SeqCst)
    }

    fn here(&self) -> Result<(), AuthorityError> {
        if self.away.load(Ordering::SeqCst) { Err(AuthorityError::Away) } else { Ok(()) }
    }

    fn mint(&self, use_: &str, streams: &[StreamId]) -> Token {
        let number = self.minted.fetch_add(1, Ordering::SeqCst);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let lane = |stream: &StreamId| {
            serde_json::json!({"stream": stream, "variant": "audio_priority", "media": "audio",
                "max_chunk_bytes": 1 << 24, "max_chunks": self.max_chunks})
        };
        let lanes: Vec<_> = streams.iter().map(lane).collect();
        let claims = serde_json::json!({"iss": "core", "aud": "relay", "iat": now, "exp": now + self.ttl_s,
            "jti": format!("j{number}"), "sid": "sid", "use": use_, "incident": "incident_1", "group": "group_1",
            "lanes": lanes});
        Token::parse(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))).unwrap()
    }
}

impl Authority for TestAuthority {
    fn ids(&self, kept: Option<Ids>) -> Answer<'_, Ids> {
        Box::pin(async move {
            self.here()?;
            let made = Ids { incident: super::incident(), group: GroupId::new("group_1").unwrap(), sid: None };
            self.asked.lock().unwrap().push(kept.clone());
            Ok(kept.unwrap_or(made))
        })
    }

    fn next_stream(&self, _: Variant, _: Media, follows: Option<StreamId>) -> Answer<'_, StreamId> {
        Box::pin(async move {
            self.here()?;
            if self.refuses.load(Ordering::SeqCst) {
                return Err(AuthorityError::Refused("account_closed".into()));
            }
            let id = format!("stream_{}", self.streams.fetch_add(1, Ordering::SeqCst));
            self.given.lock().unwrap().push((id.clone(), follows.map(|stream| stream.as_str().into())));
            Ok(StreamId::new(&id).unwrap())
        })
    }

    fn upload_capability(&self, streams: Vec<StreamId>) -> Answer<'_, Vec<Token>> {
        Box::pin(async move {
            self.here()?;
            Ok(vec![self.mint("upload", &streams)])
        })
    }

    fn fanout_capability(&self) -> Answer<'_, Token> {
        Box::pin(async move {
            self.here()?;
            Ok(self.mint("fanout", &[]))
        })
    }

    fn reconcile(&self, _: Offer) -> Answer<'_, Reconciled> {
        Box::pin(async move {
            self.reconciled.fetch_add(1, Ordering::SeqCst);
            Ok(self.has.lock().unwrap().clone().unwrap_or(Reconciled::Untold))
        })
    }

    fn jwks(&self) -> Answer<'_, Option<Jwks>> {
        Box::pin(async move {
            if self.keys_away.load(Ordering::SeqCst) {
                return Err(AuthorityError::Away);
            }
            let mut jwk = core_key().jwk().unwrap();
            jwk.kid = Some(self.key_id.lock().unwrap().clone());
            Ok(Jwks::parse(serde_json::json!({"keys": [jwk]}).to_string().as_bytes()))
        })
    }
}

fn core_key() -> ClientKey {
    ClientKey::from_seed(&[7; 32]).unwrap()
}

/// What a core would sign for a chunk that it stored.
pub fn receipt(offer: &Offer, key_id: &str) -> String {
    let header = serde_json::json!({"typ": RECEIPT_TYP, "alg": "Ed25519", "kid": key_id});
    let payload = serde_json::json!({"iss": "core", "iat": 1, "incident": offer.incident, "stream": offer.stream,
        "index": offer.index, "length": offer.length, "sha256": offer.sha256});
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&payload));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(core_key().sign(signed.as_bytes()).unwrap()))
}
