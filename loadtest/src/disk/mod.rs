//! What the disk can do by itself, so that the relay's figures have something to stand beside.
//!
//! **One sync** is what a relay without group commit would do for one chunk: a new file is
//! created and written, `fdatasync` on the file, rename into a second directory, `fsync` on that
//! directory. With one thread they follow each other; with more, the file system may join them.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::report::{self, Counted, Report};
use crate::rig::Usage;
use crate::upload::bytes;

/// `waystation-loadtest disk`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where to measure: the disk of the staging directory
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Threads that sync at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// Bytes written before each sync
    #[arg(long, default_value = "64KiB", value_parser = bytes)]
    pub size: u64,
    /// How long
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs it and says what it found.
pub async fn main(args: Args) -> ExitCode {
    let json = args.json;
    let run = tokio::task::spawn_blocking(move || run(&args)).await;
    report::end(run.unwrap_or(Err(Failure::Wire("a thread panicked"))), json)
}

/// Measures.
///
/// # Errors
/// [`Failure::Io`].
pub fn run(args: &Args) -> Result<Report, Failure> {
    let above = args.directory.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("waystation-disk-").tempdir_in(above);
    let dir = dir.map_err(Failure::io("the directory"))?;
    let of_system = Failure::io("the disk");
    let counted = measure(dir.path(), args).map_err(of_system)?;
    let mut report = Report::new("disk", args.size, args.threads.into(), counted);
    report.syncs_s = Some(report.chunks_s);
    Ok(report)
}

fn measure(dir: &Path, args: &Args) -> io::Result<Counted> {
    for name in ["new", "kept"] {
        std::fs::create_dir(dir.join(name))?;
    }
    let bytes = vec![0x5a; usize::try_from(args.size).map_err(|_| io::ErrorKind::InvalidInput)?];
    let (next, began, before) = (AtomicU64::new(0), Instant::now(), own_usage()?);
    let until = began + Duration::from_secs(args.seconds);
    let work = || {
        let mut times = Vec::new();
        while Instant::now() < until {
            let start = Instant::now();
            sync_one(dir, next.fetch_add(1, Ordering::Relaxed), &bytes)?;
            times.push(start.elapsed());
        }
        Ok::<_, io::Error>(times)
    };
    let threads: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let (time, after) = (began.elapsed(), own_usage()?);
    let mut latencies = Vec::new();
    for times in threads {
        latencies.extend(times.map_err(|_| io::ErrorKind::Other)??);
    }
    let chunks = latencies.len() as u64;
    let there = std::fs::read_dir(dir.join("kept"))?.count() as u64;
    let cpu = after.cpu.saturating_sub(before.cpu);
    let (bytes, lost) = (chunks * args.size, chunks.saturating_sub(there));
    Ok(Counted { time, chunks, bytes, latencies, cpu, max_rss: after.max_rss, lost })
}

fn sync_one(dir: &Path, number: u64, bytes: &[u8]) -> io::Result<()> {
    let (new, kept) = (dir.join("new").join(number.to_string()), dir.join("kept"));
    let mut file = File::create_new(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&new, kept.join(number.to_string()))?;
    File::open(&kept)?.sync_all()
}

fn own_usage() -> io::Result<Usage> {
    Usage::of(std::process::id())
}
