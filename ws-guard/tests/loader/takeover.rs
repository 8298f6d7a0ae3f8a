use std::{
    env,
    net::{SocketAddr, TcpStream},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use ws_guard::guard::{AttachMode, GuardError, Maps, Mode, unload};
use ws_guard_common::maps::{Counter, Policy};
use ws_guard_testkit::netns::{Family, INTERFACE, Namespace, Pair, PairOptions};

use crate::{PORT, PinDir, attach_modes, attached, counter, preferred_tc, veth};

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
        let links = pins.links();
        let before = links.iter().map(|name| pins.link(name)).collect::<Result<Vec<_>>>()?;
        // Filters of clsact have no links.
        assert_eq!(links.len(), if preferred_tc() == Mode::Tcx { 2 } else { 1 }, "{links:?}");
        assert!(matches!(pins.load(), Err(GuardError::InUse(_))), "one daemon a directory");
        drop(first);
        let mut second = pins.load()?;
        let attachment = second.attach("v0", AttachMode::Auto)?;
        assert_eq!(attachment, attached("v0", Mode::XdpNative, preferred_tc()));
        assert_eq!(pins.links(), links);
        for (name, (id, program)) in links.iter().zip(before) {
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

/// Connect until `stop`; return the number of SYNs, one each:
/// no packet is lost on a veth pair, and each is answered by RST.
pub fn connect_until(client: &Namespace, stop: &AtomicBool) -> Result<u64> {
    let server = SocketAddr::new(Family::V4.server(), PORT);
    client.run(|| {
        let mut refused = 0;
        while !stop.load(Relaxed) && refused < 200_000 {
            let error = TcpStream::connect(server)
                .err()
                .context("it is refused, as nothing listens there")?;
            ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
            refused += 1;
        }
        Ok(refused)
    })?
}

/// Check that every SYN is counted while daemons start and stop.
/// The old programs count it, or the new ones.
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
        // While two hooks guard simultaneously a packet may be counted by both.
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
    needs_tcx!();
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
    needs_tcx!();
    no_packet_unguarded(&[
        AttachMode::XdpGeneric,
        AttachMode::Tcx,
        AttachMode::XdpNative,
        AttachMode::XdpGeneric,
        AttachMode::Clsact,
        AttachMode::XdpNative,
    ])
}

/// Variables with the pin directory and the mode of [`killed_daemon`].
const DAEMON: [&str; 2] = ["WSG_TEST_PIN_DIR", "WSG_TEST_ATTACH"];

/// Daemon process, itself no test: the next test starts and kills it.
/// It takes over again and again.
#[test]
#[ignore = "started by a_daemon_may_die_at_any_moment"]
fn killed_daemon() -> Result<()> {
    let [Ok(pin_dir), Ok(attach)] = DAEMON.map(env::var) else {
        println!("skipped: this is no test, but what another one starts");
        return Ok(());
    };
    let mode = AttachMode::from_str(&attach, true).map_err(anyhow::Error::msg)?;
    let pins = PinDir(pin_dir.into());
    loop {
        pins.load()?.attach(INTERFACE, mode)?;
    }
}

/// Send SIGKILL at a moment that differs from round to round:
/// the next daemon takes over, and no packet goes uncounted.
fn killed_at_any_moment(mode: AttachMode) -> Result<()> {
    let pair = Pair::new(PairOptions::default())?;
    let pins = PinDir::new();
    let maps = pair.server.run(|| {
        let mut guard = pins.load()?;
        guard.maps().set_ports(&[PORT])?;
        guard.attach(INTERFACE, mode)?;
        Ok::<_, GuardError>(guard.maps())
    })??;
    let name = mode.to_possible_value().context("every mode has a name")?.get_name().to_owned();
    let round = |round: u64| -> Result<()> {
        let mut daemon = pair
            .server
            .command(env::current_exe()?)
            .args(["--exact", "takeover::killed_daemon", "--ignored"])
            .env(DAEMON[0], &pins.0)
            .env(DAEMON[1], &name)
            .stdout(Stdio::null())
            .spawn()?;
        thread::sleep(Duration::from_millis(60 + 17 * round));
        let running = daemon.try_wait()?.is_none();
        daemon.kill()?;
        daemon.wait()?;
        ensure!(running, "the daemon of round {round} ended by itself");
        Ok(())
    };
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| connect_until(&pair.client, &stop));
        let result = (0..15).try_for_each(round);
        stop.store(true, Relaxed);
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(sent)
    })?;
    let counted = counter(&maps, Counter::Protected)?;
    println!("{mode:?}: {sent} SYNs over 15 killed daemons, {counted} counted");
    assert!(sent > 100, "only {sent} connections were tried");
    assert_eq!(counted, sent);
    pair.server.run(|| -> Result<()> {
        pins.load()?.attach(INTERFACE, mode)?;
        unload(&pins.0)?;
        ensure!(!pins.0.exists());
        Ok(())
    })?
}

#[test]
fn a_daemon_may_die_at_any_moment() -> Result<()> {
    needs_root!();
    attach_modes().into_iter().try_for_each(killed_at_any_moment)
}
