//! The guard's view of the client, compared with that of nginx and HAProxy.
//!
//! Requests with odd forwarding headers go from a trusted peer to a guarded server, and the same
//! headers to nginx (`real_ip_recursive on`) and HAProxy (`hdr_ip`), which answer with the address
//! that they conclude. Each list goes to the guard twice more: as `Forwarded`, which neither of
//! Debian's releases reads, and as both headers at once; and next to a `Forwarded` that disagrees,
//! so that neither can be believed. The rules are the same, except where they differ on purpose:
//!
//! - Where every hop is a trusted proxy, nginx concludes the leftmost that it could read, which a
//!   client can forge. The guard takes the rightmost, as HAProxy does.
//! - HAProxy has no list of proxies here: it concludes the rightmost, trusted or not. It is asked where
//!   the rightmost is what counts, and where it is written without a port: its release reads none.
//! - Where the rightmost hop is no address, both conclude the peer. The guard knows that a client is
//!   hidden there, and gives the connection an identity of its own, so that it is charged to no other.
//! - An empty element at the right end hides the list from HAProxy; RFC 9110, 5.6.1 has it ignored.
//!
//! [`DIFFERENT`] has the places where nginx reads an item otherwise.
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    netns::Family,
    proxies::{Proxy, haproxy, nginx},
    servers::Library,
};

use crate::{
    row::{guard_words, source_name},
    stage::{Flow, PORT, Role, Serving, Stage},
};

