//! A streaming reader of `multipart/form-data` (RFC 7578) that holds no more than a part's head
//! and a boundary's length. Pure: bytes in, events out.

use bytes::{Buf as _, Bytes, BytesMut};

/// Largest head of a part, in bytes.
const MAX_PART_HEAD: usize = 8 * 1024;
/// Longest boundary (RFC 2046 §5.1.1).
const MAX_BOUNDARY: usize = 70;
/// White space allowed between a boundary and its line's end.
const MAX_PADDING: usize = 256;

/// It is not multipart, or it is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A part begins. Its form name, if it has one.
    Part(Option<String>),
    /// Bytes of the part.
    Data(Bytes),
    /// The part ended.
    PartEnd,
    /// The closing boundary came.
    End,
    /// More bytes are needed.
    More,
}

/// The reader.
pub(super) struct Parser {
    /// CRLF, two dashes, the boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    Head,
    Body,
    AfterDelimiter,
    Done,
}

/// The boundary of a `Content-Type` header.
pub(super) fn boundary(content_type: &str) -> Result<String, Malformed> {
    let mut parameters = Parameters::of(content_type);
    if !parameters.kind.eq_ignore_ascii_case("multipart/form-data") {
        return Err(Malformed);
    }
    let boundary = parameters.take("boundary").ok_or(Malformed)?;
    let sound = !boundary.is_empty() && boundary.len() <= MAX_BOUNDARY && boundary.is_ascii();
    sound.then_some(boundary).ok_or(Malformed)
}

impl Parser {
    pub(super) fn new(boundary: &str) -> Self {
        // The first boundary may stand at the very start: it is read as if a line ended before it.
        Self {
            delimiter: [b"\r\n--", boundary.as_bytes()].concat(),
            buffer: BytesMut::from(&b"\r\n"[..]),
            state: State::Preamble,
            closed: false,
        }
    }

