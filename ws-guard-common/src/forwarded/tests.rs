//! Requests as proxies send them, and as attackers would have them sent.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{handshake::has_control, maps::Pending};

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// 10.0.0.0/8 and fd00::/8 are proxies.
fn trusts(address: &Address) -> bool {
    match IpAddr::from(*address) {
        IpAddr::V4(v4) => v4.octets()[0] == 10,
        IpAddr::V6(v6) => v6.octets()[0] == 0xFD,
    }
}

/// Client that the head, with or without a preface, comes from.
fn read(head: &[u8], peer: &str) -> (String, &'static str) {
    let mut reader = ClientReader::default();
    let names = HeaderNames::usual();
    for byte in head {
        if !reader.preface.is_over() && reader.push_preface(*byte) {
            continue;
        }
        reader.push(*byte, &names, &trusts);
    }
    let client = reader.client(&address(peer), 4711u16.to_be(), &trusts);
    let text = match client.port {
        0 => IpAddr::from(client.address).to_string(),
        port => format!("{}:{}", IpAddr::from(client.address), u16::from_be(port)),
    };
    (text, identity::name(client.identity))
}

fn request(fields: &str) -> Vec<u8> {
    format!("GET /chat?a:b HTTP/1.1\r\nHost: x\r\n{fields}Upgrade: websocket\r\n\r\n").into_bytes()
}

const PROXY: &str = "10.0.0.1";
const OWN: (&str, &str) = ("10.0.0.1:4711", "connection");

#[test]
fn the_rightmost_address_that_is_no_proxy() {
    for (fields, expected) in [
        ("", (PROXY, "peer")),
        ("X-Forwarded-For: 192.0.2.1\r\n", ("192.0.2.1", "forwarded")),
        ("x-forwarded-for:192.0.2.1\r\n", ("192.0.2.1", "forwarded")),
        ("X-FORWARDED-FOR: \t 192.0.2.1 \t\r\n", ("192.0.2.1", "forwarded")),
        ("X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.2\r\n", ("192.0.2.1", "forwarded")),
        ("X-Forwarded-For: 192.0.2.1:4711\r\n", ("192.0.2.1", "forwarded")),
        ("X-Forwarded-For: [2001:db8::1]:80\r\n", ("2001:db8::1", "forwarded")),
        ("X-Forwarded-For: ::ffff:192.0.2.1\r\n", ("192.0.2.1", "forwarded")),
        // Several lines are one list (RFC 9110, 5.3), whatever lies between them.
        (
            "X-Forwarded-For: 6.6.6.6\r\nA: b\r\nX-Forwarded-For: 192.0.2.1\r\n",
            ("192.0.2.1", "forwarded"),
        ),
        // All of them proxies: the rightmost, which no client can forge.
        ("X-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n", ("10.0.0.2", "forwarded")),
        // An empty element counts for nothing, a bad one hides what is left of it.
        ("X-Forwarded-For: 192.0.2.1,\r\n", ("192.0.2.1", "forwarded")),
        ("X-Forwarded-For: ,, 192.0.2.1 ,,\r\n", ("192.0.2.1", "forwarded")),
        ("X-Forwarded-For: rubbish, 192.0.2.1\r\n", ("192.0.2.1", "forwarded")),
        ("X-Forwarded-For: rubbish, 10.0.0.7\r\n", ("10.0.0.7", "forwarded")),
        ("X-Forwarded-For: 6.6.6.6, rubbish, 10.0.0.2\r\n", ("10.0.0.2", "forwarded")),
        ("X-Forwarded-For: 192.0.2.1 6.6.6.6\r\n", OWN),
        ("X-Forwarded-For: 192.0.2.1, rubbish\r\n", OWN),
        ("X-Forwarded-For: unknown\r\n", OWN),
        ("X-Forwarded-For:\r\n", (PROXY, "peer")),
        ("X-Forwarded-For: 6.6.6.6,\r\n 192.0.2.1\r\n", OWN),
        // No headers of that name.
        ("X-Forwarded-For : 6.6.6.6\r\n", (PROXY, "peer")),
        ("X-Forwarded-Fo: 6.6.6.6\r\nXX-Forwarded-For: 6.6.6.6\r\n", (PROXY, "peer")),
        ("X-A: X-Forwarded-For: 6.6.6.6\r\n", (PROXY, "peer")),
    ] {
        assert_eq!(read(&request(fields), PROXY), (expected.0.into(), expected.1), "{fields:?}");
    }
    let mut bad = request("X-Forwarded-For: @, 192.0.2.1\r\n");
    let at = bad.iter().position(|byte| *byte == b'@').unwrap();
    bad[at] = 0xFF;
    assert_eq!(read(&bad, PROXY), ("192.0.2.1".into(), "forwarded"));
}

