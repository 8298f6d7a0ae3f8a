//! Listening sockets, on one address or on every address of the host.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Maximum number of connections that wait for accept(2).
const BACKLOG: i32 = 4096;

/// Listen on an address, with other sockets if `shared`.
/// `[::]` is every address of the host, IPv4 included, whatever `net.ipv6.bindv6only` says, and
/// where there is no IPv6 at all.
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let every = address.is_ipv6() && address.ip().is_unspecified();
    match open(address, shared, every) {
        Err(error) if every && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into(), shared, false)
        }
        opened => opened,
    }
}

fn open(address: SocketAddr, shared: bool, every: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if every {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Create a listener for each shard; the kernel distributes connections over them.
pub fn for_shards(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    let shards = shards.max(1);
    // A socket that does not share its port detects another process on it.
    let alone = bind(address, false)?;
    if shards == 1 {
        return Ok(vec![alone]);
    }
    let address = alone.local_addr()?;
    drop(alone);
    (0..shards).map(|_| bind(address, true)).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpStream, process::Command};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// In its own network namespace, whose setting can be changed.
    #[test]
    fn every_address_is_ipv4_too() {
        let apart = std::thread::spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return eprintln!("skipped: needs root for a network namespace");
            }
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
            let listener = bind("[::]:0".parse().unwrap(), false).unwrap();
            let port = listener.local_addr().unwrap().port();
            for address in
                [SocketAddr::from(([127, 0, 0, 1], port)), format!("[::1]:{port}").parse().unwrap()]
            {
                assert!(TcpStream::connect(address).is_ok(), "{address}");
            }
            // Another socket still gets the error that the port is taken.
            assert!(bind(([0, 0, 0, 0], port).into(), false).is_err());
        });
        apart.join().unwrap();
    }
}
