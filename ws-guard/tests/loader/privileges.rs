use std::{path::Path, thread};

use anyhow::{Result, ensure};
use caps::{CapSet, Capability};
use ws_guard::guard::{
    DEFAULT_PIN_DIR, GuardError, Maps, missing_capabilities, pinned_attachments, unload,
};

use crate::{PinDir, attach_modes, veth};

/// Run `f` on a thread that lacks these capabilities.
fn without<T: Send>(
    capabilities: &[Capability],
    f: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            for capability in capabilities {
                caps::drop(None, CapSet::Effective, *capability)?;
            }
            f()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn missing_capabilities_are_named() -> Result<()> {
    needs_root!();
    assert_eq!(missing_capabilities(Path::new(DEFAULT_PIN_DIR)), []);
    let names = |capabilities: &[Capability]| {
        without(capabilities, || {
            Ok(missing_capabilities(Path::new(DEFAULT_PIN_DIR))
                .iter()
                .map(|missing| missing.name)
                .collect::<Vec<_>>())
        })
    };
    // CAP_SYS_ADMIN replaces the two that were split from it.
    assert_eq!(names(&[Capability::CAP_BPF, Capability::CAP_PERFMON])?, [""; 0]);
    assert_eq!(names(&[Capability::CAP_NET_ADMIN])?, ["CAP_NET_ADMIN"]);
    let pins = PinDir::new();
    drop(pins.load()?);
    let all = [
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_PERFMON,
        Capability::CAP_SYS_ADMIN,
    ];
    without(&all, || {
        for error in [pins.load().err(), Maps::from_pins(&pins.0).err()] {
            let Some(GuardError::Privileges(text)) = error else {
                anyhow::bail!("without privileges: {error:?}");
            };
            ensure!(text.contains("CAP_BPF"), "{text}");
        }
        Ok(())
    })
}

#[test]
fn the_capabilities_that_are_asked_for_suffice() -> Result<()> {
    needs_root!();
    // Mounts bpffs, which needs CAP_SYS_ADMIN.
    drop(PinDir::new().load()?);
    let keep = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];
    let dropped: Vec<Capability> =
        caps::all().into_iter().filter(|capability| !keep.contains(capability)).collect();
    let namespace = veth("caps", 1500)?;
    for mode in attach_modes() {
        let pins = PinDir::new();
        namespace.run(|| {
            for capability in &dropped {
                caps::drop(None, CapSet::Effective, *capability)?;
            }
            ensure!(missing_capabilities(Path::new(DEFAULT_PIN_DIR)) == []);
            let attachment = pins.load()?.attach("v0", mode)?;
            // Taking over, showing and unloading need no more.
            ensure!(pins.load()?.attach("v0", mode)? == attachment);
            ensure!(pinned_attachments(&pins.0)? == [attachment]);
            unload(&pins.0)?;
            Ok(())
        })??;
    }
    Ok(())
}
