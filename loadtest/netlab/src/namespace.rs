//! Network namespaces by name, through `ip`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Side, tun};

/// Where `ip` keeps them.
const FOLDER: &str = "/var/run/netns";
/// How every name begins; the process's id follows.
const PREFIX: &str = "waynl";

/// A namespace of this process. It is removed when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    /// Makes one, under a name that no other process uses, with its loopback up.
    ///
    /// # Errors
    /// [`Error`]
    pub fn new(side: Side) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let end = if side == Side::Client { 'c' } else { 's' };
        let name = format!("{PREFIX}{}-{}{end}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let handle = File::open(Path::new(FOLDER).join(&name));
        let handle = handle.inspect_err(|_| remove(&name)).map_err(Error::io("a network namespace"))?;
        let namespace = Self { name, handle };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns exec` takes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs in it. The process is the program's own: whoever kills it kills that.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `what` on a thread that is in it. Sockets made there stay there, also when they are
    /// used elsewhere.
    ///
    /// # Errors
    /// The thread can't go there, or what `what` says.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        use std::os::fd::AsFd as _;
        let there = || {
            move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))?;
            what()
        };
        let ended = std::thread::scope(|scope| scope.spawn(there).join());
        ended.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    }

    /// Makes the link's device with its address; everything goes there. `congestion` is TCP's
    /// controller: it is set for each route, since the sysctl is refused in a namespace unless the
    /// host allows that controller to everybody.
    ///
    /// # Errors
    /// [`Error`]
    pub fn attach(&self, address: Ipv4Addr, mtu: u16, congestion: Option<&str>) -> Result<File, Error> {
        let device = self.inside(|| {
            quiet();
            tun::open()
        });
        let device = device.map_err(Error::io(tun::DEVICE))?;
        let (own, mtu) = (address.to_string(), mtu.to_string());
        let net = subnet(address);
        self.ip(&["addr", "add", &format!("{own}/24"), "dev", tun::NAME])?;
        self.ip(&["link", "set", tun::NAME, "mtu", &mtu, "txqueuelen", "10000", "up"])?;
        let controller: Vec<&str> = congestion.into_iter().flat_map(|name| ["congctl", name]).collect();
        let near = ["route", "replace", &net, "dev", tun::NAME, "proto", "kernel", "scope", "link", "src", &own];
        self.ip(&[&near[..], &controller].concat())?;
        self.ip(&[&["route", "add", "default", "dev", tun::NAME][..], &controller].concat())?;
        Ok(device)
    }

    fn ip(&self, args: &[&str]) -> Result<(), Error> {
        ip(&[&["-n", &self.name], args].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// No IPv6 on new devices, so that the link is silent until the client speaks, and nothing learnt
/// about one run's TCP is used in the next.
fn quiet() {
    for (key, value) in [
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv4/tcp_no_metrics_save", "1"),
    ] {
        // A kernel without IPv6 has no such key, and needs none.
        let _ = std::fs::write(format!("/proc/sys/net/{key}"), value);
    }
}

fn subnet(address: Ipv4Addr) -> String {
    let [a, b, c, _] = address.octets();
    format!("{a}.{b}.{c}.0/24")
}

fn ip(args: &[&str]) -> Result<(), Error> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(Error::io("ip"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Ip(args.join(" "), String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn remove(name: &str) {
    // Nothing more can be done about one that stays; the next run's sweep tries again.
    let _ = ip(&["netns", "del", name]);
}

/// Removes namespaces of processes that were killed, with the programs left in them.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(FOLDER) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            end_programs(&name);
            remove(&name);
        }
    }
}

/// Whoever started the programs of an orphaned namespace is gone, and nobody else is in it.
fn end_programs(name: &str) {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).stdin(Stdio::null()).output() else { return };
    let pids = String::from_utf8_lossy(&output.stdout);
    for pid in pids.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)) {
        // One that has ended meanwhile is what was wanted.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Whose a name is.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_have_an_owner() {
        assert_eq!(owner("waynl42-3c"), Some(42));
        for other in ["waynl-3c", "waynl42", "nlc42-3", "blue"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
