//! Client address behind a proxy: PROXY protocol, `Forwarded` or `X-Forwarded-For`.
//! Each (RFC 7239 for `Forwarded`) is accepted from configured proxies only, and read as the kernel
//! reads it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use hyper::HeaderMap;
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use tokio::io::{AsyncRead, AsyncReadExt};
use ws_guard_common::{
    forwarded::{
        ClientReader,
        names::{FORWARDED, HeaderNames, X_FORWARDED_FOR},
        preface::stage,
    },
    maps::{Address, identity},
};

/// Trusted proxies.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    pub networks: Vec<IpNet>,
    /// `true` if each connection begins with a PROXY protocol header, version 1 or 2.
    pub proxy_protocol: bool,
}

/// Address to which a connection is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    pub address: IpAddr,
    /// Peer's port, for a single connection of a proxy that sent unusable information.
    /// It is charged to no other.
    pub port: Option<u16>,
}

impl From<IpAddr> for Caller {
    fn from(address: IpAddr) -> Caller {
        Caller { address, port: None }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl Serialize for Caller {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Proxies {
    /// Check whether the statements of `address` about its clients are trusted.
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Determine the client of a request with these headers on a connection of `peer`.
    /// `reader` is the result of [`Proxies::accept`] for the connection's beginning.
    pub fn client(&self, headers: &HeaderMap, reader: ClientReader, peer: SocketAddr) -> Caller {
        let names = HeaderNames::usual();
        let trust = |address: &Address| self.trust((*address).into());
        let mut reader = reader;
        for name in [FORWARDED, X_FORWARDED_FOR] {
            for value in headers.get_all(name) {
                let line = [name.as_bytes(), b": ", value.as_bytes(), b"\n"];
                line.concat().iter().for_each(|byte| reader.push(*byte, &names, &trust));
            }
        }
        let client = reader.client(&peer.ip().into(), peer.port().to_be(), &trust);
        let alone = client.identity == identity::CONNECTION;
        Caller { address: client.address.into(), port: alone.then_some(peer.port()) }
    }

    /// Read the PROXY protocol's header from `peer`, if required, and no byte more.
    /// `None`: the stream lacks a required header.
    pub async fn accept<I: AsyncRead + Unpin>(
        &self,
        io: &mut I,
        peer: SocketAddr,
    ) -> Option<ClientReader> {
        let mut reader = ClientReader::default();
        if !self.proxy_protocol || !self.trust(peer.ip()) {
            reader.skip_preface();
            return Some(reader);
        }
        while !reader.preface.is_over() {
            let header = reader.push_preface(io.read_u8().await.ok()?);
            if !header || reader.preface.stage == stage::BAD {
                return None;
            }
        }
        Some(reader)
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use ws_guard_common::forwarded::preface::V2;

    use super::*;

    fn proxies() -> Proxies {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Proxies { networks, proxy_protocol: true }
    }

    fn client(fields: &[(&'static str, &[u8])], peer: &str) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let mut reader = ClientReader::default();
        reader.skip_preface();
        let peer = SocketAddr::new(peer.parse().unwrap(), 1000);
        proxies().client(&headers, reader, peer).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxy() {
        let xff = "x-forwarded-for";
        for (fields, peer, expected) in [
            (&[(xff, &b"192.0.2.1"[..])][..], "10.0.0.1", "192.0.2.1"),
            (&[(xff, b"6.6.6.6, 192.0.2.1, 10.0.0.2")], "10.0.0.1", "192.0.2.1"),
            (&[(xff, b"6.6.6.6"), (xff, b"192.0.2.1")], "10.0.0.1", "192.0.2.1"),
            // From any other address it is ignored.
            (&[(xff, b"192.0.2.1")], "203.0.113.9", "203.0.113.9"),
            (&[], "10.0.0.1", "10.0.0.1"),
            (&[(xff, b"192.0.2.1:4711")], "fd00::1", "192.0.2.1"),
            (&[(xff, b"192.0.2.1, rubbish, 10.0.0.2")], "10.0.0.1", "10.0.0.2"),
            // All of them proxies: the rightmost, which no client can forge.
            (&[(xff, b"10.0.0.3, 10.0.0.2")], "10.0.0.1", "10.0.0.2"),
            // Bytes that are not text invalidate only their item.
            (&[(xff, b"\xFF\xFE, 192.0.2.1")], "10.0.0.1", "192.0.2.1"),
            (&[(xff, b"::ffff:192.0.2.1")], "10.0.0.1", "192.0.2.1"),
            (&[("forwarded", b"for=192.0.2.43;proto=wss;by=10.0.0.9")], "10.0.0.1", "192.0.2.43"),
            (&[("forwarded", b"host=\"a, for=6.6.6.6\";for=192.0.2.1")], "10.0.0.1", "192.0.2.1"),
            (
                &[("forwarded", b"for=6.6.6.6, For=\"[2001:db8::17]:4711\"")],
                "10.0.0.1",
                "2001:db8::17",
            ),
            (
                &[("forwarded", b"for=192.0.2.1"), (xff, b"6.6.6.6, 192.0.2.1")],
                "10.0.0.1",
                "192.0.2.1",
            ),
            // Whichever the proxy wrote, the other one is the client's own.
            (&[("forwarded", b"for=6.6.6.6"), (xff, b"192.0.2.1")], "10.0.0.1", "10.0.0.1:1000"),
            (&[(xff, b"192.0.2.1, rubbish")], "fd00::1", "[fd00::1]:1000"),
            (&[("forwarded", b"for=_hidden")], "10.0.0.1", "10.0.0.1:1000"),
        ] {
            assert_eq!(client(fields, peer), expected, "{fields:?} from {peer}");
        }
    }

    /// Return the charged address of a connection without headers, and its other bytes.
    async fn proxied(bytes: &[u8], peer: &str) -> (Option<String>, Vec<u8>) {
        let (mut stream, peer) = (bytes, peer.parse().unwrap());
        let found = proxies().accept(&mut stream, peer).await;
        let caller = found.map(|reader| proxies().client(&HeaderMap::new(), reader, peer));
        (caller.map(|caller| caller.to_string()), stream.to_vec())
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2[..], &[0x20 | command, family], &length, rest, b"GET /"].concat()
    }

    #[tokio::test]
    async fn headers_of_the_proxy_protocol() {
        let peer = "10.0.0.1:1000";
        let found = |client: &str| (Some(client.to_string()), b"GET /".to_vec());
        let v1 = b"PROXY TCP4 192.0.2.1 10.0.0.9 4711 80\r\nGET /";
        assert_eq!(proxied(v1, peer).await, found("192.0.2.1"));
        let addresses = [192, 0, 2, 1, 10, 0, 0, 9, 0x12, 0x67, 0, 80, 0x04, 0, 0];
        assert_eq!(proxied(&v2(1, 0x11, &addresses), peer).await, found("192.0.2.1"));
        // A proxy's own health check has no address, whatever family it writes.
        for local in [b"PROXY UNKNOWN\r\nGET /".to_vec(), v2(0, 0xFF, b""), v2(0, 0, b"ab")] {
            assert_eq!(proxied(&local, peer).await, found("10.0.0.1"), "{local:?}");
        }
        // Untrusted peers are not asked.
        let stranger = "203.0.113.9:1000";
        assert_eq!(proxied(v1, stranger).await, (Some("203.0.113.9".into()), v1.to_vec()));
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let short = v2(1, 0x11, b"abc");
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1\r\n",
            b"PROXY",
            b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            &endless,
            &short,
            &V2[..],
        ] {
            assert_eq!(proxied(bytes, "10.0.0.1:1000").await.0, None, "{bytes:?}");
        }
    }
}
