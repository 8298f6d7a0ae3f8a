//! Rules by network: the allowlist.
//!
//! The trie holds IPv6 prefixes; an IPv4 network `a.b.c.d/n` is `::ffff:a.b.c.d/(96 + n)`.
use std::net::IpAddr;

use ws_guard_common::maps::{Address, Rule};

use super::{error::GuardError, plain::PrefixKey};

/// A network, the length of its prefix (0..=32 or 0..=128), and what holds for it.
pub type NetworkRule = (IpAddr, u8, Rule);

/// Bits before an IPv4 address in its mapped form.
const MAPPED_BITS: u8 = 96;

/// The key of a network; bits behind the prefix are cleared.
///
/// # Errors
/// [`GuardError::BadPrefix`] when the prefix is longer than the address.
pub fn key(network: IpAddr, prefix: u8) -> Result<PrefixKey, GuardError> {
    let (longest, before) = match network {
        IpAddr::V4(_) => (32, MAPPED_BITS),
        IpAddr::V6(_) => (128, 0),
    };
    if prefix > longest {
        return Err(GuardError::BadPrefix { network, prefix, longest });
    }
    let bits = u32::from(before + prefix);
    Ok(PrefixKey { bits, address: Address::from(network).masked(&Address::mask(bits)) })
}

/// The network of a key.
pub fn network(key: &PrefixKey) -> (IpAddr, u8) {
    let bits = key.bits.min(128) as u8;
    match IpAddr::from(key.address) {
        IpAddr::V4(address) if bits >= MAPPED_BITS => (address.into(), bits - MAPPED_BITS),
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
            assert_eq!(key.bits, bits);
            assert_eq!(network(&key), (address, prefix));
        }
    }

    #[test]
    fn bits_behind_the_prefix_are_cleared() {
        let key = key("10.77.3.9".parse().unwrap(), 16).unwrap();
        assert_eq!(network(&key), ("10.77.0.0".parse().unwrap(), 16));
    }

    #[test]
    fn too_long_a_prefix_is_refused_with_its_bound() {
        let error = key("10.0.0.0".parse().unwrap(), 33).unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/33") && error.contains("32"), "{error}");
        assert!(key("::".parse().unwrap(), 129).is_err());
    }
}
