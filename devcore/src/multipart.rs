//! `multipart/form-data` as it comes, in bounded memory: parts in any order, pieces handed on at once.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use memchr::memmem::Finder;

/// Longest header block of a part, in bytes.
const MAX_PART_HEADER_BYTES: usize = 16 * 1024;
/// Longest boundary (RFC 2046 §5.1.1).
const MAX_BOUNDARY_BYTES: usize = 70;
/// A sender that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(120);

/// Why a body can't be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Not multipart, or cut off.
    Malformed,
    /// More than the cap.
    TooLarge,
}

/// The head of a part.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// `name`; empty if there is none.
    pub(crate) name: String,
    /// `filename`.
    pub(crate) filename: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the next boundary.
    Content,
    /// The boundary line ended; its CR LF is still in the buffer.
    Head,
    End,
}

/// Reads one body.
pub(crate) struct Reader<B> {
    body: B,
    buf: BytesMut,
    delimiter: Finder<'static>,
    state: State,
    left: u64,
}

/// The `boundary` of a `multipart/form-data` content type.
pub(crate) fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(parameters, "boundary").filter(|text| (1..=MAX_BOUNDARY_BYTES).contains(&text.len()))
}

impl<B: Body<Data = Bytes> + Unpin> Reader<B> {
    /// Reads `body`, at most `cap` bytes of it.
    pub(crate) fn new(body: B, boundary: &str, cap: u64) -> Self {
        let delimiter = format!("\r\n--{boundary}");
        Self {
            body,
            // The first boundary may stand at the very start, without a line end before it.
            buf: BytesMut::from(&b"\r\n"[..]),
            delimiter: Finder::new(delimiter.as_bytes()).into_owned(),
            state: State::Content,
            left: cap,
        }
    }

    /// Skips what is left of the last part (or the preamble) and reads the next head; `None` at the end.
    pub(crate) async fn next_part(&mut self) -> Result<Option<Part>, Broken> {
        while self.piece().await?.is_some() {}
        if self.state == State::End {
            return Ok(None);
        }
        loop {
            if let Some(end) = memchr::memmem::find(&self.buf, b"\r\n\r\n") {
                let head = self.buf.split_to(end);
                self.buf.advance(4);
                // Content may begin with the next boundary: its line end is the head's own.
                self.state = State::Content;
                return Ok(Some(head_of(&head)));
            }
            if self.buf.len() > MAX_PART_HEADER_BYTES || !self.fill().await? {
                return Err(Broken::Malformed);
            }
        }
    }

    /// The next bytes of this part; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Broken> {
        while self.state == State::Content {
            let length = self.delimiter.needle().len();
            match self.delimiter.find(&self.buf) {
                Some(0) => {
                    if let Some(content) = self.boundary_line().await? {
                        return Ok(Some(content));
                    }
                }
                Some(at) => return Ok(Some(self.buf.split_to(at).freeze())),
                None => {
                    // The last bytes may be the beginning of a boundary.
                    let safe = self.buf.len().saturating_sub(length - 1);
                    if safe > 0 {
                        return Ok(Some(self.buf.split_to(safe).freeze()));
                    }
                    if !self.fill().await? {
                        return Err(Broken::Malformed);
                    }
                }
            }
        }
        Ok(None)
    }

    /// The buffer begins with the delimiter: ends the part, or gives the delimiter as content if it only
    /// looked like one.
    async fn boundary_line(&mut self) -> Result<Option<Bytes>, Broken> {
        let length = self.delimiter.needle().len();
        loop {
            let rest = &self.buf[length..];
            if rest.starts_with(b"--") {
                self.state = State::End;
                return Ok(None);
            }
            let padding = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
            let line_end = rest.get(padding..).unwrap_or_default();
            if line_end.starts_with(b"\r\n") {
                self.buf.advance(length + padding);
                self.state = State::Head;
                return Ok(None);
            }
            let undecided = padding < MAX_PART_HEADER_BYTES && matches!(line_end, b"" | b"\r") || rest == b"-";
            if !undecided {
                return Ok(Some(self.buf.split_to(length).freeze()));
            }
            if !self.fill().await? {
                return Err(Broken::Malformed);
            }
        }
    }

    /// Reads one more piece of the body; false at its end.
    async fn fill(&mut self) -> Result<bool, Broken> {
        loop {
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await.map_err(|_| Broken::Malformed)?;
            let Some(frame) = frame else { return Ok(false) };
            let Ok(data) = frame.map_err(|_| Broken::Malformed)?.into_data() else { continue };
            let length = data.len() as u64;
            self.left = self.left.checked_sub(length).ok_or(Broken::TooLarge)?;
            if length > 0 {
                self.buf.extend_from_slice(&data);
                return Ok(true);
            }
        }
    }
}

