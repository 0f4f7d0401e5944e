//! What a run of `fanout` found.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::Transport;
use crate::Failure;
use crate::network::plot::{self, Curve, Over, Panel};
use crate::report::Report;

/// The figures of one run, beside those every scenario has.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// What every scenario has.
    #[serde(flatten)]
    pub report: Report,
    /// Contacts, each with a connection of its own.
    pub contacts: u64,
    /// Bytes of a chunk's plaintext.
    pub payload: u64,
    /// Whether the relay was held on one core, and everything else on the others.
    pub pinned: bool,
    /// Memory of the relay for one contact that watches and is sent nothing, in KiB: what its process grew
    /// by, divided.
    pub idle_kib_per_contact: f64,
    /// Most memory the relay ever had, in bytes.
    pub max_rss: u64,
    /// Megabytes a second of another session's uploads by themselves, and beside the fan-out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploads_mb_s: Option<[f64; 2]>,
    /// The second as a share of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploads_kept: Option<f64>,
    /// `cpu_s_per_gb` less what the uploads cost without any contact: what is spent for contacts alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contacts_s_per_gb: Option<f64>,
    /// Processor seconds of a server that only writes the same bytes to as many TLS connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_s_per_gb: Option<f64>,
    /// How long its deliveries take at 4 a second, 99 of 100: from when it is told to write to when a
    /// connection has the last byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_p99_ms: Option<f64>,
}

impl Found {
    fn text(&self, json: bool) -> String {
        if let (true, Ok(line)) = (json, serde_json::to_string(self)) {
            return line + "\n";
        }
        let mut out = self.report.table();
        out += &format!("memory of an idle contact: {} KiB\n", self.idle_kib_per_contact);
        if let (Some(ceiling), Some(p99)) = (self.ceiling_s_per_gb, self.ceiling_p99_ms) {
            out += &format!("a server that does nothing else takes {ceiling} CPU s/GB, and {p99} ms for 99 of 100\n");
        }
        if let Some(kept) = self.uploads_kept {
            out += &format!("another session's uploads keep {:.0} % of their speed\n", kept * 100.0);
        }
        out
    }
}

/// What contacts cost, over their number: all of it, the same without the uploads, and dashed the mean of that.
/// Were it the same for any number, the last two would be one line. Beside them what the ceiling took in the same
/// runs, if it was measured: how far that leaves its own mean is the machine's doing.
pub(super) fn plot(all: &[Found], transport: Transport, dir: &Path) -> Result<(), Failure> {
    let (mut cost, mut own, mut ceiling) = (Curve::default(), Curve::default(), Curve::default());
    let of_contacts = |found: &Found| found.contacts_s_per_gb.unwrap_or(found.report.cpu_s_per_gb);
    all.iter().for_each(|found| cost.add(found.contacts as f64, found.report.cpu_s_per_gb));
    all.iter().for_each(|found| own.add(found.contacts as f64, of_contacts(found)));
    for found in all {
        found.ceiling_s_per_gb.into_iter().for_each(|least| ceiling.add(found.contacts as f64, least));
    }
    let mean = all.iter().map(of_contacts).sum::<f64>() / all.len().max(1) as f64;
    let ends = [all.first(), all.last()].map(|found| found.map_or(1.0, |found| found.contacts as f64));
    let kib = all.first().map_or(0, |found| found.payload >> 10);
    let way = transport.as_str();
    let measured = all.iter().any(|found| found.ceiling_s_per_gb.is_some());
    let (third, named) = if measured { (vec![(3, &ceiling)], ", ceiling (green)") } else { (Vec::new(), "") };
    let panel = Panel {
        title: format!("CPU s/GB over {way}, {kib} KiB: contacts alone (blue), with uploads (red){named}"),
        unit: ("", 1.0),
        curves: [vec![(1, &own), (2, &cost)], third].concat(),
        dashed: ends.map(|end| (end, mean)),
    };
    plot::write(dir, &format!("fanout over {way}"), Over::Contacts, &[panel])
}

/// Says how runs ended: 0 if nothing was lost.
pub(super) fn end(result: Result<Vec<Found>, Failure>, json: bool) -> ExitCode {
    match result {
        Ok(found) => {
            let text: String = found.iter().map(|found| found.text(json)).collect();
            // A reader that went away is no reason to fail.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            if found.iter().all(|found| found.report.lost == 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            let _ = std::io::stderr().lock().write_all(format!("{failure}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}
