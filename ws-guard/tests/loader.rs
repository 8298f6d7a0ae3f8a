//! Loading, attaching, pinning and taking over, on the real kernel. Each test has namespaces and a
//! pin directory of its own, and leaves nothing behind.
use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    maps::{HashMap, MapData, MapInfo, loaded_maps},
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use ws_guard::guard::{
    AttachMode, Attachment, Guard, GuardError, InterfaceEvent, InterfaceWatcher, LoadOptions, Maps,
    Mode, TableSizes, pinned_attachments, unload,
};
use ws_guard_common::maps::{
    Address, Counter, Counters, Operation, Policy, Request, Rule, answer, name,
};
use ws_guard_testkit::netns::{Family, INTERFACE, Namespace, Pair, PairOptions};

const SIZES: TableSizes = TableSizes { flows: 4096, sources: 16384, pending: 1024, rules: 64 };
const PORT: u16 = 9999;

/// A pin directory, emptied when dropped.
struct PinDir(PathBuf);

impl PinDir {
    fn new() -> PinDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        PinDir(format!("/sys/fs/bpf/wsg-loader-{}-{number}", std::process::id()).into())
    }

    fn options(&self) -> LoadOptions {
        LoadOptions { pin_dir: self.0.clone(), sizes: SIZES, kernel_debug_log: false }
    }

    fn load(&self) -> Result<Guard, GuardError> {
        Guard::load(&self.options())
    }

    fn link(&self, name: &str) -> Result<(u32, u32)> {
        let link = FdLink::from(PinnedLink::from_pin(self.0.join("links").join(name))?);
        let info = link.info()?;
        Ok((info.id(), info.program_id()))
    }

    fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("links")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = unload(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A namespace with a veth pair `v0`, `v1` in it.
fn veth(label: &str, mtu: u32) -> Result<Namespace> {
    let namespace = Namespace::new(label)?;
    namespace.ip(&format!("link add v0 mtu {mtu} type veth peer name v1 mtu {mtu}"))?;
    namespace.ip("link set v0 up")?;
    namespace.ip("link set v1 up")?;
    Ok(namespace)
}

/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

fn attached(name: &str, ingress: Mode, egress: Mode) -> Attachment {
    Attachment { name: name.into(), ingress: Some(ingress), egress: Some(egress) }
}

fn attach_once(namespace: &Namespace, interface: &str, mode: AttachMode) -> Result<Attachment> {
    let pins = PinDir::new();
    namespace.run(|| {
        let mut guard = pins.load()?;
        let attachment = guard.attach(interface, mode)?;
        ensure!(guard.attachments() == [attachment.clone()]);
        ensure!(pinned_attachments(&pins.0)? == [attachment.clone()]);
        drop(guard);
        ensure!(pinned_attachments(&pins.0)? == [attachment.clone()], "the pins keep it");
        let removed = unload(&pins.0)?;
        ensure!(removed.len() > 10, "{removed:?}");
        ensure!(!pins.0.exists());
        ensure!(matches!(pinned_attachments(&pins.0), Err(GuardError::NotLoaded(_))));
        Ok(attachment)
    })?
}

#[test]
fn every_mode_attaches_and_unloads() -> Result<()> {
    needs_root!();
    let namespace = veth("modes", 1500)?;
    for (interface, mode, ingress, egress) in [
        ("v0", AttachMode::Auto, Mode::XdpNative, Mode::Tcx),
        ("v0", AttachMode::XdpNative, Mode::XdpNative, Mode::Tcx),
        ("v0", AttachMode::XdpGeneric, Mode::XdpGeneric, Mode::Tcx),
        ("v0", AttachMode::Tcx, Mode::Tcx, Mode::Tcx),
        ("v0", AttachMode::Clsact, Mode::Clsact, Mode::Clsact),
        ("lo", AttachMode::Auto, Mode::XdpGeneric, Mode::Tcx),
    ] {
        let attachment = attach_once(&namespace, interface, mode)
            .with_context(|| format!("{mode:?} on {interface}"))?;
        assert_eq!(attachment, attached(interface, ingress, egress), "{mode:?}");
    }
    Ok(())
}

fn counter(maps: &Maps, counter: Counter) -> Result<u64> {
    Ok(maps.counters()?.events[counter as usize])
}

/// Wait until `done` says so; a link or program goes a moment after its last reference.
fn eventually(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(5);
    while !done() {
        ensure!(Instant::now() < until, "{what}: not within 5 s");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn a_restart_keeps_links_and_entries() -> Result<()> {
    needs_root!();
    let namespace = veth("takeover", 1500)?;
    let pins = PinDir::new();
    namespace.run(|| {
        let mut first = pins.load()?;
        first.attach("v0", AttachMode::Auto)?;
        first.maps().set_ports(&[1, 8080, 65535])?;
        let policy = Policy { share: 5, ..Policy::default() };
        first.maps().set_policy(&policy)?;
        let (links, ids) =
            (pins.links(), (pins.link("v0-in-xdp-native")?, pins.link("v0-out-tcx")?));
        assert!(matches!(pins.load(), Err(GuardError::InUse(_))), "one daemon a directory");
        drop(first);
        let mut second = pins.load()?;
        let attachment = second.attach("v0", AttachMode::Auto)?;
        assert_eq!(attachment, attached("v0", Mode::XdpNative, Mode::Tcx));
        assert_eq!(pins.links(), links);
        for (name, (id, program)) in [("v0-in-xdp-native", ids.0), ("v0-out-tcx", ids.1)] {
            let (new_id, new_program) = pins.link(name)?;
            assert_eq!(new_id, id, "{name} is the same link");
            assert_ne!(new_program, program, "{name} carries the new program");
        }
        assert_eq!(second.maps().ports()?, [1, 8080, 65535]);
        assert_eq!(second.maps().policy()?.share, 5);
        assert_eq!(Maps::from_pins(&pins.0)?.policy()?.share, 5, "from the pins alone too");
        Ok(())
    })?
}

/// One SYN each, as no packet is lost on a veth pair and each is answered by RST.
fn connect_until(client: &Namespace, stop: &AtomicBool) -> Result<u64> {
    let server = SocketAddr::new(Family::V4.server(), PORT);
    client.run(|| {
        let mut refused = 0;
        while !stop.load(Relaxed) && refused < 200_000 {
            let error = TcpStream::connect(server).err().context("nobody listens there")?;
            ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
            refused += 1;
        }
        Ok(refused)
    })?
}

/// Every SYN that a client sends while daemons come and go is counted: by the old programs or by
/// the new ones.
fn no_packet_unguarded(modes: &[AttachMode]) -> Result<()> {
    let pair = Pair::new(PairOptions::default())?;
    let pins = PinDir::new();
    let attach = |mode| {
        pair.server.run(|| {
            let mut guard = pins.load()?;
            guard.maps().set_ports(&[PORT])?;
            Ok::<_, GuardError>((guard.attach(INTERFACE, mode)?, guard.maps()))
        })
    };
    let (_, maps) = attach(modes[0])??;
    let before = counter(&maps, Counter::Protected)?;
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| connect_until(&pair.client, &stop));
        let result = (0..12).try_for_each(|round| {
            thread::sleep(Duration::from_millis(50));
            attach(modes[round % modes.len()])?.map(drop).map_err(anyhow::Error::from)
        });
        stop.store(true, Relaxed);
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(sent)
    })?;
    let counted = counter(&maps, Counter::Protected)? - before;
    println!("{modes:?}: {sent} SYNs over 12 takeovers, {counted} counted");
    assert!(sent > 100, "only {sent} connections were tried");
    if modes.len() == 1 {
        assert_eq!(counted, sent);
    } else {
        // While two hooks guard at once a packet may be counted by both.
        assert!(counted >= sent, "{counted} of {sent}");
    }
    pair.server.run(|| unload(&pins.0))??;
    Ok(())
}