#[test]
fn forwarded_as_rfc_7239_has_it() {
    for (value, expected) in [
        ("for=192.0.2.43;proto=wss;by=10.0.0.9", ("192.0.2.43", "forwarded")),
        ("proto=http;host=\"a;for=6.6.6.6\";for=192.0.2.1", ("192.0.2.1", "forwarded")),
        ("host=\"a\\\";for=6.6.6.6\";for=192.0.2.1", ("192.0.2.1", "forwarded")),
        ("for=6.6.6.6, For=\"[2001:db8::17]:4711\"", ("2001:db8::17", "forwarded")),
        ("for=\"192.0.2.1\", for=10.0.0.2", ("192.0.2.1", "forwarded")),
        ("FOR=192.0.2.1 ; by=x", ("192.0.2.1", "forwarded")),
        ("xfor=6.6.6.6;for=192.0.2.1", ("192.0.2.1", "forwarded")),
        ("for=_hidden, for=10.0.0.7", ("10.0.0.7", "forwarded")),
        ("for=192.0.2.1;", ("192.0.2.1", "forwarded")),
        ("for=_hidden", OWN),
        ("for=unknown", OWN),
        ("for=6.6.6.6, proto=https", OWN),
        ("for=6.6.6.6;for=192.0.2.1", OWN),
        ("for=192.0.2.1;x=\"", OWN),
        ("for=\"192.0.2.1", OWN),
        ("for=192.0.2.1\"", OWN),
        ("for", OWN),
        ("192.0.2.1", OWN),
    ] {
        let head = request(&format!("Forwarded: {value}\r\n"));
        assert_eq!(read(&head, PROXY), (expected.0.into(), expected.1), "{value:?}");
    }
}

#[test]
fn headers_that_disagree_are_not_believed() {
    let both =
        |a: &str, b: &str| request(&format!("Forwarded: for={a}\r\nX-Forwarded-For: {b}\r\n"));
    assert_eq!(read(&both("192.0.2.1", "6.6.6.6, 192.0.2.1"), PROXY).0, "192.0.2.1");
    assert_eq!(read(&both("6.6.6.6", "192.0.2.1"), PROXY), (OWN.0.into(), OWN.1));
    assert_eq!(read(&both("_x", "192.0.2.1"), PROXY), (OWN.0.into(), OWN.1));
}

#[test]
fn whoever_is_no_proxy_is_taken_for_itself() {
    let stranger = "203.0.113.9";
    let head = request("X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n");
    assert_eq!(read(&head, stranger), (stranger.into(), "peer"));
    let proxied = [b"PROXY TCP4 6.6.6.6 10.0.0.9 1 2\r\n".to_vec(), head].concat();
    assert_eq!(read(&proxied, stranger), (stranger.into(), "peer"));
}

/// A header of version 2.
fn v2(command: u8, family: u8, body: &[u8], length: usize) -> Vec<u8> {
    let mut header = preface::V2.to_vec();
    header.extend([command, family, (length >> 8) as u8, length as u8]);
    header.extend(body);
    header
}

