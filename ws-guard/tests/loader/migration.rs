use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData, MapInfo};
use ws_guard::guard::{AttachMode, GuardError, Maps, unload};
use ws_guard_common::{
    flow::limited,
    maps::{Counter, FlowKey, Policy, SCHEMA_VERSION, action, name, program},
    window::Rate,
};
use ws_guard_testkit::{
    frame::{Frame, encode},
    netns::{INTERFACE, Pair, PairOptions},
    older::{self, Older},
    packets::{Connection, SWITCHING},
};

use crate::{PORT, PinDir, counter, takeover::connect_until};

/// Maps whose entries a takeover could lose, and the counters.
const SHARED: [&str; 4] = [name::FLOWS, name::SOURCES, name::RULES, name::POLICY];

impl PinDir {
    /// Pin programs of an earlier schema in it.
    fn older(&self, schema: u32) -> Result<Older> {
        let mut older = Older::load(schema, &self.0)?;
        older.programs.set_policy(Policy { generation: 1, ..Policy::default() })?;
        older.programs.set_ports(&[PORT])?;
        Ok(older)
    }

    fn id(&self, map: &str) -> Result<u32> {
        Ok(MapInfo::from_pin(self.0.join(map))?.id())
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.0)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Check that there is one schema note, and no map in waiting.
    fn is_clean(&self) -> Result<()> {
        let names = self.names()?;
        let notes = names.iter().filter(|name| name.starts_with("schema-"));
        let notes: Vec<&String> = notes.collect();
        ensure!(notes == [&format!("schema-{SCHEMA_VERSION}")], "{names:?}");
        ensure!(!names.iter().any(|name| name.ends_with("-next")), "{names:?}");
        Ok(())
    }
}

/// Report the share of counted SYNs in the takeover of an earlier schema's pins.
/// With the same layout of counters it is all of them.
fn gap_in_packets(schema: u32) -> Result<()> {
    let pair = Pair::new(PairOptions::default())?;
    let pins = PinDir::new();
    let mut older = pins.older(schema)?;
    pair.server.run(|| older.attach(INTERFACE))??;
    drop(older);
    let counters = pins.id(name::COUNTERS)?;
    let shared = SHARED.map(|map| pins.id(map));
    let stop = AtomicBool::new(false);
    let (sent, maps) = thread::scope(|scope| {
        let sender = scope.spawn(|| connect_until(&pair.client, &stop));
        thread::sleep(Duration::from_millis(300));
        let taken_over = pair.server.run(|| {
            let mut guard = pins.load()?;
            guard.attach(INTERFACE, AttachMode::Auto)?;
            Ok::<_, GuardError>(guard.maps())
        });
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Relaxed);
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, anyhow::Error>((sent, taken_over??))
    })?;
    let counted = counter(&maps, Counter::Protected)?;
    println!("schema {schema}: {sent} SYNs, {counted} counted");
    for (map, old) in SHARED.into_iter().zip(shared) {
        assert_eq!(pins.id(map)?, old?, "{map} is shared");
    }
    if pins.id(name::COUNTERS)? == counters {
        assert_eq!(counted, sent);
    } else {
        // Counts of the old programs between the last reading and their replacement are lost.
        assert!(counted <= sent && counted > sent - sent / 10, "{counted} of {sent}");
    }
    assert_eq!(maps.ports()?, [PORT]);
    pins.is_clean()?;
    pair.server.run(|| unload(&pins.0))??;
    Ok(())
}

#[test]
fn an_earlier_schema_is_taken_over_with_its_counters() -> Result<()> {
    needs_root!();
    needs_tcx!();
    older::schemas()?.into_iter().try_for_each(gap_in_packets)
}

/// First schema with [`ws_guard_common::flow::Flow::limited`].
const HAS_MARK: u32 = 14;

