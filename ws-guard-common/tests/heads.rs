//! The head scanner against a plain parser, on random heads in random cuts.

use fastrand::Rng;
use ws_guard_common::handshake::{END, HeadScanner, PERMESSAGE_DEFLATE, UPGRADE_WEBSOCKET};
use ws_guard_oracle::{
    cases::{cases, one_in},
    head,
    streams::boundaries,
};

fn pick<'a>(rng: &mut Rng, choices: &[&'a str]) -> &'a str {
    choices[rng.usize(..choices.len())]
}

/// The same text in another case.
fn recased(rng: &mut Rng, text: &str) -> String {
    text.chars().map(|c| if one_in(rng, 3) { c.to_ascii_uppercase() } else { c }).collect()
}

fn field(rng: &mut Rng) -> String {
    let name = pick(
        rng,
        &[
            "upgrade",
            "sec-websocket-extensions",
            "connection",
            "x-upgrade",
            "upgrade-insecure-requests",
            "sec-websocket-extensions2",
            "sec-websocket-protocol",
            "upgrad",
            "u",
            "sec-websocket-extension",
        ],
    );
    let separators = ["", " ", "  ", "\t"];
    let elements = [
        "websocket",
        "permessage-deflate",
        "h2c",
        "x-webkit-deflate-frame",
        "websocke",
        "upgrade",
        "permessage-deflat",
        "permessage-bzip2",
        "foo; a=b",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover",
        "websocket/13",
        "wwebsocke",
        "permessage-notwebsocke",
    ];
    let mut line = recased(rng, name) + ":" + pick(rng, &separators);
    for index in 0..rng.usize(1..4) {
        if index > 0 {
            line += pick(rng, &[",", ", ", " ,"]);
        }
        let element = pick(rng, &elements);
        line += &recased(rng, element);
    }
    line + pick(rng, &separators)
}

#[test]
fn scanner_and_parser_agree() {
    cases(20_000, |rng| {
        let end = if one_in(rng, 4) { "\n" } else { "\r\n" };
        let first = pick(
            rng,
            &[
                "HTTP/1.1 101 Switching Protocols",
                "GET / HTTP/1.1",
                "GET /upgrade:websocket HTTP/1.1",
            ],
        );
        let mut head = first.to_owned() + end;
        for _ in 0..rng.usize(..6) {
            head += &field(rng);
            head += end;
        }
        let mut bytes = head.into_bytes();
        if !one_in(rng, 8) {
            bytes.extend(end.bytes());
        }
        bytes.extend((0..rng.usize(..20)).map(|_| rng.u8(..)));
        let expected = head::parse(&bytes);
        let mut scanner = HeadScanner::default();
        let (mut from, mut taken) = (0, 0);
        for boundary in boundaries(rng, bytes.len(), 0xFFFF) {
            taken += scanner.push_all(&bytes[from..boundary]);
            from = boundary;
            if scanner.found & END != 0 {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(scanner.found & END != 0, expected.end.is_some(), "{text:?}");
        assert_eq!(taken, expected.end.unwrap_or(bytes.len()), "{text:?}");
        let flags =
            (scanner.found & UPGRADE_WEBSOCKET != 0, scanner.found & PERMESSAGE_DEFLATE != 0);
        assert_eq!(flags, (expected.websocket, expected.deflate), "{text:?}");
    });
}
