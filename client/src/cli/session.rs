//! What `capture`, `import` and `queue retry` have in common: a capture session from its arguments
//! to its last line.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::output::Output;
use super::report::{self, Lines};
use super::source::{Contact, Source};
use super::{CliError, QueueArgs, SessionArgs};
use crate::authority::AuthorityError;
use crate::capture::local::KeyFile;
use crate::capture::status::{SessionState, Status};
use crate::capture::{Capture, Config, Event, LaneSpec, StartError, Storage};
use crate::keys::{ClientKey, GroupKey};

/// Pause between tries to get a contact's capability.
const CONTACT_PAUSE: Duration = Duration::from_secs(1);

/// A session, or that there is nothing left to do.
pub(super) enum Begun {
    Running(Running),
    /// Its queue is over; whether all of it is confirmed.
    Over(bool),
}

/// A session whose events are printed.
pub(super) struct Running {
    pub(super) capture: Capture,
    printing: JoinHandle<Output>,
}

impl SessionArgs {
    /// Starts a session, or goes on with the one in the queue.
    pub(super) async fn start(&self, lanes: Vec<LaneSpec>) -> Result<Begun, CliError> {
        let client_key = self.client_key_file.as_deref().map(ClientKey::read).transpose()?;
        let source = self.core.source(client_key.clone(), true)?;
        let config = Config {
            relays: self.relay.endpoints()?,
            transport: self.relay.transport(),
            group_key: GroupKey::read(&self.group_key_file)?,
            lanes,
            client_key,
            storage: self.queue.storage(),
            manifest: !self.no_manifest,
            wait_s: self.wait,
        };
        let Source { authority, contact, .. } = source;
        let mut output = Output::new(self.json);
        let (capture, mut events) = match Capture::start(config, authority).await {
            Ok(begun) => begun,
            Err(StartError::Over(status)) => return Ok(Begun::Over(over(&status, &mut output))),
            Err(error) => return Err(error.into()),
        };
        let mut writing = self.session_out.clone().zip(contact);
        let printing = tokio::spawn(async move {
            let mut lines = Lines::default();
            let mut writer = tokio::task::JoinSet::new();
            while let Some(event) = events.recv().await {
                if event == Event::Named
                    && let Some((path, contact)) = writing.take()
                {
                    writer.spawn(write_contact(contact, path));
                }
                if let Some(value) = report::event(&event) {
                    output.line(&value);
                }
                lines.note(&event);
                output.draw(&lines.draw());
            }
            // A core that is away then was away all the time.
            let _ = tokio::time::timeout(CONTACT_PAUSE, writer.join_next()).await;
            output
        });
        Ok(Begun::Running(Running { capture, printing }))
    }
}

impl Running {
    /// Ends the session. True if every chunk is confirmed; `refused` were not even kept.
    pub(super) async fn finish(self, args: &SessionArgs, refused: u64) -> bool {
        let summary = self.capture.finish(Duration::from_secs(args.finish_timeout), "stopped").await;
        // The session is over, so its events are too; a printer that failed has nothing to add.
        if let Ok(output) = self.printing.await {
            output.line(&report::summary(&summary, refused));
        }
        let settled = summary.confirmed + if args.allow_unsettled { summary.unsettled } else { 0 };
        refused == 0 && settled == summary.chunks && summary.manifest != Some(false)
    }
}

impl QueueArgs {
    /// Where the session's chunks wait.
    fn storage(&self) -> Storage {
        match &self.queue {
            None => Storage::Memory,
            Some(path) => directory(path, self.queue_key_file.as_deref()),
        }
    }
}

/// A queue's directory; its key lies in it unless another place is named.
pub(super) fn directory(path: &std::path::Path, key_file: Option<&std::path::Path>) -> Storage {
    let key = key_file.map_or_else(|| path.join("local.key"), Into::into);
    Storage::directory(path, Arc::new(KeyFile::new(key)))
}

fn over(status: &Status, output: &mut Output) -> bool {
    output.line(&report::status(status));
    output.draw(&report::status_lines(status));
    status.session == SessionState::Completed
}

/// Writes a contact's session file as soon as the core gives it what it needs.
async fn write_contact(contact: Contact, path: std::path::PathBuf) {
    loop {
        match contact.session().await {
            Ok(session) => {
                if let Err(error) = session.write(&path) {
                    super::output::complain(&error);
                }
                return;
            }
            Err(AuthorityError::Away) => tokio::time::sleep(CONTACT_PAUSE).await,
            Err(error) => return super::output::complain(&error),
        }
    }
}
