//! Joins the chunks of one lane into one file that plays: the init segment once, then every
//! fragment with its decode time moved so that the timeline is unbroken over loops, streams and
//! chunks that never came. Pure.
//!
//! Every chunk is a fragmented MP4 of its own (ISO/IEC 14496-12): `ftyp` and `moov`, then pairs of
//! `moof` and `mdat`. Decode times inside a chunk may start anywhere.

use std::collections::BTreeMap;

/// Why a chunk can't be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mp4Error {
    /// A box ends beyond the one it is in, or a field is missing.
    #[error("not a fragmented MP4")]
    Malformed,
    /// A decode time no longer fits its field.
    #[error("the recording is too long for its decode times")]
    TooLong,
}

/// What is known of a track from the init segment.
#[derive(Debug, Clone, Copy, Default)]
struct Track {
    timescale: u64,
    default_duration: u64,
    /// Decode time at which the next chunk begins.
    base: u64,
}

/// Joins chunks in the order they are given.
#[derive(Debug, Default)]
pub struct Joiner {
    tracks: BTreeMap<u32, Track>,
    written: u64,
    sequence: u32,
}

/// One box: where it starts, where its content starts, where it ends.
#[derive(Debug, Clone, Copy)]
struct Span {
    kind: [u8; 4],
    start: usize,
    body: usize,
    end: usize,
}

impl Joiner {
    /// Returns what to append to the file for one chunk. `gap_ms` is recorded time that is
    /// missing before it.
    ///
    /// # Errors
    /// [`Mp4Error`]; the joiner is then as it was before.
    pub fn append(&mut self, chunk: &[u8], gap_ms: u64) -> Result<Vec<u8>, Mp4Error> {
        let mut next = Self { tracks: self.tracks.clone(), ..*self };
        let out = next.join(chunk, gap_ms)?;
        *self = next;
        Ok(out)
    }

    fn join(&mut self, chunk: &[u8], gap_ms: u64) -> Result<Vec<u8>, Mp4Error> {
        let top = spans(chunk, 0, chunk.len())?;
        let mut out = Vec::with_capacity(chunk.len());
        if self.tracks.is_empty() {
            for span in top.iter().filter(|span| matches!(&span.kind, b"ftyp" | b"moov")) {
                out.extend_from_slice(&chunk[span.start..span.end]);
            }
            let moov = top.iter().find(|span| span.kind == *b"moov").ok_or(Mp4Error::Malformed)?;
            self.tracks = read_tracks(chunk, *moov)?;
        } else {
            for track in self.tracks.values_mut() {
                track.base += gap_ms * track.timescale / 1000;
            }
        }
        let mut times = BTreeMap::new();
        for span in top.iter().filter(|span| matches!(&span.kind, b"moof" | b"mdat")) {
            let at = out.len();
            out.extend_from_slice(&chunk[span.start..span.end]);
            if span.kind == *b"moof" {
                self.move_fragment(&mut out, at, span.start, &mut times)?;
            }
        }
        for (id, (first, end)) in times {
            if let Some(track) = self.tracks.get_mut(&id) {
                track.base += end - first;
            }
        }
        self.written += out.len() as u64;
        Ok(out)
    }

    /// Rewrites sequence number, decode times and absolute offsets of the `moof` at `at` in `out`,
    /// which stood at `was` in its chunk. `times` holds each track's first and last decode time in
    /// the chunk, as they were.
    fn move_fragment(
        &mut self,
        out: &mut [u8],
        at: usize,
        was: usize,
        times: &mut BTreeMap<u32, (u64, u64)>,
    ) -> Result<(), Mp4Error> {
        let moof = *spans(out, at, out.len())?.first().ok_or(Mp4Error::Malformed)?;
        for span in spans(out, moof.body, moof.end)? {
            if span.kind == *b"mfhd" {
                self.sequence += 1;
                put_u32(out, span.body + 4, self.sequence)?;
            }
            if span.kind == *b"traf" {
                self.move_track(out, span, at, was, times)?;
            }
        }
        Ok(())
    }

    fn move_track(
        &self,
        out: &mut [u8],
        traf: Span,
        at: usize,
        was: usize,
        times: &mut BTreeMap<u32, (u64, u64)>,
    ) -> Result<(), Mp4Error> {
        let boxes = spans(out, traf.body, traf.end)?;
        let find = |kind: &[u8; 4]| boxes.iter().find(|span| span.kind == *kind).copied();
        let tfhd = find(b"tfhd").ok_or(Mp4Error::Malformed)?;
        let header = read_tfhd(out, tfhd)?;
        let track = self.tracks.get(&header.track).copied().ok_or(Mp4Error::Malformed)?;
        if let Some(field) = header.base_offset {
            let moved = u64_at(out, field)?.wrapping_sub(was as u64).wrapping_add(self.written + at as u64);
            out.get_mut(field..field + 8).ok_or(Mp4Error::Malformed)?.copy_from_slice(&moved.to_be_bytes());
        }
        let default = header.default_duration.unwrap_or(track.default_duration);
        let mut length = 0;
        for span in boxes.iter().filter(|span| span.kind == *b"trun") {
            length += trun_duration(out, *span, default)?;
        }
        let tfdt = find(b"tfdt").ok_or(Mp4Error::Malformed)?;
        let (wide, field) = (byte_at(out, tfdt.body)? == 1, tfdt.body + 4);
        let time = if wide { u64_at(out, field)? } else { u64::from(u32_at(out, field)?) };
        let (first, end) = times.entry(header.track).or_insert((time, time));
        *end = (*end).max(time + length);
        let moved = time.saturating_sub(*first) + track.base;
        if wide {
            out[field..field + 8].copy_from_slice(&moved.to_be_bytes());
            Ok(())
        } else {
            put_u32(out, field, u32::try_from(moved).map_err(|_| Mp4Error::TooLong)?)
        }
    }
}

