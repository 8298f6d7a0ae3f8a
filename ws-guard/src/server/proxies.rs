//! Where a client really is, when it comes through a proxy: PROXY protocol, `Forwarded` (RFC 7239)
//! and `X-Forwarded-For`, each believed from configured proxies only.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    HeaderMap,
    header::{self, HeaderName},
};
use ipnet::IpNet;
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// What a header of version 2 begins with.
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1 in bytes, as its specification has it.
const LONGEST_V1: usize = 107;
/// Longest header of version 2 that is read, in bytes: addresses and some fields more.
const LONGEST_V2: usize = 1024;

/// The proxies that are believed.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    pub networks: Vec<IpNet>,
    /// They begin each connection with a header of the PROXY protocol, version 1 or 2.
    pub proxy_protocol: bool,
}

impl Proxies {
    /// Whether what `address` says of its clients is believed.
    pub fn trust(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The client's address. A proxy writes one of the two headers and hands on the other as the
    /// client wrote it, so that where they disagree neither is believed.
    pub fn client(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let [forwarded, other] =
            [forwarded(headers), x_forwarded_for(headers)].map(|hops| self.before(hops, peer));
        match (forwarded, other) {
            (None, None) => peer,
            (Some(client), None) | (None, Some(client)) => client,
            (Some(client), Some(other)) => {
                if client == other {
                    client
                } else {
                    peer
                }
            }
        }
    }

    /// The last address in a chain of hops that is no trusted proxy; `None` without a chain.
    fn before(&self, hops: Hops, peer: IpAddr) -> Option<IpAddr> {
        let mut client = (!hops.is_empty()).then_some(peer)?;
        let mut hops = hops.into_iter().rev();
        while self.trust(client) {
            // What cannot be read ends the chain: nothing before it can be believed.
            match hops.next().flatten() {
                Some(hop) => client = hop,
                None => break,
            }
        }
        Some(client)
    }

    /// Read the PROXY protocol's header off a connection from `peer`, if it has to have one. `None`
    /// is a stream without the header it should have.
    pub async fn accept<I: AsyncRead + Unpin>(
        &self,
        io: &mut I,
        peer: SocketAddr,
    ) -> Option<SocketAddr> {
        if !self.proxy_protocol || !self.trust(peer.ip()) {
            return Some(peer);
        }
        let head = read_head(io).await?;
        let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
        let (header, _) = ProxyHeader::parse(&head, config).ok()?;
        // A proxy's own health check has no address.
        let source = header.proxied_address().map_or(peer, |address| address.source);
        Some(SocketAddr::new(source.ip().to_canonical(), source.port()))
    }
}

/// The bytes of the header, and not one more.
async fn read_head<I: AsyncRead + Unpin>(io: &mut I) -> Option<Vec<u8>> {
    // Neither version has a shorter one.
    let mut head = vec![0; V2.len()];
    io.read_exact(&mut head).await.ok()?;
    if head == V2 {
        let mut rest = [0; 4];
        io.read_exact(&mut rest).await.ok()?;
        let [_, _, high, low] = rest;
        head.extend_from_slice(&rest);
        let (start, more) = (head.len(), usize::from(u16::from_be_bytes([high, low])));
        if more > LONGEST_V2 {
            return None;
        }
        head.resize(start + more, 0);
        io.read_exact(head.get_mut(start..)?).await.ok()?;
        return Some(head);
    }
    while !head.ends_with(b"\r\n") {
        if head.len() >= LONGEST_V1 {
            return None;
        }
        head.push(io.read_u8().await.ok()?);
    }
    Some(head)
}

/// The addresses that proxies wrote down, the client's first; `None` for what is no address.
type Hops = Vec<Option<IpAddr>>;

fn forwarded(headers: &HeaderMap) -> Hops {
    items(headers, header::FORWARDED).map(|item| address(for_parameter(item)?)).collect()
}

fn x_forwarded_for(headers: &HeaderMap) -> Hops {
    items(headers, X_FORWARDED_FOR).map(address).collect()
}

/// What stands between the commas of all headers of this name.
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or(""));
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// `for=192.0.2.1;by=…` (RFC 7239, 4), without its quotes.
fn for_parameter(element: &str) -> Option<&str> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let mut nodes = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("for"));
    nodes.next().map(|(_, node)| node.trim_matches('"'))
}

