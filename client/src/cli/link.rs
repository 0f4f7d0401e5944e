//! `waystation-client link`.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::SecretString;
use serde_json::json;
use zeroize::Zeroizing;

use super::CliError;
use crate::authority::{DevcoreAuthority, Wishes};
use crate::connect::certificate_hash;
use crate::keys::GroupKey;
use crate::link::{Link, WebTransport};
use crate::session::Session;

/// Most bytes of a secret that are read: a link has the most.
const MAX_SECRET: u64 = 16 * 1024;

/// What goes into a link.
#[derive(Debug, Args)]
pub(super) struct LinkArgs {
    /// Where the page is, as https://host/path. Never at the relay: whoever serves the page could
    /// read what the link holds.
    #[arg(long)]
    page: String,
    /// The relay, as https://host:port; http:// on this machine.
    #[arg(long)]
    relay: String,
    /// Where the relay's WebTransport is, if not there.
    #[arg(long)]
    webtransport: Option<String>,
    /// File with the certificate to expect there (PEM or DER): ECDSA, valid for 14 days at most.
    #[arg(long, requires = "webtransport")]
    webtransport_certificate: Option<PathBuf>,
    /// The core, as https://host:port; http:// on this machine.
    #[arg(long)]
    core: String,
    /// File with the secret of the contact's grant, or - for standard input. Without: a new grant
    /// is made at the core.
    #[arg(long)]
    grant_file: Option<PathBuf>,
    /// File with the account token for the core, to make the grant.
    #[arg(long, conflicts_with = "grant_file", requires = "session_file")]
    account_token_file: Option<PathBuf>,
    /// Session file that names the recording, to make the grant.
    #[arg(long, conflicts_with = "grant_file", requires = "account_token_file")]
    session_file: Option<PathBuf>,
    /// Trust exactly the certificates in this file for the core, to make the grant.
    #[arg(long, requires = "account_token_file")]
    core_ca_file: Option<PathBuf>,
    /// File with the group key: 32 bytes, raw or as hexadecimal digits.
    #[arg(long)]
    group_key_file: PathBuf,
    /// A JSON line with the link and the name of the grant that was made, to revoke it by.
    #[arg(long)]
    json: bool,
}

/// Prints a contact's link.
pub(super) async fn run(args: LinkArgs) -> Result<bool, CliError> {
    let (id, grant) = args.grant().await?;
    let link = Link {
        relay: args.relay.trim_end_matches('/').to_owned(),
        webtransport: args.webtransport()?,
        core: args.core.trim_end_matches('/').to_owned(),
        grant,
        key: GroupKey::read(&args.group_key_file)?,
    };
    let text = link.write(&args.page)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let line = Zeroizing::new(json!({ "link": *text, "grant": id }).to_string());
        writeln!(out, "{}", *line)?;
    } else {
        writeln!(out, "{}", *text)?;
    }
    Ok(true)
}

impl LinkArgs {
    /// A grant from a file or from the core, with its name where that is known.
    async fn grant(&self) -> Result<(Option<String>, SecretString), CliError> {
        if let Some(file) = &self.grant_file {
            return Ok((None, read(file)?));
        }
        let (Some(account), Some(session)) = (&self.account_token_file, &self.session_file) else {
            return Err(CliError::Usage("give --grant-file, or --account-token-file with --session-file"));
        };
        let account = SecretString::from(std::fs::read_to_string(account)?.trim());
        let session = Session::read(session)?;
        let core = super::endpoint(&self.core, self.core_ca_file.as_deref())?;
        let core = DevcoreAuthority::of(&core, account, session.incident, session.group, Wishes::default());
        let grant = core.contact_grant().await?;
        Ok((Some(grant.id), grant.secret))
    }

    fn webtransport(&self) -> Result<Option<WebTransport>, CliError> {
        let Some(url) = &self.webtransport else { return Ok(None) };
        let hashes = match &self.webtransport_certificate {
            Some(file) => vec![certificate_hash(file)?],
            None => Vec::new(),
        };
        Ok(Some(WebTransport { url: url.trim_end_matches('/').to_owned(), hashes }))
    }
}

/// A secret from a file, or from standard input where the file is called `-`.
pub(super) fn read(file: &Path) -> Result<SecretString, CliError> {
    let mut text = Zeroizing::new(String::new());
    if file == Path::new("-") {
        std::io::stdin().lock().take(MAX_SECRET).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(file)?.take(MAX_SECRET).read_to_string(&mut text)?;
    }
    Ok(SecretString::from(text.trim()))
}