    /// More of the body.
    pub(super) fn push(&mut self, bytes: &Bytes) {
        if self.state != State::Done {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The body ended.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// What comes next.
    pub(super) fn next(&mut self) -> Result<Event, Malformed> {
        loop {
            let event = match self.state {
                State::Done => return Ok(Event::End),
                State::Preamble => self.preamble(),
                State::Head => self.head()?,
                State::Body => self.body(),
                State::AfterDelimiter => self.after_delimiter()?,
            };
            match event {
                Some(event) => return Ok(event),
                None if self.advances() => {}
                None if self.closed => return Err(Malformed),
                None => return Ok(Event::More),
            }
        }
    }

    /// Whether the last step changed the state, so that another may succeed.
    fn advances(&mut self) -> bool {
        match self.state {
            State::Preamble => self.starts_with_delimiter() && self.enter(State::AfterDelimiter, self.delimiter.len()),
            State::AfterDelimiter => false,
            State::Head | State::Body | State::Done => false,
        }
    }

    fn enter(&mut self, state: State, consumed: usize) -> bool {
        self.buffer.advance(consumed);
        self.state = state;
        true
    }

    fn starts_with_delimiter(&self) -> bool {
        self.buffer.starts_with(&self.delimiter)
    }

    /// Drops what stands before the first boundary.
    fn preamble(&mut self) -> Option<Event> {
        let keep = self.find_delimiter().unwrap_or_else(|| self.possible_delimiter());
        self.buffer.advance(keep);
        None
    }

    fn after_delimiter(&mut self) -> Result<Option<Event>, Malformed> {
        if self.buffer.starts_with(b"--") {
            self.enter(State::Done, 2);
            self.buffer = BytesMut::new();
            return Ok(Some(Event::End));
        }
        let padding = self.buffer.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        let line = &self.buffer[padding..];
        if line.starts_with(b"\r\n") {
            self.enter(State::Head, padding + 2);
            return self.head();
        }
        let may_come = padding <= MAX_PADDING && (line.is_empty() || line == b"\r" || line == b"-");
        if may_come { Ok(None) } else { Err(Malformed) }
    }

    fn head(&mut self) -> Result<Option<Event>, Malformed> {
        let end = if self.buffer.starts_with(b"\r\n") {
            Some(0)
        } else {
            self.buffer.windows(4).take(MAX_PART_HEAD).position(|four| four == b"\r\n\r\n").map(|at| at + 2)
        };
        let Some(end) = end else {
            return if self.buffer.len() > MAX_PART_HEAD { Err(Malformed) } else { Ok(None) };
        };
        let head = self.buffer.split_to(end);
        self.buffer.advance(2);
        // The CRLF that ends the head may also begin the boundary of an empty part (RFC 2046).
        self.state = State::Body;
        Ok(Some(Event::Part(form_name(&head)?)))
    }

    fn body(&mut self) -> Option<Event> {
        if self.starts_with_delimiter() {
            self.enter(State::AfterDelimiter, self.delimiter.len());
            return Some(Event::PartEnd);
        }
        let ready = self.find_delimiter().unwrap_or_else(|| self.possible_delimiter());
        (ready > 0).then(|| Event::Data(self.buffer.split_to(ready).freeze()))
    }

    fn find_delimiter(&self) -> Option<usize> {
        let mut from = 0;
        while let Some(at) = self.buffer[from..].iter().position(|b| *b == b'\r') {
            let at = from + at;
            if self.buffer[at..].starts_with(&self.delimiter) {
                return Some(at);
            }
            from = at + 1;
        }
        None
    }

    /// Where a boundary may begin that is not here in full; the length if none does.
    fn possible_delimiter(&self) -> usize {
        let from = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
        let tail = &self.buffer[from..];
        let begins = |at: &usize| self.delimiter.starts_with(&tail[*at..]);
        (0..tail.len()).find(begins).map_or(self.buffer.len(), |at| from + at)
    }
}

/// Reads a form in pieces of `step` bytes: how many parts and bytes it holds, if it is sound.
#[cfg(feature = "fuzzing")]
#[must_use]
pub fn read_all(boundary: &str, body: &[u8], step: usize) -> Option<(usize, usize)> {
    let mut parser = Parser::new(boundary);
    let (mut parts, mut bytes) = (0, 0);
    let mut pieces = body.chunks(step);
    loop {
        match parser.next().ok()? {
            Event::Part(_) => parts += 1,
            Event::Data(data) => bytes += data.len(),
            Event::PartEnd => {}
            Event::End => return Some((parts, bytes)),
            Event::More => match pieces.next() {
                Some(piece) => parser.push(&Bytes::copy_from_slice(piece)),
                None => parser.close(),
            },
        }
    }
}

/// Reads a `Content-Type`.
#[cfg(feature = "fuzzing")]
pub fn read_content_type(text: &str) {
    let _ = boundary(text);
}

/// The form name in a part's head; `None` if it has none.
fn form_name(head: &[u8]) -> Result<Option<String>, Malformed> {
    for line in head.split(|b| *b == b'\n') {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or(Malformed)?;
        if name.trim().eq_ignore_ascii_case("content-disposition") {
            let mut parameters = Parameters::of(value);
            let form = parameters.kind.eq_ignore_ascii_case("form-data");
            return Ok(parameters.take("name").filter(|name| form && !name.is_empty()));
        }
    }
    Ok(None)
}

/// A header value and its parameters.
struct Parameters<'a> {
    kind: &'a str,
    rest: Vec<(&'a str, String)>,
}

impl<'a> Parameters<'a> {
    fn of(value: &'a str) -> Self {
        let mut parts = split_unquoted(value).into_iter();
        let kind = parts.next().unwrap_or_default().trim();
        let rest =
            parts.filter_map(|part| part.split_once('=')).map(|(name, value)| (name.trim(), unquote(value.trim())));
        Self { kind, rest: rest.collect() }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.rest.iter().position(|(one, _)| one.eq_ignore_ascii_case(name))?;
        Some(self.rest.swap_remove(at).1)
    }
}

/// Splits at semicolons that are not in a quoted string.
fn split_unquoted(value: &str) -> Vec<&str> {
    let (mut parts, mut from) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted => {
                parts.push(&value[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&value[from..]);
    parts
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return value.into() };
    let mut out = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn form(parts: &[(&str, &[u8])], boundary: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in parts {
            out.extend_from_slice(
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes(),
            );
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        out
    }

    type Parts = Vec<(Option<String>, Vec<u8>)>;

    /// Name and bytes of each part.
    fn read(wire: &[u8], boundary: &str, cut: usize) -> Result<Parts, Malformed> {
        let mut parser = Parser::new(boundary);
        let mut input = wire.chunks(cut);
        let mut parts: Parts = Vec::new();
        loop {
            match parser.next()? {
                Event::Part(name) => parts.push((name, Vec::new())),
                Event::Data(bytes) => parts.last_mut().unwrap().1.extend_from_slice(&bytes),
                Event::PartEnd => {}
                Event::End => return Ok(parts),
                Event::More => match input.next() {
                    Some(bytes) => parser.push(&Bytes::copy_from_slice(bytes)),
                    None => parser.close(),
                },
            }
        }
    }

    #[test]
    fn boundaries_of_content_types() {
        assert_eq!(boundary("multipart/form-data; boundary=abc"), Ok("abc".into()));
        assert_eq!(boundary("Multipart/Form-Data; charset=x; Boundary=\"a;\\\"b\""), Ok("a;\"b".into()));
        for bad in ["", "multipart/form-data", "multipart/mixed; boundary=a", "multipart/form-data; boundary="] {
            assert_eq!(boundary(bad), Err(Malformed), "{bad}");
        }
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "a".repeat(71))), Err(Malformed));
    }

    #[test]
    fn parts_without_a_name_and_odd_ones() {
        let wire = b"preamble\r\n--B \t\r\n\r\nx\r\n--B\r\nContent-Type: text/plain\r\n\r\n\r\n--B\r\ncontent-disposition: form-data; filename=\"a;name=b\"; name=file\r\n\r\n--\r\n--B--epilogue";
        let parts = read(wire, "B", 7).unwrap();
        assert_eq!(parts, [(None, b"x".to_vec()), (None, vec![]), (Some("file".into()), b"--".to_vec())]);
    }

    #[test]
    fn broken_forms_are_refused() {
        let whole = form(&[("a", b"1")], "B");
        assert!(read(&whole, "B", 3).is_ok());
        for end in 0..whole.len() - 4 {
            assert_eq!(read(&whole[..end], "B", 5), Err(Malformed), "cut at {end}");
        }
        assert_eq!(read(b"--Bx\r\n\r\n\r\n--B--", "B", 9), Err(Malformed));
        assert_eq!(read(b"--B\r\nno colon\r\n\r\n\r\n--B--", "B", 9), Err(Malformed));
        let long = [b"--B\r\nx: ".to_vec(), vec![b'a'; MAX_PART_HEAD + 10], b"\r\n\r\n\r\n--B--".to_vec()].concat();
        assert_eq!(read(&long, "B", 1000), Err(Malformed));
    }

    proptest! {
        #[test]
        fn forms_survive_any_cut(
            values in prop::collection::vec(prop::collection::vec(prop::sample::select(b"\r\n-Bx\0\xff".to_vec()), 0..60), 1..5),
            cut in 1usize..40,
        ) {
            // A value that holds the delimiter is another form.
            let clash = |value: &Vec<u8>| [b"\r\n", &value[..], b"\r\n"].concat().windows(5).any(|five| five == b"\r\n--B");
            prop_assume!(!values.iter().any(clash));
            let parts: Vec<(&str, &[u8])> = values.iter().map(|value| ("n", &value[..])).collect();
            let got = read(&form(&parts, "B"), "B", cut).unwrap();
            let got: Vec<Vec<u8>> = got.into_iter().map(|(_, value)| value).collect();
            prop_assert_eq!(got, values);
        }

        #[test]
        fn no_input_panics_or_is_held(wire in prop::collection::vec(prop::sample::select(b"\r\n-B:;=\" ax".to_vec()), 0..400), cut in 1usize..20) {
            let _ = read(&wire, "B", cut);
            let text = String::from_utf8_lossy(&wire);
            let _ = boundary(&text);
        }
    }
}
