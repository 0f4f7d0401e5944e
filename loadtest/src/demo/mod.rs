//! The main job, end to end: core, relay, capture client and contact as processes of their own,
//! on the recording shipped in the repository, played as if it were being recorded now. At the
//! end everything that was promised is checked, and each check is a line.

mod board;
mod contact;
mod event;
mod faults;
mod held;
mod media;
mod output;
mod page;
mod parts;
mod place;
mod process;
mod report;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use tokio::sync::watch;
use waystation_client::playback::Recording;

use board::Board;
use output::Output;
use place::Place;
pub(crate) use process::stopped;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// With a page and no other word, it goes on until it is stopped; in the end it would stop by itself.
const DAY_SECONDS: u64 = 24 * 3600;
/// A longer run takes its streams and capabilities in small portions, so that both are renewed.
const LONG_SECONDS: u64 = 60;

/// What may differ from the plain run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How capture client and contact talk to the relay.
    #[arg(long, value_enum, default_value = "h3")]
    transport: Transport,
    /// Kill the core in the middle and bring it back after this time, as 10s.
    #[arg(long, value_parser = seconds)]
    core_down: Option<Duration>,
    /// Kill the relay (kill -9) in the middle, and start it again.
    #[arg(long)]
    relay_restart: bool,
    /// Seconds to record; the recording is looped. Without: once, as long as it is.
    #[arg(long, value_parser = clap::value_parser!(u64).range(6..))]
    seconds: Option<u64>,
    /// Show the contact's page: its link is printed, and opened where there is a screen. Without
    /// --seconds it goes on until Ctrl-C.
    #[arg(long)]
    page: bool,
    /// Directory of the page.
    #[arg(long, default_value = "client/web/dist")]
    page_dir: PathBuf,
    /// Directory for keys, data and logs. What an earlier demo left there is removed.
    #[arg(long, default_value = ".demo")]
    dir: PathBuf,
    /// Directory of the recording.
    #[arg(long, default_value = "client/recording")]
    recording: PathBuf,
    /// Directory of the programs; without: that of this one.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// The transports of the clients' command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    H3,
    Ws,
    H1,
}

impl Transport {
    const fn as_str(self) -> &'static str {
        match self {
            Self::H3 => "h3",
            Self::Ws => "ws",
            Self::H1 => "h1",
        }
    }
}

/// Runs the demo: 0 if every check passed, 1 if one failed, 2 if it could not be played.
pub async fn run(args: Args) -> ExitCode {
    // Whatever was started is killed when its handle is dropped, also on Ctrl-C.
    let result = tokio::select! {
        result = play(&args) => result,
        // Somebody has seen enough.
        () = stopped() => if args.is_endless() { Ok(true) } else { Err("stopped".into()) },
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            output::complain(&error, &args.dir);
            ExitCode::from(2)
        }
    }
}

impl Args {
    /// Nobody said when it is to end.
    const fn is_endless(&self) -> bool {
        self.page && self.seconds.is_none()
    }
}

/// How long a run is.
struct Length {
    /// Chunks of each lane.
    chunks: u64,
    seconds: u64,
    /// Streams and capabilities are taken in small portions, so that both are renewed on the way.
    renewing: bool,
}

impl Length {
    fn of(args: &Args, recording: &Recording) -> Self {
        let wanted = args.seconds.or(args.is_endless().then_some(DAY_SECONDS));
        let chunks = wanted.map_or(recording.chunks(), |s| (s * 1000).div_ceil(recording.chunk_ms));
        let seconds = chunks * recording.chunk_ms / 1000;
        Self { chunks, seconds, renewing: seconds > LONG_SECONDS && !args.is_endless() }
    }
}

async fn play(args: &Args) -> Result<bool, Error> {
    let recording =
        Recording::read(&args.recording).map_err(|error| format!("{}: {error}", args.recording.display()))?;
    let Length { chunks, seconds, renewing } = Length::of(args, &recording);
    let near_live = recording.lanes.iter().filter(|lane| board::is_near_live(lane.variant)).count() as u64;
    let place = Place::prepare(args)?;
    let mut output = Output::new();
    let page = page::Page::start(&place, args).await?;
    let mut core = parts::Core::new(&place, renewing);
    core.start().await?;
    let mut relay = parts::Relay::new(&place, page.as_ref().map(page::Page::origin));
    relay.start(&core).await?;
    output.say(&opening(args, seconds, &relay));

    let mut capture = parts::capture(&place, args, &core, &relay, seconds)?;
    let session = place.session().await?;
    if let Some(page) = &page {
        output.say(&page.open(&place, &session, &core, &relay).await?);
    }
    let mut contact = parts::contact(&place, args, &core, &relay, chunks * near_live)?;
    let (told, cuts) = watch::channel(0);
    let (notice, noticed) = watch::channel(String::new());
    let mut board = Board::new(&recording, (!args.is_endless()).then_some(chunks), told, noticed);
    let waiting = Duration::from_secs(seconds + parts::FINISH_SECONDS) + args.core_down.unwrap_or_default();
    let following = async {
        tokio::time::timeout(waiting, board::follow(&mut board, &mut capture, &mut contact, &mut output))
            .await
            .map_err(|_| Error::from("the clients did not end in time"))?
    };
    let plan = faults::Plan { core_down: args.core_down, relay_restart: args.relay_restart, chunks };
    let (ended, witnessed) = tokio::try_join!(following, faults::play(&plan, &mut core, &mut relay, cuts, &notice))?;

    let evidence = verify::Evidence {
        board: &board,
        ended,
        witnessed,
        waiting: parts::waiting(&place, &relay).await?,
        held: held::all(&core, &place, &session, &recording).await?,
        watched: contact::read(&place, &recording, chunks).await?,
        recording: &recording,
        plan: &plan,
        renewing,
    };
    let checks = verify::checks(&evidence, &place).await?;
    output.say(&report::text(&evidence, &checks, &place));
    Ok(checks.iter().all(|check| check.verdict != verify::Verdict::Failed))
}

fn opening(args: &Args, seconds: u64, relay: &parts::Relay<'_>) -> String {
    let transport = args.transport.as_str();
    let long = if args.is_endless() { "until Ctrl-C".into() } else { format!("for {seconds} s") };
    format!(
        "Recording {long} over {transport}: core, relay, capture client and contact are running.\n\
         What the relay's operator sees: {}\n",
        relay.status_command()
    )
}

fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.strip_suffix('s').unwrap_or(text);
    match digits.parse::<u16>() {
        Ok(n) if n > 0 => Ok(Duration::from_secs(n.into())),
        _ => Err("seconds, as 10s".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_whole_seconds_and_more_than_nothing() {
        assert_eq!(seconds("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("3"), Ok(Duration::from_secs(3)));
        for bad in ["0s", "s", "1m", "-1s", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
