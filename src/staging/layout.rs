//! The bytes on disk, and what must be true of them.
//!
//! **Invariants**
//!
//! 1. A file below `staged/` was synced whole before it got that name, and never changes after.
//! 2. A chunk is called durable only after the sync of `staged/` that followed its renaming.
//! 3. A file below `receiving/` promises nothing. Its bytes are believed only in the boot of the
//!    machine in which they were written, and even then they are hashed again.
//! 4. A name is a keyed hash: of the chunk's reference below `receiving/` (then `.` and a
//!    generation) and `staged/`, of the stream's identifier below `streams/`. Of two generations
//!    of one chunk the higher one counts.
//! 5. Metadata is readable only with the seal key and only under the name it was written for.
//!    What does not open, or is not as long as it says, is never reported as a chunk.
//! 6. A file below `streams/` is replaced in one step; a name with a generation is one that was
//!    not finished and is worth nothing.
//!
//! **A file**, numbers big-endian:
//!
//! | bytes | |
//! |---|---|
//! | 7 | `WAYCHNK` for a chunk, `WAYSTRM` for a stream's capability |
//! | 1 | version, 1 |
//! | 4 | length of the sealed part, 16 to [`MAX_SEALED_BYTES`] |
//! | 12 | nonce |
//! | as said | sealed part: AES-256-GCM of JSON, associated data = the first 8 bytes and the 16 bytes of the name |
//! | the rest | the chunk's bytes, as they came; nothing for a stream |

use std::io;

use aws_lc_rs::aead::NONCE_LEN;

use super::disk::{File, read_exact_at};
use super::seal::{Name, Sealed, Sealer};

/// Longest sealed part that is written or read, in bytes: a capability of 16 KiB, the grant it
/// stands for and the offer need under 64 KiB.
pub const MAX_SEALED_BYTES: u32 = 128 * 1024;
/// Bytes before the sealed part.
pub const PREFIX_BYTES: usize = 24;
/// File systems hand out room in blocks of this many bytes.
pub const BLOCK_BYTES: u64 = 4096;

const VERSION: u8 = 1;
const TAG_BYTES: u32 = 16;
/// Read at first; nearly every header is shorter, so that it costs one read.
const FIRST_READ_BYTES: usize = 8 * 1024;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chunk,
    Stream,
}

impl Kind {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Chunk => *b"WAYCHNK\x01",
            Self::Stream => *b"WAYSTRM\x01",
        }
    }
}

const _: () = assert!(Kind::Chunk.magic()[7] == VERSION && Kind::Stream.magic()[7] == VERSION);

/// Room a chunk takes on disk: header and bytes, in whole blocks.
#[must_use]
pub const fn footprint(header_bytes: u64, payload_bytes: u64) -> u64 {
    header_bytes.saturating_add(payload_bytes).div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// An opened header.
pub(crate) struct Header {
    /// What was sealed.
    pub(crate) plain: Vec<u8>,
    /// Where the payload begins.
    pub(crate) payload_at: u64,
}

/// Why there is no header.
#[derive(Debug)]
pub(crate) enum HeaderError {
    /// Torn, altered, of another key or another version.
    Unreadable,
    /// The disk did not answer.
    Io(io::Error),
}

impl From<HeaderError> for io::Error {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Unreadable => Self::new(io::ErrorKind::InvalidData, "a staged file can't be read"),
            HeaderError::Io(e) => e,
        }
    }
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Unreadable,
            _ => Self::Io(error),
        }
    }
}

/// The fixed part in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prefix {
    sealed_bytes: u32,
    nonce: [u8; NONCE_LEN],
}

impl Prefix {
    fn encode(self, kind: Kind) -> [u8; PREFIX_BYTES] {
        let mut out = [0; PREFIX_BYTES];
        out[..8].copy_from_slice(&kind.magic());
        out[8..12].copy_from_slice(&self.sealed_bytes.to_be_bytes());
        out[12..].copy_from_slice(&self.nonce);
        out
    }

    /// `None` for anything this version does not write.
    fn decode(kind: Kind, bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (nonce, _) = rest.split_first_chunk::<NONCE_LEN>()?;
        let sealed_bytes = u32::from_be_bytes(*length);
        let sound = *magic == kind.magic() && (TAG_BYTES..=MAX_SEALED_BYTES).contains(&sealed_bytes);
        sound.then_some(Self { sealed_bytes, nonce: *nonce })
    }

    const fn header_bytes(self) -> usize {
        PREFIX_BYTES + self.sealed_bytes as usize
    }
}

fn associated(kind: Kind, name: Name) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&kind.magic());
    out[8..].copy_from_slice(&name.0);
    out
}

/// Seals `plain` into a header for the file `name`.
///
/// # Errors
/// `InvalidInput` if it would be longer than [`MAX_SEALED_BYTES`].
pub(crate) fn write_header(sealer: &Sealer, kind: Kind, name: Name, plain: Vec<u8>) -> io::Result<Vec<u8>> {
    let sealed = sealer.seal(&associated(kind, name), plain)?;
    let sealed_bytes = u32::try_from(sealed.bytes.len())
        .ok()
        .filter(|length| *length <= MAX_SEALED_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "metadata too long"))?;
    let mut out = Vec::with_capacity(PREFIX_BYTES + sealed.bytes.len());
    out.extend_from_slice(&Prefix { sealed_bytes, nonce: sealed.nonce }.encode(kind));
    out.extend_from_slice(&sealed.bytes);
    Ok(out)
}

