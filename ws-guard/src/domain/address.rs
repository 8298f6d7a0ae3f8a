//! Sources and networks as text for people.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use ws_guard_common::maps::{Address, Policy, SourceKey};
use ws_guard_server::source::Prefixes;

use crate::guard::canonical;

/// Address or network as written: `10.77.0.1`, `10.77.0.0/16`, `fd77::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Address without a prefix length: the source that it belongs to.
    Address(IpAddr),
    /// Network with a prefix length; host bits are cleared.
    Network(IpNet),
}

impl FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Given, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Given::Address(address.to_canonical()));
        }
        match text.parse::<IpNet>() {
            Ok(network) => Ok(Given::Network(canonical(network))),
            Err(_) => Err(format!(
                "{text:?} is neither an address nor a network: write it as 10.77.0.1, 10.77.0.0/16, fd77::1 or fd77::/64"
            )),
        }
    }
}

/// Return the prefix lengths of a policy's masks.
pub fn prefixes_of(policy: &Policy) -> Prefixes {
    let ones = |mask: &Address| mask.0.iter().map(|word| word.count_ones()).sum::<u32>() as u8;
    Prefixes { v4: ones(&policy.mask_v4).saturating_sub(96), v6: ones(&policy.mask_v6) }
}

/// Format a source's key.
/// It is a plain address if the source is one, an end point if the source is one connection,
/// otherwise CIDR.
pub fn source_text(prefixes: &Prefixes, source: &SourceKey) -> String {
    let address = IpAddr::from(source.address);
    if source.port() != 0 {
        return SocketAddr::new(address, u16::from_be(source.port())).to_string();
    }
    let coarse = SourceKey::coarse_bits(source.address.is_v4(), source.level());
    let Some(bits) = coarse.filter(|_| source.level() > 0) else {
        return network_text(&prefixes.source_of(address));
    };
    let length = if address.is_ipv4() { bits.saturating_sub(96) } else { bits };
    IpNet::new(address, length as u8).map_or(address.to_string(), |net| network_text(&net))
}

/// Return the network that an operator's rule is for.
/// It cannot be narrower than a source, for which the kernel keeps one count.
pub fn exemption(prefixes: &Prefixes, given: Given) -> Result<IpNet, String> {
    let network = match given {
        Given::Address(address) => return Ok(prefixes.source_of(address)),
        Given::Network(network) => network,
    };
    let length = prefixes.for_address(&network.addr());
    if network.prefix_len() <= length {
        return Ok(network);
    }
    let whole = prefixes.source_of(network.addr());
    let option = if network.addr().is_ipv4() { "--ipv4-prefix" } else { "--ipv6-prefix" };
    Err(format!(
        "{network} is narrower than a source, which is a /{length} here: name {whole}, or run with {option} {}",
        network.prefix_len()
    ))
}

/// Format `10.77.0.1` for a single address, otherwise CIDR.
pub fn network_text(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// Text for error messages, cut where a hostile one would fill the screen.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 60;
        let short: String = self.0.chars().take(LONGEST).collect();
        let cut = if short.len() < self.0.len() { "…" } else { "" };
        write!(f, "{short:?}{cut}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL: Prefixes = Prefixes { v4: 32, v6: 64 };

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn sources_print_as_people_write_them() {
        let key = |text, scope| SourceKey { address: address(text), scope };
        assert_eq!(source_text(&USUAL, &key("10.77.0.1", 3)), "10.77.0.1");
        assert_eq!(source_text(&USUAL, &key("fd77::", 0)), "fd77::/64");
        let wide = Prefixes { v4: 24, v6: 128 };
        assert_eq!(source_text(&wide, &key("10.77.0.0", 0)), "10.77.0.0/24");
        assert_eq!(source_text(&wide, &key("fd77::1", 0)), "fd77::1");
        let port = SourceKey::of_connection(3, 4711_u16.to_be());
        assert_eq!(source_text(&USUAL, &key("10.77.0.1", port)), "10.77.0.1:4711");
        assert_eq!(source_text(&USUAL, &key("fd77::1", port)), "[fd77::1]:4711");
        let coarse = |text, level| source_text(&USUAL, &key(text, 3).coarser(level).unwrap());
        assert_eq!(coarse("10.77.3.9", 1), "10.77.3.0/24");
        assert_eq!(coarse("10.77.3.9", 2), "10.77.0.0/16");
        assert_eq!(coarse("fd77:1:2:3ff::", 1), "fd77:1:2:300::/56");
        assert_eq!(coarse("fd77:1:2:3ff::", 3), "fd77:1::/32");
    }

    #[test]
    fn mapped_networks_are_of_ipv4() {
        let network = |text: &str| text.parse::<Given>().unwrap();
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
        assert_eq!(network("::/0"), Given::Network("::/0".parse().unwrap()));
    }

    #[test]
    fn masks_give_prefix_lengths_back() {
        let policy = Policy {
            mask_v4: Address::mask(96 + 24),
            mask_v6: Address::mask(56),
            ..Policy::default()
        };
        assert_eq!(prefixes_of(&policy), Prefixes { v4: 24, v6: 56 });
    }

    #[test]
    fn a_bare_address_exempts_its_source() {
        let allow = |text: &str| exemption(&USUAL, text.parse().unwrap());
        assert_eq!(allow("fd77::1").unwrap().to_string(), "fd77::/64");
        assert_eq!(allow("::ffff:10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(allow("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        let narrow = allow("fd77::1/128").unwrap_err();
        assert!(narrow.contains("name fd77::/64"), "{narrow}");
        assert!(narrow.contains("--ipv6-prefix 128"), "{narrow}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_by_name(text in ".{0,40}") {
            if let Err(message) = text.parse::<Given>() {
                prop_assert!(message.contains("neither"));
            }
        }

        #[test]
        fn any_network_is_read_back(bits in any::<u32>(), length in 0u8..=32) {
            let text = format!("{}/{length}", std::net::Ipv4Addr::from(bits));
            let Given::Network(network) = text.parse::<Given>().unwrap() else { panic!("{text}") };
            prop_assert_eq!(network.prefix_len(), length);
            prop_assert_eq!(network, network.trunc());
        }

        #[test]
        fn quoted_text_is_short(text in ".{0,200}") {
            prop_assert!(Quoted(&text).to_string().chars().filter(|c| *c != '\\').count() < 700);
        }
    }
}
