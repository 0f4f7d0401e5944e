//! What goes wrong on purpose, in the middle of the recording.

use std::time::Duration;

use tokio::sync::watch;

use super::Error;
use super::parts::{Core, Relay};

/// What is asked for.
pub(super) struct Plan {
    pub(super) core_down: Option<Duration>,
    pub(super) relay_restart: bool,
    pub(super) chunks: u64,
}

/// When the core was away, milliseconds since the Unix epoch.
#[derive(Default)]
pub(super) struct Witnessed {
    pub(super) core_away_ms: Option<(i64, i64)>,
    pub(super) relay_killed_ms: Option<i64>,
}

/// Kills and starts again; `cuts` tells how many chunks each lane has. The relay goes as soon as
/// a chunk was cut, when its bytes are on their way.
pub(super) async fn play(
    plan: &Plan,
    core: &mut Core<'_>,
    relay: &mut Relay<'_>,
    mut cuts: watch::Receiver<u64>,
    notice: &watch::Sender<String>,
) -> Result<Witnessed, Error> {
    let mut witnessed = Witnessed::default();
    if plan.relay_restart {
        relay.settle(core)?;
        reached(&mut cuts, (plan.chunks * 2 / 5).max(1)).await;
        relay.kill().await?;
        witnessed.relay_killed_ms = Some(now_ms());
        relay.start_again().await?;
        notice.send_replace("the relay was killed and started again".into());
    }
    if let Some(away) = plan.core_down {
        reached(&mut cuts, (plan.chunks / 2).max(1)).await;
        core.kill().await?;
        let from = now_ms();
        notice.send_replace(format!("the core is away for {} s", away.as_secs()));
        tokio::time::sleep(away).await;
        core.start().await?;
        notice.send_replace("the core is back".into());
        witnessed.core_away_ms = Some((from, now_ms()));
    }
    Ok(witnessed)
}

/// Returns also when nothing more will be cut.
async fn reached(cuts: &mut watch::Receiver<u64>, wanted: u64) {
    let _ = cuts.wait_for(|cut| *cut >= wanted).await;
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
