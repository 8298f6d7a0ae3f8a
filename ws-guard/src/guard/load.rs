//! Loading the object, with the maps that are pinned already.
use std::{collections::HashMap, path::PathBuf};

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
    layout::{Found, LAYOUTS},
    object::ObjectFile,
    pins::{self, Pins},
    plain::Raw,
    role::Role,
};

/// All programs; the control program is last, and never attached.
const PROGRAMS: [&str; 4] =
    [program::XDP_INGRESS, program::TC_INGRESS, program::TC_EGRESS, program::CONTROL];
/// What is attached to pods' interfaces.
const POD_PROGRAMS: [&str; 2] = [program::TC_INGRESS, program::TC_EGRESS];
/// The variable in the object that says whose flows the programs follow.
const ROLE: &str = "ROLE";

impl TableSizes {
    fn by_name(&self) -> [(&'static str, u32); 4] {
        [
            (name::FLOWS, self.flows),
            (name::SOURCES, self.sources),
            (name::PENDING, self.pending),
            (name::RULES, self.rules),
        ]
    }
}

/// Load every program, onto the pinned maps where there are some, and pin the maps where there are
/// none. Nothing that is attached changes yet.
pub fn load(pins: &Pins, options: &LoadOptions) -> Result<Ebpf, GuardError> {
    pins.check()?;
    let object = ObjectFile::find()?;
    let defined = object.maps()?;
    compare_sizes(pins, &options.sizes, &defined)?;
    raise_memory_limit();
    pins.write_schema()?;
    let mut ebpf = load_programs(pins, options, &object, Role::Uplink, &PROGRAMS)?;
    pin_control(&mut ebpf, pins)?;
    Ok(ebpf)
}

/// Load the programs for pods' interfaces, onto the maps that [`load`] has pinned.
pub fn load_for_pods(pins: &Pins, options: &LoadOptions) -> Result<Ebpf, GuardError> {
    load_programs(pins, options, &ObjectFile::find()?, Role::Pod, &POD_PROGRAMS)
}

fn load_programs(
    pins: &Pins,
    options: &LoadOptions,
    object: &ObjectFile,
    role: Role,
    programs: &[&str],
) -> Result<Ebpf, GuardError> {
    let (level, owner) = (debug_log::level(options.kernel_debug_log), role.owner());
    let tunnels = Raw(options.tunnels);
    let paths: Vec<(&str, PathBuf)> =
        LAYOUTS.iter().map(|layout| (layout.name, pins.map(layout.name))).collect();
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.override_global(global::TUNNELS, &tunnels, true);
    loader.override_global(ROLE, &owner, true);
    for (name, size) in options.sizes.by_name() {
        loader.map_max_entries(name, size);
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

/// The sizes of pinned tables stay: entries are worth more than room.
fn compare_sizes(
    pins: &Pins,
    sizes: &TableSizes,
    defined: &HashMap<&str, Found>,
) -> Result<(), GuardError> {
    let asked: HashMap<&str, u32> = sizes.by_name().into();
    for layout in &LAYOUTS {
        let wanted = asked.get(layout.name).copied();
        let wanted = wanted.or_else(|| defined.get(layout.name).map(|map| map.entries));
        if let (Some(found), Some(wanted)) = (pins.found(layout)?, wanted)
            && found.entries != wanted
        {
            tracing::warn!(
                map = layout.name,
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

/// Pin the control program, in place of an older one without a moment between.
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

/// Before Linux 5.11 maps count against RLIMIT_MEMLOCK, whose default is 64 KiB. Where it may not
/// be raised and matters, making the maps fails and says so.
fn raise_memory_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK is unchanged");
    }
}

/// The verifier's log can be megabytes; what it gave up on is in its last lines.
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
