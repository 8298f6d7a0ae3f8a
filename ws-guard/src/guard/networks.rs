//! Networks as keys of the kernel's tries: rules and trusted proxies.
//!
//! A key begins with its family, so that no prefix of one family covers an address of the other.
use std::net::IpAddr;

use ipnet::IpNet;
use ws_guard_common::maps::{Address, Network, Rule};

use super::{error::GuardError, plain::PrefixKey};

/// Network, length of its prefix (0..=32 or 0..=128), and its rule.
pub type NetworkRule = (IpAddr, u8, Rule);

/// Bits before an IPv4 address in its mapped form.
const MAPPED_BITS: u8 = 96;

/// Convert a network of mapped IPv4 addresses to IPv4; host bits are cleared.
pub fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(MAPPED_BITS)) {
        (IpAddr::V4(address), Some(length)) if network.addr().is_ipv6() => {
            IpNet::new(address.into(), length).unwrap_or(network).trunc()
        }
        _ => network.trunc(),
    }
}

/// Return the key of a network. Host bits are cleared, mapped IPv4 becomes IPv4.
///
/// # Errors
/// [`GuardError::BadPrefix`] when the prefix is longer than the address.
pub fn key(network: IpAddr, prefix: u8) -> Result<PrefixKey, GuardError> {
    let longest = if network.is_ipv4() { 32 } else { 128 };
    let bad = |_| GuardError::BadPrefix { network, prefix, longest };
    Ok(key_of(&canonical(IpNet::new(network, prefix).map_err(bad)?)))
}

/// Return the key of a network with a valid prefix.
pub fn key_of(network: &IpNet) -> PrefixKey {
    let (family, before) = match network {
        IpNet::V4(_) => (4, MAPPED_BITS),
        IpNet::V6(_) => (6, 0),
    };
    let bits = u32::from(before + network.prefix_len());
    let address = Address::from(network.addr()).masked(&Address::mask(bits));
    PrefixKey { bits: Network::FAMILY_BITS + bits, network: Network { family, address } }
}

/// Return the network of a key.
pub fn network(key: &PrefixKey) -> (IpAddr, u8) {
    let bits = key.bits.saturating_sub(Network::FAMILY_BITS).min(128) as u8;
    match IpAddr::from(key.network.address) {
        IpAddr::V4(address) if key.network.family == 4 => {
            (address.into(), bits.saturating_sub(MAPPED_BITS))
        }
        IpAddr::V4(address) => (address.to_ipv6_mapped().into(), bits),
        address => (address, bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_go_there_and_back() {
        for (text, prefix, bits) in [
            ("10.77.0.0", 16, 112),
            ("0.0.0.0", 0, 96),
            ("10.77.0.1", 32, 128),
            ("fd77::", 64, 64),
            ("::", 0, 0),
            ("fd77::1", 128, 128),
        ] {
            let address: IpAddr = text.parse().unwrap();
            let key = key(address, prefix).unwrap();
            assert_eq!(key.bits, 32 + bits);
            assert_eq!(key.network.family, if address.is_ipv4() { 4 } else { 6 });
            assert_eq!(network(&key), (address, prefix));
        }
    }

    #[test]
    fn bits_behind_the_prefix_are_cleared() {
        let key = key("10.77.3.9".parse().unwrap(), 16).unwrap();
        assert_eq!(network(&key), ("10.77.0.0".parse().unwrap(), 16));
    }

    #[test]
    fn a_mapped_network_is_one_of_ipv4() {
        let mapped = key("::ffff:10.77.0.0".parse().unwrap(), 112).unwrap();
        assert_eq!(mapped, key("10.77.0.0".parse().unwrap(), 16).unwrap());
        // Shorter than the mapping: an IPv6 network, without any IPv4 address.
        assert_eq!(key("::".parse().unwrap(), 80).unwrap().network.family, 6);
    }

    #[test]
    fn too_long_a_prefix_is_refused_with_its_bound() {
        let error = key("10.0.0.0".parse().unwrap(), 33).unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/33") && error.contains("32"), "{error}");
        assert!(key("::".parse().unwrap(), 129).is_err());
    }
}