#[test]
fn no_packet_is_unguarded_while_daemons_change_xdp() -> Result<()> {
    needs_root!();
    no_packet_unguarded(&[AttachMode::Auto])
}

#[test]
fn no_packet_is_unguarded_while_daemons_change_tcx() -> Result<()> {
    needs_root!();
    no_packet_unguarded(&[AttachMode::Tcx])
}

#[test]
fn no_packet_is_unguarded_while_daemons_change_clsact() -> Result<()> {
    needs_root!();
    no_packet_unguarded(&[AttachMode::Clsact])
}

#[test]
fn no_packet_is_unguarded_while_the_mode_changes() -> Result<()> {
    needs_root!();
    no_packet_unguarded(&[
        AttachMode::XdpGeneric,
        AttachMode::Tcx,
        AttachMode::XdpNative,
        AttachMode::XdpGeneric,
        AttachMode::Clsact,
        AttachMode::XdpNative,
    ])
}

#[test]
fn a_foreign_xdp_program_stays_and_tcx_is_used() -> Result<()> {
    needs_root!();
    let namespace = veth("foreign", 1500)?;
    let (theirs, ours) = (PinDir::new(), PinDir::new());
    namespace.run(|| {
        let mut foreign = theirs.load()?;
        foreign.attach("v0", AttachMode::XdpGeneric)?;
        let (id, program) = theirs.link("v0-in-xdp-generic")?;
        let mut guard = ours.load()?;
        for mode in [AttachMode::XdpNative, AttachMode::XdpGeneric] {
            let error = guard.attach("v0", mode).expect_err("the slot is taken").to_string();
            assert!(
                error.contains("ws_guard_xdp") && error.contains(&program.to_string()),
                "{error}"
            );
            assert!(error.contains("v0") && error.contains("ingress"), "{error}");
            assert_eq!(ours.links(), [""; 0], "a failed attach leaves nothing");
        }
        let attachment = guard.attach("v0", AttachMode::Auto)?;
        assert_eq!(attachment, attached("v0", Mode::Tcx, Mode::Tcx));
        assert_eq!(theirs.link("v0-in-xdp-generic")?, (id, program));
        Ok(())
    })?
}