#[test]
fn the_proxy_protocol() {
    let v4 = [192, 0, 2, 1, 10, 0, 0, 9, 0x12, 0x67, 0, 80];
    let mut v6 = [0u8; 36];
    v6[..2].copy_from_slice(&[0x20, 1]);
    v6[15] = 7;
    let tlv = [&v4[..], &[4, 0, 3, 1, 2, 3]].concat();
    let said = "proxy-protocol";
    for (preface, expected) in [
        (b"PROXY TCP4 192.0.2.1 10.0.0.9 4711 80\r\n".to_vec(), ("192.0.2.1", said)),
        (b"PROXY TCP6 2001:db8::1 fd00::9 4711 80\r\n".to_vec(), ("2001:db8::1", said)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 fd00::9 4711 80\r\n".to_vec(), ("192.0.2.1", said)),
        (b"PROXY UNKNOWN\r\n".to_vec(), (PROXY, "peer")),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), (PROXY, "peer")),
        (v2(0x21, 0x11, &v4, 12), ("192.0.2.1", said)),
        (v2(0x21, 0x21, &v6, 36), ("2001::7", said)),
        (v2(0x21, 0x11, &tlv, 18), ("192.0.2.1", said)),
        (v2(0x20, 0x00, &[], 0), (PROXY, "peer")),
        (v2(0x20, 0xFF, &v4, 12), (PROXY, "peer")),
        (v2(0x21, 0x00, &[], 0), (PROXY, "peer")),
        (v2(0x21, 0x31, &[0; 216], 216), (PROXY, "peer")),
        (v2(0x21, 0x11, &[1, 2, 3, 4], 4), OWN),
        (v2(0x22, 0x11, &v4, 12), OWN),
        (b"PROXY TCP4 192.0.2.1\r\n".to_vec(), OWN),
        (b"PROXY TCP4 192.0.2.1 10.0.0.9 1\r\n".to_vec(), OWN),
        (b"PROXY TCP4 2001:db8::1 fd00::9 1 2\r\n".to_vec(), OWN),
        (b"PROXY TCP5 192.0.2.1 10.0.0.9 1 2\r\n".to_vec(), OWN),
        ([b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(), OWN),
    ] {
        let head = [preface.clone(), request("")].concat();
        let shown = String::from_utf8_lossy(&preface).into_owned();
        assert_eq!(read(&head, PROXY), (expected.0.into(), expected.1), "{shown:?}");
    }
    // A proxy behind a proxy: what the first one's request says counts.
    let chain = [
        b"PROXY TCP4 10.0.0.2 10.0.0.9 1 2\r\n".to_vec(),
        request("X-Forwarded-For: 192.0.2.1\r\n"),
    ];
    assert_eq!(read(&chain.concat(), PROXY), ("192.0.2.1".into(), "forwarded"));
    let client = [
        b"PROXY TCP4 192.0.2.1 10.0.0.9 1 2\r\n".to_vec(),
        request("X-Forwarded-For: 6.6.6.6\r\n"),
    ];
    assert_eq!(read(&client.concat(), PROXY), ("192.0.2.1".into(), "proxy-protocol"));
}

#[test]
fn what_begins_like_a_preface_and_is_none() {
    let empty = [b"\r\n\r\n".to_vec(), request("X-Forwarded-For: 192.0.2.1\r\n")].concat();
    assert_eq!(read(&empty, PROXY).0, "192.0.2.1");
    let inside = request("X-A: b\r\nPROXY TCP4 6.6.6.6 10.0.0.9 1 2\r\n");
    assert_eq!(read(&inside, PROXY), (PROXY.into(), "peer"));
}

#[test]
fn each_request_counts_for_itself() {
    let mut reader = ClientReader::default();
    let names = HeaderNames::usual();
    reader.skip_preface();
    let first = request("X-Forwarded-For: 6.6.6.6\r\n");
    first.iter().for_each(|byte| reader.push(*byte, &names, &trusts));
    reader.next_request();
    request("").iter().for_each(|byte| reader.push(*byte, &names, &trusts));
    let client = reader.client(&address(PROXY), 1, &trusts);
    assert_eq!((client.address, client.identity), (address(PROXY), identity::PEER));
}

#[test]
fn twenty_hops_and_sixty_kilobytes() {
    let hops: Vec<String> = (1..=20).map(|n| format!("10.1.0.{n}")).collect();
    let fields = format!("X-Forwarded-For: 6.6.6.6, 192.0.2.1, {}\r\n", hops.join(", "));
    assert_eq!(read(&request(&fields), PROXY).0, "192.0.2.1");
    let cookie = format!("Cookie: {}\r\n{fields}", "x=y, for=6.6.6.6; ".repeat(3400));
    assert_eq!(read(&request(&cookie), PROXY).0, "192.0.2.1");
}

