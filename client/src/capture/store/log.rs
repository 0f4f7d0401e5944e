//! The bytes of `upload_queue.enc`: a sequence of authenticated records. Pure.
//!
//! `WSQUEUE1`, 16 random bytes, then records: length (4 bytes, big-endian) and so many bytes of
//! AES-256-GCM ciphertext with tag. The key is of the local key and the 16 bytes; the nonce is the
//! record's number in the file, so that none can be left out, doubled or moved. What is committed
//! together is one record, so that it is there whole or not at all. A file begins with an image
//! of the queue, whose last change is [`Record::ImageEnd`].

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

use super::record::Record;
use crate::capture::local::{LocalKey, SALT_BYTES};

const MAGIC: &[u8; 8] = b"WSQUEUE1";
const LABEL: &[u8] = b"waystation-queue-v1";
/// Longest record, in bytes: a lane with all its streams fits.
const MAX_RECORD: usize = 2 << 20;

/// Shortest record, in bytes: an empty list and its tag.
const LEAST_RECORD: usize = 2 + 16;
/// So many records are thought to lie in a spoiled stretch at most.
const MAX_BETWEEN: usize = 256;

/// Why a queue file is not read. It stays as it is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It opens with another key.
    WrongKey,
    /// It is no queue file, its image is not whole, or something in its middle is not: no crash
    /// leaves it so, and what follows is not to be dropped.
    Damaged,
}

/// Writes records of one file.
pub(crate) struct Writer {
    cipher: LessSafeKey,
    next: u64,
}

/// What a file holds.
pub(crate) struct Read {
    pub(crate) records: Vec<Record>,
    /// Something follows the last whole record.
    pub(crate) torn: bool,
}

impl Writer {
    /// Begins a file; the second value is its head.
    pub(crate) fn begin(key: &LocalKey, salt: [u8; SALT_BYTES]) -> Option<(Self, Vec<u8>)> {
        let cipher = key.cipher(LABEL, &salt)?;
        Some((Self { cipher, next: 0 }, [&MAGIC[..], &salt].concat()))
    }

