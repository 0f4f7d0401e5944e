//! The link as it runs: two namespaces, two devices and a thread between them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::emulator::Emulator;
use crate::namespace::Namespace;
use crate::trace::Trace;
use crate::{CLIENT, Error, LinkStats, Profile, SERVER, Side, tun};

/// Longest sleep of the thread, so that it sees when it is to end.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// Packets taken from one device before the other gets its turn.
const BATCH: usize = 64;
/// Largest IPv4 packet.
const LARGEST: usize = 65_536;
/// Before other processes: a late thread would measure the machine and not the link.
const NICE: i32 = -15;

/// What may differ between links of one profile.
#[derive(Debug, Clone)]
pub struct Options {
    /// TCP's congestion controller in both namespaces; none: the machine's.
    pub congestion: Option<String>,
    /// Largest packet.
    pub mtu: u16,
    /// Where what passes at both ends is written; see [`crate::trace`].
    pub trace: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { congestion: None, mtu: 1500, trace: None }
    }
}

/// A running link. Dropped, it ends and its namespaces go; end the programs inside before.
#[derive(Debug)]
pub struct Link {
    client: Namespace,
    server: Namespace,
    emulator: Arc<Mutex<Emulator>>,
    clock: Instant,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Whether this process can make links; says what is missing otherwise.
    ///
    /// # Errors
    /// [`Error::NotRoot`], [`Error::Missing`]
    pub fn possible() -> Result<(), Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let asked = Command::new("ip").arg("-V").stdin(Stdio::null()).output();
        if !asked.is_ok_and(|output| output.status.success()) {
            return Err(Error::Missing("the command ip (Debian: iproute2)"));
        }
        if !Path::new(tun::DEVICE).exists() {
            return Err(Error::Missing(tun::DEVICE));
        }
        Ok(())
    }

    /// Starts a link. It is silent until the client speaks. Takes some milliseconds.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start(profile: &Profile, seed: u64, options: &Options) -> Result<Self, Error> {
        Self::possible()?;
        let (client, server) = (Namespace::new(Side::Client)?, Namespace::new(Side::Server)?);
        let congestion = options.congestion.as_deref();
        let devices = Devices {
            client: client.attach(CLIENT, options.mtu, congestion)?,
            server: server.attach(SERVER, options.mtu, congestion)?,
        };
        let trace = options.trace.as_deref().map(Trace::new).transpose().map_err(Error::io("a trace"))?;
        let emulator = Arc::new(Mutex::new(Emulator::new(profile, seed)));
        let (clock, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let carrier = Carrier { devices, emulator: Arc::clone(&emulator), trace, clock, stop: Arc::clone(&stop) };
        let thread = std::thread::Builder::new().name("netlab".to_owned()).spawn(move || carrier.run());
        let thread = Some(thread.map_err(Error::io("a thread"))?);
        Ok(Self { client, server, emulator, clock, stop, thread })
    }

    /// A command that runs on one side.
    #[must_use]
    pub fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        self.namespace(side).command(program)
    }

    /// Runs `what` on a thread on one side, as [`Namespace::inside`].
    ///
    /// # Errors
    /// As there.
    pub fn inside<T: Send>(&self, side: Side, what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.namespace(side).inside(what)
    }

    /// One side's namespace.
    #[must_use]
    pub const fn namespace(&self, side: Side) -> &Namespace {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    /// Nothing goes on the air for so long, from now on.
    pub fn outage(&self, length: Duration) {
        let now = nanos(self.clock);
        self.lock().outage(now, now.saturating_add(length.as_nanos() as u64));
    }

    /// Nothing passes any more; what is on its way is lost.
    pub fn cut(&self) {
        self.lock().cut();
    }

    /// After [`Self::cut`].
    pub fn mend(&self) {
        self.lock().mend();
    }

    /// What was sent, lost and delivered so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.lock().stats()
    }

    fn lock(&self) -> MutexGuard<'_, Emulator> {
        lock(&self.emulator)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, the devices are closed all the same.
            let _ = thread.join();
        }
    }
}

struct Devices {
    client: File,
    server: File,
}

impl Devices {
    const fn of(&self, side: Side) -> &File {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}

/// What the thread has.
struct Carrier {
    devices: Devices,
    emulator: Arc<Mutex<Emulator>>,
    trace: Option<Trace>,
    clock: Instant,
    stop: Arc<AtomicBool>,
}

impl Carrier {
    fn run(mut self) {
        // Of this thread alone. Refused, the link is less exact on a busy machine.
        let _ = rustix::process::setpriority_process(None, NICE);
        let mut buffer = vec![0; LARGEST];
        while !self.stop.load(Ordering::Relaxed) {
            self.deliver();
            for side in [Side::Client, Side::Server] {
                self.collect(side, &mut buffer);
            }
            self.sleep();
        }
    }

    fn deliver(&mut self) {
        let mut emulator = lock(&self.emulator);
        while let Some((to, packet)) = emulator.arrived(nanos(self.clock)) {
            let written = self.devices.of(to).write(&packet);
            emulator.handed_over(to, packet.len() as u64, written.is_ok());
            if let Some(trace) = self.trace.as_mut().filter(|_| written.is_ok()) {
                trace.note(to, &packet);
            }
        }
    }

    fn collect(&mut self, side: Side, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            // Empty for now, or gone: both mean that there is nothing more to take.
            let Ok(length) = self.devices.of(side).read(buffer) else { return };
            let now = nanos(self.clock);
            if let Some(trace) = &mut self.trace {
                trace.note(side, &buffer[..length]);
            }
            lock(&self.emulator).take(side, &mut buffer[..length], now);
        }
    }

    fn sleep(&self) {
        let next = lock(&self.emulator).next_arrival();
        let until = next.map(|next| Duration::from_nanos(next.saturating_sub(nanos(self.clock))));
        let sleep = until.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
        let mut wanted =
            [PollFd::new(&self.devices.client, PollFlags::IN), PollFd::new(&self.devices.server, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(sleep.subsec_nanos()) };
        // Interrupted, it looks a little earlier.
        let _ = poll(&mut wanted, Some(&timeout));
    }
}

fn lock(emulator: &Mutex<Emulator>) -> MutexGuard<'_, Emulator> {
    emulator.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(clock: Instant) -> u64 {
    clock.elapsed().as_nanos() as u64
}
