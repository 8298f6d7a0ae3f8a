//! Precedence of our TCX programs: checks that they are still first on their hooks.
//!
//! They are attached at the head of the chain. A program that is attached to the head later comes
//! before them, and what it accepts (TC_ACT_OK) or drops, ours never see. The guard does not fight
//! for the place, but reports it.
use std::{fmt, path::Path};

use aya_obj::generated::bpf_attach_type;

use super::{
    Mode,
    error::GuardError,
    pins::Pins,
    role::Direction,
    sys::{self, LinkInfo},
};

/// Another program that runs before the guard's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overtaken {
    pub interface: String,
    pub hook: &'static str,
    /// The kernel's id of the program.
    pub program: u32,
}

impl fmt::Display for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overtaken { interface, hook, program } = self;
        write!(
            f,
            "program {program} comes before the guard on {hook} of {interface}: what it accepts by \
             itself is not seen (`bpftool prog show id {program}` shows it)"
        )
    }
}

/// Return hooks with pinned TCX links on which another program comes first.
/// The hooks are those in this thread's network namespace.
///
/// # Errors
/// [`GuardError::Pin`] if the pins cannot be listed.
pub fn overtaken(pin_dir: &Path) -> Result<Vec<Overtaken>, GuardError> {
    let pins = Pins::new(pin_dir);
    let tcx = pins.attachments()?.into_iter().filter(|pinned| pinned.mode == Mode::Tcx);
    let mut found = Vec::new();
    for pinned in tcx {
        // An interface that disappears meanwhile has no other program first.
        let Ok(link) = sys::pinned_link(&pins.attachment(&pinned)) else { continue };
        if let Some(program) = before(link, pinned.direction) {
            let (interface, hook) = (pinned.interface, pinned.direction.name());
            found.push(Overtaken { interface, hook, program });
        }
    }
    Ok(found)
}

fn before(ours: LinkInfo, direction: Direction) -> Option<u32> {
    let hook = match direction {
        Direction::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
        Direction::Egress => bpf_attach_type::BPF_TCX_EGRESS,
    };
    let first = sys::first_program(ours.interface, hook).ok()??;
    (first != ours.program_id).then_some(first)
}
