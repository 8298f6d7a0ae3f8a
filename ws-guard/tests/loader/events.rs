use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::{maps::MapInfo, programs::loaded_programs};
use ws_guard::guard::{Guard, LoadOptions};
use ws_guard_common::{
    maps::{Address, EventKind, Operation, Policy, Request, SourceKey, name, program},
    window::Rate,
};

use crate::PinDir;

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[test]
fn events_come_through_and_the_reader_ends_with_its_receiver() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let source = SourceKey { address: "10.77.0.9".parse::<IpAddr>()?.into(), scope: 0 };
    runtime()?.block_on(async {
        let mut guard = pins.load()?;
        let maps = guard.maps();
        let rate = Rate::new(2, 10_000, 4).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let all = Address::mask(128);
        maps.set_policy(&Policy { rate, mask_v4: all, mask_v6: all, ..Policy::default() })?;
        let mut events = guard.events()?;
        // More pings than the limit, as a terminator reports them.
        let operation = Operation::Report as u32;
        let report = Request { operation, pings: 5, until: 0, source, _pad: 0 };
        maps.request(&report)?;
        let event = tokio::time::timeout(Duration::from_secs(5), events.recv()).await?;
        let event = event.context("the channel is open")?;
        assert_eq!(event.kind, EventKind::Throttled as u8);
        assert_eq!(IpAddr::from(event.source.address), "10.77.0.9".parse::<IpAddr>()?);
        assert_eq!(guard.events_dropped(), 0);
        drop(events);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(tasks, 0, "the reader has ended");
        Ok(())
    })
}

#[test]
fn events_outside_a_runtime_are_an_error_not_a_panic() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    assert!(pins.load()?.events().is_err());
    let options = LoadOptions { kernel_debug_log: true, ..pins.options() };
    let error = Guard::load(&options).err().context("the log needs a runtime")?;
    assert!(error.to_string().contains("debug log"), "{error}");
    Ok(())
}

/// Without the debug log the verifier removes every log call from the programs.
#[test]
fn the_debug_log_costs_nothing_when_off() -> Result<()> {
    needs_root!();
    runtime()?.block_on(async {
        let size = |kernel_debug_log| -> Result<u32> {
            let pins = PinDir::new();
            let _guard = Guard::load(&LoadOptions { kernel_debug_log, ..pins.options() })?;
            let flows = MapInfo::from_pin(pins.0.join(name::FLOWS))?.id();
            let xdp = loaded_programs().flatten().find(|loaded| {
                let maps = loaded.map_ids().ok().flatten().unwrap_or_default();
                loaded.name_as_str() == Some(program::XDP_INGRESS) && maps.contains(&flows)
            });
            xdp.and_then(|xdp| xdp.size_translated()).context("the loaded XDP program")
        };
        let (off, on) = (size(false)?, size(true)?);
        println!("{}: {off} bytes without the log, {on} with it", program::XDP_INGRESS);
        ensure!(off < on, "{off} bytes without the log, {on} with it");
        Ok(())
    })
}
