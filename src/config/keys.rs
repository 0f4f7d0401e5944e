//! Every key there is, and the nearest one to a wrong one.

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Flag,
    Number,
    List,
    /// A secret itself: from the environment alone.
    Secret,
}

use Kind::{Flag, List, Number, Secret, Text};

/// Sections and their keys, in the order of the default file.
pub(super) const KEYS: &[(&str, &[(&str, Kind)])] = &[
    ("relay", &[("id", Text), ("region", Text), ("ready", Flag)]),
    (
        "listen",
        &[("public", Text), ("plain", Text), ("trusted_proxies", List), ("ops", Text), ("allowed_origins", List)],
    ),
    ("tls", &[("certificate", Text), ("private_key", Text), ("self_signed", Flag)]),
    (
        "core",
        &[
            ("url", Text),
            ("service_token_file", Text),
            ("service_token", Secret),
            ("ca_file", Text),
            ("request_timeout", Text),
            ("max_requests_per_minute", Number),
        ],
    ),
    (
        "capability",
        &[
            ("jwks_url", Text),
            ("jwks_file", Text),
            ("audience", Text),
            ("proofline_secret_file", Text),
            ("proofline_secret", Secret),
        ],
    ),
    (
        "staging",
        &[("directory", Text), ("quota", Text), ("max_chunk", Text), ("keep_for", Text), ("seal_key_file", Text)],
    ),
    (
        "fanout",
        &[
            ("window", Text),
            ("linger", Text),
            ("memory", Text),
            ("memory_per_session", Text),
            ("max_chunk", Text),
            ("allow_unlabelled", Flag),
            ("silent_after", Text),
            ("reauthorize_every", Text),
        ],
    ),
    (
        "limits",
        &[
            ("connections", Number),
            ("handshakes_per_second", Number),
            ("requests_per_client", Number),
            ("receiving_total", Number),
            ("in_flight_per_session", Number),
            ("in_flight_per_client", Number),
            ("contacts_per_group", Number),
            ("header_timeout", Text),
            ("idle_timeout", Text),
        ],
    ),
];

/// How a key is written, if there is such a key.
pub(super) fn kind(section: &str, key: &str) -> Option<Kind> {
    let (_, keys) = KEYS.iter().find(|(name, _)| *name == section)?;
    keys.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
}

/// "; did you mean `x`?" for the nearest known section or key, or nothing if none is near.
pub(super) fn hint(section: &str, key: Option<&str>) -> String {
    let known: Vec<String> = match key {
        None => KEYS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        Some(_) => {
            KEYS.iter().flat_map(|(name, keys)| keys.iter().map(move |(key, _)| format!("{name}.{key}"))).collect()
        }
    };
    let wrong = key.map_or_else(|| section.to_owned(), |key| format!("{section}.{key}"));
    let nearest = known.into_iter().map(|name| (strsim::damerau_levenshtein(&name, &wrong), name)).min();
    match nearest {
        Some((distance, name)) if distance <= wrong.len().div_ceil(2) => format!("; did you mean `{name}`?"),
        _ => String::new(),
    }
}

/// Prefix of the variables that override keys: `WAYSTATION_CORE__URL` is `core.url`.
pub(super) const ENV_PREFIX: &str = "WAYSTATION_";
/// Variables with the prefix that are no keys: the log's level.
const OTHERS: &[&str] = &["LOG"];
/// What Kubernetes sets in every pod beside a service that is called `waystation`.
const OF_A_SERVICE: &[&str] = &["SERVICE_HOST", "SERVICE_PORT", "PORT"];

/// What a variable with the prefix stands for.
pub(super) enum Variable {
    /// A section's key.
    Key(String, String, Kind),
    /// Something else that is known.
    Other,
    /// Nothing; "; did you mean …?", or nothing if none is near.
    Unknown(String),
}

/// What a variable with the prefix stands for.
pub(super) fn of_variable(name: &str) -> Variable {
    let bare = name.strip_prefix(ENV_PREFIX).unwrap_or(name);
    let service = |known: &&str| bare.strip_prefix(*known).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    if OTHERS.contains(&bare) || OF_A_SERVICE.iter().any(service) {
        return Variable::Other;
    }
    let lower = bare.to_ascii_lowercase();
    if let Some((section, key)) = lower.split_once("__") {
        return match kind(section, key) {
            Some(kind) => Variable::Key(section.to_owned(), key.to_owned(), kind),
            None => Variable::Unknown(hint(section, Some(key))),
        };
    }
    // One underscore for two is the likely slip: the nearest variable is named, as it is written.
    let known = KEYS
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |(key, _)| format!("{section}__{key}").to_ascii_uppercase()));
    let known = known.chain(OTHERS.iter().map(|other| (*other).to_owned()));
    let nearest = known.map(|name| (strsim::damerau_levenshtein(&name, bare), name)).min();
    Variable::Unknown(match nearest {
        Some((distance, name)) if distance <= bare.len().div_ceil(2) => format!("; did you mean `{ENV_PREFIX}{name}`?"),
        _ => String::new(),
    })
}
