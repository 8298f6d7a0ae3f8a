//! Netlink filters on the clsact qdisc, for kernels without TCX (before 6.6).
//!
//! They cannot be pinned and need no pin: they stay until they are removed. Their programs are
//! pinned, which distinguishes our filters from those of others, other guards included.
use std::{fs, mem, path::PathBuf};

use aya::programs::{
    ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{self, TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};

use super::{
    error::GuardError,
    interfaces::{Interface, all_interfaces},
    links::{HookError, Takeover},
    namespaces::Namespace,
    netlink,
    pins::{self, Pinned, Pins},
    role::Direction,
};

/// Priority before all other filters.
const PRIORITY: u16 = 1;
/// ETH_P_ALL in network byte order, as in the low half of `tcm_info`.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// Filter of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Filter {
    priority: u16,
    handle: u32,
}

impl Direction {
    fn parent(self) -> tc::TcHandle {
        let minor = match self {
            Direction::Ingress => tc::TcHandle::MIN_INGRESS,
            Direction::Egress => tc::TcHandle::MIN_EGRESS,
        };
        tc::TcHandle { major: tc::TcHandle::CLSACT.major, minor }
    }

    pub(super) fn tc(self) -> TcAttachType {
        match self {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        }
    }
}

/// Attach a program, creating the qdisc if there is none.
pub fn attach(
    pins: &Pins,
    program: &mut SchedClassifier,
    interface: &Interface,
    pinned: &Pinned,
) -> Result<(), HookError> {
    pins::make_note(&pins.namespace(&interface.name, Namespace::current()?))?;
    add_qdisc(pins, interface)?;
    let pin = Pin::new(pins, pinned);
    pin.prepare(program)?;
    let options = NlOptions { priority: PRIORITY, ..NlOptions::default() };
    let attached = program.attach_with_options(
        &interface.name,
        pinned.direction.tc(),
        TcAttachOptions::Netlink(options),
    );
    match attached.and_then(|link| program.take_link(link)) {
        // Dropping the link would detach the filter, and it has to outlive this process.
        Ok(link) => mem::forget(link),
        Err(error) => {
            pin.remove()?;
            return Err(error.into());
        }
    }
    pin.commit()
}

/// Replace the program in our filter; the kernel does it between two packets.
pub fn take_over(
    pins: &Pins,
    program: &mut SchedClassifier,
    interface: &Interface,
    pinned: &Pinned,
) -> Result<Takeover, HookError> {
    let pin = Pin::new(pins, pinned);
    let filters = pin.filters(interface, pinned.direction)?;
    let Some(filter) = filters.first() else { return Ok(Takeover::Gone) };
    pins::make_note(&pins.namespace(&interface.name, Namespace::current()?))?;
    pin.prepare(program)?;
    let old = SchedClassifierLink::attached(
        &interface.name,
        pinned.direction.tc(),
        filter.priority,
        TcHandle::from(filter.handle),
        None,
    )?;
    let link = program.attach_to_link(old)?;
    mem::forget(program.take_link(link)?);
    pin.commit()?;
    Ok(Takeover::Swapped)
}

/// Check whether a filter of an interface carries this program.
pub fn carries(
    interface: &Interface,
    direction: Direction,
    program: u32,
) -> Result<bool, GuardError> {
    Ok(filters(interface, direction)?.iter().any(|(_, found)| *found == program))
}

/// Pin a filter's program again, and note the filter's place again.
pub fn pin_again(
    pins: &Pins,
    program: &mut SchedClassifier,
    pinned: &Pinned,
) -> Result<(), HookError> {
    pins::make_note(&pins.namespace(&pinned.interface, Namespace::current()?))?;
    let pin = Pin::new(pins, pinned);
    pin.prepare(program)?;
    pin.commit()
}

/// Remove our filters in one direction, and the pins that mark them as ours.
/// Return whether there were such pins. The qdisc stays: see [`remove_qdisc`].
///
/// # Errors
/// [`GuardError::Unreachable`] if the filters are in a network namespace that cannot be found; then
/// the pins stay.
pub fn remove(pins: &Pins, pinned: &Pinned) -> Result<bool, GuardError> {
    let pin = Pin::new(pins, pinned);
    inside(pins, &pinned.interface, || remove_filters(&pin, pinned))?;
    pin.remove()
}