/// Programs without [`ws_guard_common::flow::Flow::limited`] leave its place 0, also where a connection exceeds a
/// limit, so that it counts as unknown.
fn leaves_no_mark(schema: u32) -> Result<()> {
    let pins = PinDir::new();
    let mut older = pins.older(schema)?;
    let rate = Rate::new(5, 3_600_000, 4).ok().context("a rate")?;
    let action = action::DEFUSE;
    older.programs.set_policy(Policy { generation: 2, rate, action, ..Policy::default() })?;
    let connection = Connection {
        client: "10.1.0.1:4711".parse()?,
        server: ([10, 1, 0, 2], PORT).into(),
        client_seq: 1000,
        server_seq: 77,
    };
    let key = FlowKey::new(connection.client, connection.server);
    let programs = &mut older.programs;
    programs.run(program::TC_EGRESS, &connection.accepted().build()?)?;
    programs.run(program::XDP_INGRESS, &connection.request().build()?)?;
    programs.run(program::TC_EGRESS, &connection.answer(SWITCHING).build()?)?;
    for n in 0..20 {
        let ping = encode(&[Frame::ping("")]);
        programs.run(program::XDP_INGRESS, &connection.from_client(n * 6, ping).build()?)?;
        programs.run(program::TC_EGRESS, &connection.from_server(0, n * 6, "").build()?)?;
        let flow = programs.flow(key)?.context("no flow")?;
        ensure!((flow.limited, flow.near_scale) == (limited::UNKNOWN, 0), "{flow:?}");
        ensure!((flow.over_until != 0) == (n >= 5), "ping {n}: {flow:?}");
    }
    Ok(())
}

#[test]
fn flows_of_earlier_schemas_count_as_unknown() -> Result<()> {
    needs_root!();
    older::schemas()?
        .into_iter()
        .filter(|schema| *schema < HAS_MARK)
        .try_for_each(|schema| leaves_no_mark(schema).with_context(|| format!("schema {schema}")))
}

/// Pin a map that no daemon could use.
fn pin_another(path: &Path) -> Result<()> {
    let map: HashMap<MapData, u32, u32> = HashMap::create(1, 0)?;
    Ok(map.pin(path).map(drop)?)
}

/// Interrupted before the notes change, and between the two.
#[test]
fn an_interrupted_takeover_is_completed() -> Result<()> {
    needs_root!();
    let schema = older::schemas()?[0];
    let pins = PinDir::new();
    drop(pins.older(schema)?);
    pin_another(&pins.0.join("COUNTERS-next"))?;
    assert!(
        matches!(Maps::from_pins(&pins.0).err(), Some(GuardError::Earlier(_, found)) if found == schema)
    );
    drop(pins.load()?);
    pins.is_clean()?;
    let (counters, flows) = (pins.id(name::COUNTERS)?, pins.id(name::FLOWS)?);
    fs::rename(pins.0.join(name::COUNTERS), pins.0.join("COUNTERS-next"))?;
    pin_another(&pins.0.join(name::COUNTERS))?;
    fs::create_dir(pins.0.join(format!("schema-{schema}")))?;
    drop(pins.load()?);
    pins.is_clean()?;
    assert_eq!((pins.id(name::COUNTERS)?, pins.id(name::FLOWS)?), (counters, flows));
    Ok(())
}

#[test]
fn an_earlier_schema_that_does_not_fit_is_refused_and_kept() -> Result<()> {
    needs_root!();
    let schema = older::schemas()?[0];
    let pins = PinDir::new();
    drop(pins.older(schema)?);
    let sources = pins.0.join(name::SOURCES);
    fs::remove_file(&sources)?;
    let wrong: HashMap<MapData, [u8; 20], [u8; 64]> = HashMap::create(16, 0)?;
    wrong.pin(&sources)?;
    let before = pins.names()?;
    let error = pins.load().err().context("64 bytes are no source")?;
    assert!(matches!(error, GuardError::Incompatible(..)), "{error}");
    assert_eq!(pins.names()?, before, "refusing changes nothing");
    unload(&pins.0)?;
    assert!(!pins.0.exists());
    Ok(())
}
