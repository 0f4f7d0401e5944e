//! The demo's directory: keys, a development certificate, the relay's configuration, data, logs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use waystation_client::keys::GroupKey;
use waystation_client::session::Session;
use waystation_proto::Variant;

use super::{Args, Error};

/// Says that a directory may be emptied: it is a demo's.
const MARK: &str = "made-by-demo";
/// Time for the capture client to make its incident and say so.
const SESSION_LIMIT: Duration = Duration::from_secs(20);

/// The demo's certificate is valid from a little earlier on, for clocks that differ, to so much later.
const BEFORE: time::Duration = time::Duration::hours(1);
const CERTIFICATE_LIFE: time::Duration = time::Duration::days(12);

/// Where everything of one run lies.
pub(super) struct Place {
    dir: PathBuf,
    programs: PathBuf,
}

impl Place {
    /// Empties the directory of an earlier demo, and makes keys and certificate.
    pub(super) fn prepare(args: &Args) -> Result<Self, Error> {
        let programs = match &args.programs {
            Some(dir) => dir.clone(),
            None => std::env::current_exe()?.parent().map(Path::to_path_buf).unwrap_or_default(),
        };
        empty(&args.dir)?;
        let place = Self { dir: std::path::absolute(&args.dir)?, programs };
        for dir in ["logs", "relay", "contact", "core"] {
            std::fs::create_dir_all(place.dir.join(dir))?;
        }
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| "no randomness")?;
        std::fs::write(place.file("group.key"), key)?;
        place.certify()?;
        Ok(place)
    }

    /// A certificate of its own, because the one that the relay makes is another at each start. It is
    /// such that a browser takes its hash for it: ECDSA on P-256, and valid for less than two weeks.
    fn certify(&self) -> Result<(), Error> {
        let mut wanted = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let now = time::OffsetDateTime::now_utc();
        (wanted.not_before, wanted.not_after) = (now - BEFORE, now + CERTIFICATE_LIFE);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        std::fs::write(self.certificate(), wanted.self_signed(&key)?.pem())?;
        std::fs::write(self.file("relay/tls.key"), key.serialize_pem())?;
        Ok(())
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.file("relay/tls.pem")
    }

    /// The contact's chunks and files.
    pub(super) fn contact(&self) -> PathBuf {
        self.file("contact")
    }

    /// A lane's chunks as the core holds them, opened.
    pub(super) fn at_core(&self, variant: Variant) -> PathBuf {
        self.dir.join("at-core").join(variant.as_str())
    }

    /// The one file of a lane that the contact wrote.
    pub(super) fn joined(&self, variant: Variant) -> PathBuf {
        self.contact().join(format!("{variant}.mp4"))
    }

    /// A path as a person standing here would type it.
    pub(super) fn shown(path: &Path) -> String {
        let here = std::env::current_dir().unwrap_or_default();
        path.strip_prefix(&here).unwrap_or(path).display().to_string()
    }

    pub(super) fn group_key(&self) -> Result<GroupKey, Error> {
        Ok(GroupKey::read(&self.file("group.key"))?)
    }

    /// Waits for the session file that the capture client writes for a contact.
    pub(super) async fn session(&self) -> Result<Session, Error> {
        let path = self.file("session.json");
        let written = async {
            while !path.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SESSION_LIMIT, written).await.map_err(|_| "the capture client did not begin")?;
        Ok(Session::read(&path)?)
    }
}

fn empty(dir: &Path) -> Result<(), Error> {
    let mark = dir.join(MARK);
    let has_content = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if has_content && !mark.exists() {
        return Err(format!("{} is not empty and not a demo's: name another with --dir", dir.display()).into());
    }
    if has_content {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir_all(dir)?;
    std::fs::write(mark, "")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demos_own_directory_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        empty(dir.path()).unwrap();
        std::fs::write(dir.path().join("old"), "").unwrap();
        empty(dir.path()).unwrap();
        assert!(!dir.path().join("old").exists());
        std::fs::remove_file(dir.path().join(MARK)).unwrap();
        std::fs::write(dir.path().join("mine"), "").unwrap();
        assert!(empty(dir.path()).is_err());
        assert!(dir.path().join("mine").exists());
    }
}