/// Two guards on one interface with clsact keep their filters apart.
#[test]
fn guards_with_clsact_keep_apart() -> Result<()> {
    needs_root!();
    let namespace = veth("apart", 1500)?;
    let (one, two) = (PinDir::new(), PinDir::new());
    let filters = |direction: &str| -> Result<usize> {
        let mut command = namespace.command("tc");
        let output = command.args(["filter", "show", "dev", "v0", direction]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).matches(" handle ").count())
    };
    namespace.run(|| {
        for pins in [&one, &two] {
            pins.load()?.attach("v0", AttachMode::Clsact)?;
        }
        assert_eq!((filters("ingress")?, filters("egress")?), (2, 2));
        one.load()?.attach("v0", AttachMode::Clsact)?;
        assert_eq!((filters("ingress")?, filters("egress")?), (2, 2), "replaced, not added");
        unload(&one.0)?;
        assert_eq!((filters("ingress")?, filters("egress")?), (1, 1), "the other's stay");
        unload(&two.0)?;
        assert_eq!((filters("ingress")?, filters("egress")?), (0, 0));
        Ok(())
    })?
}

#[test]
fn only_our_own_clsact_qdisc_is_removed() -> Result<()> {
    needs_root!();
    let namespace = veth("qdisc", 1500)?;
    let qdiscs = || -> Result<bool> {
        let mut command = namespace.command("tc");
        let output = command.args(["qdisc", "show", "dev", "v0"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("clsact"))
    };
    attach_once(&namespace, "v0", AttachMode::Clsact)?;
    assert!(!qdiscs()?, "ours goes");
    let mut tc = namespace.command("tc");
    assert!(tc.args(["qdisc", "add", "dev", "v0", "clsact"]).status()?.success());
    attach_once(&namespace, "v0", AttachMode::Clsact)?;
    assert!(qdiscs()?, "somebody else's stays");
    Ok(())
}

#[test]
fn a_large_mtu_falls_back_to_generic() -> Result<()> {
    needs_root!();
    let namespace = veth("mtu", 9000)?;
    let attachment = attach_once(&namespace, "v0", AttachMode::Auto)?;
    assert_eq!(attachment, attached("v0", Mode::XdpGeneric, Mode::Tcx));
    let error = attach_once(&namespace, "v0", AttachMode::XdpNative).expect_err("too large");
    assert!(error.to_string().contains("MTU"), "{error}");
    Ok(())
}

#[test]
fn an_interface_made_anew_is_attached_afresh() -> Result<()> {
    needs_root!();
    let namespace = veth("anew", 1500)?;
    let pins = PinDir::new();
    namespace.run(|| {
        for mode in [AttachMode::Auto, AttachMode::Clsact] {
            let mut guard = pins.load()?;
            let before = guard.attach("v0", mode)?;
            namespace.ip("link del v0")?;
            assert!(matches!(guard.attach("v0", mode), Err(GuardError::NoInterface(_))));
            assert_eq!(pinned_attachments(&pins.0)?, [], "what is gone is not shown");
            namespace.ip("link add v0 type veth peer name v1")?;
            assert_eq!(guard.attach("v0", mode)?, before);
            assert_eq!(pinned_attachments(&pins.0)?, [before]);
            guard.detach("v0")?;
            assert_eq!(pinned_attachments(&pins.0)?, []);
            assert_eq!(guard.attachments(), []);
        }
        Ok(())
    })?
}

#[test]
fn an_interface_with_a_dot_in_its_name() -> Result<()> {
    needs_root!();
    let namespace = veth("dot", 1500)?;
    namespace.ip("link set v1 name eth0.100")?;
    for mode in [AttachMode::Auto, AttachMode::Clsact] {
        let attachment = attach_once(&namespace, "eth0.100", mode)?;
        assert_eq!(attachment.name, "eth0.100");
    }
    Ok(())
}

#[test]
fn names_that_cannot_be_are_refused() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let mut guard = pins.load()?;
    for name in ["", "a/b", "a\0b", "longer-than-any-name"] {
        let error = guard.attach(name, AttachMode::Auto).expect_err("not a name");
        assert!(matches!(error, GuardError::BadInterfaceName(_)), "{error}");
    }
    let error = guard.attach("wsg-absent", AttachMode::Auto).expect_err("no such interface");
    assert!(matches!(error, GuardError::NoInterface(_)), "{error}");
    Ok(())
}