fn head_of(head: &[u8]) -> Part {
    let head = String::from_utf8_lossy(head);
    for line in head.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.trim().eq_ignore_ascii_case("content-disposition") {
            let Some((kind, parameters)) = value.split_once(';') else { continue };
            if kind.trim().eq_ignore_ascii_case("form-data") {
                let name = parameter(parameters, "name").unwrap_or_default();
                return Part { name, filename: parameter(parameters, "filename") };
            }
        }
    }
    Part::default()
}

/// A parameter of a header value: `a=token; b="quoted \" text"`.
fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        let (name, after) = text.split_once('=')?;
        let (value, rest) = value(after);
        if name.trim().trim_start_matches(';').trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        text = rest;
    }
}

fn value(text: &str) -> (String, &str) {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim_end().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            // Only these two are escaped; elsewhere a backslash is one (old browsers' paths).
            '\\' if quoted[at + 1..].starts_with(['"', '\\']) => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    type Parts = Vec<(String, Option<String>, Vec<u8>)>;

    async fn read(body: &[u8], step: usize, cap: u64) -> Result<Parts, Broken> {
        let frames: Vec<_> = body
            .chunks(step)
            .map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let mut reader = Reader::new(StreamBody::new(stream::iter(frames)), "xyz", cap);
        let mut parts = Vec::new();
        while let Some(part) = reader.next_part().await? {
            let mut content = Vec::new();
            while let Some(piece) = reader.piece().await? {
                content.extend_from_slice(&piece);
            }
            parts.push((part.name, part.filename, content));
        }
        Ok(parts)
    }

    const BODY: &[u8] = b"preamble\r\n--xyz\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nvalue\r\n--xyz \t\r\n\
        content-type: text/plain\r\nCONTENT-DISPOSITION: form-data; filename=\"c:\\x\\\"y\\\".enc\"; name=file\r\n\r\n\
        \r\n--xy\r\n--xyzz\r\n--xyz\r\n\r\nno head\r\n--xyz\r\nContent-Disposition: form-data; name=\"e\"\r\n\r\n\r\n--xyz--epilogue";

    #[tokio::test]
    async fn any_split_reads_the_same() {
        for step in 1..=BODY.len() {
            let parts = read(BODY, step, 10_000).await.unwrap();
            assert_eq!(parts.len(), 4, "{step}");
            assert_eq!(parts[0], ("a".into(), None, b"value".to_vec()));
            assert_eq!(parts[1], ("file".into(), Some("c:\\x\"y\".enc".into()), b"\r\n--xy\r\n--xyzz".to_vec()));
            assert_eq!(parts[2], (String::new(), None, b"no head".to_vec()));
            assert_eq!(parts[3], ("e".into(), None, Vec::new()));
        }
    }

    #[tokio::test]
    async fn a_cut_body_is_malformed_everywhere() {
        let end = BODY.len() - "--epilogue".len();
        for length in 0..=end {
            assert_eq!(read(&BODY[..length], 7, 10_000).await, Err(Broken::Malformed), "{length}");
        }
    }

    #[tokio::test]
    async fn caps_hold() {
        assert_eq!(read(BODY, 10, 100).await, Err(Broken::TooLarge));
        let mut long = b"--xyz\r\nX: ".to_vec();
        long.resize(100_000, b'a');
        assert_eq!(read(&long, 1000, 1_000_000).await, Err(Broken::Malformed));
    }

    #[test]
    fn boundaries_are_found() {
        assert_eq!(boundary("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(boundary("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"").as_deref(), Some("a b"));
        for none in [
            "",
            "multipart/form-data",
            "multipart/mixed; boundary=a",
            "multipart/form-data; boundary=",
            "text/plain; boundary=a",
        ] {
            assert_eq!(boundary(none), None, "{none}");
        }
    }

    proptest::proptest! {
        #[test]
        fn content_comes_out_as_it_went_in(content in proptest::collection::vec(proptest::sample::select(b"\r\n-xyza".to_vec()), 0..80), step in 1_usize..20) {
            let mut body = b"--xyz\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n".to_vec();
            body.extend_from_slice(&content);
            body.extend_from_slice(b"\r\n--xyz--\r\n");
            proptest::prop_assume!(memchr::memmem::find(&content, b"--xyz").is_none());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let parts = runtime.block_on(read(&body, step, 10_000)).unwrap();
            proptest::prop_assert_eq!(&parts[0].2, &content);
        }
    }
}
