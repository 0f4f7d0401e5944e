//! A subscription over plain HTTP/3 requests: the relay tells on one stream what there is, and each
//! chunk is asked for by itself, the next one of each lane before it begins. So a lost packet of a
//! picture holds up that picture alone. Where the relay says that much is lost, sound is asked for
//! twice, and whatever comes first is taken. What is asked for when is [`Plan`]'s to say.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::frame::Frame;
use waystation_proto::id::IncidentId;

use super::asker::Asker;
use super::plan::{News, Order, Plan};
use super::source::{Streaming, h3_data};
use crate::h3link::{H3, H3Body};
use crate::http::Broken;

/// What is heard of requests and not looked at.
const MAX_NEWS: usize = 32;

/// A subscription and its requests.
pub(crate) struct Ahead {
    control: Streaming<H3Body>,
    asker: Asker,
    news: mpsc::Receiver<(u64, News)>,
    plan: Plan,
    requests: HashMap<u64, AbortOnDropHandle<()>>,
}

impl Ahead {
    pub(crate) fn new(
        connection: H3,
        control: Streaming<H3Body>,
        bearer: HeaderValue,
        incident: IncidentId,
        max_chunk: u64,
    ) -> Self {
        let (tell, news) = mpsc::channel(MAX_NEWS);
        let asker = Asker { connection: Arc::new(connection), bearer, incident, tell };
        Self { control, asker, news, plan: Plan::new(max_chunk), requests: HashMap::new() }
    }

    /// The next frame, as if all of them had come on one stream. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Frame, Broken> {
        loop {
            self.carry_out();
            if let Some(frame) = self.plan.frame() {
                return Ok(frame);
            }
            let due = self.plan.due_at();
            let pause = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                frame = self.control.next(h3_data), if !self.plan.over() => self.plan.told(frame?, Instant::now())?,
                Some((request, news)) = self.news.recv() => self.plan.heard(request, news, Instant::now())?,
                () = pause => self.plan.due(Instant::now()),
            }
        }
    }

    fn carry_out(&mut self) {
        while let Some(order) = self.plan.order() {
            match order {
                Order::Ask(number, name) => drop(self.requests.insert(number, self.asker.ask(number, name))),
                Order::Drop(number) => drop(self.requests.remove(&number)),
            }
        }
    }
}
