//! Attachment to one interface: choice of mode, order, changes without a gap.
use aya::{
    Ebpf,
    programs::{ProgramError, SchedClassifier, Xdp, XdpMode, links::FdLink},
};
use ws_guard_common::maps::program;

use super::{
    AttachMode, Attachment, Mode, clsact, detach,
    error::GuardError,
    interfaces::Interface,
    links::{self, HookError, Takeover},
    namespaces::Namespace,
    pins::{Pinned, Pins},
    role::{Direction, Role, Side},
};

impl AttachMode {
    /// Return the modes to try, best first.
    /// Outgoing packets have no XDP hook, and XDP on a pod's interface would see the server's
    /// packets.
    fn candidates(self, role: Role, direction: Direction) -> &'static [Mode] {
        match (self, role, direction) {
            (AttachMode::Tcx, ..) => &[Mode::Tcx],
            (AttachMode::Clsact, ..) => &[Mode::Clsact],
            (AttachMode::Auto, Role::Uplink, Direction::Ingress) => &Mode::ALL,
            (AttachMode::XdpNative, Role::Uplink, Direction::Ingress) => &[Mode::XdpNative],
            (AttachMode::XdpGeneric, Role::Uplink, Direction::Ingress) => &[Mode::XdpGeneric],
            _ => &[Mode::Tcx, Mode::Clsact],
        }
    }
}

/// Attachment of the loaded programs to one interface.
pub struct Attacher<'a> {
    pub ebpf: &'a mut Ebpf,
    pub pins: &'a Pins,
    pub interface: Interface,
    pub role: Role,
}

/// Unavailable mode, and the reason.
struct Refusal {
    mode: Mode,
    reason: String,
    errno: Option<i32>,
}

