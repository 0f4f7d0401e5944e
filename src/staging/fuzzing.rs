//! What recovery reads of a disk that somebody else wrote, for the fuzz targets.

use std::io;

use super::disk::File;
use super::layout::{self, Kind};
use super::meta;
use super::seal::{Name, SealKey, Sealer};
use crate::clock::Clock;

/// A file in memory.
struct Memory<'a>(&'a [u8]);

impl File for Memory<'_> {
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn truncate(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads any bytes as a staged file, which may not open, and as what is sealed in one.
pub fn fuzz_sealed(bytes: &[u8]) {
    if let Ok(sealer) = Sealer::new(&SealKey::new([7; 32]), Clock::at_unix_ms(0)) {
        for kind in [Kind::Chunk, Kind::Stream] {
            let opened = layout::read_header(&Memory(bytes), &sealer, kind, Name([3; 16]));
            assert!(opened.is_err(), "nothing is sealed with this key");
        }
    }
    let _ = layout::payload_at(&Memory(bytes));
    if let Some((read, boot)) = meta::decode(bytes) {
        let again = meta::encode(&read, boot).ok().and_then(|json| meta::decode(&json));
        assert!(again == Some((read, boot)), "metadata is written as it was read");
    }
}
