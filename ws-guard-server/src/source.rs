//! Sources: subjects of limits.

use std::net::IpAddr;

use ipnet::IpNet;

/// Prefix lengths for deriving a source from a client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// 0 to 32.
    pub v4: u8,
    /// 0 to 128.
    pub v6: u8,
}

impl Prefixes {
    pub fn for_address(&self, address: &IpAddr) -> u8 {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }

    /// Return the source of an address.
    pub fn source_of(&self, address: IpAddr) -> IpNet {
        let address = address.to_canonical();
        // The lengths fit their families, so that there always is such a network.
        IpNet::new(address, self.for_address(&address)).map_or(address.into(), |net| net.trunc())
    }
}
