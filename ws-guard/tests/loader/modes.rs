use anyhow::{Context, Result, ensure};
use ws_guard::guard::{AttachMode, Attachment, GuardError, Mode, Role, pinned_attachments, unload};
use ws_guard_testkit::{netns::Namespace, no_tcx_reason};

use crate::{PinDir, attached, preferred_tc, veth};

fn attach_once(namespace: &Namespace, interface: &str, mode: AttachMode) -> Result<Attachment> {
    let pins = PinDir::new();
    namespace.run(|| {
        let mut guard = pins.load()?;
        let attachment = guard.attach(interface, mode)?;
        let one = std::slice::from_ref(&attachment);
        ensure!(guard.attachments() == one);
        ensure!(pinned_attachments(&pins.0)? == one);
        drop(guard);
        ensure!(pinned_attachments(&pins.0)? == one, "the pins keep it");
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
    let tc = preferred_tc();
    for (interface, mode, ingress, egress) in [
        ("v0", AttachMode::Auto, Mode::XdpNative, tc),
        ("v0", AttachMode::XdpNative, Mode::XdpNative, tc),
        ("v0", AttachMode::XdpGeneric, Mode::XdpGeneric, tc),
        ("v0", AttachMode::Clsact, Mode::Clsact, Mode::Clsact),
        ("lo", AttachMode::Auto, Mode::XdpGeneric, tc),
    ] {
        let attachment = attach_once(&namespace, interface, mode)
            .with_context(|| format!("{mode:?} on {interface}"))?;
        assert_eq!(attachment, attached(interface, ingress, egress), "{mode:?}");
    }
    Ok(())
}

/// TCX came with Linux 6.6; older kernels refuse it by name.
#[test]
fn tcx_attaches_or_says_what_is_missing() -> Result<()> {
    needs_root!();
    let namespace = veth("tcx", 1500)?;
    let attached_or_not = attach_once(&namespace, "v0", AttachMode::Tcx);
    if no_tcx_reason().is_none() {
        assert_eq!(attached_or_not?, attached("v0", Mode::Tcx, Mode::Tcx));
    } else {
        let error = attached_or_not.expect_err("there is no TCX").to_string();
        assert!(error.contains("no TCX (Linux 6.6)") && error.contains("v0"), "{error}");
    }
    Ok(())
}

#[test]
fn a_foreign_xdp_program_stays_and_tc_is_used() -> Result<()> {
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
        assert_eq!(attachment, attached("v0", preferred_tc(), preferred_tc()));
        assert_eq!(theirs.link("v0-in-xdp-generic")?, (id, program));
        Ok(())
    })?
}

/// Two guards with clsact on one interface keep their filters apart.
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
    assert!(qdiscs()?, "a foreign one stays");
    Ok(())
}

/// The program accepts multi-buffer packets.
/// Without that, drivers refuse it at such an MTU.
#[test]
fn a_large_mtu_is_no_hindrance_to_native_xdp() -> Result<()> {
    needs_root!();
    let namespace = veth("mtu", 9000)?;
    let attachment = attach_once(&namespace, "v0", AttachMode::Auto)?;
    assert_eq!(attachment, attached("v0", Mode::XdpNative, preferred_tc()));
    Ok(())
}

/// A pod's interface has no use for XDP: such a mode, for uplinks, means TC there.
#[test]
fn every_mode_attaches_to_a_pod() -> Result<()> {
    needs_root!();
    let namespace = veth("pod", 1500)?;
    let tc = preferred_tc();
    for (mode, both) in [
        (AttachMode::Auto, tc),
        (AttachMode::XdpNative, tc),
        (AttachMode::XdpGeneric, tc),
        (AttachMode::Clsact, Mode::Clsact),
    ] {
        let pins = PinDir::new();
        namespace.run(|| -> Result<()> {
            let attachment = pins.load()?.attach_pod("v0", mode)?;
            let expected = Attachment { role: Role::Pod, ..attached("v0", both, both) };
            assert_eq!(attachment, expected, "{mode:?}");
            assert_eq!(pinned_attachments(&pins.0)?, [expected], "{mode:?}");
            unload(&pins.0)?;
            Ok(())
        })??;
    }
    Ok(())
}

#[test]
fn an_interface_with_a_dot_in_its_name() -> Result<()> {
    needs_root!();
    let namespace = veth("dot", 1500)?;
    // Before Linux 6.2 only interfaces that are down can be renamed.
    namespace.ip("link set v1 down")?;
    namespace.ip("link set v1 name eth0.100")?;
    namespace.ip("link set eth0.100 up")?;
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
