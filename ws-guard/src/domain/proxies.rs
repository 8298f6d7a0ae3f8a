//! Trusted proxies, which name a request's client.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::address::{Given, Quoted, network_text};

/// Maximum of networks: half of the kernel's table, for an old and a new list.
pub const MOST_PROXIES: usize = 512;

/// Word for all of [`private`].
const PRIVATE: &str = "private";
/// Word for an empty list.
const NONE: &str = "none";

/// Networks that no client on the internet sends from.
/// They are those of RFC 1918, RFC 6598 and RFC 4193, loopback and link-local.
const PRIVATE_NETWORKS: [&str; 9] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "fc00::/7",
    "::1/128",
    "fe80::/10",
];

fn private() -> impl Iterator<Item = IpNet> {
    PRIVATE_NETWORKS.iter().filter_map(|text| text.parse().ok())
}

/// List of networks. As text: CIDR, or an address; `private`; `none` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: BTreeSet<IpNet>,
    /// Set by the word `none`.
    none: bool,
}

impl Default for TrustedProxies {
    fn default() -> TrustedProxies {
        TrustedProxies { networks: private().collect(), none: false }
    }
}

impl TrustedProxies {
    /// Trust exactly these networks.
    pub fn of(networks: &[IpNet]) -> TrustedProxies {
        TrustedProxies { networks: networks.iter().copied().collect(), none: networks.is_empty() }
    }

    pub fn networks(&self) -> impl Iterator<Item = &IpNet> {
        self.networks.iter()
    }

    /// Check whether an address is trusted.
    pub fn trusts(&self, address: std::net::IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    pub fn clear(&mut self) {
        *self = TrustedProxies { networks: BTreeSet::new(), none: false };
    }

    /// Add a text to the list.
    ///
    /// # Errors
    /// The problem of the text, and the remedy; then nothing has changed.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let text = text.trim();
        let mut networks = self.networks.clone();
        match text {
            NONE => {}
            PRIVATE => networks.extend(private()),
            _ => {
                networks.insert(parse(text)?);
            }
        }
        if self.none || text == NONE && !networks.is_empty() {
            return Err(format!("{NONE} conflicts with other values: remove it, or the others"));
        }
        if networks.len() > MOST_PROXIES {
            return Err(format!(
                "{} is one too many: at most {MOST_PROXIES} networks can be trusted; give larger ones",
                Quoted(text)
            ));
        }
        *self = TrustedProxies { networks, none: text == NONE };
        Ok(())
    }

    /// Return texts that [`TrustedProxies::add`] accepts.
    pub fn texts(&self) -> Vec<String> {
        if self.networks.is_empty() {
            return vec![NONE.into()];
        }
        let all_private = private().all(|network| self.networks.contains(&network));
        let private: BTreeSet<IpNet> = private().filter(|_| all_private).collect();
        let others = self.networks.difference(&private).map(network_text);
        all_private.then(|| PRIVATE.to_string()).into_iter().chain(others).collect()
    }
}

fn parse(text: &str) -> Result<IpNet, String> {
    match text.parse() {
        Ok(Given::Network(network)) => Ok(network),
        Ok(Given::Address(address)) => Ok(address.into()),
        Err(_) => Err(format!(
            "{} is neither an address nor a network: write it as 10.0.0.1, 10.0.0.0/16 or \
             fd77::/64, or give {PRIVATE} or {NONE}",
            Quoted(text)
        )),
    }
}

impl Serialize for TrustedProxies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.texts().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TrustedProxies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TrustedProxies, D::Error> {
        let mut proxies = TrustedProxies::of(&[]);
        proxies.clear();
        for text in Vec::<String>::deserialize(deserializer)? {
            proxies.add(&text).map_err(D::Error::custom)?;
        }
        Ok(proxies)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(texts: &[&str]) -> Result<TrustedProxies, String> {
        let mut proxies = TrustedProxies::default();
        proxies.clear();
        texts.iter().try_for_each(|text| proxies.add(text)).map(|()| proxies)
    }

    #[test]
    fn private_is_the_default_and_a_word() {
        let default = TrustedProxies::default();
        assert_eq!(default.texts(), ["private"]);
        assert_eq!(of(&["private"]).unwrap(), default);
        for (address, trusted) in [
            ("10.1.2.3", true),
            ("172.31.0.1", true),
            ("172.32.0.1", false),
            ("192.168.255.1", true),
            ("100.64.0.1", true),
            ("127.0.0.1", true),
            ("169.254.1.1", true),
            ("192.0.2.1", false),
            ("::1", true),
            ("fd77::1", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
            ("::ffff:10.0.0.1", true),
            ("::ffff:192.0.2.1", false),
        ] {
            assert_eq!(default.trusts(address.parse().unwrap()), trusted, "{address}");
        }
    }

    #[test]
    fn networks_add_to_private_and_mapped_ones_are_of_ipv4() {
        let proxies = of(&["203.0.113.7", "private", "::ffff:198.51.100.0/120"]).unwrap();
        assert_eq!(proxies.texts(), ["private", "198.51.100.0/24", "203.0.113.7"]);
        // A part of the private networks is not `private`.
        assert_eq!(of(&["10.0.0.0/8"]).unwrap().texts(), ["10.0.0.0/8"]);
    }

    #[test]
    fn none_is_alone() {
        assert_eq!(of(&["none"]).unwrap().texts(), ["none"]);
        assert!(!of(&["none"]).unwrap().trusts("10.0.0.1".parse().unwrap()));
        for both in [["none", "10.0.0.1"], ["private", "none"]] {
            assert!(of(&both).unwrap_err().contains("remove it"), "{both:?}");
        }
        assert!(of(&["nonsense"]).unwrap_err().contains("or give private or none"));
    }

    #[test]
    fn a_list_has_an_end() {
        let texts: Vec<String> =
            (0..=512).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert!(of(&texts[..512]).is_ok());
        assert!(of(&texts).unwrap_err().contains("one too many"));
    }

    proptest! {
        #[test]
        fn texts_are_read_back(bits in any::<u32>(), length in 0u8..=32, private in any::<bool>()) {
            let network = format!("{}/{length}", std::net::Ipv4Addr::from(bits));
            let texts = if private { vec!["private", &network] } else { vec![network.as_str()] };
            let proxies = of(&texts).unwrap();
            let again: Vec<String> = proxies.texts();
            let again: Vec<&str> = again.iter().map(String::as_str).collect();
            prop_assert_eq!(&of(&again).unwrap(), &proxies);
            let json = serde_json::to_value(&proxies).unwrap();
            prop_assert_eq!(serde_json::from_value::<TrustedProxies>(json).unwrap(), proxies);
        }
    }
}