const NGINX: u16 = PORT + 1;
const HAPROXY: u16 = PORT + 2;
/// Number of requests from each family's peer.
const REQUESTS: usize = 150;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Networks of `private`.
const TRUSTED: [&str; 9] = [
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
/// Hops that are no trusted proxies, as proxies write them; `%` is a unique number.
const CLIENTS: [&str; 7] = [
    "198.51.100.%",
    "203.0.113.%:4711",
    "2001:db8:%::1",
    "2001:DB8:0:%:0:0:0:A",
    "[2001:db8:%::3]:4711",
    "::ffff:198.51.100.%",
    "[::ffff:203.0.113.%]:80",
];
/// Hops that are trusted proxies.
const PROXIES: [&str; 9] = [
    "10.1.2.%",
    "172.16.0.%:80",
    "192.168.7.%",
    "100.64.0.%",
    "127.0.0.%",
    "fd00::%",
    "fe80::%",
    "[fd00::%]:8080",
    "::ffff:10.3.2.%",
];
/// Hops that are no addresses.
const UNREADABLE: [&str; 9] = [
    "unknown",
    "_hidden",
    "198.51.100",
    "198.51.100.256",
    "-",
    "localhost",
    "[2001:db8::1",
    "2001:db8:::1",
    "\"198.51.100.7\"",
];

/// Lists from which nginx concludes something else, on purpose or by an oversight:
/// its conclusion, or `peer`, and the guard's, or `connection`.
const DIFFERENT: [(&str, &str, &str); 7] = [
    // For nginx a blank separates hops as a comma does; RFC 9110, 5.6.1 has commas only.
    ("198.51.100.7 198.51.100.8", "198.51.100.8", "connection"),
    // A tab is white space as well (RFC 9110, 5.6.3); not for nginx.
    ("198.51.100.7,\t198.51.100.8", "peer", "198.51.100.8"),
    // Empty elements are ignored (RFC 9110, 5.6.1); nginx skips them except at a line's beginning.
    ("198.51.100.7\r\nX-Forwarded-For:", "peer", "198.51.100.7"),
    (",198.51.100.7", "peer", "198.51.100.7"),
    // Some readers take an octet with a leading zero for octal.
    ("198.51.100.07", "198.51.100.7", "connection"),
    // IPv6 has brackets even without a port (RFC 7239, 6); Debian's nginx reads none of those.
    ("[2001:db8:7::1]", "peer", "2001:db8:7::/64"),
    // A port may be obfuscated (RFC 7239, 6.3).
    ("198.51.100.7:_hidden", "peer", "198.51.100.7"),
];

/// A client that no list has.
const OTHER: &str = "Forwarded: for=192.0.2.77\r\n";

/// One hop of a list.
#[derive(Clone, Debug)]
struct Hop {
    text: String,
    address: Option<IpAddr>,
}

impl Hop {
    fn random(rng: &mut Rng) -> Hop {
        let forms: &[&str] = match rng.u8(..10) {
            0..4 => &CLIENTS,
            4..8 => &PROXIES,
            8 => &UNREADABLE,
            _ => &[""],
        };
        Hop::of(&forms[rng.usize(..forms.len())].replace('%', &rng.u8(1..250).to_string()))
    }

    fn of(text: &str) -> Hop {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let plain = bare.unwrap_or(text).parse().ok();
        let address: Option<IpAddr> = plain.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
        Hop { text: text.to_owned(), address: address.map(|address| address.to_canonical()) }
    }

    /// Format it as an element of `Forwarded`, with other parameters around it.
    fn forwarded(&self, rng: &mut Rng) -> String {
        if self.text.is_empty() {
            return String::new();
        }
        let quoted = self.text.contains([':', '[', '"']) || rng.bool();
        let node = match self.text.as_str() {
            text if !quoted => text.to_owned(),
            text => format!("\"{}\"", text.replace('"', "\\\"")),
        };
        let name = ["for", "For", "FOR"][rng.usize(..3)];
        let before = ["", "proto=https;", "by=\"_a,b;for=1.2.3.4\";", "host=\"x\" ; "];
        let behind = ["", ";proto=http", "; by=10.0.0.1", ";host=\"for=192.0.2.1, \""];
        format!("{}{name}={node}{}", before[rng.usize(..4)], behind[rng.usize(..4)])
    }
}

/// A list of hops, its notation, and the cuts of its request.
#[derive(Clone, Debug)]
struct Request {
    hops: Vec<Hop>,
    /// Lines of `X-Forwarded-For`, and equivalent ones of `Forwarded`.
    listed: String,
    forwarded: String,
    padding: String,
    cut: Cut,
}

impl Request {
    fn random(rng: &mut Rng) -> Request {
        let most = if rng.u8(..8) == 0 { 20 } else { 5 };
        let mut hops: Vec<Hop> = (0..rng.usize(0..=most)).map(|_| Hop::random(rng)).collect();
        let empty = hops.iter().take_while(|hop| hop.text.is_empty()).count();
        hops.drain(..empty);
        let names = ["X-Forwarded-For", "x-forwarded-for", "X-FORWARDED-FOR", "x-Forwarded-foR"];
        let listed = lines(&hops, &names, rng, |hop, _| hop.text.clone());
        let names = ["Forwarded", "forwarded", "FORWARDED"];
        let forwarded = lines(&hops, &names, rng, Hop::forwarded);
        // A few have a head of 60 KiB, in lines that every server takes.
        let long = if rng.u8(..10) == 0 { 15 } else { 0 };
        let padding = (0..long).map(|n| format!("X-Pad-{n}: {}\r\n", "x".repeat(4080))).collect();
        let cut = match rng.u8(..3) {
            0 => Cut::Whole,
            1 if long == 0 => Cut::Every(rng.usize(1..40)),
            _ => {
                let mut at: Vec<usize> = (0..6).map(|_| rng.usize(1..400)).collect();
                at.sort();
                Cut::At(at)
            }
        };
        Request { hops, listed, forwarded, padding, cut }
    }

    /// Return the rightmost hop that is not empty.
    fn last(&self) -> Option<&Hop> {
        self.hops.iter().rev().find(|hop| !hop.text.is_empty())
    }
}

/// Write hops into lines of a header, several in some, its name in any spelling.
fn lines(
    hops: &[Hop],
    names: &[&str],
    rng: &mut Rng,
    mut write: impl FnMut(&Hop, &mut Rng) -> String,
) -> String {
    let mut text = String::new();
    for (n, hop) in hops.iter().enumerate() {
        if n == 0 || rng.u8(..4) == 0 && !hop.text.is_empty() {
            let name = names[rng.usize(..names.len())];
            let blank = ["", " ", "  "][rng.usize(..3)];
            text += &format!("{}{name}:{blank}", if n == 0 { "" } else { "\r\n" });
        } else {
            text += [",", ", ", " ,", " ,  "][rng.usize(..4)];
        }
        text += &write(hop, rng);
    }
    if hops.is_empty() { text } else { text + "\r\n" }
}

/// The client of a request, as each of them concludes.
#[derive(Debug)]
struct Conclusions {
    nginx: IpAddr,
    haproxy: IpAddr,
    /// For `X-Forwarded-For`, for `Forwarded`, and for both.
    guard: [Flow; 3],
    /// For `X-Forwarded-For` and [`OTHER`].
    disagreeing: Flow,
}

/// The guard and the proxies under comparison.
struct Asked {
    stage: Stage,
    proxies: Vec<Proxy>,
    family: Family,
}

impl Asked {
    fn new(family: Family) -> Result<Asked> {
        let words = format!("{} --max-flows 4096", guard_words("defuse", 10, ""));
        let serving = Serving::Library(Library::Gorilla);
        let stage = Stage::without_proxy(serving, family, Role::Uplink, &words)?;
        let pod = stage.edge.pod();
        let at = |port| SocketAddr::new(pod.address(family), port);
        let nginx = Proxy::nginx(&pod.namespace, &nginx::http(&telling_nginx(at(NGINX))))?;
        let haproxy = Proxy::haproxy(&pod.namespace, &telling_haproxy(at(HAPROXY)))?;
        Ok(Asked { stage, proxies: vec![nginx, haproxy], family })
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.stage.edge.pod().address(self.family), port)
    }

    /// Open a guarded connection with these lines in its request.
    fn guarded(&self, lines: &str, cut: &Cut) -> Result<Client> {
        let options = ConnectOptions { reads: false, ..ConnectOptions::default() };
        Client::connect_with(self.stage.edge.proxy(), self.at(PORT), options, lines, cut)
    }

    /// Return the conclusion of the proxy at this port.
    fn proxy(&self, port: u16, lines: &str) -> Result<IpAddr> {
        let at = self.at(port);
        let mut stream =
            self.stage.edge.proxy().run(|| TcpStream::connect_timeout(&at, TIMEOUT))??;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let request = format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{lines}\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let said = answer.rsplit("\r\n").find_map(|line| line.trim().parse::<IpAddr>().ok());
        Ok(said.with_context(|| format!("port {port} said {answer:?}"))?.to_canonical())
    }

    fn conclusions(&self, requests: &[Request]) -> Result<Vec<Conclusions>> {
        let opened = requests.iter().map(|request| self.open(request));
        let opened = opened.collect::<Result<Vec<[Client; 4]>>>()?;
        let flows = self.stage.flows()?;
        let flow = |client: &Client| {
            let name = client.local().to_string();
            let found = flows.iter().find(|flow| flow.client == name).cloned();
            found.with_context(|| format!("no flow of {name}"))
        };
        let of = |(request, [a, b, c, d]): (&Request, &[Client; 4])| {
            let lines = format!("{}{}", request.padding, request.listed);
            Ok(Conclusions {
                nginx: self.proxy(NGINX, &lines)?,
                haproxy: self.proxy(HAPROXY, &lines)?,
                guard: [flow(a)?, flow(b)?, flow(c)?],
                disagreeing: flow(d)?,
            })
        };
        requests.iter().zip(&opened).map(of).collect()
    }

    /// Open guarded connections: with each header, with both, and with two that differ.
    fn open(&self, request: &Request) -> Result<[Client; 4]> {
        let Request { listed, forwarded, padding, cut, .. } = request;
        let open = |lines: &[&str]| self.guarded(&format!("{padding}{}", lines.concat()), cut);
        Ok([
            open(&[listed])?,
            open(&[forwarded])?,
            open(&[listed, forwarded])?,
            open(&[listed, OTHER])?,
        ])
    }

    fn peer(&self) -> IpAddr {
        self.family.client(0)
    }

    fn finish(self) -> Result<()> {
        self.proxies.into_iter().try_for_each(Proxy::stop)?;
        self.stage.finish()
    }
}

