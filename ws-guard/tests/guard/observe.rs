//! `observe`: everything passes and is reported.
use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::Cut,
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::{
    stage::Stage,
    talk::{answered, pings, round_trip},
};

const PINGS: u64 = 500;

#[test]
fn observe_reports_and_changes_nothing() -> Result<()> {
    needs_root!();
    let stage = Stage::new(Library::Python, PairOptions::default(), "--action observe")?;
    for family in Family::BOTH {
        let mut client = stage.client(family, 0)?;
        client.send(&pings(0, PINGS), &Cut::Every(300))?;
        round_trip(&mut client, "still served")?;
        ensure!(answered(&client).into_iter().eq(0..PINGS), "{:?}", answered(&client));
        ensure!(stage.is_throttled(family, 0)?, "over the limit, and said so");
        let (flow, source) = (stage.flow(&client)?, stage.source(family, 0)?);
        ensure!((flow.pings_in, flow.pongs_out, flow.defused) == (PINGS, PINGS, 0), "{flow:?}");
        let acted = (source.defused_total, source.dropped_total);
        ensure!(source.pings_total == PINGS && acted == (0, 0), "{source:?}");
        client.close()?;
    }
    let totals = stage.finish_one()?;
    ensure!((totals.pings, totals.pongs) == (2 * PINGS, 0), "{totals:?}");
    Ok(())
}
