//! The drop-in health routes (contract B.2): bounded words and booleans, no counts, no labels.

use http::StatusCode;
use serde::Serialize;

use super::conn::Ctx;
use super::respond::{self, Reply};

const SERVICE: &str = "stream-ingress";

/// What `/health/ready` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// `ready`, `core_unconfigured`, `temp_staging_pressure`, `storage_unavailable` or
    /// `unavailable`.
    pub uploads: &'static str,
    /// `configured` or `unconfigured`.
    pub core: &'static str,
    /// `ok`, `pressure` or `unavailable`.
    pub temp_staging: &'static str,
    /// `relay.id` is set.
    pub relay_identity_configured: bool,
    /// `relay.region` is set.
    pub region_configured: bool,
    /// 200 or 503.
    pub ready: bool,
}

#[derive(Serialize)]
struct Live {
    service: &'static str,
    status: &'static str,
}

#[derive(Serialize)]
struct ReadyBody {
    service: &'static str,
    status: &'static str,
    uploads: &'static str,
    core: &'static str,
    temp_staging: &'static str,
    relay_identity_configured: bool,
    region_configured: bool,
}

/// `GET /health/live`
pub(super) fn live() -> Reply {
    respond::json(StatusCode::OK, &Live { service: SERVICE, status: "ok" })
}

/// `GET /health/ready`. A draining relay is not ready, whatever the rest says.
pub(super) fn ready(ctx: &Ctx) -> Reply {
    let now = (ctx.shared.ready)();
    let ready = now.ready && !ctx.drain.is_cancelled();
    let body = ReadyBody {
        service: SERVICE,
        status: if ready { "ready" } else { "not_ready" },
        uploads: now.uploads,
        core: now.core,
        temp_staging: now.temp_staging,
        relay_identity_configured: now.relay_identity_configured,
        region_configured: now.region_configured,
    };
    respond::json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}
