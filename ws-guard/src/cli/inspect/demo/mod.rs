//! `ws-guard inspect --demo`: a capture of real traffic and its explanation.

mod capture;
mod traffic;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use ws_guard_inspect::{Captures, Ends, Finding, FlowReport, Inspector, Kind, Visitor};

use self::{capture::Sniffer, traffic::SCENES};
use crate::cli::output::{print, printable};

/// Findings shown of each connection.
const SHOWN: usize = 6;

/// Inspector's findings in the scenes.
#[derive(Default)]
struct Told {
    findings: Vec<(Ends, Finding)>,
    flows: Vec<FlowReport>,
}

impl Visitor for Told {
    fn finding(&mut self, ends: &Ends, finding: &Finding) {
        if !matches!(finding.what.kind(), Kind::Frame | Kind::OutOfOrder | Kind::Retransmission) {
            self.findings.push((*ends, finding.clone()));
        }
    }

    fn flow(&mut self, report: FlowReport) {
        self.flows.push(report);
    }
}

/// Play the scenes, capture, inspect and explain them.
pub fn run() -> Result<()> {
    capture::isolate()?;
    let sniffer = Sniffer::start()?;
    let mut clients = Vec::new();
    for (number, scene) in SCENES.iter().enumerate() {
        // Standard error may be closed.
        let _ = writeln!(io::stderr(), "{} of {}: {}", number + 1, SCENES.len(), scene.title);
        clients.push(scene.play().with_context(|| scene.title)?);
    }
    let path = keep(&sniffer.stop()?)?;
    let mut captures = Captures::open(std::slice::from_ref(&path))?;
    let inspector = Inspector::new(Told::default());
    let (told, _, mut errors) = ws_guard_inspect::inspect(&mut captures, inspector, || ());
    errors.pop().map_or(Ok(()), Err)?;
    let mut text = String::new();
    for (number, (scene, client)) in SCENES.iter().zip(&clients).enumerate() {
        text += &format!("{}. {}\n   {}\n", number + 1, scene.title, scene.explanation);
        for flow in told.flows.iter().filter(|flow| flow.ends.client == *client) {
            text += &format!("   → {}\n", printable(&flow.summary));
        }
        let of_it = told.findings.iter().filter(|(ends, _)| ends.client == *client);
        for (_, Finding { direction, at, what, .. }) in of_it.take(SHOWN) {
            let (kind, side) = (what.kind().name(), direction.name());
            text += &format!(
                "   packet {:4}, {side}: {kind}: {}\n",
                at.packet,
                printable(&what.to_string())
            );
        }
        text.push('\n');
    }
    let path = path.display();
    text += &format!(
        "The capture is {path}. See more of it:\n  ws-guard inspect {path}\n  ws-guard inspect {path} --kind split_point,split_header,split_frame\n  ws-guard inspect {path} --hexdump client:1\n  ws-guard inspect {path} --html demo.html\n"
    );
    print(&text)
}

/// Write the capture to a file that is not removed.
fn keep(capture: &[u8]) -> Result<PathBuf> {
    let mut builder = tempfile::Builder::new();
    let mut file = builder.prefix("ws-guard-demo-").suffix(".pcap").tempfile()?;
    file.write_all(capture).context("writing the capture")?;
    let (_, path) = file.keep().context("keeping the capture")?;
    Ok(path)
}
