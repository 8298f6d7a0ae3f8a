//! Removal of everything that was loaded.
use std::fs;

use aya::maps::MapInfo;
use ws_guard_common::maps::name;

use super::{
    clsact, detach,
    error::GuardError,
    layout::LAYOUTS,
    migration,
    pins::{self, Pins},
};

/// Remove links, filters, maps, programs and directory; return what was removed.
///
/// Works on pins of any schema version. Only our names are removed: anything else in the directory
/// stays, with a warning.
pub fn unload(pins: &Pins) -> Result<Vec<String>, GuardError> {
    if !pins.exist() {
        return Err(GuardError::NotLoaded(pins.dir().into()));
    }
    remove_all(pins)
}

fn remove_all(pins: &Pins) -> Result<Vec<String>, GuardError> {
    let mut removed = Vec::new();
    detach_all(pins, &mut removed)?;
    remove_throttle_map(pins, &mut removed)?;
    let control = pins.control();
    let mut paths = vec![control.with_file_name("new"), control];
    paths.extend(LAYOUTS.iter().map(|layout| pins.map(layout.name)));
    paths.extend(LAYOUTS.iter().map(|layout| migration::next(pins, layout.name)));
    paths.extend(migration::REMOVED.map(|map| pins.map(map)));
    for path in paths {
        if pins::remove(&path)? {
            removed.push(path.display().to_string());
        }
    }
    remove_directories(pins, &mut removed)?;
    Ok(removed)
}

/// Remove what a failed first load left; nothing is attached yet.
pub fn discard(pins: &Pins) {
    if let Err(error) = remove_all(pins) {
        tracing::warn!(%error, "cannot remove all pins of the failed load");
    }
}

/// Detach everywhere.
/// An unreachable attachment does not keep the others attached, but then the maps stay, for a later
/// attempt.
fn detach_all(pins: &Pins, removed: &mut Vec<String>) -> Result<(), GuardError> {
    let mut failure = None;
    for pinned in pins.attachments()? {
        match detach::remove(pins, &pinned) {
            Ok(true) => {
                let (direction, mode) = (pinned.direction.name(), pinned.mode.name());
                removed.push(format!("{mode} on {direction} of {}", pinned.interface));
            }
            Ok(false) => {}
            Err(error) => failure = Some(error),
        }
    }
    for interface in detach::qdisc_notes(pins)? {
        match clsact::remove_qdisc(pins, &interface) {
            Ok(true) => removed.push(format!("clsact qdisc of {}", interface.name)),
            Ok(false) => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Remove the second pin of the source table, only if it is the same map.
fn remove_throttle_map(pins: &Pins, removed: &mut Vec<String>) -> Result<(), GuardError> {
    let Some(path) = pins.throttle_map() else { return Ok(()) };
    let sources = MapInfo::from_pin(pins.map(name::SOURCES)).map(|info| info.id());
    let Ok(found) = MapInfo::from_pin(path).map(|info| info.id()) else { return Ok(()) };
    if sources.is_ok_and(|sources| sources == found) && pins::remove(path)? {
        removed.push(path.display().to_string());
    }
    Ok(())
}

fn remove_directories(pins: &Pins, removed: &mut Vec<String>) -> Result<(), GuardError> {
    for schema in pins.schemas()? {
        pins::remove(&pins.dir().join(schema))?;
    }
    for name in pins::names(&pins.filters())? {
        pins::remove(&pins.filters().join(name))?;
    }
    for dir in [&pins.links(), &pins.filters(), &pins.dir().join("programs")] {
        pins::remove(dir)?;
    }
    match fs::remove_dir(pins.dir()) {
        Ok(()) => removed.push(pins.dir().display().to_string()),
        Err(error) => {
            tracing::warn!(path = %pins.dir().display(), %error, "the pin directory stays");
        }
    }
    Ok(())
}
