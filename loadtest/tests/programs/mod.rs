//! The programs that scenarios start.

use std::path::Path;
use std::process::Command;

/// The load generator.
pub(crate) const LOADTEST: &str = env!("CARGO_BIN_EXE_waystation-loadtest");

/// `./test` builds the programs before any test; whoever runs a test alone and has none gets them
/// built here.
pub(crate) fn build() {
    let beside = Path::new(LOADTEST).parent().unwrap();
    if ["waystation", "waystation-devcore"].iter().all(|name| beside.join(name).is_file()) {
        return;
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "-p", "waystation", "-p", "waystation-devcore", "--bins", "--target-dir"]);
    build.arg(beside.parent().unwrap()).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if beside.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
}