/// Configure nginx to answer with the client's address.
fn telling_nginx(at: SocketAddr) -> String {
    let trusted = TRUSTED.map(|network| format!("    set_real_ip_from {network};\n")).concat();
    format!(
        "  server {{
    listen {at};
    large_client_header_buffers 16 8k;
    keepalive_timeout 0;
{trusted}    real_ip_header X-Forwarded-For;
    real_ip_recursive on;
    default_type text/plain;
    location / {{ return 200 \"$remote_addr\\r\\n\"; }}
  }}
"
    )
}

/// Configure HAProxy to answer with the client's address.
fn telling_haproxy(at: SocketAddr) -> String {
    let lines = format!(
        "frontend tell
  mode http
  option httpclose
{}  http-request set-src hdr_ip(x-forwarded-for,-1)
  http-request return status 200 content-type text/plain lf-string \"%[src]\\r\\n\"
",
        haproxy::bind(at)
    );
    haproxy::with(&lines).replace("global\n", "global\n  tune.bufsize 131072\n")
}

fn is_trusted(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || a == 100 && b >> 6 == 1
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Derive the guard's expected conclusion from nginx's: identity and source.
fn expected(request: &Request, nginx: IpAddr, peer: IpAddr) -> (&'static str, Option<String>) {
    let Some(last) = request.last() else { return ("peer", Some(source_name(peer))) };
    if nginx == peer {
        return ("connection", None);
    }
    let client = if is_trusted(nginx) { last.address } else { Some(nginx) };
    ("forwarded", client.map(source_name))
}

fn compare(request: &Request, said: &Conclusions, peer: IpAddr) -> Result<()> {
    let (identity, source) = expected(request, said.nginx, peer);
    for flow in &said.guard {
        ensure!(flow.identity == identity, "not {identity}: {request:?} {said:?}");
        let same = source.as_ref().is_none_or(|source| *source == flow.source);
        ensure!(same, "not {source:?}: {request:?} {said:?}");
    }
    let alone = if request.hops.is_empty() { "forwarded" } else { "connection" };
    ensure!(said.disagreeing.identity == alone, "not {alone}: {request:?} {said:?}");
    // Where HAProxy's rule is the same, its conclusion has to agree.
    let bare = request.hops.last().and_then(|hop| hop.text.parse::<IpAddr>().ok());
    if bare.is_some_and(|last| !is_trusted(last.to_canonical()) || is_trusted(said.nginx)) {
        ensure!(source == Some(source_name(said.haproxy)), "HAProxy: {request:?} {said:?}");
    }
    Ok(())
}

fn compared(family: Family) -> Result<()> {
    let asked = Asked::new(family)?;
    let mut rng = Rng::with_seed(13);
    let requests: Vec<Request> = (0..REQUESTS).map(|_| Request::random(&mut rng)).collect();
    let conclusions = asked.conclusions(&requests)?;
    let pairs = requests.iter().zip(&conclusions);
    let wrong: Vec<String> = pairs
        .filter_map(|(request, said)| compare(request, said, asked.peer()).err())
        .map(|error| format!("{error:#}"))
        .collect();
    let counts = ["peer", "forwarded", "connection"].map(|identity| {
        conclusions.iter().filter(|said| said.guard[0].identity == identity).count()
    });
    println!(
        "{family:?}: {} of {REQUESTS} differ; peer, forwarded, connection: {counts:?}",
        wrong.len()
    );
    let shown = wrong[..wrong.len().min(8)].join("\n");
    ensure!(wrong.is_empty(), "{} of {REQUESTS} differ:\n{shown}", wrong.len());
    ensure!(counts.iter().all(|count| *count > 0), "{counts:?}: one of them is not tested");
    asked.finish()
}

#[test]
fn where_nginx_reads_otherwise() -> Result<()> {
    needs_root!();
    let asked = Asked::new(Family::V4)?;
    let request = |(value, ..): &(&str, &str, &str)| Request {
        hops: vec![Hop::of(value)],
        listed: format!("X-Forwarded-For: {value}\r\n"),
        forwarded: String::new(),
        padding: String::new(),
        cut: Cut::Whole,
    };
    let requests: Vec<Request> = DIFFERENT.iter().map(request).collect();
    let conclusions = asked.conclusions(&requests)?;
    let peer = asked.peer().to_string();
    for ((value, nginx, guard), said) in DIFFERENT.iter().zip(&conclusions) {
        let nginx = if *nginx == "peer" { &peer } else { *nginx };
        ensure!(said.nginx.to_string() == nginx, "{value:?}: nginx says {}", said.nginx);
        let flow = &said.guard[0];
        let concluded = if flow.identity == "forwarded" { &flow.source } else { &flow.identity };
        ensure!(concluded == guard, "{value:?}: {flow:?}");
    }
    asked.finish()
}

#[test]
fn from_an_ipv4_peer() -> Result<()> {
    needs_root!();
    compared(Family::V4)
}

#[test]
fn from_an_ipv6_peer() -> Result<()> {
    needs_root!();
    compared(Family::V6)
}
