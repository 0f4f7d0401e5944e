//! The link that a contact opens: where the page is, and in its fragment, which no browser sends to
//! anybody, where relay and core are, the contact's grant and the group key.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Uri;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::keys::GroupKey;

/// What a fragment begins with: the link's version.
const VERSION: &str = "w1.";
/// Longest link, in characters.
const MAX_LINK: usize = 8 * 1024;
/// Certificates that one relay may name.
const MAX_HASHES: usize = 8;

/// What a contact needs. Nothing of it can be printed but by [`Link::write`].
#[derive(Clone)]
pub struct Link {
    /// Base URL of the relay's `/watch` and `/chunks`.
    pub relay: String,
    /// Where the relay's WebTransport is, if not at the relay's own URL or under a certificate that
    /// no authority vouches for.
    pub webtransport: Option<WebTransport>,
    /// Base URL of the core.
    pub core: String,
    /// The contact's grant.
    pub grant: SecretString,
    /// Opens the recording.
    pub key: GroupKey,
}

/// Where WebTransport is.
#[derive(Clone, PartialEq, Eq)]
pub struct WebTransport {
    /// Base URL.
    pub url: String,
    /// SHA-256 of each certificate that may be shown there; none: those of the browser's authorities.
    pub hashes: Vec<[u8; 32]>,
}

/// Why something is no link. Says nothing of what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLink {
    /// It does not begin like one, or what follows can't be read.
    #[error("that is no link of this version")]
    Form,
    /// An address is neither https nor on this machine, or has more than a host and a port.
    #[error("{0} is https://host:port, or http:// on this machine")]
    Url(&'static str),
    /// The grant is not 32 bytes in base64url.
    #[error("a grant is 32 bytes in base64url")]
    Grant,
}

#[derive(Serialize, Deserialize)]
struct Form {
    relay: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    wt: Option<WebTransportForm>,
    core: String,
    grant: String,
    key: String,
}

#[derive(Serialize, Deserialize)]
struct WebTransportForm {
    url: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    hashes: Vec<String>,
}

/// What is secret in it leaves nothing behind.
impl Drop for Form {
    fn drop(&mut self) {
        self.grant.zeroize();
        self.key.zeroize();
    }
}

impl Link {
    /// Reads a whole link, or its fragment alone.
    ///
    /// # Errors
    /// [`InvalidLink`]
    pub fn parse(text: &str) -> Result<Self, InvalidLink> {
        let text = text.trim();
        let fragment = text.split_once('#').map_or(text, |(_, fragment)| fragment);
        let encoded = fragment.strip_prefix(VERSION).filter(|rest| rest.len() <= MAX_LINK).ok_or(InvalidLink::Form)?;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvalidLink::Form)?);
        let mut form: Form = serde_json::from_slice(&json).map_err(|_| InvalidLink::Form)?;
        let key = bytes_32(&form.key).ok_or(InvalidLink::Form)?;
        let link = Self {
            relay: std::mem::take(&mut form.relay),
            webtransport: form.wt.take().map(WebTransportForm::read).transpose()?,
            core: std::mem::take(&mut form.core),
            grant: SecretString::from(form.grant.as_str()),
            key: GroupKey::new(*key),
        };
        link.check()?;
        Ok(link)
    }

    /// The link to a page at `page`. Whoever has it can watch: it is for one contact, and for no log.
    ///
    /// # Errors
    /// [`InvalidLink`]
    pub fn write(&self, page: &str) -> Result<Zeroizing<String>, InvalidLink> {
        self.check()?;
        let url: Uri = page.parse().map_err(|_| InvalidLink::Url("the page"))?;
        if !is_safe(&url) || page.contains('#') || page.len() > MAX_LINK {
            return Err(InvalidLink::Url("the page"));
        }
        let form = Form {
            relay: self.relay.clone(),
            wt: self.webtransport.as_ref().map(WebTransportForm::of),
            core: self.core.clone(),
            grant: self.grant.expose_secret().to_owned(),
            key: URL_SAFE_NO_PAD.encode(self.key.bytes()),
        };
        let json = Zeroizing::new(serde_json::to_vec(&form).map_err(|_| InvalidLink::Form)?);
        let fragment = Zeroizing::new(URL_SAFE_NO_PAD.encode(&json[..]));
        Ok(Zeroizing::new(format!("{page}#{VERSION}{}", *fragment)))
    }

    fn check(&self) -> Result<(), InvalidLink> {
        origin(&self.relay, "the relay")?;
        origin(&self.core, "the core")?;
        if let Some(there) = &self.webtransport {
            let secure = there.url.starts_with("https://");
            origin(&there.url, "WebTransport")?;
            if !secure || there.hashes.len() > MAX_HASHES {
                return Err(InvalidLink::Url("WebTransport"));
            }
        }
        bytes_32(self.grant.expose_secret()).map(drop).ok_or(InvalidLink::Grant)
    }
}

impl WebTransportForm {
    fn of(there: &WebTransport) -> Self {
        let hashes = there.hashes.iter().map(|hash| URL_SAFE_NO_PAD.encode(hash)).collect();
        Self { url: there.url.clone(), hashes }
    }

