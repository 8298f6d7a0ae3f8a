use std::{fs, path::Path, thread};

use anyhow::{Context, Result, ensure};
use aya::{
    maps::{HashMap, MapData, MapInfo, loaded_maps},
    programs::loaded_programs,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use ws_guard::guard::{
    AttachMode, DEFAULT_PIN_DIR, Guard, GuardError, LoadOptions, Maps, THROTTLE_MAP, TableSizes,
    is_bpffs, unload,
};
use ws_guard_common::{
    flow::Flow,
    maps::{SCHEMA_VERSION, Tunnels, name},
};

use crate::{PinDir, SIZES, eventually, veth};

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
        let size = size_of::<Flow>().to_string();
        for part in ["FLOWS", "64", &size, "unload", "--pin-dir"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }
    assert!(flows.exists(), "refusing removes nothing");
    // An older schema, whatever the maps look like.
    let pins = PinDir::new();
    drop(pins.load()?);
    let schema = format!("schema-{SCHEMA_VERSION}");
    fs::remove_dir(pins.0.join(&schema))?;
    assert!(matches!(pins.load(), Err(GuardError::Incompatible(..))), "no version at all");
    fs::create_dir(pins.0.join("schema-0"))?;
    let error = pins.load().err().context("version 0")?.to_string();
    assert!(error.contains("schema-0") && error.contains(&schema), "{error}");
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

/// Return names and ids of all ws-guard objects in the kernel.
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
            // The one map that all four programs use.
            let sources = MapInfo::from_pin(pins.0.join(name::SOURCES))?.id();
            let loaded: Vec<(u32, String)> = loaded_programs()
                .flatten()
                .filter(|p| p.map_ids().ok().flatten().is_some_and(|maps| maps.contains(&sources)))
                .map(|p| (p.id(), p.name_as_str().unwrap_or_default().to_owned()))
                .chain([(sources, name::SOURCES.to_owned())])
                .collect();
            drop(guard);
            unload(&pins.0)?;
            Ok::<_, anyhow::Error>(loaded)
        })??;
        assert_eq!(made.len(), 5, "four programs and the source table: {made:?}");
        assert!(made.iter().all(|one| !before.contains(one)));
        eventually("all of it is gone", || made.iter().all(|one| !of_ours().contains(one)))?;
    }
    Ok(())
}

#[test]
fn a_failed_first_load_leaves_nothing() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    // The kernel refuses a table without entries.
    let sizes = TableSizes { flows: 0, ..SIZES };
    let error = Guard::load(&LoadOptions { sizes, ..pins.options() }).err();
    let error = error.context("no entries")?.to_string();
    assert!(error.contains("FLOWS"), "{error}");
    assert!(!pins.0.exists(), "{:?}", fs::read_dir(&pins.0));
    assert!(matches!(Maps::from_pins(&pins.0), Err(GuardError::NotLoaded(_))));
    Ok(())
}

/// Run `f` in a separate mount namespace, without a BPF file system.
fn without_bpffs<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            while is_bpffs(Path::new("/sys/fs/bpf")) {
                umount2("/sys/fs/bpf", MntFlags::MNT_DETACH)?;
            }
            f()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_missing_bpffs_is_mounted_and_the_throttle_map_pinned() -> Result<()> {
    needs_root!();
    without_bpffs(|| {
        let options = LoadOptions {
            pin_dir: DEFAULT_PIN_DIR.into(),
            sizes: SIZES,
            tunnels: Tunnels::default(),
            kernel_debug_log: false,
        };
        drop(Guard::load(&options)?);
        ensure!(is_bpffs(Path::new(DEFAULT_PIN_DIR)));
        let sources = MapInfo::from_pin(Path::new(DEFAULT_PIN_DIR).join(name::SOURCES))?;
        ensure!(MapInfo::from_pin(THROTTLE_MAP)?.id() == sources.id());
        // A second daemon finds it there.
        drop(Guard::load(&options)?);
        let removed = unload(&options.pin_dir)?;
        ensure!(removed.iter().any(|path| path == THROTTLE_MAP), "{removed:?}");
        ensure!(!Path::new(THROTTLE_MAP).exists());
        // A foreign map of that name stays, and does not prevent loading.
        let theirs: HashMap<MapData, u32, u32> = HashMap::create(1, 0)?;
        theirs.pin(THROTTLE_MAP)?;
        drop(Guard::load(&options)?);
        unload(&options.pin_dir)?;
        ensure!(MapInfo::from_pin(THROTTLE_MAP)?.max_entries() == 1);
        Ok(())
    })
}

#[test]
fn a_pin_directory_elsewhere_is_refused() -> Result<()> {
    needs_root!();
    for (dir, part) in [("/tmp/wsg-no-bpffs", "mount -t bpf"), ("/sys/fs/bpf/v1.0/x", "dot")] {
        let options = LoadOptions {
            pin_dir: dir.into(),
            sizes: SIZES,
            tunnels: Tunnels::default(),
            kernel_debug_log: false,
        };
        let error = Guard::load(&options).err().context(dir)?.to_string();
        assert!(error.contains(dir) && error.contains(part), "{error}");
        assert!(!Path::new(dir).exists());
    }
    Ok(())
}
