//! The stream beside the chunks: `POST /capture` carries what belongs to no chunk, `HELLO`,
//! `CAPABILITY`, `ALIVE` and `END` up, `HINT` down. A relay that does not know it does without.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use tokio::sync::mpsc;
use tokio::time::Instant;
use waystation_proto::frame::{self, Decoder, kind};
use waystation_proto::message;
use waystation_proto::message::{Capability, End, Hint, Welcome};

use super::h3::Shared;
use super::link::{FromLink, greeting};
use super::sign::Signs;
use crate::h3link::{FIRST, H3Body, Sending};
use crate::http::Broken;
use crate::token::Token;

/// A stream that the relay ended is opened again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How often it is looked whether a sign is due.
const LOOK: Duration = Duration::from_secs(1);
/// Things to say that wait at most.
pub(super) const SAYINGS: usize = 16;

/// Something to say.
pub(super) enum Say {
    Capability(Token),
    End(String),
}

/// Keeps the stream as long as the connection lives. Ends after `END`.
pub(super) async fn run(shared: Arc<Shared>, mut tokens: Vec<Token>, mut say: mpsc::Receiver<Say>) {
    loop {
        if let Ok(true) = session(&shared, &tokens, &mut say).await {
            return;
        }
        // What was refused may do with another capability.
        match tokio::time::timeout(AGAIN_AFTER, say.recv()).await {
            Ok(Some(Say::Capability(token))) => tokens = vec![token],
            Ok(_) => return,
            Err(_) => {}
        }
    }
}

/// One stream. True: all is said.
async fn session(shared: &Shared, tokens: &[Token], say: &mut mpsc::Receiver<Say>) -> Result<bool, Broken> {
    let request = Request::builder().method(Method::POST).uri("/capture").body(()).map_err(|_| Broken)?;
    let (mut sending, receiving) = shared.connection.begin(request, FIRST).await?;
    sending.send(greeting(tokens, shared.records())).await?;
    let mut hearing = std::pin::pin!(async { listen(shared, tokens, receiving.body().await?).await });
    tokio::select! {
        said = speak(shared, &mut sending, say) => {
            // The relay ends its half when it has read all: only then may the connection go.
            let all = said?;
            if all {
                let _ = hearing.await;
            }
            Ok(all)
        }
        heard = &mut hearing => heard.map(|()| false),
    }
}

async fn speak(shared: &Shared, sending: &mut Sending, say: &mut mpsc::Receiver<Say>) -> Result<bool, Broken> {
    let mut signs = Signs::new();
    loop {
        // Looked at again before: media, an outage or what a lost sign costs changes it.
        let again = Instant::now() + LOOK;
        let quiet = if shared.records() { signs.due(shared.line()).min(again) } else { again };
        tokio::select! {
            said = say.recv() => match said {
                Some(Say::Capability(token)) => {
                    let body = Capability { capability: token.as_str().into() };
                    sending.send(frame::encode_json(kind::CAPABILITY, &body)).await?;
                }
                Some(Say::End(reason)) => {
                    sending.send(frame::encode_json(kind::END, &End { reason })).await?;
                    sending.finish().await?;
                    return Ok(true);
                }
                None => return Ok(true),
            },
            () = tokio::time::sleep_until(quiet) => {
                let line = shared.line();
                if shared.records() && signs.due(line) <= Instant::now() {
                    signs.given(line, shared.wrote());
                    sending.send(frame::encode(kind::ALIVE, b"{}")).await?;
                }
            }
        }
    }
}

/// Passes advice on until the relay ends the stream.
async fn listen(shared: &Shared, tokens: &[Token], mut body: H3Body) -> Result<(), Broken> {
    let mut decoder = Decoder::default();
    while let Some(bytes) = body.data().await? {
        decoder.push(&bytes);
        while let Some(frame) = decoder.next_frame().map_err(|_| Broken)? {
            match frame.kind {
                kind::WELCOME => {
                    let welcome: Welcome = frame::control(&frame).map_err(|_| Broken)?;
                    if welcome.limits.known > 0 {
                        shared.names.welcome(tokens);
                    }
                }
                kind::HINT => {
                    let hint: Hint = frame::control(&frame).map_err(|_| Broken)?;
                    let _ = shared.news.send(FromLink::Hint(hint)).await;
                }
                kind::BYE => {
                    let _: message::Bye = frame::control(&frame).map_err(|_| Broken)?;
                    return Ok(());
                }
                _ => {}
            }
        }
    }
    Ok(())
}