/// Reads and opens the header of the file `name`. Allocates no more than the file is long, and
/// no more than [`MAX_SEALED_BYTES`] and the prefix.
pub(crate) fn read_header(file: &dyn File, sealer: &Sealer, kind: Kind, name: Name) -> Result<Header, HeaderError> {
    let (prefix, mut bytes) = read_prefix(file, kind)?;
    let header_bytes = prefix.header_bytes();
    if (bytes.len() as u64) < header_bytes as u64 {
        if file.size()? < header_bytes as u64 {
            return Err(HeaderError::Unreadable);
        }
        let have = bytes.len();
        bytes.resize(header_bytes, 0);
        read_exact_at(file, have as u64, &mut bytes[have..])?;
    }
    let sealed = Sealed { nonce: prefix.nonce, bytes: bytes[PREFIX_BYTES..header_bytes].to_vec() };
    let plain = sealer.open(&associated(kind, name), sealed).ok_or(HeaderError::Unreadable)?;
    Ok(Header { plain, payload_at: header_bytes as u64 })
}

/// Where the payload of the file begins, without opening the seal.
pub(crate) fn payload_at(file: &dyn File) -> Result<u64, HeaderError> {
    let mut bytes = [0; PREFIX_BYTES];
    read_exact_at(file, 0, &mut bytes)?;
    let prefix = Prefix::decode(Kind::Chunk, &bytes).ok_or(HeaderError::Unreadable)?;
    Ok(prefix.header_bytes() as u64)
}

fn read_prefix(file: &dyn File, kind: Kind) -> Result<(Prefix, Vec<u8>), HeaderError> {
    let mut bytes = vec![0; FIRST_READ_BYTES];
    let mut have = 0;
    while have < PREFIX_BYTES {
        let read = file.read_at(have as u64, &mut bytes[have..])?;
        if read == 0 {
            return Err(HeaderError::Unreadable);
        }
        have += read;
    }
    bytes.truncate(have);
    let prefix = Prefix::decode(kind, &bytes).ok_or(HeaderError::Unreadable)?;
    Ok((prefix, bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;
    use crate::staging::seal::SealKey;

    /// A file in memory that hands out at most `step` bytes a read.
    struct Memory {
        bytes: Vec<u8>,
        step: usize,
    }

    impl File for Memory {
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            assert!(buf.len() <= PREFIX_BYTES + MAX_SEALED_BYTES as usize, "unbounded allocation");
            let rest = self.bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
            let n = rest.len().min(buf.len()).min(self.step);
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
        fn size(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }
        fn truncate(&self) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn sealer() -> Sealer {
        Sealer::new(&SealKey::new([1; 32]), Clock::at_unix_ms(0)).unwrap()
    }

    const NAME: Name = Name([3; 16]);

    #[test]
    fn the_prefix_is_as_documented() {
        let encoded = Prefix { sealed_bytes: 0x0102, nonce: [9; 12] }.encode(Kind::Chunk);
        assert_eq!(&encoded, b"WAYCHNK\x01\0\0\x01\x02\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09");
        assert_eq!(footprint(100, 3996), 4096);
        assert_eq!(footprint(100, 3997), 8192);
    }

    #[test]
    fn a_header_opens_only_as_the_file_it_was_written_for() {
        for length in [0, 100, FIRST_READ_BYTES, 60_000] {
            let header = write_header(&sealer(), Kind::Chunk, NAME, vec![7; length]).unwrap();
            let payload_at = header.len() as u64;
            let mut file = Memory { bytes: header, step: 1000 };
            file.bytes.extend_from_slice(b"payload");
            let opened = read_header(&file, &sealer(), Kind::Chunk, NAME).unwrap();
            assert_eq!((opened.plain, opened.payload_at), (vec![7; length], payload_at));
            assert_eq!(super::payload_at(&file).unwrap(), payload_at);
            assert!(read_header(&file, &sealer(), Kind::Stream, NAME).is_err());
            assert!(read_header(&file, &sealer(), Kind::Chunk, Name([4; 16])).is_err());
        }
    }

    #[test]
    fn metadata_that_could_not_be_read_back_is_not_written() {
        let most = MAX_SEALED_BYTES as usize - TAG_BYTES as usize;
        assert!(write_header(&sealer(), Kind::Chunk, NAME, vec![0; most]).is_ok());
        let refused = write_header(&sealer(), Kind::Chunk, NAME, vec![0; most + 1]);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_calmly(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
            magic in any::<bool>(),
            length in proptest::option::of(any::<u32>()),
            step in 1_usize..64,
        ) {
            if magic && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&Kind::Chunk.magic());
            }
            if let Some(length) = length.filter(|_| bytes.len() >= 12) {
                bytes[8..12].copy_from_slice(&length.to_be_bytes());
            }
            let file = Memory { bytes, step };
            prop_assert!(matches!(read_header(&file, &sealer(), Kind::Chunk, NAME), Err(HeaderError::Unreadable)));
            let _ = super::payload_at(&file);
        }

        #[test]
        fn one_changed_bit_or_a_cut_closes_a_header(length in 0_usize..400, at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let header = write_header(&sealer(), Kind::Chunk, NAME, vec![7; length]).unwrap();
            let at = at.index(header.len());
            let mut bent = header.clone();
            bent[at] ^= 1 << bit;
            for bytes in [bent, header[..at].to_vec()] {
                let file = Memory { bytes, step: usize::MAX };
                let refused = matches!(read_header(&file, &sealer(), Kind::Chunk, NAME), Err(HeaderError::Unreadable));
                prop_assert!(refused);
            }
        }
    }
}
