//! From a file and the environment to a [`Config`]. Every mistake is reported, not only the
//! first, and none with the value: a value may be a secret in the wrong place (contract C31).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use toml::{Table, Value};

use super::keys::{self, Kind};
use super::{Capability, Config, Core, Fanout, Limits, Listen, Relay, Staging, Tls, value};

/// Shortest service token and HMAC secret, in bytes (contract A.0, A.5).
pub const MIN_SECRET_BYTES: usize = 32;

/// What is wrong with a configuration: a line for each mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

impl Config {
    /// Reads a file and the process's environment.
    ///
    /// # Errors
    /// Every mistake found.
    pub fn load(file: &Path) -> Result<Self, Mistakes> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Mistakes(vec![format!("the configuration file can't be read: {}", error.kind())]))?;
        Self::read(&text, std::env::vars_os())
    }

    /// Reads TOML text and variables that override it.
    ///
    /// # Errors
    /// Every mistake found.
    pub fn parse(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, Mistakes> {
        Self::read(text, env.into_iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn read(text: &str, env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, Mistakes> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
            Mistakes(vec![format!("line {line} is not TOML")])
        })?;
        let mut raw = Raw::default();
        raw.take_file(table);
        raw.take_env(env);
        let config = raw.config();
        if raw.mistakes.is_empty() { Ok(config) } else { Err(Mistakes(raw.mistakes)) }
    }
}

/// Known keys with their values, and the mistakes so far.
#[derive(Default)]
struct Raw {
    values: BTreeMap<(String, String), Value>,
    mistakes: Vec<String>,
}

// === taking ===
impl Raw {
    fn take_file(&mut self, table: Table) {
        for (section, value) in table {
            let Value::Table(keys) = value else {
                self.wrong(format!("`{section}` is no section{}", keys::hint(&section, None)));
                continue;
            };
            if !keys::KEYS.iter().any(|(name, _)| *name == section) {
                self.wrong(format!("unknown section `[{section}]`{}", keys::hint(&section, None)));
                continue;
            }
            for (key, value) in keys {
                match keys::kind(&section, &key) {
                    None => self.wrong(format!("unknown key `{section}.{key}`{}", keys::hint(&section, Some(&key)))),
                    Some(Kind::Secret) => {
                        self.wrong(format!(
                            "a secret may not stand in the file: use `{section}.{key}_file` or the environment"
                        ));
                    }
                    Some(_) => _ = self.values.insert((section.clone(), key), value),
                }
            }
        }
    }

    fn take_env(&mut self, env: impl IntoIterator<Item = (OsString, OsString)>) {
        for (name, text) in env {
            // What is not of this relay may be written in anything; its name is Unicode or not ours.
            let Some(name) = name.to_str().filter(|name| name.starts_with(keys::ENV_PREFIX)) else { continue };
            let (section, key, kind) = match keys::of_variable(name) {
                keys::Variable::Key(section, key, kind) => (section, key, kind),
                keys::Variable::Other => continue,
                keys::Variable::Unknown(hint) => {
                    self.wrong(format!("unknown variable `{name}`{hint}"));
                    continue;
                }
            };
            match text.into_string().ok().and_then(|text| variable(kind, text)) {
                Some(value) => _ = self.values.insert((section, key), value),
                None => self.wrong(format!("`{name}` can't be read")),
            }
        }
    }

    fn wrong(&mut self, mistake: String) {
        self.mistakes.push(mistake);
    }
}

/// The value of a variable as the file would have it.
fn variable(kind: Kind, text: String) -> Option<Value> {
    let list = |text: &str| text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Value::from).collect();
    match kind {
        Kind::Flag => text.parse().ok().map(Value::Boolean),
        Kind::Number => text.parse().ok().map(Value::Integer),
        Kind::List => Some(Value::Array(list(&text))),
        Kind::Text | Kind::Secret => Some(Value::String(text)),
    }
}

// === reading ===
impl Raw {
    /// The value read by `read`; `default` if it is absent; a mistake if it can't be read.
    fn get<T>(&mut self, section: &str, key: &str, what: &str, default: T, read: impl Fn(&Value) -> Option<T>) -> T {
        match self.values.get(&(section.to_owned(), key.to_owned())) {
            None => default,
            Some(value) => read(value).unwrap_or_else(|| {
                self.wrong(format!("`{section}.{key}` is not {what}"));
                default
            }),
        }
    }

    fn text(&mut self, section: &str, key: &str) -> Option<String> {
        self.get(section, key, "a text", None, |value| value.as_str().map(|text| Some(text.to_owned())))
            .filter(|text| !text.is_empty())
    }

    fn path(&mut self, section: &str, key: &str) -> Option<PathBuf> {
        self.text(section, key).map(PathBuf::from)
    }