#[test]
fn incompatible_pins_are_refused_and_kept() -> Result<()> {
    needs_root!();
    // A value of another size.
    let pins = PinDir::new();
    drop(pins.load()?);
    let flows = pins.0.join(name::FLOWS);
    fs::remove_file(&flows)?;
    let wrong: HashMap<MapData, [u8; 36], [u8; 64]> = HashMap::create(SIZES.flows, 0)?;
    wrong.pin(&flows)?;
    for error in [pins.load().err(), Maps::from_pins(&pins.0).err()] {
        let error = error.context("64 bytes are no flow")?;
        assert!(matches!(error, GuardError::Incompatible(..)), "{error}");
        let text = error.to_string();
        for part in ["FLOWS", "64", "720", "unload", "--pin-dir"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }
    assert!(flows.exists(), "refusing removes nothing");
    // An older schema, whatever the maps look like.
    let pins = PinDir::new();
    drop(pins.load()?);
    fs::remove_dir(pins.0.join("schema-1"))?;
    assert!(matches!(pins.load(), Err(GuardError::Incompatible(..))), "no version at all");
    fs::create_dir(pins.0.join("schema-0"))?;
    let error = pins.load().err().context("version 0")?.to_string();
    assert!(error.contains("schema-0") && error.contains("schema-1"), "{error}");
    unload(&pins.0)?;
    assert!(!pins.0.exists(), "any version can be unloaded");
    drop(pins.load()?);
    Ok(())
}

#[test]
fn other_table_sizes_leave_the_pinned_ones() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    drop(pins.load()?);
    let sizes = TableSizes { flows: 99, ..SIZES };
    let guard = Guard::load(&LoadOptions { sizes, ..pins.options() })?;
    assert_eq!(guard.maps().table_sizes(), SIZES);
    Ok(())
}

