use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, anyhow, ensure};
use aya::maps::{HashMap, MapData};
use ws_guard::{
    domain::policy::PolicySettings,
    guard::{AttachMode, GuardError, Maps, unload},
};
use ws_guard_common::{
    maps::{
        Address, Counter, Counters, MAY_BAN, Operation, Policy, Request, Rule, SourceKey, answer,
        name,
    },
    source::Source,
};
use ws_guard_testkit::netns::{Family, INTERFACE, Pair, PairOptions};

use crate::{PORT, PinDir, SIZES};

#[test]
fn a_policy_is_seen_whole_and_rules_stay() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let guard = pins.load()?;
    let maps = guard.maps();
    let whole = |n: u32| Policy { share: n, mask_v6: Address([n; 4]), ..Policy::default() };
    maps.set_policy(&whole(0))?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| -> Result<usize> {
            let mut changes = 0;
            let mut last = 0;
            while !stop.load(Relaxed) {
                let policy = maps.policy()?;
                ensure!(policy.mask_v6 == Address([policy.share; 4]), "torn: {policy:?}");
                changes += usize::from(policy.share != last);
                last = policy.share;
            }
            Ok(changes)
        });
        let began = Instant::now();
        let result = (1..=20).try_for_each(|n| maps.set_policy(&whole(n)));
        let took = began.elapsed();
        stop.store(true, Relaxed);
        let changes = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        result?;
        ensure!(changes >= 10, "the reader saw only {changes} of 20 changes");
        ensure!(took >= Duration::from_millis(190), "slots were rewritten after {took:?}");
        Ok(())
    })?;
    let before = maps.policy()?;
    maps.set_rule("10.77.0.0".parse()?, 16, Rule { flags: Rule::ALLOW, ..Rule::default() })?;
    maps.set_policy(&whole(30))?;
    let after = maps.policy()?;
    assert_eq!((after.share, after.rules), (30, 1));
    assert_ne!(after.generation, before.generation);
    Ok(())
}

#[test]
fn rules_by_network() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let guard = pins.load()?;
    let maps = guard.maps();
    let allow = Rule { flags: Rule::ALLOW, ..Rule::default() };
    let network = |text: &str| -> Result<(IpAddr, u8)> {
        let (address, prefix) = text.split_once('/').context("a slash")?;
        Ok((address.parse()?, prefix.parse()?))
    };
    for text in ["10.77.3.9/16", "fd77::/64", "0.0.0.0/0", "::/0", "192.0.2.1/32"] {
        let (address, prefix) = network(text)?;
        maps.set_rule(address, prefix, allow)?;
    }
    let shown: Vec<String> = maps.rules()?.iter().map(|(a, p, _)| format!("{a}/{p}")).collect();
    assert_eq!(shown, ["0.0.0.0/0", "10.77.0.0/16", "192.0.2.1/32", "::/0", "fd77::/64"]);
    assert_eq!(maps.policy()?.rules, 5);
    let generation = maps.policy()?.generation;
    assert!(!maps.remove_rule("10.77.0.0".parse()?, 24)?, "another prefix is another rule");
    assert_eq!(maps.policy()?.generation, generation);
    assert!(maps.remove_rule("10.77.0.0".parse()?, 16)?);
    assert_eq!((maps.policy()?.rules, maps.policy()?.generation), (4, generation + 1));
    let wanted = [("fd77::".parse()?, 64, allow), ("10.0.0.0".parse()?, 8, allow)];
    maps.set_rules(&wanted)?;
    assert_eq!(maps.rules()?, [wanted[1], wanted[0]]);
    let policy = maps.policy()?;
    maps.set_rules(&wanted)?;
    assert_eq!(maps.policy()?, policy, "the same again is no change");
    for n in 0..SIZES.rules {
        let result = maps.set_rule(IpAddr::from([192, 0, 2, n as u8]), 32, allow);
        match n {
            0..62 => result?,
            _ => assert!(matches!(result, Err(GuardError::MapFull { .. })), "{result:?}"),
        }
    }
    Ok(())
}