    fn flag(&mut self, section: &str, key: &str, default: bool) -> bool {
        self.get(section, key, "true or false", default, Value::as_bool)
    }

    fn size(&mut self, section: &str, key: &str, default: u64) -> u64 {
        self.get(section, key, "a size such as \"64MiB\" over 0", default, |value| {
            match value {
                Value::Integer(bytes) => u64::try_from(*bytes).ok(),
                value => value.as_str().and_then(value::size),
            }
            .filter(|bytes| *bytes > 0)
        })
    }

    fn duration(&mut self, section: &str, key: &str, default: Duration) -> Duration {
        self.get(section, key, "a time such as \"30s\" over 0", default, |value| {
            value.as_str().and_then(value::duration).filter(|time| !time.is_zero())
        })
    }

    fn number<T: TryFrom<i64>>(&mut self, section: &str, key: &str, default: T, least: i64) -> T {
        let what = format!("a number from {least} on");
        self.get(section, key, &what, default, |value| {
            value.as_integer().filter(|number| *number >= least).and_then(|number| T::try_from(number).ok())
        })
    }

    fn list(&mut self, section: &str, key: &str) -> Vec<String> {
        self.get(section, key, "a list of texts", Vec::new(), |value| {
            value.as_array()?.iter().map(|item| item.as_str().map(ToOwned::to_owned)).collect()
        })
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        self.get("listen", key, "an address such as \"127.0.0.1:8090\"", None, |value| {
            let text = value.as_str()?;
            if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
        })
    }

    /// A secret from the environment or from its file. The message names its class alone.
    fn secret(&mut self, section: &str, key: &str) -> Option<SecretString> {
        let text = match self.text(section, key) {
            Some(text) => text,
            None => {
                let file = self.path(section, &format!("{key}_file"))?;
                match std::fs::read_to_string(file) {
                    Ok(text) => text,
                    Err(error) => {
                        self.wrong(format!("a secret file of `[{section}]` can't be read: {}", error.kind()));
                        return None;
                    }
                }
            }
        };
        let text = text.trim();
        if text.len() < MIN_SECRET_BYTES {
            self.wrong(format!("a secret of `[{section}]` is shorter than {MIN_SECRET_BYTES} bytes"));
            return None;
        }
        Some(SecretString::from(text.to_owned()))
    }
}

// === sections ===
impl Raw {
    fn config(&mut self) -> Config {
        Config {
            relay: self.relay(),
            listen: self.listen(),
            tls: self.tls(),
            core: self.core(),
            capability: self.capability(),
            staging: self.staging(),
            fanout: self.fanout(),
            limits: self.limits(),
        }
    }

    fn relay(&mut self) -> Relay {
        Relay {
            id: self.text("relay", "id").unwrap_or_default(),
            region: self.text("relay", "region").unwrap_or_default(),
            ready: self.flag("relay", "ready", true),
        }
    }

