//! What a test or a demo asks of the core itself: faults, counters, keys, states. Account only.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::answer::{Answer, Stop};
use crate::call::Call;
use crate::faults::Fault;
use crate::json::Kind;
use crate::refusal;
use crate::store::IncidentState;

/// Longest absence that can be asked for over HTTP, which then can't be used to end it.
const MAX_AWAY_MS: u64 = 3_600_000;
/// Time for the answer to go out before the connections are cut.
const AWAY_AFTER: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    faults: Option<Vec<Fault>>,
    #[serde(default)]
    away_ms: Option<u64>,
    #[serde(default)]
    calls_per_minute: Option<u32>,
}

/// `GET /devcore/faults`.
pub(crate) fn faults(call: &Call) -> Result<Answer, Stop> {
    call.account()?;
    Ok(Answer::json(200, &json!({ "faults": call.core.faults.waiting() })))
}

/// `PUT /devcore/faults`: the list in place of all others; `away_ms` beside it.
pub(crate) async fn set_faults(call: &mut Call) -> Result<Answer, Stop> {
    call.account()?;
    let body = call.json_bytes().await?;
    let wanted: Wanted = serde_json::from_slice(&body).map_err(|_| refusal::INVALID_FAULTS)?;
    let away_ms = wanted.away_ms.unwrap_or_default();
    let all = wanted.faults.as_deref().unwrap_or_default();
    if away_ms > MAX_AWAY_MS || !all.iter().all(Fault::sound) {
        return Err(refusal::INVALID_FAULTS.into());
    }
    if let Some(calls) = wanted.calls_per_minute {
        call.core.set_calls_per_minute(calls);
    }
    if let Some(all) = wanted.faults {
        call.core.faults.set(all);
    }
    if away_ms > 0 {
        let (faults, background) = (call.core.faults.clone(), call.core.background.clone());
        let absence = async move {
            tokio::time::sleep(AWAY_AFTER).await;
            faults.set_away(true);
            tokio::time::sleep(Duration::from_millis(away_ms)).await;
            faults.set_away(false);
        };
        background.tasks.spawn(background.stop.clone().run_until_cancelled_owned(absence));
    }
    Ok(Answer::json(200, &json!({ "faults": call.core.faults.waiting(), "away_ms": away_ms })))
}

/// `GET /devcore/stats`.
pub(crate) async fn stats(call: &Call) -> Result<Answer, Stop> {
    call.account()?;
    let (chunks, bytes) = call.core.store.totals().await?;
    let snapshot = call.core.stats.snapshot(chunks, bytes);
    Ok(Answer::json(200, &serde_json::to_value(snapshot).map_err(|_| refusal::INTERNAL_ERROR)?))
}

/// `POST /devcore/signing-keys`: a new key signs from now on; the old ones still verify.
pub(crate) async fn rotate(call: &Call) -> Result<Answer, Stop> {
    call.account()?;
    let core = call.core.clone();
    let rotated = tokio::task::spawn_blocking(move || core.keys.rotate()).await;
    let kid = rotated.ok().and_then(Result::ok).ok_or(refusal::INTERNAL_ERROR)?;
    Ok(Answer::json(201, &json!({ "kid": kid })))
}

/// `PUT /devcore/incidents/{incident}` {"state"}: any state, also `deleting`.
pub(crate) async fn set_incident(call: &mut Call, incident: &str) -> Result<Answer, Stop> {
    call.account()?;
    let body = call.object(&[("state", Kind::Text)]).await?;
    let state = IncidentState::parse(body.text("state")).ok_or(refusal::INVALID_STATE)?;
    call.core.store.set_incident(incident, state).await?;
    Ok(Answer::json(200, &json!({ "incident": { "id": incident, "status": state.as_str() } })))
}
