//! The subscription's task: connects, comes back, renews, and hands events on. The core is asked
//! beside it: a core that is slow or away never holds up what arrives.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use waystation_proto::message::StartWord;
use waystation_proto::{Code, Retry};

use super::assembly::Assembly;
use super::source::{Presented, Source, Wish};
use super::{Config, Event};
use crate::authority::{self, Authority, AuthorityError};
use crate::clock;
use crate::connect::ConnectError;
use crate::receipt::Jwks;
use crate::token::Token;

/// Delays before tries to connect: at once, then these, then every second.
const RECONNECT_MS: [u64; 4] = [0, 250, 500, 1000];
/// A connection that lasted this long was a good one.
const STEADY: Duration = Duration::from_secs(3);
/// Pause after the authority gave nothing.
const AUTHORITY_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a renewal that brought nothing while the old capability is good.
const RENEWAL_PAUSE_MS: i64 = 2000;
/// The core's keys are fetched again at most this often.
const KEYS_PAUSE_MS: i64 = 30_000;

/// How a connection ended.
enum Ended {
    /// For good.
    Over,
    /// To be made again after this time.
    Again { after: Duration, code: Option<String> },
    /// To be made again with a new capability.
    Renew,
    /// To be made again with the capability that just came: this transport can't be given one.
    Reopen,
    /// Nobody takes the events any more.
    Gone,
}

/// What the authority answered.
enum Told {
    Token(Result<Token, AuthorityError>),
    Keys(Option<Jwks>),
}

struct Task {
    config: Config,
    authority: Arc<dyn Authority>,
    events: mpsc::Sender<Event>,
    assembly: Assembly,
    token: Option<Token>,
    had_token: bool,
    cursor: Option<String>,
    watched: bool,
    failures: usize,
    opened_at: Instant,
    /// Answers that are awaited: at most one of each kind.
    asked: JoinSet<Told>,
    asking_token: bool,
    renew_not_before_ms: i64,
    /// The core's keys are awaited.
    keys_asked: bool,
    keys_not_before_ms: i64,
}

pub(super) async fn run(config: Config, authority: Arc<dyn Authority>, events: mpsc::Sender<Event>) {
    let assembly = Assembly::new(config.group_key.clone(), config.incident.clone(), config.max_chunk);
    let mut task = Task {
        config,
        authority,
        events,
        assembly,
        token: None,
        had_token: false,
        cursor: None,
        watched: false,
        failures: 0,
        opened_at: Instant::now(),
        asked: JoinSet::new(),
        asking_token: false,
        renew_not_before_ms: i64::MIN,
        keys_asked: false,
        keys_not_before_ms: i64::MIN,
    };
    task.fetch_keys(Duration::ZERO);
    while task.round().await {}
}

impl Task {
    /// One capability and one connection; false when it is over.
    async fn round(&mut self) -> bool {
        if !self.have_token().await {
            return false;
        }
        self.opened_at = Instant::now();
        let ended = match self.open().await {
            Ok(source) => self.follow(source).await,
            Err(ConnectError::Refused { code, retry_after_s }) => self.refused(code, retry_after_s).await,
            Err(ConnectError::Unreachable) => Ended::Again { after: self.pause(), code: None },
            Err(other) => Ended::Again { after: self.pause(), code: Some(other.to_string()) },
        };
        self.assembly.disconnected();
        match ended {
            Ended::Over | Ended::Gone => false,
            Ended::Reopen => true,
            Ended::Renew => {
                self.token = None;
                let after = self.pause();
                self.rest(after).await
            }
            Ended::Again { after, code } => self.emit(Event::Disconnected { code }).await && self.rest(after).await,
        }
    }

    async fn emit(&self, event: Event) -> bool {
        self.events.send(event).await.is_ok()
    }