    fn listen(&mut self) -> Listen {
        let listen = Listen {
            public: self.address("public"),
            plain: self.address("plain"),
            trusted_proxies: self.proxies(),
            ops: self.address("ops").unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9090))),
            allowed_origins: self.list("listen", "allowed_origins"),
        };
        if listen.public.is_none() && listen.plain.is_none() {
            self.wrong("neither `listen.public` nor `listen.plain` is set: nobody could reach the relay".into());
        }
        for origin in &listen.allowed_origins {
            let scheme = origin.starts_with("https://") || origin.starts_with("http://");
            if !scheme || origin.ends_with('/') || origin.contains('*') {
                self.wrong(
                    "`listen.allowed_origins` holds something that is no origin: scheme://host[:port], no `/`, no `*`"
                        .into(),
                );
            }
        }
        listen
    }

    fn proxies(&mut self) -> Vec<IpAddr> {
        let texts = self.list("listen", "trusted_proxies");
        let proxies: Vec<_> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        if proxies.len() != texts.len() {
            self.wrong("`listen.trusted_proxies` holds something that is no IP address".into());
        }
        proxies
    }

    fn tls(&mut self) -> Tls {
        let (certificate, private_key) = (self.path("tls", "certificate"), self.path("tls", "private_key"));
        match (self.flag("tls", "self_signed", false), certificate, private_key) {
            (true, certificate_out, None) => Tls::SelfSigned { certificate_out },
            (false, Some(certificate), Some(private_key)) => Tls::Files { certificate, private_key },
            (false, None, None) => {
                if self
                    .values
                    .get(&("listen".into(), "public".into()))
                    .and_then(Value::as_str)
                    .is_some_and(|a| !a.is_empty())
                {
                    self.wrong(
                        "`listen.public` needs `tls.certificate` and `tls.private_key`, or `tls.self_signed`".into(),
                    );
                }
                Tls::None
            }
            (true, _, Some(_)) => {
                self.wrong("`tls.self_signed` and `tls.private_key` exclude each other".into());
                Tls::None
            }
            (false, _, _) => {
                self.wrong("`tls.certificate` and `tls.private_key` come together".into());
                Tls::None
            }
        }
    }

    fn core(&mut self) -> Option<Core> {
        let url = self.text("core", "url");
        let ca_file = self.path("core", "ca_file");
        let request_timeout = self.duration("core", "request_timeout", Duration::from_secs(30));
        let max_requests_per_minute = self.number("core", "max_requests_per_minute", 0, 0);
        let service_token = self.secret("core", "service_token");
        let url = self.base_url(url?.trim_end_matches('/'), "core.url")?;
        let Some(service_token) = service_token else {
            self.wrong("`core.url` needs `core.service_token_file`".into());
            return None;
        };
        Some(Core { url, service_token, ca_file, request_timeout, max_requests_per_minute })
    }

    fn base_url(&mut self, url: &str, key: &str) -> Option<String> {
        let parsed: Option<http::Uri> = url.parse().ok();
        let sound = parsed.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && uri.query().is_none()
        });
        if sound {
            return Some(url.to_owned());
        }
        self.wrong(format!("`{key}` is not an http or https URL without user and query"));
        None
    }

    fn capability(&mut self) -> Capability {
        let jwks_url = self.text("capability", "jwks_url").and_then(|url| self.base_url(&url, "capability.jwks_url"));
        Capability {
            jwks_url,
            jwks_file: self.path("capability", "jwks_file"),
            audience: self.text("capability", "audience").unwrap_or_else(|| "waystation".into()),
            proofline_secret: self.secret("capability", "proofline_secret"),
        }
    }

    fn staging(&mut self) -> Staging {
        let directory = self.path("staging", "directory").unwrap_or_else(|| "/var/lib/waystation/staging".into());
        let seal_key_file =
            self.path("staging", "seal_key_file").unwrap_or_else(|| "/var/lib/waystation/seal.key".into());
        if seal_key_file.starts_with(&directory) {
            self.wrong(
                "`staging.seal_key_file` lies inside `staging.directory`: a thief of the one would have both".into(),
            );
        }
        let staging = Staging {
            directory,
            quota: self.size("staging", "quota", 1 << 30),
            max_chunk: self.size("staging", "max_chunk", 250 << 20),
            keep_for: self.duration("staging", "keep_for", Duration::from_secs(7 * 86_400)),
            seal_key_file,
        };
        if staging.max_chunk > staging.quota / 2 {
            self.wrong("`staging.max_chunk` is over half of `staging.quota`: no session could ever stage one".into());
        }
        staging
    }

    fn fanout(&mut self) -> Fanout {
        let d = Fanout::default();
        let fanout = Fanout {
            window: self.duration("fanout", "window", d.window),
            linger: self.duration("fanout", "linger", d.linger),
            memory: self.size("fanout", "memory", d.memory),
            memory_per_session: self.size("fanout", "memory_per_session", d.memory_per_session),
            max_chunk: self.size("fanout", "max_chunk", d.max_chunk),
            allow_unlabelled: self.flag("fanout", "allow_unlabelled", d.allow_unlabelled),
            silent_after: self.duration("fanout", "silent_after", d.silent_after),
            reauthorize_every: self.duration("fanout", "reauthorize_every", d.reauthorize_every),
        };
        if fanout.max_chunk > fanout.memory_per_session || fanout.memory_per_session > fanout.memory {
            self.wrong("`fanout.max_chunk` <= `fanout.memory_per_session` <= `fanout.memory` does not hold".into());
        }
        fanout
    }

    fn limits(&mut self) -> Limits {
        let d = Limits::default();
        Limits {
            connections: self.number("limits", "connections", d.connections, 1),
            handshakes_per_second: self.number("limits", "handshakes_per_second", d.handshakes_per_second, 1),
            requests_per_client: self.number("limits", "requests_per_client", d.requests_per_client, 1),
            receiving_total: self.number("limits", "receiving_total", d.receiving_total, 1),
            in_flight_per_session: self.number("limits", "in_flight_per_session", d.in_flight_per_session, 1),
            in_flight_per_client: self.number("limits", "in_flight_per_client", d.in_flight_per_client, 1),
            contacts_per_group: self.number("limits", "contacts_per_group", d.contacts_per_group, 1),
            header_timeout: self.duration("limits", "header_timeout", d.header_timeout),
            idle_timeout: self.duration("limits", "idle_timeout", d.idle_timeout),
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
