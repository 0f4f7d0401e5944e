//! What is sent and handed over at the two ends of a link, written as tcpdump would there: `client.pcap` and
//! `server.pcap`. A packet that is in one and not in the other was lost on the way, swallowed by the NAT, or under way at the
//! end; after the NAT gave the client another address the files name different ones. Writing takes time on the link's
//! thread: figures are taken without.
//!
//! The format is libpcap's with nanoseconds (draft-ietf-opsawg-pcap), packets of link type RAW (101): they
//! begin with their IP header.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Side;

/// Bytes kept of each packet: IP, TCP with its options or UDP, and what is not secret of QUIC.
const KEPT: usize = 96;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: (u16, u16) = (2, 4);
const LINK_TYPE_RAW: u32 = 101;

/// Both files. What can't be written is left out: a full disk stops no link.
#[derive(Debug)]
pub struct Trace {
    client: BufWriter<File>,
    server: BufWriter<File>,
}

impl Trace {
    /// Makes both in a directory that is there.
    ///
    /// # Errors
    /// They can't be made.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let make = |name| -> io::Result<_> {
            let mut file = BufWriter::new(File::create(directory.join(name))?);
            head(&mut file)?;
            Ok(file)
        };
        Ok(Self { client: make("client.pcap")?, server: make("server.pcap")? })
    }

    /// A packet was sent by `side`, or handed over to it.
    pub fn note(&mut self, side: Side, packet: &[u8]) {
        let file = match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let _ = record(file, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), packet);
    }
}

fn head(file: &mut impl Write) -> io::Result<()> {
    file.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
    file.write_all(&VERSION.0.to_le_bytes())?;
    file.write_all(&VERSION.1.to_le_bytes())?;
    // Two reserved words, then the most that is kept of a packet.
    file.write_all(&[0; 8])?;
    file.write_all(&(KEPT as u32).to_le_bytes())?;
    file.write_all(&LINK_TYPE_RAW.to_le_bytes())
}

/// In one write, so that what is refused is left out whole.
fn record(file: &mut impl Write, at: Duration, packet: &[u8]) -> io::Result<()> {
    let kept = &packet[..packet.len().min(KEPT)];
    let words = [at.as_secs() as u32, at.subsec_nanos(), kept.len() as u32, packet.len() as u32];
    let mut record = Vec::with_capacity(16 + KEPT);
    words.iter().for_each(|word| record.extend_from_slice(&word.to_le_bytes()));
    record.extend_from_slice(kept);
    file.write_all(&record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_when_how_long_and_the_first_bytes() {
        let mut file = Vec::new();
        head(&mut file).unwrap();
        assert_eq!(file.len(), 24);
        assert_eq!(file[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        record(&mut file, Duration::new(7, 9), &[0x45; 1200]).unwrap();
        record(&mut file, Duration::ZERO, &[0x45; 50]).unwrap();
        let words: Vec<u32> = file[24..40].as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        assert_eq!(words, [7, 9, 96, 1200]);
        assert_eq!(file.len(), 24 + 16 + 96 + 16 + 50);
    }
}
