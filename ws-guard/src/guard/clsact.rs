//! Netlink filters on the clsact qdisc, for kernels without TCX (before 6.6).
//!
//! They cannot be pinned and need no pin: they stay until they are removed. The programs in them are
//! pinned, which tells our filters from those of others, other guards' included.
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
    Direction, Mode,
    error::GuardError,
    interfaces::Interface,
    links::{HookError, Takeover},
    netlink,
    pins::{self, Pinned, Pins},
};

/// Before all other filters.
const PRIORITY: u16 = 1;
/// ETH_P_ALL in network byte order, as in the low half of `tcm_info`.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// One filter of ours.
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

/// Attach a program, making the qdisc where there is none.
pub fn attach(
    pins: &Pins,
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
) -> Result<(), HookError> {
    add_qdisc(pins, interface)?;
    let pin = Pin::new(pins, interface, direction);
    pin.prepare(program)?;
    let options = NlOptions { priority: PRIORITY, ..NlOptions::default() };
    let attached = program.attach_with_options(
        &interface.name,
        direction.tc(),
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

/// Put the program in place of the one in our filter; the kernel does it between two packets.
pub fn take_over(
    pins: &Pins,
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
) -> Result<Takeover, HookError> {
    let filters = ours(pins, interface, direction)?;
    let Some(filter) = filters.first() else { return Ok(Takeover::Gone) };
    let pin = Pin::new(pins, interface, direction);
    pin.prepare(program)?;
    let old = SchedClassifierLink::attached(
        &interface.name,
        direction.tc(),
        filter.priority,
        TcHandle::from(filter.handle),
        None,
    )?;
    let link = program.attach_to_link(old)?;
    mem::forget(program.take_link(link)?);
    pin.commit()?;
    Ok(Takeover::Swapped)
}

/// Remove our filters in one direction, and the pins that say which are ours; whether there were
/// such pins. The qdisc stays: see [`remove_qdisc`].
pub fn remove(pins: &Pins, name: &str, direction: Direction) -> Result<bool, GuardError> {
    if let Ok(interface) = Interface::find(name) {
        for filter in ours(pins, &interface, direction)? {
            remove_filter(&interface, direction, filter)?;
        }
    }
    let pin = Pin::of(pins, name, direction);
    pin.remove()
}

/// The pin of the program in a filter: it says which filter is ours.
///
/// The new program is pinned beside the old one before the filter changes and takes its place
/// after, so that a daemon that dies between the two can still be followed by another.
struct Pin {
    path: PathBuf,
    next: PathBuf,
}

impl Pin {
    fn new(pins: &Pins, interface: &Interface, direction: Direction) -> Self {
        Pin::of(pins, &interface.name, direction)
    }

    fn of(pins: &Pins, interface: &str, direction: Direction) -> Self {
        let pinned = Pinned { interface: interface.into(), direction, mode: Mode::Clsact };
        let path = pins.attachment(&pinned);
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

    /// Ids of the programs. (Asking the kernel for all its programs would need CAP_SYS_ADMIN.)
    fn programs(&self) -> Vec<u32> {
        let pins = [&self.path, &self.next];
        pins.into_iter()
            .flat_map(|path| ProgramInfo::from_pin(path).map(|info| info.id()))
            .collect()
    }
}

/// Our filters in one direction of an interface.
fn ours(
    pins: &Pins,
    interface: &Interface,
    direction: Direction,
) -> Result<Vec<Filter>, GuardError> {
    let programs = Pin::new(pins, interface, direction).programs();
    let filters = filters(interface, direction)?.into_iter();
    Ok(filters
        .filter(|(_, program)| programs.contains(program))
        .map(|(filter, _)| filter)
        .collect())
}

fn add_qdisc(pins: &Pins, interface: &Interface) -> Result<(), HookError> {
    match qdisc_add_clsact(&interface.name) {
        Ok(()) => Ok(pins::make_note(&pins.qdisc(&interface.name, interface.index))?),
        Err(TcError::AlreadyAttached) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(ProgramError::from(error).into()),
    }
}

/// Remove a filter; one that is gone already is removed.
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

/// Remove the clsact qdisc when we made it and nobody else uses it; whether it was removed.
pub fn remove_qdisc(pins: &Pins, interface: &Interface) -> Result<bool, GuardError> {
    if !pins::remove(&pins.qdisc(&interface.name, interface.index))? {
        return Ok(false);
    }
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

/// All filters in one direction, with the id of their program (0 for those that have none).
fn filters(interface: &Interface, direction: Direction) -> Result<Vec<(Filter, u32)>, GuardError> {
    let mut question = TcMessage::with_index(interface.index as i32);
    question.header.parent = direction.parent();
    let answers = match netlink::dump(RouteNetlinkMessage::GetTrafficFilter(question)) {
        // No qdisc or no interface, no filters.
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

/// What the kernel answers when interface, qdisc or filter are not there.
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