impl Attacher<'_> {
    /// Attach both directions, or neither where nothing was attached before.
    ///
    /// The server side comes first. In the few milliseconds in between, a request that is seen
    /// would wait for an unseen answer, with its client's data held back; of an answer to an unseen
    /// request, the flow resynchronises.
    pub fn attach(&mut self, mode: AttachMode) -> Result<Attachment, GuardError> {
        self.interface.check_ethernet()?;
        let (client, server) =
            (self.role.direction(Side::Client), self.role.direction(Side::Server));
        let before = self.present(server)?;
        let server_mode = self.attach_direction(server, mode)?;
        let client_mode = match self.attach_direction(client, mode) {
            Ok(client_mode) => client_mode,
            Err(error) => {
                if before.is_empty() {
                    self.remove(server, server_mode)?;
                }
                return Err(error);
            }
        };
        self.forget_the_past([client_mode, server_mode])?;
        let (ingress, egress) = match client {
            Direction::Ingress => (client_mode, server_mode),
            Direction::Egress => (server_mode, client_mode),
        };
        Ok(Attachment {
            name: self.interface.name.clone(),
            role: self.role,
            ingress: Some(ingress),
            egress: Some(egress),
        })
    }

    /// Remove earlier programs of other roles, and notes of other namespaces.
    fn forget_the_past(&self, modes: [Mode; 2]) -> Result<(), GuardError> {
        let name = &self.interface.name;
        detach::detach_other_roles(self.pins, name, self.role)?;
        let here = Namespace::current().map_err(GuardError::netlink("network namespaces"))?;
        let kept = modes.contains(&Mode::Clsact).then_some(here);
        clsact::forget_namespaces(self.pins, name, kept)
    }

    fn attach_direction(
        &mut self,
        direction: Direction,
        mode: AttachMode,
    ) -> Result<Mode, GuardError> {
        let wanted = mode.candidates(self.role, direction);
        let mut guarding = self.take_over_present(direction)?;
        if let Some(kept) = guarding.iter().position(|mode| wanted.contains(mode)) {
            let kept = guarding.swap_remove(kept);
            for mode in guarding {
                self.remove(direction, mode)?;
            }
            tracing::info!(
                interface = self.interface.name,
                direction = direction.name(),
                mode = kept.name(),
                "took over without a gap"
            );
            return Ok(kept);
        }
        self.attach_instead(direction, wanted, &guarding)
    }

    /// Replace the old programs by the new ones, in any modes they are attached in.
    /// Pins whose interface is gone are removed.
    fn take_over_present(&mut self, direction: Direction) -> Result<Vec<Mode>, GuardError> {
        let mut guarding = Vec::new();
        for mode in self.present(direction)? {
            match self.take_over(direction, mode) {
                Ok(Takeover::Swapped) => guarding.push(mode),
                Ok(Takeover::Gone) => {
                    tracing::info!(
                        interface = self.interface.name,
                        direction = direction.name(),
                        mode = mode.name(),
                        "the old attachment is gone with its interface"
                    );
                    self.remove_gone(direction, mode)?;
                }
                Err(error) => {
                    let refusal = self.refusal(mode, &error);
                    return Err(self.error(direction, &[refusal]));
                }
            }
        }
        Ok(guarding)
    }

    /// Attach in the best wanted mode, and then remove the modes in `guarding`.
    /// None of the wanted modes is attached yet.
    fn attach_instead(
        &mut self,
        direction: Direction,
        wanted: &[Mode],
        guarding: &[Mode],
    ) -> Result<Mode, GuardError> {
        let slot = guarding.iter().copied().find(|mode| mode.is_xdp());
        let blocked = slot.filter(|_| wanted.iter().any(|mode| mode.is_xdp()));
        let Some(old) = blocked else {
            let mode = self.attach_first(direction, wanted)?;
            for old in guarding {
                self.remove(direction, *old)?;
            }
            return Ok(mode);
        };
        // XDP has one slot: another hook guards while its mode changes.
        let bridge = self.bridge(direction)?;
        self.remove(direction, old)?;
        let attached = self.attach_first(direction, wanted);
        if attached.is_err() {
            self.attach_first(direction, &[old])?;
        }
        drop(bridge);
        attached
    }

    fn attach_first(&mut self, direction: Direction, wanted: &[Mode]) -> Result<Mode, GuardError> {
        let mut refusals = Vec::new();
        for mode in wanted {
            match self.attach_fresh(direction, *mode) {
                Ok(()) => {
                    tracing::info!(
                        interface = self.interface.name,
                        direction = direction.name(),
                        mode = mode.name(),
                        not = describe(&refusals),
                        "attached"
                    );
                    return Ok(*mode);
                }
                Err(error) => refusals.push(self.refusal(*mode, &error)),
            }
        }
        Err(self.error(direction, &refusals))
    }

    fn attach_fresh(&mut self, direction: Direction, mode: Mode) -> Result<(), HookError> {
        let pin = self.pin(direction, mode);
        let xdp_mode = match mode {
            Mode::XdpNative => XdpMode::Driver,
            Mode::XdpGeneric => XdpMode::Skb,
            Mode::Tcx => {
                let interface = self.interface.clone();
                return links::attach_tcx(self.classifier(direction)?, &interface, direction, &pin);
            }
            Mode::Clsact => {
                let interface = self.interface.clone();
                let (pins, pinned) = (self.pins, self.pinned(direction, mode));
                return clsact::attach(pins, self.classifier(direction)?, &interface, &pinned);
            }
        };
        // Before Linux 5.9 aya falls back to netlink, which would replace any program there.
        if let Some(program) = self.interface.xdp_program()? {
            return Err(HookError::Taken(program));
        }
        let interface = self.interface.clone();
        links::attach_xdp(self.xdp()?, &interface, xdp_mode, &pin)
    }

    fn take_over(&mut self, direction: Direction, mode: Mode) -> Result<Takeover, HookError> {
        let pin = self.pin(direction, mode);
        let interface = self.interface.clone();
        match mode {
            Mode::XdpNative | Mode::XdpGeneric => {
                links::take_over_xdp(self.xdp()?, &interface, &pin)
            }
            Mode::Tcx => links::take_over_tcx(self.classifier(direction)?, &interface, &pin),
            Mode::Clsact => {
                let (pins, pinned) = (self.pins, self.pinned(direction, mode));
                clsact::take_over(pins, self.classifier(direction)?, &interface, &pinned)
            }
        }
    }

    /// Remove an attachment. Filters in an unreachable namespace count as gone.
    fn remove_gone(&self, direction: Direction, mode: Mode) -> Result<(), GuardError> {
        match self.remove(direction, mode) {
            Err(error @ GuardError::Unreachable { .. }) => {
                tracing::warn!("forgotten: {error}");
                clsact::forget(self.pins, &self.pinned(direction, mode))
            }
            result => result,
        }
    }

    fn remove(&self, direction: Direction, mode: Mode) -> Result<(), GuardError> {
        detach::remove(self.pins, &self.pinned(direction, mode)).map(drop)
    }

    fn bridge(&mut self, direction: Direction) -> Result<FdLink, GuardError> {
        let interface = self.interface.clone();
        let link = self
            .classifier(direction)
            .and_then(|program| links::tcx_link(program, &interface, direction));
        link.map_err(|error| {
            let refusal = self.refusal(Mode::Tcx, &error);
            self.error(direction, &[refusal])
        })
    }

    /// Return the modes in which this direction is attached, by pins and notes.
    fn present(&self, direction: Direction) -> Result<Vec<Mode>, GuardError> {
        let all = self.pins.attachments()?;
        Ok(all
            .into_iter()
            .filter(|pinned| *pinned == self.pinned(direction, pinned.mode))
            .map(|pinned| pinned.mode)
            .collect())
    }

    fn pinned(&self, direction: Direction, mode: Mode) -> Pinned {
        Pinned { interface: self.interface.name.clone(), role: self.role, direction, mode }
    }

    fn pin(&self, direction: Direction, mode: Mode) -> std::path::PathBuf {
        self.pins.attachment(&self.pinned(direction, mode))
    }

    fn xdp(&mut self) -> Result<&mut Xdp, HookError> {
        let program = self.ebpf.program_mut(program::XDP_INGRESS);
        Ok(program.ok_or(ProgramError::NotLoaded)?.try_into()?)
    }

    fn classifier(&mut self, direction: Direction) -> Result<&mut SchedClassifier, HookError> {
        let name = self.role.classifier(direction);
        Ok(self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?)
    }

    fn refusal(&self, mode: Mode, error: &HookError) -> Refusal {
        let errno = error.errno();
        let reason = match errno.and_then(|errno| explain(mode, errno)) {
            Some(reason) => reason.into(),
            None => error.to_string(),
        };
        Refusal { mode, reason, errno }
    }

    fn error(&self, direction: Direction, refusals: &[Refusal]) -> GuardError {
        let interface = self.interface.name.clone();
        if refusals.iter().any(|refusal| refusal.errno == Some(libc::EPERM)) {
            return GuardError::Privileges(format!(
                "attaching to {interface} was not permitted ({}); CAP_NET_ADMIN is needed in the \
                 interface's network namespace",
                describe(refusals)
            ));
        }
        let reasons = describe(refusals);
        GuardError::Attach { interface, direction: direction.name(), reasons }
    }
}

fn describe(refusals: &[Refusal]) -> String {
    let reasons: Vec<String> = refusals
        .iter()
        .map(|refusal| format!("{}: {}", refusal.mode.name(), refusal.reason))
        .collect();
    reasons.join("; ")
}

/// Explain the kernel's error number.
fn explain(mode: Mode, errno: i32) -> Option<&'static str> {
    Some(match (mode, errno) {
        (Mode::XdpNative, libc::EOPNOTSUPP) => "the driver has no native XDP",
        (Mode::XdpNative, libc::ERANGE) => {
            "the driver has no native XDP at this MTU: it cannot do packets in several buffers"
        }
        (Mode::XdpNative | Mode::XdpGeneric, libc::EBUSY) => "the XDP slot is taken",
        (Mode::XdpNative | Mode::XdpGeneric, libc::EEXIST) => {
            "a program is attached in the other XDP mode"
        }
        (Mode::Tcx, libc::EINVAL) => "this kernel has no TCX (Linux 6.6)",
        (Mode::Clsact, libc::EEXIST | libc::EINVAL) => {
            "a filter of another kind holds priority 1, or an ingress qdisc is in the way"
        }
        _ => return None,
    })
}