#[test]
fn proxies_and_headers_change_with_the_policy() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let guard = pins.load()?;
    let maps = guard.maps();
    let put = |settings: &PolicySettings| -> Result<Policy> {
        maps.set_policies(&settings.to_kernel(4).map_err(|error| anyhow!("{error:?}"))?)?;
        let back = PolicySettings::from_kernel(&maps.policies()?, &maps.rules()?);
        ensure!(back == *settings, "{back:?}");
        Ok(maps.policy()?)
    };
    let mut settings = PolicySettings { ports: vec![80], ..PolicySettings::default() };
    let first = put(&settings)?;
    ensure!(first.proxies == 9 && first.flags & MAY_BAN == 0, "{first:?}");
    settings.trusted_proxies.clear();
    settings.client_from.clear();
    for text in ["203.0.113.7", "::ffff:192.0.2.0/120", "fd77::/64"] {
        settings.trusted_proxies.add(text).map_err(Error::msg)?;
    }
    settings.client_from.add("x-real-ip").map_err(Error::msg)?;
    let second = put(&settings)?;
    ensure!((second.proxies, second.generation) == (3, first.generation + 1), "{second:?}");
    ensure!(second.headers != first.headers, "the set in force was written");
    maps.expect_bans()?;
    ensure!(maps.policy()?.flags & MAY_BAN != 0, "{:?}", maps.policy()?);
    settings.trusted_proxies.clear();
    settings.trusted_proxies.add("none").map_err(Error::msg)?;
    ensure!(put(&settings)?.proxies == 0, "{:?}", maps.policies()?);
    Ok(())
}

#[test]
fn ten_thousand_entries_come_in_batches() -> Result<()> {
    needs_root!();
    const ENTRIES: u32 = 10_000;
    const WORDS: usize = size_of::<Source>() / 8;
    let pins = PinDir::new();
    let guard = pins.load()?;
    let maps = guard.maps();
    let path = pins.0.join(name::SOURCES);
    let map = aya::maps::Map::HashMap(MapData::from_pin(path)?);
    let mut sources: HashMap<_, [u32; 5], [u64; WORDS]> = map.try_into()?;
    for n in 0..ENTRIES {
        let mut value = [0; WORDS];
        value[2] = u64::from(n);
        sources.insert([0, 0, Address::MAPPED, n.to_be(), 0], value, 0)?;
    }
    let began = Instant::now();
    let mut read = maps.sources()?;
    println!("{} sources read in {:?}", read.len(), began.elapsed());
    let began = Instant::now();
    assert_eq!(maps.source_count()?, ENTRIES);
    println!("counted in {:?}", began.elapsed());
    read.sort_by_key(|(key, _)| u32::from_be(key.address.0[3]));
    assert_eq!(read.len(), ENTRIES as usize);
    for (n, (key, source)) in read.iter().enumerate() {
        assert_eq!(u32::from_be(key.address.0[3]), n as u32);
        assert_eq!(source.pings_total, n as u64);
    }
    let key = |address| SourceKey { address: Address(address), scope: 0 };
    let one = maps.source(&key([0, 0, Address::MAPPED, 77u32.to_be()]))?;
    assert_eq!(one.context("number 77")?.pings_total, 77);
    assert!(maps.source(&key([9; 4]))?.is_none());
    let handshakes = maps.handshakes()?;
    assert_eq!((maps.flows()?.len(), maps.flow_count()?, handshakes.keys.len()), (0, 0, 0));
    Ok(())
}

#[test]
fn counters_grow_with_the_traffic() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let pins = PinDir::new();
    let maps = pair.server.run(|| {
        let mut guard = pins.load()?;
        guard.maps().set_ports(&[PORT])?;
        guard.attach(INTERFACE, AttachMode::Auto)?;
        Ok::<_, GuardError>(guard.maps())
    })??;
    let before = maps.counters()?;
    let server = SocketAddr::new(Family::V4.server(), PORT);
    pair.client.run(|| (0..50).for_each(|_| drop(TcpStream::connect(server))))?;
    let after = maps.counters()?;
    let grown = |counter: Counter| {
        let of = |counters: &Counters| counters.events[counter as usize];
        of(&after) - of(&before)
    };
    assert_eq!(grown(Counter::Protected), 50);
    assert!(grown(Counter::Seen) >= 50 && grown(Counter::EgressSeen) >= 50);
    pair.server.run(|| unload(&pins.0))??;
    Ok(())
}

#[test]
fn requests_reach_the_control_program() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let guard = pins.load()?;
    let source = SourceKey { address: "10.77.0.9".parse::<IpAddr>()?.into(), scope: 0 };
    let operation = Operation::Release as u32;
    let release = Request { operation, pings: 0, until: 0, source, _pad: 0 };
    assert_eq!(guard.maps().request(&release)?, answer::NOT_FOUND);
    drop(guard);
    let maps = Maps::from_pins(&pins.0)?;
    assert_eq!(maps.request(&release)?, answer::NOT_FOUND, "with the daemon down too");
    Ok(())
}