    async fn rest(&self, after: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(after) => true,
            () = self.events.closed() => false,
        }
    }

    /// The pause before the next try; longer while tries keep failing soon.
    fn pause(&mut self) -> Duration {
        if self.opened_at.elapsed() > STEADY {
            self.failures = 0;
        }
        let pause = RECONNECT_MS[self.failures.min(RECONNECT_MS.len() - 1)];
        self.failures += 1;
        Duration::from_millis(pause)
    }

    // === authority ===

    fn ask_for_token(&mut self) {
        if !self.asking_token {
            self.asking_token = true;
            let authority = Arc::clone(&self.authority);
            self.asked.spawn(async move { Told::Token(authority.fanout_capability().await) });
        }
    }

    fn fetch_keys(&mut self, after: Duration) {
        self.keys_asked = true;
        let authority = Arc::clone(&self.authority);
        self.asked.spawn(async move { Told::Keys(authority::keys(authority, after).await) });
    }

    /// A receipt named an unknown key: a core that changed its key is asked, but a relay that
    /// makes up keys can't make a storm of it.
    fn fetch_keys_again(&mut self) {
        if !self.keys_asked {
            let now_ms = clock::unix_ms();
            let at = self.keys_not_before_ms.max(now_ms);
            self.keys_not_before_ms = at + KEYS_PAUSE_MS;
            self.fetch_keys(Duration::from_millis(at.abs_diff(now_ms)));
        }
    }

    /// Waits for a capability that is not expired; false if there will be none.
    async fn have_token(&mut self) -> bool {
        while self.token.as_ref().is_none_or(|token| token.expired(clock::unix_ms())) {
            self.ask_for_token();
            let told = tokio::select! {
                Some(Ok(told)) = self.asked.join_next() => told,
                () = self.events.closed() => return false,
            };
            match told {
                // A contact may have been let go: it is told, and asks again if it likes.
                Told::Token(Err(AuthorityError::Refused(why) | AuthorityError::NotNow(why))) => {
                    self.emit(Event::Ending { reason: why }).await;
                    return false;
                }
                Told::Token(Err(AuthorityError::Away)) => {
                    self.asking_token = false;
                    if !self.rest(AUTHORITY_PAUSE).await {
                        return false;
                    }
                }
                told => {
                    self.told(told, None).await;
                }
            }
        }
        true
    }

    /// Takes an answer of the authority. Some: the connection is to be made again.
    async fn told(&mut self, told: Told, source: Option<&mut Source>) -> Option<Ended> {
        match told {
            Told::Keys(keys) => {
                self.keys_asked = false;
                for event in self.assembly.set_keys(keys) {
                    if !self.emit(event).await {
                        return Some(Ended::Gone);
                    }
                }
                None
            }
            Told::Token(Ok(token)) => {
                self.asking_token = false;
                // One that brings no new life would be asked for again at once.
                let fresh = self.token.as_ref().is_none_or(|old| token.expires > old.expires);
                self.renew_not_before_ms = if fresh { i64::MIN } else { clock::unix_ms() + RENEWAL_PAUSE_MS };
                self.use_token(token, source.filter(|_| fresh)).await
            }
            Told::Token(Err(_)) => {
                self.asking_token = false;
                self.renew_not_before_ms = clock::unix_ms() + RENEWAL_PAUSE_MS;
                None
            }
        }
    }

    async fn use_token(&mut self, token: Token, source: Option<&mut Source>) -> Option<Ended> {
        let renewed = source.is_some() || (self.had_token && self.token.is_none());
        let ended = match source {
            Some(source) => match source.renew(&token).await {
                Presented::Taken => None,
                Presented::Never => Some(Ended::Reopen),
                Presented::Broken => Some(Ended::Again { after: Duration::ZERO, code: None }),
            },
            None => None,
        };
        (self.token, self.had_token) = (Some(token), true);
        if renewed && !self.emit(Event::Renewed).await {
            return Some(Ended::Gone);
        }
        ended
    }

    // === connection ===

    async fn open(&self) -> Result<Source, ConnectError> {
        let Some(token) = &self.token else { return Err(ConnectError::Unreachable) };
        // Without a cursor a second try asks for the whole window: what was seen is told apart.
        let from = if self.watched { StartWord::Oldest } else { self.config.from };
        let (incident, lanes, max_chunk) = (&self.config.incident, self.config.lanes.as_deref(), self.config.max_chunk);
        let wish = Wish { token, incident, lanes, from, cursor: self.cursor.as_deref(), max_chunk };
        Source::open(self.config.transport, &self.config.relay, &wish).await
    }

    async fn refused(&mut self, code: String, retry_after_s: Option<u64>) -> Ended {
        match retry_of(&code) {
            Retry::Renew => Ended::Renew,
            Retry::Never => {
                self.emit(Event::Ending { reason: code }).await;
                Ended::Over
            }
            _ => {
                let after = self.pause().max(Duration::from_secs(retry_after_s.unwrap_or(0)));
                Ended::Again { after, code: Some(code) }
            }
        }
    }

    /// Takes frames until the connection ends.
    async fn follow(&mut self, mut source: Source) -> Ended {
        loop {
            let renew_at = self.token.as_ref().map_or(i64::MAX, Token::renew_at_ms).max(self.renew_not_before_ms);
            let wait = Duration::from_millis(u64::try_from(renew_at - clock::unix_ms()).unwrap_or(0));
            let frame = tokio::select! {
                frame = source.next() => frame,
                () = tokio::time::sleep(wait), if !self.asking_token => {
                    self.ask_for_token();
                    continue;
                }
                Some(Ok(told)) = self.asked.join_next() => match self.told(told, Some(&mut source)).await {
                    None => continue,
                    Some(ended) => return ended,
                },
                () = self.events.closed() => return Ended::Gone,
            };
            let Ok(frame) = frame else { return Ended::Again { after: self.pause(), code: None } };
            let Ok(event) = self.assembly.frame(&frame, clock::unix_ms()) else {
                return Ended::Again { after: self.pause(), code: Some(Code::ProtocolError.name().into()) };
            };
            if self.assembly.wants_keys() {
                self.fetch_keys_again();
            }
            if let Some(event) = event
                && let Some(ended) = self.handle(event).await
            {
                return ended;
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Option<Ended> {
        match &event {
            Event::Watching { .. } => self.watched = true,
            Event::Cursor(cursor) => self.cursor = Some(cursor.clone()),
            Event::Ending { reason } if reason != "ended" => match retry_of(reason) {
                Retry::Never => {}
                Retry::Renew => return Some(Ended::Renew),
                // The relay goes away: it takes a moment until another is there.
                _ => return Some(Ended::Again { after: AUTHORITY_PAUSE, code: Some(reason.clone()) }),
            },
            _ => {}
        }
        let over = matches!(event, Event::Ending { .. });
        if !self.emit(event).await {
            return Some(Ended::Gone);
        }
        over.then_some(Ended::Over)
    }
}

/// What may be done after a code, or an HTTP status without one.
fn retry_of(code: &str) -> Retry {
    match (Code::parse(code), code) {
        (Some(code), _) => code.retry(),
        (None, "http_401") => Retry::Renew,
        (None, "http_408" | "http_425" | "http_429") => Retry::Later,
        (None, code) if code.starts_with("http_4") => Retry::Never,
        (None, _) => Retry::Later,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_say_whether_to_come_back() {
        assert_eq!(retry_of("capability_revoked"), Retry::Never);
        assert_eq!(retry_of("draining"), Retry::Later);
        assert_eq!(retry_of("http_401"), Retry::Renew);
        assert_eq!(retry_of("http_404"), Retry::Never);
        assert_eq!(retry_of("http_502"), Retry::Later);
    }
}
