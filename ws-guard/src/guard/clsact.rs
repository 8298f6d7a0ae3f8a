//! Netlink filters on the clsact qdisc, for kernels without TCX (before 6.6).
//!
//! They cannot be pinned and need no pin: they stay until they are removed. What is ours is known
//! by the program's name and by the maps it uses, so that two guards on one interface keep apart.
use std::mem;

use aya::{
    maps::MapInfo,
    programs::{
        ProgramError, SchedClassifier, TcAttachType, loaded_programs,
        tc::{
            NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
        },
    },
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{self, TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};
use ws_guard_common::maps::name;

use super::{
    Direction, error::GuardError, interfaces::Interface, links::HookError, netlink, pins::Pins,
};

/// Before all other filters.
const PRIORITY: u16 = 1;
/// ETH_P_ALL in network byte order, as in the low half of `tcm_info`.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// One filter of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    pub priority: u16,
    pub handle: u32,
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

/// Our filters in one direction of an interface.
///
/// # Errors
/// [`GuardError::Netlink`]. An interface without the qdisc has none.
pub fn ours(
    pins: &Pins,
    interface: &Interface,
    direction: Direction,
) -> Result<Vec<Filter>, GuardError> {
    let Ok(flows) = MapInfo::from_pin(pins.map(name::FLOWS)) else { return Ok(Vec::new()) };
    let guards: Vec<u32> = loaded_programs()
        .flatten()
        .filter(|program| {
            program.map_ids().ok().flatten().is_some_and(|maps| maps.contains(&flows.id()))
        })
        .map(|program| program.id())
        .collect();
    let filters = filters(interface, direction)?;
    Ok(filters
        .into_iter()
        .filter(|(_, program)| guards.contains(program))
        .map(|(filter, _)| filter)
        .collect())
}

/// Attach a program, making the qdisc where there is none.
pub fn attach(
    pins: &Pins,
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
) -> Result<(), HookError> {
    match qdisc_add_clsact(&interface.name) {
        Ok(()) => {
            let note = pins.qdisc(&interface.name, interface.index);
            if let Err(error) = super::pins::make_note(&note) {
                tracing::warn!(%error, "the clsact qdisc will not be removed on unload");
            }
        }
        Err(TcError::AlreadyAttached) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(ProgramError::from(error).into()),
    }
    let options = NlOptions { priority: PRIORITY, ..NlOptions::default() };
    let link = program.attach_with_options(
        &interface.name,
        direction.tc(),
        TcAttachOptions::Netlink(options),
    )?;
    // Dropping the link would detach the filter, and it has to outlive this process.
    mem::forget(program.take_link(link)?);
    Ok(())
}

/// Put the program in place of the one in `filter`; the kernel does it between two packets.
pub fn replace(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
    filter: Filter,
) -> Result<(), HookError> {
    let handle = TcHandle::from(filter.handle);
    let old = SchedClassifierLink::attached(
        &interface.name,
        direction.tc(),
        filter.priority,
        handle,
        None,
    )?;
    let link = program.attach_to_link(old)?;
    mem::forget(program.take_link(link)?);
    Ok(())
}

/// Remove a filter; one that is gone already is removed.
pub fn remove(
    interface: &Interface,
    direction: Direction,
    filter: Filter,
) -> Result<(), GuardError> {
    let mut message = TcMessage::with_index(interface.index as i32);
    message.header.parent = direction.parent();
    message.header.handle = filter.handle.into();
    message.header.info = (u32::from(filter.priority) << 16) | ALL_PROTOCOLS;
    match netlink::request(RouteNetlinkMessage::DelTrafficFilter(message)) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
            Err(GuardError::netlink(format!("filters of {}", interface.name))(error))
        }
        _ => Ok(()),
    }
}

/// Remove the clsact qdisc when we made it and nobody else uses it; whether it was removed.
pub fn remove_qdisc(pins: &Pins, interface: &Interface) -> Result<bool, GuardError> {
    if !super::pins::remove(&pins.qdisc(&interface.name, interface.index))? {
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
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            Ok(false)
        }
        Err(error) => Err(GuardError::netlink(format!("qdiscs of {}", interface.name))(error)),
    }
}

/// All filters in one direction, with the id of their program (0 for those that have none).
fn filters(interface: &Interface, direction: Direction) -> Result<Vec<(Filter, u32)>, GuardError> {
    let mut question = TcMessage::with_index(interface.index as i32);
    question.header.parent = direction.parent();
    let answers = match netlink::dump(RouteNetlinkMessage::GetTrafficFilter(question)) {
        // No qdisc, no filters.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            return Ok(Vec::new());
        }
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