/// An address with or without a port; one of IPv6 with a port stands in brackets.
fn address(node: &str) -> Option<IpAddr> {
    let bare = node.strip_prefix('[').and_then(|node| node.strip_suffix(']')).unwrap_or(node);
    let plain = bare.parse::<IpAddr>().ok();
    let address = plain.or_else(|| node.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn proxies() -> Proxies {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Proxies { networks, proxy_protocol: true }
    }

    fn client(fields: &[(&'static str, &str)], peer: &str) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        proxies().client(&headers, peer.parse().unwrap()).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_proxy() {
        let xff = "x-forwarded-for";
        for (fields, peer, expected) in [
            (&[(xff, "192.0.2.1")][..], "10.0.0.1", "192.0.2.1"),
            (&[(xff, "6.6.6.6, 192.0.2.1, 10.0.0.2")], "10.0.0.1", "192.0.2.1"),
            (&[(xff, "6.6.6.6"), (xff, "192.0.2.1")], "10.0.0.1", "192.0.2.1"),
            // From anybody else it is worth nothing.
            (&[(xff, "192.0.2.1")], "203.0.113.9", "203.0.113.9"),
            (&[], "10.0.0.1", "10.0.0.1"),
            (&[(xff, "192.0.2.1, rubbish")], "10.0.0.1", "10.0.0.1"),
            (&[(xff, "192.0.2.1, rubbish, 10.0.0.2")], "10.0.0.1", "10.0.0.2"),
            (&[(xff, "10.0.0.3, 10.0.0.2")], "10.0.0.1", "10.0.0.3"),
            (&[(xff, "192.0.2.1:4711")], "fd00::1", "192.0.2.1"),
            (&[("forwarded", "for=192.0.2.43;proto=wss;by=10.0.0.9")], "10.0.0.1", "192.0.2.43"),
            (
                &[("forwarded", "for=6.6.6.6, For=\"[2001:db8::17]:4711\"")],
                "10.0.0.1",
                "2001:db8::17",
            ),
            (
                &[("forwarded", "for=192.0.2.1"), (xff, "6.6.6.6, 192.0.2.1")],
                "10.0.0.1",
                "192.0.2.1",
            ),
            // Whichever the proxy wrote, the other one is the client's own.
            (&[("forwarded", "for=6.6.6.6"), (xff, "192.0.2.1")], "10.0.0.1", "10.0.0.1"),
            (&[("forwarded", "for=192.0.2.1"), (xff, "6.6.6.6")], "10.0.0.1", "10.0.0.1"),
            (&[("forwarded", "for=_hidden")], "10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(client(fields, peer), expected, "{fields:?} from {peer}");
        }
    }

    async fn proxied(bytes: &[u8], peer: &str) -> (Option<String>, Vec<u8>) {
        let mut stream = bytes;
        let found = proxies().accept(&mut stream, peer.parse().unwrap()).await;
        (found.map(|address| address.to_string()), stream.to_vec())
    }

    #[tokio::test]
    async fn headers_of_the_proxy_protocol() {
        let peer = "10.0.0.1:1000";
        let v1 = b"PROXY TCP4 192.0.2.1 10.0.0.9 4711 80\r\nGET /";
        assert_eq!(proxied(v1, peer).await, (Some("192.0.2.1:4711".into()), b"GET /".to_vec()));
        let mut v2 = [&V2[..], &[0x21, 0x11, 0, 15]].concat();
        v2.extend([192, 0, 2, 1, 10, 0, 0, 9, 0x12, 0x67, 0, 80]);
        v2.extend([0x04, 0, 0]);
        v2.extend(b"GET /");
        assert_eq!(proxied(&v2, peer).await, (Some("192.0.2.1:4711".into()), b"GET /".to_vec()));
        let local = b"PROXY UNKNOWN\r\nGET /";
        assert_eq!(proxied(local, peer).await, (Some(peer.into()), b"GET /".to_vec()));
        // Whoever is not trusted is not asked.
        let stranger = "203.0.113.9:1000";
        assert_eq!(proxied(v1, stranger).await, (Some(stranger.into()), v1.to_vec()));
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let long = [&V2[..], &[0x21, 0x11, 0xFF, 0xFF]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1\r\n",
            b"PROXY",
            &endless,
            &long,
            &V2[..],
        ] {
            assert_eq!(proxied(bytes, "10.0.0.1:1000").await.0, None, "{bytes:?}");
        }
    }
}
