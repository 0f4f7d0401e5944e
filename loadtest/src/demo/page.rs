//! The contact's page: its host, the link that opens it, and the browser.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use secrecy::SecretString;
use tokio::process::Command;
use waystation_client::authority::{DevcoreAuthority, Wishes};
use waystation_client::connect::{Endpoint, Trust, certificate_hash};
use waystation_client::link::{Link, WebTransport};
use waystation_client::session::Session;

use super::parts::{Core, Relay};
use super::place::Place;
use super::process::{self, Process};
use super::{Args, Error};

/// The page's host: a program of its own, so that the page stays when the core goes.
pub(super) struct Page {
    url: String,
    _process: Process,
}

impl Page {
    /// Starts it, if a page was asked for.
    pub(super) async fn start(place: &Place, args: &Args) -> Result<Option<Self>, Error> {
        if !args.page {
            return Ok(None);
        }
        let dir = &args.page_dir;
        if !dir.join("index.html").exists() {
            return Err(format!("there is no page in {}", dir.display()).into());
        }
        let mut command = Command::new(place.program("waystation-devcore"));
        command.args(["page", "--listen", "127.0.0.1:0", "--page"]).arg(dir);
        let name = "waystation-devcore page";
        let (process, line) = process::serve(name, &mut command, &place.file("logs/page.log")).await?;
        let url = line["page_url"].as_str().ok_or("the page's host names no address")?.to_owned();
        Ok(Some(Self { url, _process: process }))
    }

    /// Who the relay must let in.
    pub(super) fn origin(&self) -> &str {
        self.url.trim_end_matches('/')
    }

    /// Makes a grant for one contact and the link with it, and opens it where there is a screen. Says
    /// what a person is to know.
    pub(super) async fn open(
        &self,
        place: &Place,
        session: &Session,
        core: &Core<'_>,
        relay: &Relay<'_>,
    ) -> Result<String, Error> {
        let account = SecretString::from(std::fs::read_to_string(core.account_token_file())?.trim());
        let at = Endpoint::parse(&core.url(), Trust::certificates(Vec::new())?)?;
        let (incident, group) = (session.incident.clone(), session.group.clone());
        let core_api = DevcoreAuthority::of(&at, account, incident, group, Wishes::default());
        let there = WebTransport { url: relay.secure_url(), hashes: vec![certificate_hash(&place.certificate())?] };
        let link = Link {
            relay: relay.plain_url(),
            webtransport: Some(there),
            core: core.url(),
            grant: core_api.contact_grant().await?.secret,
            key: place.group_key()?,
        };
        let link = link.write(&self.url)?;
        let opened = has_screen() && show(place, &link).await;
        let what = if opened {
            "A browser opens the contact's page:"
        } else {
            "The contact's page, for any browser on this machine:"
        };
        Ok(format!("{what}\n{}\nThe link holds the recording's key: it is for one person.\n", *link))
    }
}

fn has_screen() -> bool {
    ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Lets the desktop open the link. It goes by a file, since arguments of programs are for all to see.
async fn show(place: &Place, link: &str) -> bool {
    let file = place.file("open.html");
    if write_private(&file, link).is_err() {
        return false;
    }
    let mut command = Command::new("xdg-open");
    command.arg(&file).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null()).process_group(0);
    // It may stay as long as the browser does: what it comes to is not waited for.
    command.spawn().is_ok()
}

fn write_private(file: &Path, link: &str) -> std::io::Result<()> {
    let mut out = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    // A link is made of characters that mean nothing in markup.
    writeln!(out, "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=\"0;url={link}\">")
}
