//! Pages of the copies of out-of-order segments: borrowed from the common pool, and given back.
use anyhow::{Context, Result, ensure};
use ws_guard_common::{
    maps::{FlowKey, Policy, action, name, program},
    out_of_order::{RANGES, SLOTS},
    pages::{ALL, OWN, PAGE, POOL, Page},
    window::Rate,
};
use ws_guard_testkit::{
    packets::{Connection, SWITCHING},
    programs::{Programs, Raw, object},
    skip_reason,
};

const PORT: u16 = 80;
const XDP_PASS: u32 = 2;

/// Open a connection from that port.
fn open(programs: &Programs, port: u16) -> Result<Connection> {
    let connection = Connection {
        client: ([10, 1, 0, 1], port).into(),
        server: ([10, 1, 0, 2], PORT).into(),
        client_seq: 1000,
        server_seq: 77,
    };
    programs.run(program::TC_EGRESS, &connection.accepted().build()?)?;
    programs.run(program::XDP_INGRESS, &connection.request().build()?)?;
    programs.run(program::TC_EGRESS, &connection.answer(SWITCHING).build()?)?;
    Ok(connection)
}

fn passes(programs: &Programs, connection: &Connection, at: u32, payload: Vec<u8>) -> Result<bool> {
    let packet = connection.from_client(at, payload).build()?;
    Ok(programs.run(program::XDP_INGRESS, &packet)?.verdict == XDP_PASS)
}

/// Send a segment into each of as many pages as there may be ranges; returns how many pass.
fn fill(programs: &Programs, connection: &Connection) -> Result<u32> {
    let first = PAGE - connection.frames_seq() % PAGE;
    (0..RANGES as u32).try_fold(0, |kept, page| {
        let at = first + page * PAGE;
        Ok(kept + u32::from(passes(programs, connection, at, vec![b'x'; 100])?))
    })
}

/// Return the number of pages that each slot has borrowed.
fn lent(programs: &mut Programs) -> Result<Vec<u32>> {
    let mut lent = vec![0; SLOTS as usize];
    for number in SLOTS * OWN..ALL {
        let Raw(page): Raw<Page> = programs.get(name::PAGES, number)?;
        if let Some(slot) = page.borrower.checked_sub(1) {
            *lent.get_mut(slot as usize).context("no such slot")? += 1;
        }
    }
    Ok(lent)
}

fn counts(lent: &[u32]) -> Vec<u32> {
    lent.iter().copied().filter(|pages| *pages > 0).collect()
}

#[test]
fn connections_share_the_pool_and_give_it_back() -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let all = [program::XDP_INGRESS, program::TC_EGRESS];
    let mut programs = Programs::load(&object(), &all, &[(name::FLOWS, 256)])?;
    let rate = Rate::new(30, 10_000, 4).ok().context("a rate")?;
    programs.set_policy(Policy {
        generation: 1,
        rate,
        action: action::DEFUSE,
        ..Policy::default()
    })?;
    programs.set_ports(&[PORT])?;
    let ranges = RANGES as u32;

    let first = open(&programs, 1024)?;
    ensure!(fill(&programs, &first)? == ranges, "not all of the first one's pass");
    ensure!(counts(&lent(&mut programs)?) == [ranges - OWN], "{:?}", lent(&mut programs)?);
    // Others may have its slot.
    let mut ports = 1025..;
    let mut next = |programs: &Programs| loop {
        let connection = open(programs, ports.next().context("no port is left")?)?;
        let kept = fill(programs, &connection)?;
        if kept > 0 {
            return Ok::<_, anyhow::Error>((connection, kept));
        }
    };
    let before = lent(&mut programs)?;
    let (second, kept) = next(&programs)?;
    ensure!(kept == ranges, "{kept} of the second one's pass");
    let both = lent(&mut programs)?;
    ensure!(counts(&both) == [ranges - OWN; 2], "{both:?}");
    let slot = before.iter().zip(&both).position(|(before, now)| before != now);
    let slot = slot.context("it has none")?;

    // A frame whose payload reaches beyond all of it: the gaps are filled.
    let mut header = vec![0x82, 0xFF];
    header.extend((u64::from(ranges + 2) * u64::from(PAGE)).to_be_bytes());
    header.extend([1, 2, 3, 4]);
    ensure!(passes(&programs, &first, 0, header)?, "the filler does not pass");
    let left = lent(&mut programs)?;
    ensure!(counts(&left) == [ranges - OWN] && left[slot] == ranges - OWN, "{left:?}");

    // One that needs none any more, as after a loss of its frames, keeps them until others need them.
    let key = FlowKey::new(second.client, second.server);
    programs.change_flow(key, |flow| flow.held = 0)?;
    let mut refused = 0;
    for _ in 0..2 * POOL / (ranges - OWN) {
        let (_, kept) = next(&programs)?;
        ensure!(kept >= OWN, "{kept} pages, fewer than a slot's own");
        refused += u32::from(kept < ranges);
    }
    let full = lent(&mut programs)?;
    ensure!(full.iter().sum::<u32>() > POOL * 7 / 8, "{full:?}");
    ensure!(refused > 0, "the pool has no end");
    ensure!(full.iter().all(|pages| *pages <= ranges - OWN), "{full:?}");
    let Raw(held): Raw<ws_guard_common::out_of_order::Held> =
        programs.get(name::HELD, slot as u32)?;
    ensure!(held.owner == 0 || held.key != key, "the second one still has a copy");
    Ok(())
}