/// Remove the filters in this thread's network namespace.
fn remove_filters(pin: &Pin, pinned: &Pinned) -> Result<(), GuardError> {
    let mut interfaces: Vec<Interface> = Interface::find(&pinned.interface).into_iter().collect();
    let mut filters = match interfaces.first() {
        Some(interface) => pin.filters(interface, pinned.direction)?,
        None => Vec::new(),
    };
    if filters.is_empty() {
        // The interface may have been renamed.
        interfaces = all_interfaces()?;
    }
    for interface in &interfaces {
        if filters.is_empty() {
            filters = pin.filters(interface, pinned.direction)?;
        }
        for filter in filters.drain(..) {
            remove_filter(interface, pinned.direction, filter)?;
        }
    }
    Ok(())
}

/// Run `f` in every network namespace that is noted for an interface's filters.
fn inside<T: Send + Default>(
    pins: &Pins,
    interface: &str,
    f: impl Fn() -> Result<T, GuardError> + Sync,
) -> Result<T, GuardError> {
    let namespaces = pins.namespaces(interface)?;
    if namespaces.is_empty() {
        return f();
    }
    let mut result = T::default();
    for namespace in namespaces {
        let unreachable = |reason: String| GuardError::Unreachable {
            interface: interface.into(),
            namespace: namespace.0,
            reason,
        };
        match namespace.run(&f) {
            Ok(Some(done)) => result = done?,
            Ok(None) => {
                return Err(unreachable("no process and no name leads there".into()));
            }
            Err(error) => return Err(unreachable(error.to_string())),
        }
    }
    Ok(result)
}

/// Forget a filter whose network namespace is gone.
pub fn forget(pins: &Pins, pinned: &Pinned) -> Result<(), GuardError> {
    Pin::new(pins, pinned).remove().map(drop)
}

/// Forget all noted network namespaces of an interface's filters but `kept`.
pub fn forget_namespaces(
    pins: &Pins,
    interface: &str,
    kept: Option<Namespace>,
) -> Result<(), GuardError> {
    for namespace in pins.namespaces(interface)? {
        if Some(namespace) != kept {
            pins::remove(&pins.namespace(interface, namespace))?;
        }
    }
    Ok(())
}

/// Check whether a filter exists.
/// In another network namespace this process cannot see it, and checks whether the namespace is
/// reachable.
pub fn is_alive(pins: &Pins, pinned: &Pinned) -> Result<bool, GuardError> {
    let here = Namespace::current().map_err(GuardError::netlink("network namespaces"))?;
    let noted = pins.namespaces(&pinned.interface)?;
    let elsewhere = noted.iter().any(|noted| *noted != here && noted.is_reachable());
    if elsewhere {
        return Ok(true);
    }
    let Ok(interface) = Interface::find(&pinned.interface) else { return Ok(false) };
    Ok(!Pin::new(pins, pinned).filters(&interface, pinned.direction)?.is_empty())
}

/// Pin of the program in a filter, which marks the filter as ours.
///
/// The new program is pinned next to the old one before the filter changes, and replaces it after
/// that, so that another daemon can still take over if this one dies in between.
struct Pin {
    path: PathBuf,
    next: PathBuf,
}

impl Pin {
    fn new(pins: &Pins, pinned: &Pinned) -> Self {
        let path = pins.attachment(pinned);
        let mut next = path.clone().into_os_string();
        next.push(pins::NEXT);
        Pin { path, next: next.into() }
    }

    fn prepare(&self, program: &mut SchedClassifier) -> Result<(), HookError> {
        pins::remove(&self.next)?;
        Ok(program.pin(&self.next)?)
    }

    fn commit(&self) -> Result<(), HookError> {
        Ok(fs::rename(&self.next, &self.path)?)
    }

