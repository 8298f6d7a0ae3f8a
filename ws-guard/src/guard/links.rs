//! Pinned links: XDP and TCX.
use std::{io, path::Path};

use aya::{
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions, TcError},
        xdp::{XdpError, XdpLink},
    },
};

use super::{error::GuardError, interfaces::Interface, role::Direction, sys};

/// Result of an attempt to take over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// The link carries the new program, without a gap.
    Swapped,
    /// There is no such pin, or the link's interface is gone.
    Gone,
}

/// Attach to the XDP slot and pin the link.
/// `mode` is never left to the kernel, which would not report its choice.
pub fn attach_xdp(
    program: &mut Xdp,
    interface: &Interface,
    mode: XdpMode,
    pin: &Path,
) -> Result<(), HookError> {
    let id = program.attach_to_if_index(interface.index, mode)?;
    pin_link(program.take_link(id)?.try_into()?, pin)
}

/// Attach before other TCX programs, whose TC_ACT_OK ends the chain; pin the link.
pub fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
    pin: &Path,
) -> Result<(), HookError> {
    pin_link(tcx_link(program, interface, direction)?, pin)
}

/// Create a TCX link that lasts as long as the returned value.
pub fn tcx_link(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
) -> Result<FdLink, HookError> {
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&interface.name, direction.tc(), first)?;
    Ok(program.take_link(id)?.try_into()?)
}

/// Replace the program of a pinned XDP link.
pub fn take_over_xdp(
    program: &mut Xdp,
    interface: &Interface,
    pin: &Path,
) -> Result<Takeover, HookError> {
    let Some(link) = open(interface, pin)? else { return Ok(Takeover::Gone) };
    let swapped = program.attach_to_link(XdpLink::try_from(link)?);
    // The pin keeps the link; this process need not.
    outcome(swapped.and_then(|id| program.take_link(id).map(drop)))
}

/// Replace the program of a pinned TCX link.
pub fn take_over_tcx(
    program: &mut SchedClassifier,
    interface: &Interface,
    pin: &Path,
) -> Result<Takeover, HookError> {
    let Some(link) = open(interface, pin)? else { return Ok(Takeover::Gone) };
    let swapped = program.attach_to_link(SchedClassifierLink::try_from(link)?);
    outcome(swapped.and_then(|id| program.take_link(id).map(drop)))
}

/// Open the pinned link, if it is on this very interface.
/// Another one of the same name may have been created since.
fn open(interface: &Interface, pin: &Path) -> Result<Option<FdLink>, HookError> {
    match sys::pinned_link(pin) {
        Ok(info) if info.interface == interface.index => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    Ok(Some(PinnedLink::from_pin(pin)?.into()))
}

fn outcome(swapped: Result<(), ProgramError>) -> Result<Takeover, HookError> {
    match swapped.map_err(HookError::from) {
        Ok(()) => Ok(Takeover::Swapped),
        // "Link has been severed": the interface disappeared just now.
        Err(error) if error.errno() == Some(libc::ENOLINK) => Ok(Takeover::Gone),
        Err(error) => Err(error),
    }
}

fn pin_link(link: FdLink, pin: &Path) -> Result<(), HookError> {
    Ok(link.pin(pin).map(drop)?)
}

/// Failure to put a program on a hook.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("the XDP slot is taken by {0}")]
    Taken(String),
}

impl HookError {
    /// Return the kernel's error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            HookError::Program(ProgramError::SyscallError(error))
            | HookError::Link(LinkError::SyscallError(error))
            | HookError::Pin(PinError::SyscallError(error)) => error.io_error.raw_os_error(),
            HookError::Program(
                ProgramError::XdpError(XdpError::NetlinkError(error))
                | ProgramError::TcError(TcError::NetlinkError(error)),
            ) => error.raw_os_error(),
            HookError::Program(
                ProgramError::IOError(error) | ProgramError::TcError(TcError::IoError(error)),
            )
            | HookError::Io(error) => error.raw_os_error(),
            _ => None,
        }
    }
}
