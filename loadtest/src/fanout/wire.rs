//! Frames and WebSocket messages, read where they lie: nothing is copied but what is small, so that
//! a thousand contacts fit beside the relay they measure.

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, OpCode};
use waystation_proto::frame::{kind, max_body};
use waystation_proto::varint;

use super::follower::Follower;
use crate::Failure;

const BROKEN: Failure = Failure::Wire("a contact got a frame that is none");
/// Most bytes of a frame's head, with a piece's two numbers.
const MOST_HEAD: usize = 32;

/// Takes frames out of bytes as they come.
#[derive(Default)]
pub(super) struct Frames {
    head: Vec<u8>,
    /// What is missing of the frame, and what it is.
    left: usize,
    body: Option<Body>,
}

enum Body {
    /// Collected: small.
    Control(u64, Vec<u8>),
    /// Handed on as it comes.
    Piece(u64),
}

impl Frames {
    /// Takes bytes. Returns whether the subscription goes on.
    pub(super) fn take(&mut self, mut bytes: &[u8], follower: &mut Follower) -> Result<bool, Failure> {
        while let Some(first) = bytes.first() {
            match &mut self.body {
                None => {
                    self.head.push(*first);
                    bytes = &bytes[1..];
                    self.begin(follower)?;
                }
                Some(body) => {
                    let (now, later) = bytes.split_at(self.left.min(bytes.len()));
                    self.left -= now.len();
                    bytes = later;
                    match body {
                        Body::Control(_, body) => body.extend_from_slice(now),
                        Body::Piece(handle) => follower.bytes(*handle, now),
                    }
                }
            }
            if self.left == 0
                && let Some(Body::Control(kind, body)) = self.body.take()
                && !follower.control(kind, body)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins a frame as soon as its head is whole.
    fn begin(&mut self, follower: &mut Follower) -> Result<(), Failure> {
        let Some((len, body)) = head(&self.head) else {
            return if self.head.len() < MOST_HEAD { Ok(()) } else { Err(BROKEN) };
        };
        self.head.clear();
        self.left = len;
        match body {
            Head::Control(kind) if len <= max_body(kind) => self.body = Some(Body::Control(kind, Vec::new())),
            Head::Control(_) => return Err(BROKEN),
            Head::Piece(handle, offset) => {
                follower.piece(handle, offset);
                self.body = Some(Body::Piece(handle));
            }
        }
        Ok(())
    }
}

enum Head {
    Control(u64),
    Piece(u64, u64),
}

/// What a head says, and how many bytes follow it.
fn head(mut bytes: &[u8]) -> Option<(usize, Head)> {
    let (kind, len) = (varint::get(&mut bytes)?, usize::try_from(varint::get(&mut bytes)?).ok()?);
    if kind != kind::PIECE {
        return Some((len, Head::Control(kind)));
    }
    let (handle, offset) = (varint::get(&mut bytes)?, varint::get(&mut bytes)?);
    Some((len.checked_sub(varint::len(handle) + varint::len(offset))?, Head::Piece(handle, offset)))
}

/// What bytes of a WebSocket came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// The subscription goes on.
    More,
    /// The same, and this ping wants an answer.
    Ping(Vec<u8>),
    /// It is over.
    End,
}

/// Takes messages out of what a server sends, which is not masked.
#[derive(Default)]
pub(super) struct Messages {
    head: Vec<u8>,
    left: u64,
    control: Option<(Control, Vec<u8>)>,
    frames: Frames,
}

impl Messages {
    /// Takes bytes.
    pub(super) fn take(&mut self, mut bytes: &[u8], follower: &mut Follower) -> Result<Came, Failure> {
        let mut ping = None;
        while !bytes.is_empty() {
            if self.left == 0 {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                self.begin()?;
            } else {
                let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                let (now, later) = bytes.split_at(now);
                self.left -= now.len() as u64;
                bytes = later;
                match &mut self.control {
                    Some((_, body)) => body.extend_from_slice(now),
                    None if !self.frames.take(now, follower)? => return Ok(Came::End),
                    None => {}
                }
            }
            if self.left == 0 {
                match self.control.take() {
                    Some((Control::Ping, body)) => ping = Some(body),
                    Some((Control::Close, _)) => return Ok(Came::End),
                    _ => {}
                }
            }
        }
        Ok(ping.map_or(Came::More, Came::Ping))
    }

    fn begin(&mut self) -> Result<(), Failure> {
        let parsed = FrameHeader::parse(&mut std::io::Cursor::new(&self.head)).map_err(|_| BROKEN)?;
        let Some((header, len)) = parsed else { return Ok(()) };
        self.head.clear();
        self.left = len;
        if let OpCode::Control(control) = header.opcode {
            self.control = Some((control, Vec::new()));
        }
        if header.mask.is_some() { Err(BROKEN) } else { Ok(()) }
    }
}
