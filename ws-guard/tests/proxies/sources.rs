//! More clients than the table of sources has room for.
//!
//! Clients without room are charged to a coarser prefix, which has a limit as well; so a full table
//! is not a way out, and a client that pings once is still answered.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use anyhow::{Result, ensure};
use ws_guard_testkit::{netns::Family, servers::Library, visitors};

use crate::{
    row::guard_words,
    stage::{Role, Serving, Stage},
};

const SOURCES: u32 = 40_000;
/// Pings of the flooder, few enough that pacing does not delay the last.
const FLOOD: u64 = 500;
/// The limit of the coarser prefix, and the connection's share.
const MOST: u64 = 30 + 5;

/// Return the address of client number `n`, a separate source.
fn client(family: Family, n: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n).into(),
        Family::V6 => {
            let group = |shift: u32| (n >> shift & 0xffff) as u16;
            Ipv6Addr::new(0x2001, 0xdb8, group(16), group(0), 0, 0, 0, 1).into()
        }
    }
}

/// Return an address whose coarser prefix no other client has.
fn flooder(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, 9).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xff00, 0, 0, 0, 1).into(),
    }
}

fn more_than_the_table_holds(family: Family) -> Result<()> {
    let begun = Instant::now();
    // Longer than all the visits take: no source must be forgotten meanwhile.
    let words = guard_words("defuse", 120, "");
    let words = format!("{words} --max-sources 1024 --max-flows 16384");
    let serving = Serving::Library(Library::Gorilla);
    let stage = Stage::without_proxy(serving, family, Role::Uplink, &words)?;
    let proxy = stage.edge.proxy();
    let visits = visitors::visit(proxy, stage.server(), 0..SOURCES, move |n| client(family, n))?;
    let answered = visitors::flood(proxy, stage.server(), flooder(family), FLOOD)?;
    let sources = stage.guard.ask::<serde_json::Value>("status")?["sources"].clone();
    println!(
        "{family:?}: {} of {SOURCES} single pings answered, {answered} of {FLOOD} of the flooder's, \
         sources {sources}, {:.1?}",
        visits.answered,
        begun.elapsed()
    );
    let some = &visits.failures[..visits.failures.len().min(5)];
    ensure!(visits.answered == u64::from(SOURCES), "{} failed: {some:?}", visits.failures.len());
    ensure!((1..=MOST).contains(&answered), "{answered} of the flooder's pings were answered");
    stage.finish()
}

#[test]
fn forty_thousand_ipv4_clients() -> Result<()> {
    needs_root!();
    more_than_the_table_holds(Family::V4)
}

#[test]
fn forty_thousand_ipv6_clients() -> Result<()> {
    needs_root!();
    more_than_the_table_holds(Family::V6)
}
