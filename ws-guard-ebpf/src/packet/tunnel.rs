//! Tunnels: VXLAN, Geneve and IP in IP, each only where the operator configures it.
//!
//! One level: a tunnel inside a tunnel is not entered.

use ws_guard_common::maps::Tunnels;

use crate::packet::{
    self, Parsed, Place,
    headers::{Around, Bytes, ETH_P_IP, ETH_P_IPV6, ETH_P_TEB, read},
    payload::Hook,
};

const IPPROTO_IPIP: u8 = 4;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_IPV6: u8 = 41;
const UDP_HEADER: usize = 8;
/// VXLAN's header (RFC 7348, 5), and Geneve's without options (RFC 8926, 3.4).
const TUNNEL_HEADER: usize = 8;
/// VXLAN: the network identifier is valid. A packet without this flag is to be discarded.
const VXLAN_VALID: u8 = 0x08;

/// Set by the daemon at load. If all zero, the verifier removes the code that depends on it.
#[unsafe(no_mangle)]
static TUNNELS: Tunnels = Tunnels { vxlan: 0, geneve: 0, ip_in_ip: 0, _pad: 0 };

#[inline(always)]
fn tunnels() -> Tunnels {
    // SAFETY: a static. Volatile, because the loader changes what the compiler sees.
    unsafe {
        Tunnels {
            vxlan: (&raw const TUNNELS.vxlan).read_volatile(),
            geneve: (&raw const TUNNELS.geneve).read_volatile(),
            ip_in_ip: (&raw const TUNNELS.ip_in_ip).read_volatile(),
            _pad: 0,
        }
    }
}

/// Check whether an IP packet of this protocol may be a tunnel's.
#[inline(always)]
pub fn carried_by(protocol: u8) -> bool {
    let tunnels = tunnels();
    match protocol {
        IPPROTO_UDP => tunnels.vxlan != 0 || tunnels.geneve != 0,
        IPPROTO_IPIP | IPPROTO_IPV6 => tunnels.ip_in_ip != 0,
        _ => false,
    }
}

/// Find the content of a tunnel's packet.
/// `offset`: of the UDP header, or of the inner packet for IP in IP.
#[inline(always)]
pub fn enter<H: Hook>(bytes: &Bytes<H>, protocol: u8, offset: usize, around: Around) -> Parsed {
    if around.has(Around::TUNNEL) {
        return Parsed::Other;
    }
    let (offset, kind) = match protocol {
        IPPROTO_IPIP => (offset, ETH_P_IP),
        IPPROTO_IPV6 => (offset, ETH_P_IPV6),
        _ => {
            let tunnels = tunnels();
            let port = u16::from_be(read!(bytes, offset + 2, u16));
            if port == 0 || (port != tunnels.vxlan && port != tunnels.geneve) {
                return Parsed::Other;
            }
            let header = read!(bytes, offset + UDP_HEADER, [u8; 4]);
            let inside = offset + UDP_HEADER + TUNNEL_HEADER;
            if port == tunnels.vxlan && header[0] & VXLAN_VALID != 0 {
                (inside, ETH_P_TEB)
            } else if port == tunnels.geneve && header[0] >> 6 == 0 {
                let options = (header[0] & 0x3F) as usize * 4;
                (inside + options, u16::from_ne_bytes([header[2], header[3]]))
            } else {
                return Parsed::Other;
            }
        }
    };
    let Some(place) = packet::place() else {
        return Parsed::Hidden;
    };
    let around = around.with(Around::TUNNEL, true);
    *place = Place { offset: offset as u32, kind: kind.into(), around: around.0 };
    Parsed::Tunnel
}
