//! Requests to the kernel's route netlink (rtnetlink(7)), one at a time.
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Length of a netlink message's header, and messages' alignment (linux/netlink.h).
const HEADER: usize = 16;
const ALIGN: usize = 4;

/// Return all of the kernel's objects of one kind.
pub fn dump(question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    converse(question, NLM_F_REQUEST | NLM_F_DUMP)
}

/// Request one object or one change.
///
/// # Errors
/// The kernel's answer as an errno.
pub fn request(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    converse(request, NLM_F_REQUEST | NLM_F_ACK)
}

fn converse(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = flags;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in messages(&datagram) {
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

/// Decode the messages of a datagram.
/// One that cannot be decoded, such as a filter of an unknown kind, is skipped.
pub fn messages(datagram: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
        if length < HEADER || length > rest.len() {
            break;
        }
        messages.extend(NetlinkMessage::deserialize(&rest[..length]));
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_datagrams_yield_nothing() {
        for datagram in [&[][..], &[1, 2, 3], &[0; 16], &[0xFF; 64], &[15, 0, 0, 0, 1]] {
            assert!(messages(datagram).is_empty());
        }
    }
}