struct TrackHeader {
    track: u32,
    base_offset: Option<usize>,
    default_duration: Option<u64>,
}

fn read_tfhd(data: &[u8], tfhd: Span) -> Result<TrackHeader, Mp4Error> {
    let flags = u32_at(data, tfhd.body)? & 0x00ff_ffff;
    let track = u32_at(data, tfhd.body + 4)?;
    let mut field = tfhd.body + 8;
    let base_offset = (flags & 0x01 != 0).then_some(field);
    field += if base_offset.is_some() { 8 } else { 0 };
    field += if flags & 0x02 != 0 { 4 } else { 0 };
    let default_duration = if flags & 0x08 != 0 { Some(u64::from(u32_at(data, field)?)) } else { None };
    Ok(TrackHeader { track, base_offset, default_duration })
}

fn trun_duration(data: &[u8], trun: Span, default: u64) -> Result<u64, Mp4Error> {
    let flags = u32_at(data, trun.body)? & 0x00ff_ffff;
    let count = u64::from(u32_at(data, trun.body + 4)?);
    if flags & 0x100 == 0 {
        return Ok(count * default);
    }
    let mut field = trun.body + 8;
    field += if flags & 0x01 != 0 { 4 } else { 0 };
    field += if flags & 0x04 != 0 { 4 } else { 0 };
    let step = (flags & 0xf00).count_ones() as usize * 4;
    let mut sum = 0;
    for _ in 0..count {
        if field + step > trun.end {
            return Err(Mp4Error::Malformed);
        }
        sum += u64::from(u32_at(data, field)?);
        field += step;
    }
    Ok(sum)
}

fn read_tracks(data: &[u8], moov: Span) -> Result<BTreeMap<u32, Track>, Mp4Error> {
    let mut tracks: BTreeMap<u32, Track> = BTreeMap::new();
    for span in spans(data, moov.body, moov.end)? {
        if span.kind == *b"trak" {
            let tkhd = child(data, span, b"tkhd")?;
            let mdhd = child(data, child(data, span, b"mdia")?, b"mdhd")?;
            let id = u32_at(data, tkhd.body + if byte_at(data, tkhd.body)? == 1 { 20 } else { 12 })?;
            let scale = u32_at(data, mdhd.body + if byte_at(data, mdhd.body)? == 1 { 20 } else { 12 })?;
            tracks.entry(id).or_default().timescale = u64::from(scale);
        }
        if span.kind == *b"mvex" {
            for trex in spans(data, span.body, span.end)?.iter().filter(|span| span.kind == *b"trex") {
                let id = u32_at(data, trex.body + 4)?;
                tracks.entry(id).or_default().default_duration = u64::from(u32_at(data, trex.body + 12)?);
            }
        }
    }
    if tracks.is_empty() { Err(Mp4Error::Malformed) } else { Ok(tracks) }
}

fn child(data: &[u8], parent: Span, kind: &[u8; 4]) -> Result<Span, Mp4Error> {
    let inside = spans(data, parent.body, parent.end)?;
    inside.into_iter().find(|span| span.kind == *kind).ok_or(Mp4Error::Malformed)
}

/// The boxes between two places.
fn spans(data: &[u8], from: usize, to: usize) -> Result<Vec<Span>, Mp4Error> {
    let mut out = Vec::new();
    let mut start = from;
    while start < to {
        let kind = data.get(start + 4..start + 8).and_then(|kind| kind.try_into().ok()).ok_or(Mp4Error::Malformed)?;
        let (head, size) = match u32_at(data, start)? {
            0 => (8, (to - start) as u64),
            1 => (16, u64_at(data, start + 8)?),
            size => (8, u64::from(size)),
        };
        let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size)).ok_or(Mp4Error::Malformed)?;
        if end > to || end < start + head {
            return Err(Mp4Error::Malformed);
        }
        out.push(Span { kind, start, body: start + head, end });
        start = end;
    }
    Ok(out)
}

fn byte_at(data: &[u8], at: usize) -> Result<u8, Mp4Error> {
    data.get(at).copied().ok_or(Mp4Error::Malformed)
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, Mp4Error> {
    let bytes = data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).ok_or(Mp4Error::Malformed)?;
    Ok(u32::from_be_bytes(bytes))
}

