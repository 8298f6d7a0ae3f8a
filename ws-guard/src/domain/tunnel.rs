//! Tunnels that the kernel programs look into.

use std::{fmt, str::FromStr};

use ws_guard_common::maps::Tunnels;

use super::{address::Quoted, setting::whole};

/// Default UDP port of VXLAN (RFC 7348, 5).
const VXLAN_PORT: u16 = 4789;
/// Default UDP port of Geneve (RFC 8926, 3.3).
const GENEVE_PORT: u16 = 6081;

/// Kind of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// VXLAN with its UDP port.
    Vxlan(u16),
    /// Geneve with its UDP port.
    Geneve(u16),
    /// IPv4 or IPv6 in either.
    IpInIp,
}

impl Tunnel {
    const fn kind(self) -> &'static str {
        match self {
            Tunnel::Vxlan(_) => "vxlan",
            Tunnel::Geneve(_) => "geneve",
            Tunnel::IpInIp => "ipip",
        }
    }

    /// Add it to a list with at most one tunnel of each kind.
    ///
    /// # Errors
    /// If the list has one of its kind with another port.
    pub fn add_to(self, list: &mut Vec<Tunnel>) -> Result<(), String> {
        match list.iter().find(|tunnel| tunnel.kind() == self.kind()) {
            None => list.push(self),
            Some(present) if *present == self => {}
            Some(present) => {
                return Err(format!("{present} is given already: give one port for each kind"));
            }
        }
        Ok(())
    }

    /// Convert a list to the kernel's form.
    pub fn to_kernel(list: &[Tunnel]) -> Tunnels {
        let mut tunnels = Tunnels::default();
        for tunnel in list {
            match *tunnel {
                Tunnel::Vxlan(port) => tunnels.vxlan = port,
                Tunnel::Geneve(port) => tunnels.geneve = port,
                Tunnel::IpInIp => tunnels.ip_in_ip = 1,
            }
        }
        tunnels
    }
}

impl FromStr for Tunnel {
    type Err = String;

    fn from_str(text: &str) -> Result<Tunnel, String> {
        let (kind, port) = match text.trim().split_once(':') {
            Some((kind, port)) => (kind, Some(whole(port, 1, 65_535)?)),
            None => (text.trim(), None),
        };
        match (kind, port) {
            ("vxlan", port) => Ok(Tunnel::Vxlan(port.unwrap_or(VXLAN_PORT))),
            ("geneve", port) => Ok(Tunnel::Geneve(port.unwrap_or(GENEVE_PORT))),
            ("ipip", None) => Ok(Tunnel::IpInIp),
            _ => Err(format!(
                "{} is not a tunnel: write it as vxlan:{VXLAN_PORT}, geneve:{GENEVE_PORT} or ipip",
                Quoted(text)
            )),
        }
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tunnel::Vxlan(port) | Tunnel::Geneve(port) => write!(f, "{}:{port}", self.kind()),
            Tunnel::IpInIp => f.write_str(self.kind()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_read_back_as_they_print() {
        for (text, printed) in [
            ("vxlan", "vxlan:4789"),
            ("vxlan:8472", "vxlan:8472"),
            ("geneve", "geneve:6081"),
            ("ipip", "ipip"),
        ] {
            let tunnel: Tunnel = text.parse().unwrap();
            assert_eq!(tunnel.to_string(), printed);
            assert_eq!(printed.parse(), Ok(tunnel));
        }
        for text in ["", "gre", "vxlan:", "vxlan:0", "vxlan:65536", "ipip:4"] {
            let error = text.parse::<Tunnel>().unwrap_err();
            assert!(error.contains("write it as") || error.contains("whole number"), "{error}");
        }
    }

    #[test]
    fn a_list_holds_one_of_each_kind() {
        let mut list = Vec::new();
        for text in ["geneve", "vxlan", "vxlan:4789"] {
            text.parse::<Tunnel>().unwrap().add_to(&mut list).unwrap();
        }
        assert_eq!(list, [Tunnel::Geneve(6081), Tunnel::Vxlan(4789)]);
        assert!(Tunnel::Vxlan(1).add_to(&mut list).unwrap_err().contains("vxlan:4789"));
        let kernel = Tunnels { vxlan: 4789, geneve: 6081, ip_in_ip: 0, _pad: 0 };
        assert_eq!(Tunnel::to_kernel(&list), kernel);
    }
}
