//! Answers of ethtool and ip about an interface, by ioctl.
//! That is right in any network namespace; /sys may show another one's.

use std::io;

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::os::fd::{AsRawFd, OwnedFd};

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// Versions, bus, and lengths of other answers: not of interest.
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

const ETHTOOL_GDRVINFO: u32 = 0x03;
/// Commands that are answered with 0 or 1.
pub const ETHTOOL_GTXCSUM: u32 = 0x16;
pub const ETHTOOL_GGRO: u32 = 0x2b;
/// Flags; LRO is bit 15.
pub const ETHTOOL_GFLAGS: u32 = 0x25;
pub const FLAG_LRO: u32 = 1 << 15;

/// Queries about one interface of this network namespace.
pub struct Ethtool {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Ethtool {
    pub fn new(interface: &str) -> io::Result<Ethtool> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut name = [0; libc::IFNAMSIZ];
        // The last byte stays 0.
        for (to, from) in name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Ethtool { socket, name })
    }

    pub fn driver(&self) -> io::Result<String> {
        let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        self.ask(&raw mut info)?;
        let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(32);
        Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
    }

    /// Run a command whose answer is one number.
    pub fn value(&self, command: u32) -> io::Result<u32> {
        let mut value = Value { command, data: 0 };
        self.ask(&raw mut value)?;
        Ok(value.data)
    }

    /// Return the MTU: bytes of payload per frame.
    pub fn mtu(&self) -> io::Result<i32> {
        let mut request = self.request();
        self.ioctl(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: SIOCGIFMTU has filled in this member.
        Ok(unsafe { request.ifr_ifru.ifru_mtu })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: all zero is a valid ifreq: numbers, arrays, and a null pointer.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request
    }

    /// Run the command in `question`, a structure of the kernel that begins with it.
    fn ask<T>(&self, question: *mut T) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_data = question.cast();
        self.ioctl(libc::SIOCETHTOOL, &mut request)
    }

    fn ioctl(&self, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the descriptor is a socket, the request an ifreq that outlives the call, and what
        // it points to is as large as the command wants.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), number as _, &raw mut *request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_tells_its_mtu() {
        let lo = Ethtool::new("lo").unwrap();
        assert!(lo.mtu().unwrap() >= 1500);
        assert!(lo.value(ETHTOOL_GTXCSUM).unwrap() <= 1);
    }

    #[test]
    fn what_does_not_exist_is_an_error() {
        let none = Ethtool::new("no-such-if").unwrap();
        assert!(none.driver().is_err() && none.mtu().is_err());
    }
}
