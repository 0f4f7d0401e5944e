//! The real capture client, relay and core over an emulated bad link: how soon, at what cost, and
//! whether anything is lost.
//!
//! Each run has a link of its own ([`waystation_netlab`]); relay and core run at its server's end,
//! a capture client ([`phone`]) at the other. What is at the relay is told by the core, which
//! stands beside it and answers at once: its list of commits has their times.

mod bars;
mod beside;
mod bulk;
mod contact;
mod content;
mod handset;
mod kills;
mod mixed;
mod offline;
mod offsets;
mod outage;
mod output;
pub mod phone;
pub(crate) mod plot;
mod quiet;
mod site;
mod survival;
mod transport;
pub mod viewer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use waystation_netlab::profile::{MEASURED, Profile, RebindTcp};
use waystation_netlab::{Link, Options};

use crate::Failure;
use crate::demo::stopped;
use output::Line;
use transport::Transport;

/// Links side by side for survival, where each seed mostly waits.
const SURVIVAL_PARALLEL: usize = 8;

/// What is done over the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Ten chunks of 128 KiB, ready at the start: how long until all are confirmed
    Bulk,
    /// A live recording; the phone is destroyed at a random instant: how much is lost with it
    Survival,
    /// Nothing passes for 20 s in the middle of an upload: how long until bytes come again
    Outage,
    /// Sound beside a 5 MiB chunk: how late is it
    Mixed,
    /// The relay is killed again and again: nothing is lost, little is sent twice
    Kills,
    /// A recording made without any network, which then comes: all is confirmed
    Offline,
    /// Beside one TCP flow with cubic: who gets how much
    Beside,
    /// Sound and pictures over a good link to a contact behind the bad one: how late, and what is left out
    Contact,
    /// Nothing to send for ten minutes: what signs of life cost, and whether they are heard
    Quiet,
}

/// `waystation-loadtest network`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Link profiles, or all that bars are set for
    #[arg(long, value_delimiter = ',', default_value = "lossy")]
    profile: Vec<String>,
    /// How the capture client talks to the relay
    #[arg(long, value_enum, default_value = "h3")]
    transport: Transport,
    /// What is done
    #[arg(long, value_enum, default_value = "bulk")]
    scenario: Scenario,
    /// Runs of each profile; without: 5 of bulk, 100 of survival, 1 of the others
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Seed of the first run; the others follow
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Runs side by side; without: 8 of survival, 1 of the others
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: Option<u16>,
    /// The phone says that its network is a cellular one: one chunk's bytes move at once
    #[arg(long)]
    cellular: bool,
    /// What the NAT does with old TCP flows after the address has changed
    #[arg(long, value_enum, default_value = "rst")]
    rebind_tcp: Rebind,
    /// Seconds recorded: at most before the kill (survival, 120), in all (mixed and contact 120, offline 300), quiet (600)
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..))]
    seconds: Option<u64>,
    /// Nothing passes for so many seconds every 40 s (quiet)
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..20))]
    away: u64,
    /// Every so many seconds the NAT gives another address, and nobody tells the phone (quiet)
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..))]
    moves: Option<u64>,
    /// How many kills
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    kills: u64,
    /// Directory for plots of bytes at the relay over time (bulk)
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Where the runs' directories are made; they are removed at the end
    #[arg(long)]
    runs_dir: Option<PathBuf>,
    /// Leave the runs' directories, with the logs of all programs and the packets at both ends (pcap)
    #[arg(long)]
    keep: bool,
    /// One line of JSON for each profile
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rebind {
    /// They are let through under the new address, and the server resets them
    Rst,
    /// They are swallowed
    Drop,
}

impl Args {
    fn profiles(&self) -> Result<Vec<Profile>, Failure> {
        let all = self.profile.iter().any(|name| name == "all");
        let names = if all { MEASURED.map(str::to_owned).to_vec() } else { self.profile.clone() };
        let rebind_tcp = match self.rebind_tcp {
            Rebind::Rst => RebindTcp::Reset,
            Rebind::Drop => RebindTcp::Drop,
        };
        names.iter().map(|name| Ok(Profile { rebind_tcp, ..Profile::named(name)? })).collect()
    }

    fn seeds(&self) -> std::ops::Range<u64> {
        let usual = match self.scenario {
            Scenario::Bulk => 5,
            Scenario::Survival => 100,
            _ => 1,
        };
        self.first_seed..self.first_seed + self.seeds.unwrap_or(usual)
    }

    fn parallel(&self) -> usize {
        let usual = if self.scenario == Scenario::Survival { SURVIVAL_PARALLEL } else { 1 };
        self.parallel.map_or(usual, usize::from)
    }

    /// What every run of a profile starts with.
    fn setup(&self, profile: &Profile, seed: u64) -> site::Setup {
        let congestion = self.transport.congestion().map(str::to_owned);
        let link = Options { congestion, ..Options::default() };
        let (transport, cellular, above, keep) = (self.transport, self.cellular, self.runs_dir.clone(), self.keep);
        site::Setup { profile: profile.clone(), seed, link, transport, cellular, above, keep }
    }

    /// Runs all seeds, some side by side, and returns what they found in their order.
    async fn each<T, F>(&self, run: impl Fn(u64) -> F) -> Result<Vec<T>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        stream::iter(self.seeds().map(run)).buffered(self.parallel()).try_collect().await
    }
}

/// Runs it and says what it found: 0 if nothing was lost, 1 if something was, 2 if it could not be
/// measured.
pub async fn main(args: Args) -> ExitCode {
    // Links and programs end when their handles are dropped, also on Ctrl-C.
    let result = tokio::select! {
        result = measure(&args) => result,
        () = stopped() => Err(Failure::Wire("stopped")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            output::complain(&failure);
            ExitCode::from(2)
        }
    }
}

async fn measure(args: &Args) -> Result<bool, Failure> {
    Link::possible()?;
    let mut table = output::Table::new(args.json);
    let mut passed = true;
    for profile in args.profiles()? {
        let line = Box::pin(scenario(args, &profile)).await?;
        passed &= !line.failed;
        table.add(&line);
    }
    Ok(passed)
}

async fn scenario(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    match args.scenario {
        Scenario::Bulk => bulk::measure(args, profile).await,
        Scenario::Survival => survival::measure(args, profile).await,
        Scenario::Outage => outage::measure(args, profile).await,
        Scenario::Mixed => mixed::measure(args, profile).await,
        Scenario::Kills => kills::measure(args, profile).await,
        Scenario::Offline => offline::measure(args, profile).await,
        Scenario::Beside => beside::measure(args, profile).await,
        Scenario::Contact => contact::measure(args, profile).await,
        Scenario::Quiet => quiet::measure(args, profile).await,
    }
}
