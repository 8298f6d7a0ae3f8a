//! Network interfaces: names, numbers, XDP slot's owner, appearance, disappearance.
use std::{
    collections::{BTreeMap, VecDeque},
    io,
};

use aya::programs::loaded_programs;
use futures_util::FutureExt as _;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkLayerType, LinkMessage, LinkXdp},
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

use super::{error::GuardError, netlink};

/// RTNLGRP_LINK of linux/rtnetlink.h.
const LINK_GROUP: u32 = 1;
/// IFNAMSIZ without the final NUL.
const LONGEST_NAME: usize = 15;

/// Existing interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// In practice never reused while a network namespace exists.
    pub index: u32,
}

impl Interface {
    /// Look an interface up in this thread's network namespace.
    ///
    /// # Errors
    /// [`GuardError::BadInterfaceName`], [`GuardError::NoInterface`].
    pub fn find(name: &str) -> Result<Self, GuardError> {
        check_name(name)?;
        match if_nametoindex(name) {
            Ok(index) => Ok(Interface { name: name.into(), index }),
            Err(_) => Err(GuardError::NoInterface(name.into())),
        }
    }

    /// Request the interface from the kernel.
    fn link(&self) -> Result<Option<LinkMessage>, GuardError> {
        let mut question = LinkMessage::default();
        question.header.index = self.index;
        let answers = netlink::request(RouteNetlinkMessage::GetLink(question))
            .map_err(GuardError::netlink(&self.name))?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        }))
    }

    /// Check that packets begin with an Ethernet header.
    /// Those of tun, WireGuard, ipip, GRE and similar interfaces do not, and would be misread.
    ///
    /// # Errors
    /// [`GuardError::NoEthernet`], [`GuardError::Netlink`].
    pub fn check_ethernet(&self) -> Result<(), GuardError> {
        let Some(link) = self.link()? else {
            return Err(GuardError::NoInterface(self.name.clone()));
        };
        match link.header.link_layer_type {
            LinkLayerType::Ether | LinkLayerType::Loopback => Ok(()),
            other => Err(GuardError::NoEthernet {
                interface: self.name.clone(),
                kind: format!("{other:?}, {}", u16::from(other)),
            }),
        }
    }

    /// Describe the program in the XDP slot; `None` when the slot is free.
    pub fn xdp_program(&self) -> Result<Option<String>, GuardError> {
        let program = self.link()?.and_then(|link| program_id(&link));
        Ok(program.map(|id| {
            // Only CAP_SYS_ADMIN allows looking up others' programs.
            let info = loaded_programs().flatten().find(|program| program.id() == id);
            let name = info.and_then(|info| info.name_as_str().map(str::to_owned));
            name.map_or_else(|| format!("program {id}"), |name| format!("program {id}, {name}"))
        }))
    }
}

/// Return every interface of this thread's network namespace.
///
/// # Errors
/// [`GuardError::Netlink`].
pub fn all_interfaces() -> Result<Vec<Interface>, GuardError> {
    let answers = netlink::dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(GuardError::netlink("interfaces"))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => of(link),
            _ => None,
        })
        .collect())
}

fn of(link: LinkMessage) -> Option<Interface> {
    let index = link.header.index;
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(Interface { name, index }),
        _ => None,
    })
}

/// # Errors
/// [`GuardError::BadInterfaceName`] where the kernel would refuse the name (dev_valid_name).
pub fn check_name(name: &str) -> Result<(), GuardError> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    if name.is_empty()
        || name.len() > LONGEST_NAME
        || matches!(name, "." | "..")
        || name.contains(bad)
    {
        return Err(GuardError::BadInterfaceName(name.into()));
    }
    Ok(())
}

fn program_id(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => xdp.iter().find_map(|xdp| match xdp {
            LinkXdp::ProgId(id)
            | LinkXdp::DrvProgId(id)
            | LinkXdp::SkbProgId(id)
            | LinkXdp::HwProgId(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

/// Open a socket that receives every later change of an interface.
fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(LINK_GROUP)?;
    Ok(socket)
}

/// Change of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceEvent {
    Appeared(Interface),
    Disappeared(Interface),
}

/// Watcher of the interfaces of its network namespace.
///
/// The first events name the existing ones, so that no change is missed between a look and the
/// watch. A name that moves to another interface disappears first and then appears.
pub struct InterfaceWatcher {
    socket: TokioSocket,
    known: BTreeMap<u32, String>,
    events: VecDeque<InterfaceEvent>,
}

impl InterfaceWatcher {
    /// # Errors
    /// [`GuardError::Netlink`]; outside a tokio runtime too.
    pub fn new() -> Result<Self, GuardError> {
        let failed = |source| GuardError::Netlink { what: "interfaces".into(), source };
        tokio::runtime::Handle::try_current().map_err(|error| failed(io::Error::other(error)))?;
        let socket = subscribe().map_err(failed)?;
        let mut watcher =
            InterfaceWatcher { socket, known: BTreeMap::new(), events: VecDeque::new() };
        watcher.look().map_err(failed)?;
        Ok(watcher)
    }

    /// Wait for the next event. Cancel-safe.
    ///
    /// # Errors
    /// [`GuardError::Netlink`] when the socket fails; after lost messages, the watcher looks again
    /// by itself.
    pub async fn next(&mut self) -> Result<InterfaceEvent, GuardError> {
        let failed = |source| GuardError::Netlink { what: "interfaces".into(), source };
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    for message in netlink::messages(&datagram) {
                        if let NetlinkPayload::InnerMessage(message) = message.payload {
                            self.note(message);
                        }
                    }
                }
                // Queued messages are older than the look: they would restore interfaces whose
                // deletion was lost. A new socket has none.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.socket = subscribe().map_err(failed)?;
                    self.look().map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Process all pending messages, without waiting.
    /// Many interfaces appear at once, and each has several messages.
    pub fn catch_up(&mut self) {
        while let Some(Ok(_)) = self.next().now_or_never() {}
    }

    /// Return the existing interfaces, according to the messages so far.
    pub fn present(&self) -> impl Iterator<Item = (&str, u32)> {
        self.known.iter().map(|(index, name)| (name.as_str(), *index))
    }

    /// Compare the known interfaces with the existing ones.
    fn look(&mut self) -> io::Result<()> {
        let answers = netlink::dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let present: Vec<u32> = answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            })
            .collect();
        let gone: Vec<u32> =
            self.known.keys().filter(|index| !present.contains(index)).copied().collect();
        gone.into_iter().for_each(|index| self.disappeared(index));
        answers.into_iter().for_each(|answer| self.note(answer));
        Ok(())
    }

    fn note(&mut self, message: RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                if let Some(Interface { name, index }) = of(link)
                    && self.known.get(&index) != Some(&name)
                {
                    self.disappeared(index);
                    self.known.insert(index, name.clone());
                    self.events.push_back(InterfaceEvent::Appeared(Interface { name, index }));
                }
            }
            // With a family, the interface has for example left a bridge, and still exists.
            RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                self.disappeared(link.header.index);
            }
            _ => {}
        }
    }

    fn disappeared(&mut self, index: u32) {
        if let Some(name) = self.known.remove(&index) {
            self.events.push_back(InterfaceEvent::Disappeared(Interface { name, index }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "a:b", "a\0b", "sixteen-bytes-xy"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["lo", "eth0.100", "fifteen-bytes-x", "br-lan%1"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}
