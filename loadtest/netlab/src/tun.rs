//! TUN devices.

use std::fs::{File, OpenOptions};
use std::io;

use rustix::ioctl::{Setter, ioctl, opcode};

/// The device's name in each namespace.
pub const NAME: &str = "nl0";
/// Where devices come from.
pub const DEVICE: &str = "/dev/net/tun";

/// `struct ifreq` of linux/if.h, as far as `TUNSETIFF` reads it: 40 bytes on every 64-bit Linux.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// IP packets, without a header before them (`IFF_TUN | IFF_NO_PI`).
const FLAGS: u16 = 0x0001 | 0x1000;
/// `_IOW('T', 202, int)` of linux/if_tun.h; in spite of its name it takes a [`Request`].
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);

/// Makes the device in the network namespace of the calling thread. Reads and writes of the file
/// are whole packets and never wait. The device is gone when the file is closed.
///
/// # Errors
/// The device's driver is not there, or the caller may not.
pub fn open() -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut request = Request { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    request.name[..NAME.len()].copy_from_slice(NAME.as_bytes());
    attach(&file, request)?;
    rustix::io::ioctl_fionbio(&file, true)?;
    Ok(file)
}

#[allow(unsafe_code)]
fn attach(file: &File, request: Request) -> io::Result<()> {
    // SAFETY: `file` is the TUN driver's, whose TUNSETIFF copies one `struct ifreq` in and out of the
    // address it is given. `Request` has that struct's size and layout, and lives until the call is over.
    let done = unsafe { ioctl(file, Setter::<TUNSETIFF, Request>::new(request)) };
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<Request>(), 40);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
    }
}
