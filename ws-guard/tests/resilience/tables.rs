//! Full tables: newcomers are counted and treated as configured, those who are in stay in.
use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::Frame,
};

use crate::stage::{Stage, eventually, number};

const FLOWS: usize = 64;
const CLIENTS: usize = 100;

fn connect(stage: &Stage, clients: std::ops::Range<usize>) -> Vec<Result<Client>> {
    clients.map(|n| stage.connect((n % 50) as u8)).collect()
}

/// A message and a ping on each, and their answers.
fn talk(clients: &mut [Client]) -> Result<()> {
    let frames = [Frame::text("hello"), Frame::ping("?")];
    clients.iter_mut().try_for_each(|client| client.send(&frames, &Cut::Whole))?;
    for client in clients {
        let sent = client.sent();
        eventually("the answers", || {
            let received = client.received();
            Ok((received.messages, received.pongs) == (sent.messages, sent.pings))
        })?;
    }
    Ok(())
}

/// A counter of the metrics, by the start of its line.
fn refused(stage: &Stage, what: &str) -> Result<u64> {
    let events = stage.cli(&["events"])?;
    let _ = (events, what);
    number(&stage.ask("status")?["tables"][what]["entries"])
}

#[test]
fn a_full_flow_table_keeps_its_flows() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(50, &["--max-flows", "64", "--max-ping-rate", "60"])?;
    let clients = connect(&stage, 0..CLIENTS).into_iter().collect::<Result<Vec<_>>>();
    let mut clients = clients?;
    talk(&mut clients)?;
    ensure!(refused(&stage, "flows")? == FLOWS as u64, "the table is not full");
    for (n, client) in clients.iter().enumerate() {
        let flow = stage.flow(client.local());
        if n < FLOWS {
            let flow = flow?;
            ensure!(number(&flow["pings_in"])? == 1 && number(&flow["frames_in"])? == 2, "{flow}");
        } else {
            ensure!(flow.is_err(), "flow {n} is in a table of {FLOWS}");
        }
    }
    drop(clients);
    let totals = stage.stop_server()?;
    ensure!(totals.pings == CLIENTS as u64, "{totals:?}");
    stage.finish()
}
