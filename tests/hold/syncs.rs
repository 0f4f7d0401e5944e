//! The system calls of the real program: file and directories are synced before the answer.

use std::collections::HashMap;

use waystation_proto::Variant;
use waystation_tests::{Chunk, Setup};

use super::process::Rig;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_and_directories_are_synced_before_staged_is_said() {
    let mut rig = Rig::prepare(Setup::default()).await;
    let trace = rig.path("trace");
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write,writev,sendto,sendmsg";
    // `-D`: the tracer is the grandchild, so that killing the child kills the relay and not its
    // tracer alone, which would leave it running.
    rig.wrapper = ["strace", "-D", "-f", "-y", "-s", "2000", "-e", calls, "-o", trace.to_str().unwrap()]
        .map(String::from)
        .to_vec();
    rig.begin().await;
    let session = rig.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    rig.stage(&first, &capability).await;
    rig.until_at_core(&first).await;
    rig.core.faults().set_away(true);
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 2, 5000);
    let before = ended_calls(&std::fs::read_to_string(&trace).unwrap()).len();
    let state = rig.stage(&chunk, &capability).await.native().chunk.unwrap().state;
    assert!(state.held(), "{state}");

    // The tracer writes a line when a call is over, so the answer's may come after the answer.
    let mut calls = Vec::new();
    let said = |call: &String| call.contains("HTTP/1.1 503") || call.contains(r#"\"state\":\""#);
    super::process::until(async || {
        calls = ended_calls(&std::fs::read_to_string(&trace).unwrap()).split_off(before);
        calls.iter().any(said)
    })
    .await;
    let at = |what: &str, is: &dyn Fn(&str) -> bool| {
        calls.iter().position(|call| is(call)).unwrap_or_else(|| panic!("no {what} in {calls:#?}"))
    };
    let order = [
        at("sync of the file", &|call| call.starts_with("fdatasync(") && call.contains("/staging/receiving/")),
        // Into `staged/`: the first chunk's file leaves it at any moment.
        at("renaming", &|call| {
            call.starts_with("rename") && call.rsplit(", ").next().is_some_and(|to| to.contains("/staging/staged/"))
        }),
        at("sync of staged", &|call| call.starts_with("fsync(") && call.contains("/staging/staged>")),
        at("sync of receiving", &|call| call.starts_with("fsync(") && call.contains("/staging/receiving>")),
        at("answer", &|call| said(&call.to_owned())),
    ];
    assert!(order.is_sorted(), "{order:?} of {calls:#?}");
}

/// The calls of a trace in the order in which they were over. An answer counts from its beginning:
/// its bytes may be out before the call returns.
fn ended_calls(trace: &str) -> Vec<String> {
    let mut begun: HashMap<&str, String> = HashMap::new();
    let mut ended = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix("<unfinished ...>") {
            if start.starts_with("write") || start.starts_with("send") {
                ended.push(start.to_owned());
            } else {
                begun.insert(thread, start.to_owned());
            }
        } else if rest.starts_with("<...") {
            ended.extend(begun.remove(thread));
        } else {
            ended.push(rest.to_owned());
        }
    }
    ended
}