    fn read(self) -> Result<WebTransport, InvalidLink> {
        let hashes = self.hashes.iter().map(|hash| bytes_32(hash).map(|hash| *hash)).collect::<Option<_>>();
        Ok(WebTransport { url: self.url, hashes: hashes.ok_or(InvalidLink::Form)? })
    }
}

fn bytes_32(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
    <[u8; 32]>::try_from(&bytes[..]).ok().map(Zeroizing::new)
}

/// A base URL: scheme, host and port, and nothing behind.
fn origin(text: &str, what: &'static str) -> Result<(), InvalidLink> {
    let url: Uri = text.parse().map_err(|_| InvalidLink::Url(what))?;
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && !text.contains('#');
    if bare && is_safe(&url) { Ok(()) } else { Err(InvalidLink::Url(what)) }
}

/// A browser calls it safe: https, or this machine.
fn is_safe(url: &Uri) -> bool {
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else { return false };
    let host = authority.host().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !authority.as_str().contains('@') && (scheme == "https" || (scheme == "http" && here))
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link(…)")
    }
}

impl std::fmt::Debug for WebTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebTransport(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            relay: "https://relay.example:4433".into(),
            webtransport: None,
            core: "https://core.example".into(),
            grant: URL_SAFE_NO_PAD.encode([1; 32]).into(),
            key: GroupKey::new([2; 32]),
        }
    }

    fn json(link: &str) -> serde_json::Value {
        let fragment = link.split_once("#w1.").unwrap().1;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(fragment).unwrap()).unwrap()
    }

    fn fragment(json: &serde_json::Value) -> String {
        format!("w1.{}", URL_SAFE_NO_PAD.encode(json.to_string()))
    }

    #[test]
    fn a_link_is_read_as_it_is_written() {
        let mut link = link();
        let written = link.write("https://page.example/watch/").unwrap();
        assert!(written.starts_with("https://page.example/watch/#w1."));
        let plain = serde_json::json!({"relay": "https://relay.example:4433", "core": "https://core.example",
            "grant": URL_SAFE_NO_PAD.encode([1; 32]), "key": URL_SAFE_NO_PAD.encode([2; 32])});
        assert_eq!(json(&written), plain);
        link.webtransport = Some(WebTransport { url: "https://127.0.0.1:4433".into(), hashes: vec![[3; 32]] });
        link.relay = "http://127.0.0.1:8080".into();
        let written = link.write("http://localhost:8000/").unwrap();
        assert_eq!(
            json(&written)["wt"],
            serde_json::json!({"url": "https://127.0.0.1:4433", "hashes": [URL_SAFE_NO_PAD.encode([3; 32])]})
        );
        for text in [written.as_str(), &format!(" {}\n", *written), written.split_once('#').unwrap().1] {
            let read = Link::parse(text).unwrap();
            assert_eq!((&read.relay, &read.core), (&link.relay, &link.core));
            assert_eq!(read.webtransport, link.webtransport);
            assert_eq!(read.grant.expose_secret(), link.grant.expose_secret());
            assert_eq!(read.key.bytes(), &[2; 32]);
        }
    }

    #[test]
    fn what_a_later_version_adds_is_skipped() {
        let mut value = json(&link().write("https://page.example/").unwrap());
        value["more"] = serde_json::json!({ "a": [1] });
        assert!(Link::parse(&fragment(&value)).is_ok());
    }

    #[test]
    fn a_link_that_would_leak_or_fail_is_none() {
        let written = link().write("https://page.example/").unwrap();
        for (member, bad) in [
            ("relay", "http://relay.example"),
            ("relay", "ws://127.0.0.1:80"),
            ("relay", "https://relay.example/path"),
            ("relay", "https://relay.example?a=b"),
            ("core", "https://user@core.example"),
            ("core", "core.example"),
            ("core", "//core.example"),
            ("grant", "AAAA"),
            ("grant", ""),
            ("key", "AAAA"),
        ] {
            let mut value = json(&written);
            value[member] = bad.into();
            assert!(Link::parse(&fragment(&value)).is_err(), "{member} {bad}");
        }
        for wt in [
            serde_json::json!({"url": "http://127.0.0.1:1"}),
            serde_json::json!({"url": "https://relay.example", "hashes": ["x"]}),
            serde_json::json!({"url": "https://relay.example", "hashes": vec![URL_SAFE_NO_PAD.encode([3; 32]); 9]}),
        ] {
            let mut value = json(&written);
            value["wt"] = wt;
            assert!(Link::parse(&fragment(&value)).is_err());
        }
        let unreadable = ["", "w1.", "w2.e30", "https://page.example/", &written.replace("#w1.", "#w2."), "w1.e30"];
        for text in unreadable {
            assert_eq!(Link::parse(text).err(), Some(InvalidLink::Form), "{text}");
        }
        assert!(Link::parse(&format!("w1.{}", "A".repeat(MAX_LINK + 1))).is_err());
        for page in ["http://page.example/", "page.example", "https://page.example/#old", "file:///page"] {
            assert!(link().write(page).is_err(), "{page}");
        }
    }

    #[test]
    fn a_link_cannot_be_printed() {
        let mut link = link();
        link.webtransport = Some(WebTransport { url: "https://127.0.0.1:4433".into(), hashes: vec![[3; 32]] });
        assert_eq!(format!("{link:?} {:?}", link.webtransport), "Link(…) Some(WebTransport(…))");
    }
}