    /// Adds the bytes of changes that belong together to `out`.
    pub(crate) fn put(&mut self, changes: &[Record], out: &mut Vec<u8>) -> Option<()> {
        let mut body = serde_json::to_vec(changes).ok().filter(|body| body.len() < MAX_RECORD)?;
        self.cipher.seal_in_place_append_tag(nonce(self.next), Aad::from(MAGIC), &mut body).ok()?;
        self.next += 1;
        out.extend_from_slice(&u32::try_from(body.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&body);
        Some(())
    }
}

/// Reads a file up to its last whole record. What follows that one must be no more than a crash
/// leaves: the rest of a change that was not synced, or notes that nobody waits for.
pub(crate) fn read(key: &LocalKey, bytes: &[u8]) -> Result<Read, Unreadable> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(Unreadable::Damaged)?;
    let (salt, mut rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or(Unreadable::Damaged)?;
    let cipher = key.cipher(LABEL, salt).ok_or(Unreadable::Damaged)?;
    let (mut records, mut number, mut image) = (Vec::new(), 0, false);
    while let Some((body, after)) = split(rest) {
        let Some(plain) = open(&cipher, number, body) else {
            if number == 0 {
                return Err(Unreadable::WrongKey);
            }
            break;
        };
        // It is ours, but of a newer program: nothing may be lost by guessing.
        let changes: Vec<Record> = serde_json::from_slice(&plain).map_err(|_| Unreadable::Damaged)?;
        image |= changes.iter().any(|change| matches!(change, Record::ImageEnd));
        records.extend(changes);
        (number, rest) = (number + 1, after);
    }
    if !image || is_followed(&cipher, number, rest) {
        return Err(Unreadable::Damaged);
    }
    Ok(Read { records, torn: !rest.is_empty() })
}

/// Whether a change that was waited for stands whole behind the bad record `number`: then that
/// one was synced, and spoiled since.
fn is_followed(cipher: &LessSafeKey, number: u64, rest: &[u8]) -> bool {
    let plausible = |bytes: &[u8]| match bytes.first_chunk::<4>() {
        Some(length) => (u32::from_be_bytes(*length) as usize) <= MAX_RECORD,
        None => true,
    };
    (0..rest.len()).any(|at| {
        let Some((body, after)) = split(&rest[at..]) else { return false };
        if body.len() < LEAST_RECORD || !plausible(after) {
            return false;
        }
        // So many records may lie before it.
        let between = (at / (4 + LEAST_RECORD) + 1).min(MAX_BETWEEN) as u64;
        let plain = (1..=between).find_map(|n| open(cipher, number + n, body));
        let changes = plain.and_then(|plain| serde_json::from_slice::<Vec<Record>>(&plain).ok());
        changes.is_some_and(|changes| changes.iter().any(Record::is_waited_for))
    })
}

fn split(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_RECORD { None } else { rest.split_at_checked(length) }
}

fn open(cipher: &LessSafeKey, number: u64, body: &[u8]) -> Option<Vec<u8>> {
    let mut body = body.to_vec();
    let length = cipher.open_in_place(nonce(number), Aad::from(MAGIC), &mut body).ok()?.len();
    body.truncate(length);
    Some(body)
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(key: &LocalKey) -> (Vec<u8>, Vec<usize>) {
        let (mut writer, mut bytes) = Writer::begin(key, [7; SALT_BYTES]).unwrap();
        let mut ends = Vec::new();
        for record in [Record::Ready, Record::ImageEnd, Record::Confirmed { id: 1 }, Record::Confirmed { id: 2 }] {
            writer.put(&[record], &mut bytes).unwrap();
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn a_file_cut_anywhere_after_its_image_opens_to_what_was_whole() {
        let key = LocalKey::new([1; 32]);
        let (bytes, ends) = file(&key);
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            match read(&key, &bytes[..cut]) {
                Ok(read) => {
                    assert_eq!((read.records.len(), read.torn), (whole, !ends.contains(&cut)), "cut at {cut}");
                }
                Err(error) => assert!(error == Unreadable::Damaged && cut < ends[1], "{error:?} at {cut}"),
            }
        }
    }

    #[test]
    fn no_record_is_changed_left_out_doubled_or_moved() {
        let key = LocalKey::new([1; 32]);
        let (bytes, ends) = file(&key);
        assert_eq!(read(&LocalKey::new([2; 32]), &bytes).err(), Some(Unreadable::WrongKey));
        for at in ends[1]..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            match read(&key, &bad) {
                Ok(read) => assert!(at >= ends[2] && read.torn && read.records.len() == 3, "byte {at}"),
                Err(error) => assert!(error == Unreadable::Damaged && at < ends[2], "{error:?} at byte {at}"),
            }
        }
        let without = [&bytes[..ends[1]], &bytes[ends[2]..]].concat();
        assert_eq!(read(&key, &without).err(), Some(Unreadable::Damaged));
        let twice = [&bytes[..ends[2]], &bytes[ends[1]..ends[2]]].concat();
        assert_eq!(read(&key, &twice).unwrap().records.len(), 3);
    }

    #[test]
    fn what_was_waited_for_is_not_dropped_behind_a_spoiled_stretch_and_notes_are() {
        let key = LocalKey::new([1; 32]);
        let note = |id| Record::Noted { id, note: Default::default() };
        let written = |records: &[Record]| {
            let (mut writer, mut bytes) = Writer::begin(&key, [7; SALT_BYTES]).unwrap();
            writer.put(&[Record::ImageEnd], &mut bytes).unwrap();
            let from = bytes.len();
            records.iter().for_each(|record| writer.put(std::slice::from_ref(record), &mut bytes).unwrap());
            (from, bytes)
        };
        let (from, bytes) = written(&[note(1), note(2), note(3), Record::Confirmed { id: 1 }, note(4)]);
        for spoiled in [from..from + 4, from + 3..from + 4, from + 30..from + 150] {
            let mut bad = bytes.clone();
            bad[spoiled.clone()].fill(0);
            assert_eq!(read(&key, &bad).err(), Some(Unreadable::Damaged), "{spoiled:?}");
        }
        // A power cut may leave a later note and not the one before.
        let (from, mut bytes) = written(&[note(1), note(2), note(3)]);
        bytes[from..from + 20].fill(0);
        let read = read(&key, &bytes).unwrap();
        assert!(read.torn && read.records.len() == 1);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_are_taken_for_a_queue(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let key = LocalKey::new([1; 32]);
            prop_assert!(read(&key, &bytes).is_err());
            prop_assert!(read(&key, &[&MAGIC[..], &bytes].concat()).is_err());
        }
    }
}
