//! Whether what was attached still is. Anybody with the right may take it away, and the kernel tells
//! nobody.
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

/// A direction in which an interface is not guarded any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    direction: Direction,
    mode: Mode,
    how: &'static str,
    /// The program is in its filter all the same: only the pin that says so is gone.
    in_force: bool,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.mode.name(), self.direction.name(), self.how)
    }
}

impl Lost {
    /// Check whether the direction's packets are not seen any more.
    pub fn is_blind(&self) -> bool {
        !self.in_force
    }

    /// What is left of an attachment without these.
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
    /// What of an attachment the kernel has no more. An interface that is gone has lost nothing: it
    /// is looked for by its name.
    ///
    /// # Errors
    /// [`GuardError::Netlink`] where the kernel does not say which filters there are.
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

    /// The kernel's number of the program for a hook.
    fn program_id(&self, role: Role, direction: Direction, mode: Mode) -> Option<u32> {
        let ebpf = match role {
            Role::Uplink => &self.ebpf,
            Role::Pod => self.pod_ebpf.as_ref()?,
        };
        let name = if mode.is_xdp() { program::XDP_INGRESS } else { role.classifier(direction) };
        Some(ebpf.program(name)?.info().ok()?.id())
    }

    /// Attach again what was taken away; pins that were removed are made again.
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

    /// A filter without the pin that says whose it is would be taken for another program's.
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

    /// The pins of maps that are gone: the next daemon would begin anew, and no tool finds them.
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