/// Names and ids of everything of ours in the kernel.
fn of_ours() -> Vec<(u32, String)> {
    let programs = loaded_programs().flatten();
    let programs = programs.map(|p| (p.id(), p.name_as_str().unwrap_or_default().to_owned()));
    let maps = loaded_maps().flatten();
    let maps = maps.map(|m| (m.id(), m.name_as_str().unwrap_or_default().to_owned()));
    let ours = |name: &str| name.starts_with("ws_guard") || name == name::FLOWS;
    programs.chain(maps).filter(|(_, name)| ours(name)).collect()
}

#[test]
fn unload_leaves_nothing_in_the_kernel() -> Result<()> {
    needs_root!();
    let namespace = veth("nothing", 1500)?;
    for mode in [AttachMode::Auto, AttachMode::Clsact] {
        let pins = PinDir::new();
        let before = of_ours();
        let made: Vec<_> = namespace.run(|| {
            let mut guard = pins.load()?;
            guard.attach("v0", mode)?;
            let flows = MapInfo::from_pin(pins.0.join(name::FLOWS))?.id();
            let loaded: Vec<(u32, String)> = loaded_programs()
                .flatten()
                .filter(|p| p.map_ids().ok().flatten().is_some_and(|maps| maps.contains(&flows)))
                .map(|p| (p.id(), p.name_as_str().unwrap_or_default().to_owned()))
                .chain([(flows, name::FLOWS.to_owned())])
                .collect();
            drop(guard);
            unload(&pins.0)?;
            Ok::<_, anyhow::Error>(loaded)
        })??;
        assert_eq!(made.len(), 5, "four programs and the flow table: {made:?}");
        assert!(made.iter().all(|one| !before.contains(one)));
        eventually("all of it is gone", || made.iter().all(|one| !of_ours().contains(one)))?;
    }
    Ok(())
}

#[test]
fn a_failed_first_load_leaves_nothing() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    // A table of no entries is refused by the kernel.
    let sizes = TableSizes { flows: 0, ..SIZES };
    let error = Guard::load(&LoadOptions { sizes, ..pins.options() }).err();
    let error = error.context("no entries")?.to_string();
    assert!(error.contains("FLOWS"), "{error}");
    assert!(!pins.0.exists(), "{:?}", fs::read_dir(&pins.0));
    assert!(matches!(Maps::from_pins(&pins.0), Err(GuardError::NotLoaded(_))));
    Ok(())
}

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
    maps.set_rule("10.77.0.0".parse()?, 16, Rule { flags: Rule::ALLOW })?;
    maps.set_policy(&whole(30))?;
    let after = maps.policy()?;
    assert_eq!((after.share, after.rules), (30, 1));
    assert_ne!(after.rules_generation, before.rules_generation);
    Ok(())
}

