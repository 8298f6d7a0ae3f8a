//! Inspection of attachments.
//! Any process with the right may remove them, and the kernel notifies no other.
use std::{fmt, path::PathBuf};

use aya::{
    Ebpf,
    programs::{ProgramError, ProgramInfo, SchedClassifier},
};
use ws_guard_common::maps::program;

use super::{
    AttachMode, Attachment, Guard, Mode, clsact,
    error::GuardError,
    interfaces::Interface,
    layout::LAYOUTS,
    pins::Pinned,
    role::{Direction, Role},
    sys,
};

/// Lost attachment in one direction of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    direction: Direction,
    mode: Mode,
    how: &'static str,
    /// Set if the program is still in its filter, and only its pin is gone.
    in_force: bool,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.mode.name(), self.direction.name(), self.how)
    }
}

impl Lost {
    /// Check whether the direction's packets are no longer seen.
    pub fn is_blind(&self) -> bool {
        !self.in_force
    }

    /// Return an attachment without the lost directions.
    pub fn left(lost: &[Lost], attachment: &Attachment) -> Attachment {
        let mut left = attachment.clone();
        for lost in lost.iter().filter(|lost| lost.is_blind()) {
            match lost.direction {
                Direction::Ingress => left.ingress = None,
                Direction::Egress => left.egress = None,
            }
        }
        left
    }
}

impl Guard {
    /// Return an attachment's losses.
    /// An interface that is gone has lost nothing: it is looked up by its name.
    ///
    /// # Errors
    /// [`GuardError::Netlink`] if the kernel does not list the filters.
    pub fn lost(&self, attachment: &Attachment) -> Result<Vec<Lost>, GuardError> {
        let Ok(interface) = Interface::find(&attachment.name) else { return Ok(Vec::new()) };
        let mut lost = Vec::new();
        for (direction, mode) in
            [(Direction::Ingress, attachment.ingress), (Direction::Egress, attachment.egress)]
        {
            let Some(mode) = mode else { continue };
            lost.extend(self.look(&interface, attachment.role, direction, mode)?);
        }
        Ok(lost)
    }

    fn look(
        &self,
        interface: &Interface,
        role: Role,
        direction: Direction,
        mode: Mode,
    ) -> Result<Option<Lost>, GuardError> {
        let Some(ours) = self.program_id(role, direction, mode) else { return Ok(None) };
        let pinned = Pinned { interface: interface.name.clone(), role, direction, mode };
        let pin = self.pins.attachment(&pinned);
        let lost = |how, in_force| Some(Lost { direction, mode, how, in_force });
        if mode == Mode::Clsact {
            let in_force = clsact::carries(interface, direction, ours)?;
            let pinned = ProgramInfo::from_pin(&pin).is_ok_and(|info| info.id() == ours);
            return Ok(match (in_force, pinned) {
                (true, true) => None,
                (true, false) => lost("the pin of its program was removed", true),
                (false, _) => lost("its filter was removed", false),
            });
        }
        Ok(match sys::pinned_link(&pin) {
            Ok(link) if link.interface != interface.index => lost("its link was detached", false),
            Ok(link) if link.program_id != ours => lost("its link has another program", false),
            Ok(_) => None,
            Err(_) => lost("the pin of its link was removed", false),
        })
    }

    /// Return the kernel's id of the program for a hook.
    fn program_id(&self, role: Role, direction: Direction, mode: Mode) -> Option<u32> {
        let ebpf = match role {
            Role::Uplink => &self.ebpf,
            Role::Pod => self.pod_ebpf.as_ref()?,
        };
        let name = if mode.is_xdp() { program::XDP_INGRESS } else { role.classifier(direction) };
        Some(ebpf.program(name)?.info().ok()?.id())
    }

    /// Restore what was removed: attachments and pins.
    ///
    /// # Errors
    /// As [`Guard::attach`].
    pub fn restore(
        &mut self,
        attachment: &Attachment,
        lost: &[Lost],
        mode: AttachMode,
    ) -> Result<Attachment, GuardError> {
        self.pins.make_directories()?;
        for lost in lost.iter().filter(|lost| lost.in_force) {
            self.pin_again(attachment, lost.direction)?;
        }
        match attachment.role {
            Role::Uplink => self.attach(&attachment.name, mode),
            Role::Pod => self.attach_pod(&attachment.name, mode),
        }
    }

    /// Pin a filter's program again; without the pin, it would count as another's.
    fn pin_again(
        &mut self,
        attachment: &Attachment,
        direction: Direction,
    ) -> Result<(), GuardError> {
        let (interface, role) = (attachment.name.clone(), attachment.role);
        let pinned = Pinned { interface, role, direction, mode: Mode::Clsact };
        let ebpf = match role {
            Role::Uplink => Some(&mut self.ebpf),
            Role::Pod => self.pod_ebpf.as_mut(),
        };
        let attaching = |error: super::links::HookError| GuardError::Attach {
            interface: attachment.name.clone(),
            direction: direction.name(),
            reasons: error.to_string(),
        };
        let program = ebpf.map(|ebpf| classifier(ebpf, role, direction));
        let program = program.transpose().map_err(|error| attaching(error.into()))?;
        program.map_or(Ok(()), |program| {
            clsact::pin_again(&self.pins, program, &pinned).map_err(attaching)
        })
    }

    /// Return missing pins of maps, which no tool or next daemon would find.
    pub fn missing_pins(&self) -> Vec<PathBuf> {
        let maps = LAYOUTS.iter().map(|layout| self.pins.map(layout.name));
        maps.chain([self.pins.control()]).filter(|path| !path.exists()).collect()
    }
}

fn classifier(
    ebpf: &mut Ebpf,
    role: Role,
    direction: Direction,
) -> Result<&mut SchedClassifier, ProgramError> {
    let program = ebpf.program_mut(role.classifier(direction));
    program.ok_or(ProgramError::NotLoaded)?.try_into()
}
