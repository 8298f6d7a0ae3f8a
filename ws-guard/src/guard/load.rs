//! Loading of the object, with already pinned maps.
use std::path::PathBuf;

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
    util::KernelVersion,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use ws_guard_common::maps::{global, name, program};

use super::{
    LoadOptions, TableSizes, debug_log,
    error::GuardError,
    kernel,
    layout::LAYOUTS,
    migration::{self, Migration},
    object::ObjectFile,
    pins::{self, Pins},
    plain::Raw,
    role::Role,
};

/// All programs; the control program is last, and never attached.
const PROGRAMS: [&str; 4] =
    [program::XDP_INGRESS, program::TC_INGRESS, program::TC_EGRESS, program::CONTROL];
/// Programs for pods' interfaces.
const POD_PROGRAMS: [&str; 2] = [program::TC_INGRESS, program::TC_EGRESS];
/// Variable in the object with the owner of the flows that the programs follow.
const ROLE: &str = "ROLE";

impl TableSizes {
    fn by_name(&self) -> [(&'static str, u32); 8] {
        [
            (name::FLOWS, self.flows),
            (name::SOURCES, self.sources),
            (name::PENDING, self.pending),
            (name::RULES, self.rules),
            (name::PROVEN, self.opening),
            (name::MIDSTREAM, self.opening),
            (name::BEGINNINGS, self.opening),
            (name::HEARTBEATS, self.opening),
        ]
    }
}

/// Load every program, with the pinned maps where they exist, and pin the others.
/// Attached programs do not change yet.
///
/// Pins of an earlier schema are taken over: see [`migration`].
pub fn load(pins: &Pins, options: &LoadOptions) -> Result<(Ebpf, Option<Migration>), GuardError> {
    migration::finish(pins)?;
    let migration = Migration::plan(pins)?;
    let object = ObjectFile::find()?;
    object.check()?;
    let path = |map: &str| match &migration {
        Some(migration) if migration.replaces(map) => migration::next(pins, map),
        _ => pins.map(map),
    };
    compare_sizes(pins, path, &options.sizes)?;
    raise_memory_limit();
    if migration.is_none() {
        pins.write_schema()?;
    }
    let loaded = load_programs(path, options, &object, Role::Uplink, &PROGRAMS);
    let committed = loaded.and_then(|ebpf| {
        migration.as_ref().map_or(Ok(()), |migration| migration.commit(pins))?;
        Ok(ebpf)
    });
    let mut ebpf = committed.inspect_err(|_| {
        if let Err(error) = migration::discard(pins) {
            tracing::warn!(%error, "cannot remove the maps of the failed takeover");
        }
    })?;
    pin_control(&mut ebpf, pins)?;
    Ok((ebpf, migration))
}

/// Load the programs for pods' interfaces, with the maps pinned by [`load`].
pub fn load_for_pods(pins: &Pins, options: &LoadOptions) -> Result<Ebpf, GuardError> {
    let path = |map: &str| pins.map(map);
    load_programs(path, options, &ObjectFile::find()?, Role::Pod, &POD_PROGRAMS)
}

fn load_programs(
    path: impl Fn(&str) -> PathBuf,
    options: &LoadOptions,
    object: &ObjectFile,
    role: Role,
    programs: &[&str],
) -> Result<Ebpf, GuardError> {
    let (level, owner) = (debug_log::level(options.kernel_debug_log), role.owner());
    let tunnels = Raw(options.tunnels);
    let paths: Vec<(&str, PathBuf)> =
        LAYOUTS.iter().map(|layout| (layout.name, path(layout.name))).collect();
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.override_global(global::TUNNELS, &tunnels, true);
    loader.override_global(ROLE, &owner, true);
    for (name, size) in options.sizes.by_name() {
        loader.map_max_entries(name, size);
    }
    if !options.kernel_debug_log {
        loader.map_max_entries(debug_log::MAP, debug_log::UNUSED);
    }
    for (name, path) in &paths {
        loader.map_pin_path(name, path);
    }
    let refused = |what: &str, reason: String| {
        let reason = match KernelVersion::current().ok().and_then(kernel::too_old) {
            Some(too_old) => format!("this kernel is {too_old}: {reason}"),
            None => reason,
        };
        GuardError::Load { what: what.into(), reason }
    };
    let mut ebpf =
        loader.load(&object.bytes).map_err(|error| refused("the maps", chain(&error)))?;
    if options.kernel_debug_log {
        debug_log::start(&mut ebpf)?;
    }
    for name in programs {
        let program = ebpf.program_mut(name);
        let program = program.ok_or_else(|| object.error(format!("no program {name}")))?;
        load_program(program).map_err(|error| refused(name, explain(&error)))?;
    }
    Ok(ebpf)
}

/// Warn if pinned tables keep other sizes: their entries matter more.
fn compare_sizes(
    pins: &Pins,
    path: impl Fn(&str) -> PathBuf,
    sizes: &TableSizes,
) -> Result<(), GuardError> {
    for (map, wanted) in [(name::FLOWS, sizes.flows), (name::SOURCES, sizes.sources)] {
        if let Some(found) = pins.found_at(&path(map))?
            && found.entries != wanted
        {
            tracing::warn!(
                map,
                pinned = found.entries,
                wanted,
                "the pinned map keeps its size and its entries; run `ws-guard unload` first to \
                 change it"
            );
        }
    }
    Ok(())
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Pin the control program, replacing an older one atomically.
fn pin_control(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), GuardError> {
    let path = pins.control();
    let new = path.with_file_name("new");
    let failed = |error: &dyn std::fmt::Display| GuardError::Pin {
        operation: "pinning the control program as",
        path: path.clone(),
        source: std::io::Error::other(error.to_string()),
    };
    pins::remove(&new)?;
    let program = ebpf.program_mut(program::CONTROL);
    let program = program.ok_or_else(|| failed(&ProgramError::NotLoaded))?;
    program.pin(&new).map_err(|error| failed(&error))?;
    std::fs::rename(&new, &path).map_err(|error| failed(&error))
}

/// Raise RLIMIT_MEMLOCK, 64 KiB by default, which limits maps before Linux 5.11.
/// If that fails and matters, creating the maps reports it.
fn raise_memory_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK is unchanged");
    }
}

/// Explain a failure by the last lines of the verifier's log (up to megabytes).
fn explain(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return chain(error) };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(10)..].join("\n");
    format!("{io_error}; the verifier's last words:\n{last}")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