#[test]
fn rules_by_network() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let guard = pins.load()?;
    let maps = guard.maps();
    let allow = Rule { flags: Rule::ALLOW };
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
    let generation = maps.policy()?.rules_generation;
    assert!(!maps.remove_rule("10.77.0.0".parse()?, 24)?, "another prefix is another rule");
    assert_eq!(maps.policy()?.rules_generation, generation);
    assert!(maps.remove_rule("10.77.0.0".parse()?, 16)?);
    assert_eq!((maps.policy()?.rules, maps.policy()?.rules_generation), (4, generation + 1));
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
fn ten_thousand_entries_come_in_batches() -> Result<()> {
    needs_root!();
    const ENTRIES: u32 = 10_000;
    let pins = PinDir::new();
    let guard = pins.load()?;
    let maps = guard.maps();
    let path = pins.0.join(name::SOURCES);
    let map = aya::maps::Map::HashMap(MapData::from_pin(path)?);
    let mut sources: HashMap<_, [u32; 4], [u64; 76]> = map.try_into()?;
    for n in 0..ENTRIES {
        let mut value = [0; 76];
        value[2] = u64::from(n);
        sources.insert([0, 0, Address::MAPPED, n.to_be()], value, 0)?;
    }
    let began = Instant::now();
    let mut read = maps.sources()?;
    println!("{} sources read in {:?}", read.len(), began.elapsed());
    let began = Instant::now();
    assert_eq!(maps.source_count()?, ENTRIES);
    println!("counted in {:?}", began.elapsed());
    read.sort_by_key(|(address, _)| u32::from_be(address.0[3]));
    assert_eq!(read.len(), ENTRIES as usize);
    for (n, (address, source)) in read.iter().enumerate() {
        assert_eq!(u32::from_be(address.0[3]), n as u32);
        assert_eq!(source.pings_total, n as u64);
    }
    let one = maps.source(&Address([0, 0, Address::MAPPED, 77u32.to_be()]))?;
    assert_eq!(one.context("number 77")?.pings_total, 77);
    assert!(maps.source(&Address([9; 4]))?.is_none());
    assert_eq!((maps.flows()?.len(), maps.flow_count()?, maps.pending()?.len()), (0, 0, 0));
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
    let source = Address::from("10.77.0.9".parse::<IpAddr>()?);
    let release = Request { operation: Operation::Release as u32, pings: 0, until: 0, source };
    assert_eq!(guard.maps().request(&release)?, answer::NOT_FOUND);
    drop(guard);
    let maps = Maps::from_pins(&pins.0)?;
    assert_eq!(maps.request(&release)?, answer::NOT_FOUND, "with the daemon down too");
    Ok(())
}

#[test]
fn interfaces_are_seen_coming_and_going() -> Result<()> {
    needs_root!();
    let namespace = Namespace::new("watch")?;
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut watcher = InterfaceWatcher::new()?;
            let mut next = async || -> Result<(bool, String)> {
                let event = tokio::time::timeout(Duration::from_secs(5), watcher.next()).await??;
                Ok(match event {
                    InterfaceEvent::Appeared(interface) => (true, interface.name),
                    InterfaceEvent::Disappeared(interface) => (false, interface.name),
                })
            };
            assert_eq!(next().await?, (true, "lo".into()), "what exists comes first");
            namespace
                .ip("link add d0 type dummy")
                .or_else(|_| namespace.ip("link add d0 type veth peer name d1"))?;
            let mut names = vec![next().await?];
            if names[0].1 == "d1" {
                names.push(next().await?);
            }
            assert!(names.contains(&(true, "d0".into())), "{names:?}");
            namespace.ip("link set d0 up")?;
            namespace.ip("link set d0 name d2")?;
            namespace.ip("link del d2")?;
            let mut seen = Vec::new();
            while !seen.contains(&(false, "d2".to_owned())) {
                seen.push(next().await?);
            }
            let of_d0: Vec<_> = seen.iter().filter(|(_, name)| name != "d1").cloned().collect();
            let expected = [(false, "d0"), (true, "d2"), (false, "d2")];
            assert_eq!(of_d0, expected.map(|(up, name)| (up, name.to_owned())));
            Ok(())
        })
    })?
}
