use std::time::Duration;

use anyhow::Result;
use ws_guard::guard::{
    AttachMode, GuardError, InterfaceEvent, InterfaceWatcher, pinned_attachments,
};
use ws_guard_testkit::netns::Namespace;

use crate::{PinDir, veth};

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

/// Packets of tun, WireGuard or a tunnel's interface begin with IP:
/// read as Ethernet they would pass unseen.
#[test]
fn an_interface_without_ethernet_is_refused() -> Result<()> {
    needs_root!();
    let namespace = veth("l3", 1500)?;
    let pins = PinDir::new();
    namespace.run(|| {
        let made = namespace
            .ip("tuntap add mode tun name t0")
            .or_else(|_| namespace.ip("link add t0 type ipip local 10.0.0.1 remote 10.0.0.2"));
        if let Err(error) = made {
            println!("skipped: neither tun nor ipip can be made here: {error:#}");
            return Ok(());
        }
        let mut guard = pins.load()?;
        for mode in [AttachMode::Auto, AttachMode::Clsact] {
            let error = guard.attach("t0", mode).expect_err("there is no Ethernet header");
            assert!(matches!(error, GuardError::NoEthernet { .. }), "{error}");
            let error = error.to_string();
            assert!(error.starts_with("t0 has packets without") && error.contains("--tunnel"));
        }
        assert_eq!(guard.attachments(), []);
        guard.attach("lo", AttachMode::Auto)?;
        guard.detach("lo")?;
        Ok(())
    })?
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
                loop {
                    let event = watcher.next();
                    let event = tokio::time::timeout(Duration::from_secs(5), event).await??;
                    let (appeared, name) = match event {
                        InterfaceEvent::Appeared(interface) => (true, interface.name),
                        InterfaceEvent::Disappeared(interface) => (false, interface.name),
                    };
                    // Where ipip or sit is loaded, a namespace comes with tunl0 or sit0.
                    if name == "lo" || name.starts_with('d') {
                        return Ok((appeared, name));
                    }
                }
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
            // Before Linux 6.2 only interfaces that are down can be renamed.
            namespace.ip("link set d0 down")?;
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

/// The kernel reports a port that leaves its bridge as "deleted".
/// The message is of the bridge's family.
#[test]
fn leaving_a_bridge_is_not_going_away() -> Result<()> {
    needs_root!();
    let namespace = veth("bridge", 1500)?;
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut watcher = InterfaceWatcher::new()?;
            namespace.ip("link add br0 type bridge")?;
            namespace.ip("link set v0 master br0")?;
            namespace.ip("link set v0 nomaster")?;
            // Earlier notifications have arrived once this one has.
            namespace.ip("link add last0 type veth peer name last1")?;
            let mut appeared = Vec::new();
            while !appeared.contains(&"last0".to_owned()) {
                let event = tokio::time::timeout(Duration::from_secs(5), watcher.next()).await??;
                match event {
                    InterfaceEvent::Appeared(interface) => appeared.push(interface.name),
                    InterfaceEvent::Disappeared(gone) => panic!("{gone:?} is still there"),
                }
            }
            assert!(watcher.present().any(|(name, _)| name == "v0"));
            assert_eq!(appeared.iter().filter(|name| *name == "v0").count(), 1, "{appeared:?}");
            Ok(())
        })
    })?
}