fn u64_at(data: &[u8], at: usize) -> Result<u64, Mp4Error> {
    let bytes = data.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).ok_or(Mp4Error::Malformed)?;
    Ok(u64::from_be_bytes(bytes))
}

fn put_u32(data: &mut [u8], at: usize, value: u32) -> Result<(), Mp4Error> {
    data.get_mut(at..at + 4).ok_or(Mp4Error::Malformed)?.copy_from_slice(&value.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut out = (body.len() as u32 + 8).to_be_bytes().to_vec();
        out.extend_from_slice(kind);
        out.extend_from_slice(body);
        out
    }

    fn words(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_be_bytes()).collect()
    }

    /// A chunk of one track at 1000 units a second, with the decode times of its fragments.
    fn chunk(times: &[u32], duration: u32, absolute: bool) -> Vec<u8> {
        let tkhd = boxed(b"tkhd", &words(&[0, 0, 0, 1]));
        let mdia = boxed(b"mdia", &boxed(b"mdhd", &words(&[0, 0, 0, 1000])));
        let trak = boxed(b"trak", &[tkhd, mdia].concat());
        let mvex = boxed(b"mvex", &boxed(b"trex", &words(&[0, 1, 1, 7])));
        let mut out = [boxed(b"ftyp", b"iso5"), boxed(b"moov", &[trak, mvex].concat())].concat();
        for time in times {
            let at = out.len() as u64;
            let mut tfhd = words(&[u32::from(absolute), 1]);
            if absolute {
                tfhd.extend_from_slice(&at.to_be_bytes());
            }
            let traf = [
                boxed(b"tfhd", &tfhd),
                boxed(b"tfdt", &words(&[0, *time])),
                boxed(b"trun", &words(&[0x100, 2, duration, duration])),
            ];
            let mfhd = boxed(b"mfhd", &words(&[0, 99]));
            out.extend(boxed(b"moof", &[mfhd, boxed(b"traf", &traf.concat())].concat()));
            out.extend(boxed(b"mdat", b"xx"));
        }
        out
    }

    fn read_back(file: &[u8]) -> Vec<(u32, u32, Option<u64>, u64)> {
        let mut out = Vec::new();
        for moof in spans(file, 0, file.len()).unwrap().into_iter().filter(|span| span.kind == *b"moof") {
            let mfhd = child(file, moof, b"mfhd").unwrap();
            let traf = child(file, moof, b"traf").unwrap();
            let tfdt = child(file, traf, b"tfdt").unwrap();
            let header = read_tfhd(file, child(file, traf, b"tfhd").unwrap()).unwrap();
            let base = header.base_offset.map(|field| u64_at(file, field).unwrap());
            let (sequence, time) = (u32_at(file, mfhd.body + 4).unwrap(), u32_at(file, tfdt.body + 4).unwrap());
            out.push((sequence, time, base, moof.start as u64));
        }
        out
    }

    #[test]
    fn the_timeline_is_unbroken_and_the_init_segment_is_there_once() {
        let mut joiner = Joiner::default();
        let mut file = joiner.append(&chunk(&[500, 1500], 500, false), 0).unwrap();
        file.extend(joiner.append(&chunk(&[0, 1000], 500, false), 0).unwrap());
        file.extend(joiner.append(&chunk(&[777], 10, false), 2000).unwrap());
        let times: Vec<_> = read_back(&file).iter().map(|(sequence, time, ..)| (*sequence, *time)).collect();
        assert_eq!(times, [(1, 0), (2, 1000), (3, 2000), (4, 3000), (5, 6000)]);
        let moovs = spans(&file, 0, file.len()).unwrap().iter().filter(|span| span.kind == *b"moov").count();
        assert_eq!(moovs, 1);
    }

    #[test]
    fn absolute_offsets_follow_their_fragment() {
        let mut joiner = Joiner::default();
        let mut file = joiner.append(&chunk(&[0], 500, true), 0).unwrap();
        file.extend(joiner.append(&chunk(&[0, 1000], 500, true), 0).unwrap());
        for (_, _, base, start) in read_back(&file) {
            assert_eq!(base, Some(start));
        }
    }

    #[test]
    fn a_chunk_that_is_none_changes_nothing() {
        let mut joiner = Joiner::default();
        let good = chunk(&[0], 500, false);
        joiner.append(&good, 0).unwrap();
        assert_eq!(joiner.append(&good[..good.len() - 20], 5000), Err(Mp4Error::Malformed));
        assert_eq!(read_back(&joiner.append(&good, 0).unwrap())[0].1, 1000);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
            let _ = Joiner::default().append(&bytes, 0);
            let mut near = chunk(&[0, 1000], 500, true);
            let at = at.index(near.len());
            for (to, from) in near[at..].iter_mut().zip(&bytes) {
                *to = *from;
            }
            let _ = Joiner::default().append(&near, 0);
        }
    }
}