#[test]
fn a_header_by_another_name() {
    let mut names = HeaderNames::default();
    names.set(0, "X-Real-IP");
    names.set(1, "a-name-of-more-than-thirty-two-bytes");
    assert_eq!(names.texts(), ["x-real-ip"]);
    let mut reader = ClientReader::default();
    let head = request("x-real-ip: 192.0.2.1\r\nX-Forwarded-For: 6.6.6.6\r\n: 6.6.6.6\r\n");
    reader.skip_preface();
    head.iter().for_each(|byte| reader.push(*byte, &names, &trusts));
    let client = reader.client(&address(PROXY), 1, &trusts);
    assert_eq!(client.address, address("192.0.2.1"));
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes: Vec<u8>, fields in "(x-forwarded-for:|forwarded:|for=|[0-9a-f.:\\[\\]\", ;=\r\n\\\\]{0,6}){0,40}") {
        read(&bytes, PROXY);
        let (_, identity) = read(&request(&fields), PROXY);
        prop_assert!(["peer", "forwarded", "connection"].contains(&identity));
    }

    /// Whatever the client writes in front, the address that the proxy appends is taken.
    #[test]
    fn no_client_can_name_another(forged in "[ -~]{0,60}", address: u32, list: bool) {
        let real = IpAddr::V4((address | 1 << 31).into());
        let expected = (real.to_string(), "forwarded");
        let field = match list {
            true => format!("X-Forwarded-For: {forged}, {real}\r\n"),
            false if forged.contains('"') => return Ok(()),
            false => format!("Forwarded: {forged}, for={real}\r\n"),
        };
        prop_assert_eq!(read(&request(&field), PROXY), expected);
    }
}

/// Lines that matter, that nearly do, and that do not.
fn line() -> impl Strategy<Value = String> {
    let names = "(?i)(upgrade|sec-websocket-(key|extensions|version)|sec-webs|x-forwarded-(for|fo)|\
        forwarded|via|x|accept-encoding|)";
    let values = "( |\t)?(websocket|192\\.0\\.2\\.[0-9]{1,2}(, 10\\.0\\.0\\.1)?|for=192\\.0\\.2\\.1|\
        permessage-deflate|[ -~]{0,60})\r?";
    let any = "[\\x00-\\x09\\x0b-\\x7f]{0,40}";
    prop_oneof![
        4 => (names, values).prop_map(|(name, value)| format!("{name}:{value}\n")),
        1 => any.prop_map(|text| format!("{text}\n")),
        // The line before goes on.
        1 => "[ \t][ -~]{6,30}\r\n",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    /// Bytes skipped eight at a time are those that matter to nothing.
    #[test]
    fn words_that_are_skipped_matter_to_nothing(
        fields in prop::option::of(0u16..300),
        lines in prop::collection::vec(line(), 0..12),
    ) {
        let mut head = Vec::new();
        if let Some(fields) = fields {
            let mut body = vec![192, 0, 2, 77, 10, 0, 0, 9, 0, 1, 0, 2];
            body.extend((0..fields).map(|n| n as u8));
            head.extend(v2(0x21, 0x11, &body, body.len()));
        }
        head.extend(format!("GET / HTTP/1.1\r\n{}\r\n", lines.concat()).into_bytes());
        let mut names = HeaderNames::usual();
        names.set(0, "via");
        let mut expected = Pending::default();
        expected.begin();
        let mut skipping = expected;
        let take = |pending: &mut Pending, byte: u8| {
            let in_front = !pending.client.preface.is_over() && pending.client.push_preface(byte);
            if in_front {
                return false;
            }
            pending.client.push(byte, &names, &trusts);
            pending.head.push(byte)
        };
        let ends = head.iter().position(|byte| take(&mut expected, *byte));
        let (mut at, mut over) = (0, None);
        let word_at = |at: usize| {
            head.get(at..at + 8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
        };
        while at < head.len() && over.is_none() {
            at += skipping.client.preface.skip((head.len() - at) as u32) as usize;
            if word_at(at).is_some_and(|word| skipping.skip(word, &names)) {
                at += 8;
                // The rest of the line word by word, none of which is shown to the reader.
                let line = skipping.head.skips_line();
                while line && word_at(at).is_some_and(|word| !has_control(word)) {
                    at += 8;
                }
            } else {
                over = take(&mut skipping, head[at]).then_some(at);
                at += 1;
            }
        }
        prop_assert_eq!(over, ends);
        prop_assert_eq!(skipping.head.found, expected.head.found);
        prop_assert_eq!(skipping.client.claimed(), expected.client.claimed());
        prop_assert_eq!(skipping.client.preface, expected.client.preface);
    }
}
