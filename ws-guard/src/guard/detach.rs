//! Removal of attachments, with their pins or notes.

use super::{
    Mode, clsact,
    error::GuardError,
    interfaces::Interface,
    pins::{self, Pinned, Pins},
    role::Role,
    sys,
};

/// Remove an attachment; return whether there was one. The clsact qdisc stays.
pub fn remove(pins: &Pins, pinned: &Pinned) -> Result<bool, GuardError> {
    if pinned.mode == Mode::Clsact {
        return clsact::remove(pins, pinned);
    }
    let path = pins.attachment(pinned);
    if let Err(error) = sys::detach_link(&path) {
        // Severed, or gone: only the pin is left to be removed.
        tracing::debug!(path = %path.display(), %error, "the link was not detached");
    }
    pins::remove(&path)
}

/// Remove all attachments of one interface, with their pins.
pub fn detach(pins: &Pins, interface: &str) -> Result<(), GuardError> {
    detach_those(pins, |pinned| pinned.interface == interface)?;
    for noted in qdisc_notes(pins)? {
        if noted.name == interface {
            clsact::remove_qdisc(pins, &noted)?;
        }
    }
    clsact::forget_namespaces(pins, interface, None)
}

/// Remove attachments of an interface in other roles than this one.
pub fn detach_other_roles(pins: &Pins, interface: &str, role: Role) -> Result<(), GuardError> {
    detach_those(pins, |pinned| pinned.interface == interface && pinned.role != role)
}

fn detach_those(pins: &Pins, these: impl Fn(&Pinned) -> bool) -> Result<(), GuardError> {
    for pinned in pins.attachments()?.iter().filter(|pinned| these(pinned)) {
        remove(pins, pinned)?;
    }
    Ok(())
}

/// Return the interfaces whose clsact qdisc we made.
pub fn qdisc_notes(pins: &Pins) -> Result<Vec<Interface>, GuardError> {
    let names = pins::names(&pins.filters())?;
    Ok(names.iter().filter_map(|name| pins::parse_qdisc(name)).collect())
}
