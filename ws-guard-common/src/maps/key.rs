//! Keys of connections and sources.

/// An IPv6 address, or an IPv4 one mapped into ::ffff:0:0/96.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// Third word of a mapped IPv4 address, in network byte order.
    pub const MAPPED: u32 = 0xFFFF_u32.to_be();

    /// `a.b.c.d` as in the packet, mapped.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Address {
        Address([0, 0, Self::MAPPED, word])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// The address with the bits outside `mask` cleared.
    #[inline(always)]
    pub const fn masked(&self, mask: &Address) -> Address {
        let (a, m) = (self.0, mask.0);
        Address([a[0] & m[0], a[1] & m[1], a[2] & m[2], a[3] & m[3]])
    }

    /// A mask of the first `bits` bits, at most 128. For IPv4, count the 96 before it.
    pub const fn mask(bits: u32) -> Address {
        let mut words = [0u32; 4];
        let mut i = 0;
        while i < 4 {
            let from = i as u32 * 32;
            let here = if bits <= from {
                0
            } else if bits - from > 32 {
                32
            } else {
                bits - from
            };
            words[i] = if here == 0 { 0 } else { (u32::MAX << (32 - here)).to_be() };
            i += 1;
        }
        Address(words)
    }
}

/// A connection: key of the flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    pub client: Address,
    pub server: Address,
    pub client_port: u16,
    pub server_port: u16,
}

/// A source in a scope: key of the source table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceKey {
    /// Masked by the policy; whole where the source is one connection.
    pub address: Address,
    /// [`super::Policy::scope`] in the lowest byte; above it the [`SourceKey::level`] of a coarser
    /// prefix, and the [`SourceKey::port`] of a single connection.
    pub scope: u32,
}

impl SourceKey {
    /// [`SourceKey::scope`] of one connection, by the peer's port in network byte order.
    #[inline(always)]
    pub const fn of_connection(scope: u32, port: u16) -> u32 {
        scope | (port as u32) << 16
    }

    /// Scope of the policy in force.
    #[inline(always)]
    pub const fn scope(&self) -> u32 {
        self.scope & 0xFF
    }

    /// The peer's port in network byte order, where the source is one connection; otherwise 0.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        (self.scope >> 16) as u16
    }

    /// Level of a coarser prefix, from 1; 0 for an entry of the source table.
    #[inline(always)]
    pub const fn level(&self) -> u32 {
        self.scope >> 8 & 0xFF
    }

    /// Prefix length, of 128 bits, to which sources without room are charged at `level`, from 1:
    /// IPv4 /24, /16; IPv6 /56, /48, /32. `None` past the coarsest.
    #[inline(always)]
    pub const fn coarse_bits(is_v4: bool, level: u32) -> Option<u32> {
        match (is_v4, level) {
            (true, 1) => Some(96 + 24),
            (true, 2) => Some(96 + 16),
            (false, 1) => Some(56),
            (false, 2) => Some(48),
            (false, 3) => Some(32),
            _ => None,
        }
    }

    /// Key of this source's prefix at `level`. `None` past the coarsest.
    #[inline(always)]
    pub const fn coarser(&self, level: u32) -> Option<SourceKey> {
        // Only whole and half words: saves the kernel programs the arithmetic of any mask.
        const HALF: u32 = 0xFFFF_0000_u32.to_be();
        const THREE: u32 = 0xFFFF_FF00_u32.to_be();
        const ALL: u32 = u32::MAX;
        let mask = match (self.address.is_v4(), level) {
            (true, 1) => [ALL, ALL, ALL, THREE],
            (true, 2) => [ALL, ALL, ALL, HALF],
            (false, 1) => [ALL, THREE, 0, 0],
            (false, 2) => [ALL, HALF, 0, 0],
            (false, 3) => [ALL, 0, 0, 0],
            _ => return None,
        };
        let address = self.address.masked(&Address(mask));
        Some(SourceKey { address, scope: self.scope() | level << 8 })
    }
}

/// Maximum of levels of [`SourceKey::coarser`].
pub const COARSE_LEVELS: u32 = 3;

/// Capacity of the table of coarser prefixes.
pub const COARSE: u32 = 1024;

/// Key of the tries of networks: the families are separate, so that no prefix of one covers the
/// other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Network {
    /// 4 or 6.
    pub family: u32,
    pub address: Address,
}

impl Network {
    /// Bits in front of the address.
    pub const FAMILY_BITS: u32 = 32;
    /// Prefix length of one address.
    pub const ALL_BITS: u32 = Self::FAMILY_BITS + 128;

    #[inline(always)]
    pub const fn of(address: &Address) -> Network {
        Network { family: if address.is_v4() { 4 } else { 6 }, address: *address }
    }
}

#[cfg(any(test, feature = "user"))]
mod user {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::{Address, FlowKey};
    use crate::maps::ServerKey;

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Address {
            let v6 = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let o = v6.octets();
            Address([0, 4, 8, 12].map(|i| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]])))
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> IpAddr {
            let mut octets = [0; 16];
            for (four, word) in octets.chunks_exact_mut(4).zip(address.0) {
                four.copy_from_slice(&word.to_ne_bytes());
            }
            if address.is_v4() {
                Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]).into()
            } else {
                Ipv6Addr::from(octets).into()
            }
        }
    }

    impl FlowKey {
        pub fn new(client: SocketAddr, server: SocketAddr) -> FlowKey {
            FlowKey {
                client: client.ip().into(),
                server: server.ip().into(),
                client_port: client.port().to_be(),
                server_port: server.port().to_be(),
            }
        }

        pub fn client_addr(&self) -> SocketAddr {
            SocketAddr::new(self.client.into(), u16::from_be(self.client_port))
        }

        pub fn server_addr(&self) -> SocketAddr {
            SocketAddr::new(self.server.into(), u16::from_be(self.server_port))
        }
    }

    impl From<&ServerKey> for SocketAddr {
        fn from(server: &ServerKey) -> Self {
            SocketAddr::new(server.address.into(), u16::from_be(server.port))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["10.77.0.1", "fd77::1", "::1", "255.255.255.255"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
        }
    }

    #[test]
    fn masks_cut_prefixes() {
        let v6: Address = "fd77:0:0:1:2:3:4:5".parse::<IpAddr>().unwrap().into();
        assert_eq!(
            IpAddr::from(v6.masked(&Address::mask(64))),
            "fd77:0:0:1::".parse::<IpAddr>().unwrap()
        );
        let v4: Address = "10.77.3.9".parse::<IpAddr>().unwrap().into();
        assert_eq!(
            IpAddr::from(v4.masked(&Address::mask(96 + 24))),
            "10.77.3.0".parse::<IpAddr>().unwrap()
        );
        assert_eq!(v4.masked(&Address::mask(128)), v4);
    }
}