    fn remove(&self) -> Result<bool, GuardError> {
        let next = pins::remove(&self.next)?;
        Ok(pins::remove(&self.path)? || next)
    }

    /// Return the programs' ids. (Listing all of the kernel's needs CAP_SYS_ADMIN.)
    fn programs(&self) -> Vec<u32> {
        let pins = [&self.path, &self.next];
        pins.into_iter()
            .flat_map(|path| ProgramInfo::from_pin(path).map(|info| info.id()))
            .collect()
    }

    /// Return our filters in one direction of an interface.
    fn filters(
        &self,
        interface: &Interface,
        direction: Direction,
    ) -> Result<Vec<Filter>, GuardError> {
        let programs = self.programs();
        let filters = filters(interface, direction)?.into_iter();
        Ok(filters
            .filter(|(_, program)| programs.contains(program))
            .map(|(filter, _)| filter)
            .collect())
    }
}

fn add_qdisc(pins: &Pins, interface: &Interface) -> Result<(), HookError> {
    match qdisc_add_clsact(&interface.name) {
        Ok(()) => Ok(pins::make_note(&pins.qdisc(&interface.name, interface.index))?),
        Err(TcError::AlreadyAttached) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(ProgramError::from(error).into()),
    }
}

/// Remove a filter; a missing one is no error.
fn remove_filter(
    interface: &Interface,
    direction: Direction,
    filter: Filter,
) -> Result<(), GuardError> {
    let mut message = TcMessage::with_index(interface.index as i32);
    message.header.parent = direction.parent();
    message.header.handle = filter.handle.into();
    message.header.info = (u32::from(filter.priority) << 16) | ALL_PROTOCOLS;
    match netlink::request(RouteNetlinkMessage::DelTrafficFilter(message)) {
        Err(error) if !is_absent(&error) => {
            Err(GuardError::netlink(format!("filters of {}", interface.name))(error))
        }
        _ => Ok(()),
    }
}

/// Remove the clsact qdisc if it is ours and unused; return whether it was removed.
///
/// # Errors
/// As [`remove`].
pub fn remove_qdisc(pins: &Pins, interface: &Interface) -> Result<bool, GuardError> {
    let removed = inside(pins, &interface.name, || remove_unused_qdisc(interface))?;
    pins::remove(&pins.qdisc(&interface.name, interface.index))?;
    Ok(removed)
}

/// Remove the unused qdisc in this thread's network namespace.
fn remove_unused_qdisc(interface: &Interface) -> Result<bool, GuardError> {
    for direction in Direction::ALL {
        if !filters(interface, direction)?.is_empty() {
            return Ok(false);
        }
    }
    let mut message = TcMessage::with_index(interface.index as i32);
    message.header.parent = tc::TcHandle::CLSACT;
    message.header.handle = tc::TcHandle { major: tc::TcHandle::CLSACT.major, minor: 0 };
    match netlink::request(RouteNetlinkMessage::DelQueueDiscipline(message)) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(GuardError::netlink(format!("qdiscs of {}", interface.name))(error)),
    }
}

/// Return all filters in one direction, with their programs' ids (0 for none).
fn filters(interface: &Interface, direction: Direction) -> Result<Vec<(Filter, u32)>, GuardError> {
    let mut question = TcMessage::with_index(interface.index as i32);
    question.header.parent = direction.parent();
    let answers = match netlink::dump(RouteNetlinkMessage::GetTrafficFilter(question)) {
        // Without a qdisc or an interface there are no filters.
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        answers => {
            answers.map_err(GuardError::netlink(format!("filters of {}", interface.name)))?
        }
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
            _ => None,
        })
        // The kernel also lists each priority as such, with handle 0.
        .filter(|filter| u32::from(filter.header.handle) != 0)
        .map(|filter| {
            let priority = (filter.header.info >> 16) as u16;
            (Filter { priority, handle: filter.header.handle.into() }, program_id(&filter))
        })
        .collect())
}

/// Check for the kernel's answers to a missing interface, qdisc or filter.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT))
}

fn program_id(filter: &TcMessage) -> u32 {
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let id = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    id.unwrap_or(0)
}
