//! Leaks: a client's frames leave nothing behind, and withheld ones cost little.
//! Measured as anonymous memory of a server in a separate process.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::{
    served::Served,
    stage::{Client, REQUEST, connect, reset},
};

/// Maximum growth of the server, in bytes, by anything that leaves nothing behind.
const NOTHING: u64 = 256 * 1024;

/// Start a server and fill its pools.
fn served(more: &[&str]) -> (Served, u64) {
    let served = Served::start(more);
    let mut first = Client::connect(served.address);
    first.send(&[Frame::text(&"hello ".repeat(2000)), Frame::ping("?")]);
    first.message();
    drop(first);
    std::thread::sleep(Duration::from_millis(200));
    let before = served.anonymous();
    (served, before)
}

fn growth(served: &Served, before: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(300));
    served.anonymous().saturating_sub(before)
}

/// Undertow CVE-2021-3690: a buffer for each unsolicited PONG.
#[test]
fn unsolicited_pongs() {
    let (served, before) = served(&[]);
    let mut client = Client::connect(served.address);
    let pongs = encode(&vec![Frame::new(opcode::PONG, vec![7; 125]); 1000]);
    for _ in 0..300 {
        client.write(&pongs);
    }
    client.send(&[Frame::text("still here")]);
    assert_eq!(client.message(), b"still here");
    let grown = growth(&served, before);
    println!("300,000 pongs: grown by {grown} bytes");
    assert!(grown < NOTHING, "grown by {grown} bytes");
}

/// The maximum number of fragments of a message, message after message.
/// With and without a byte in each.
#[test]
fn a_million_fragments() {
    let (served, before) = served(&[]);
    for payload in [&b""[..], b"x"] {
        let mut client = Client::connect(served.address);
        let mut fragment = Frame::new(opcode::CONTINUATION, payload);
        fragment.fin = false;
        let batch = encode(&vec![fragment; 1000]);
        for _ in 0..4 {
            let mut first = Frame::new(opcode::BINARY, payload);
            first.fin = false;
            client.send(&[first]);
            for _ in 0..125 {
                client.write(&batch);
            }
            client.send(&[Frame::new(opcode::CONTINUATION, payload)]);
            assert_eq!(client.message().len(), payload.len() * 125_002);
        }
    }
    let grown = growth(&served, before);
    println!("a million fragments: grown by {grown} bytes");
    // One message of 125,002 bytes, and the buffer it grew in.
    assert!(grown < 2 * NOTHING, "grown by {grown} bytes");
}

#[test]
fn messages_that_end_half_way() {
    let (served, before) = served(&[]);
    let bytes = encode(&[Frame::new(opcode::BINARY, vec![7; 60_000])]);
    for number in 0..400 {
        let mut client = Client::connect(served.address);
        client.write(&bytes[..bytes.len() / 2]);
        match number % 3 {
            0 => reset(client),
            1 => drop(client),
            _ => client.stream.shutdown(Shutdown::Write).unwrap(),
        }
    }
    let grown = growth(&served, before);
    println!("400 halves of 60,000 bytes: grown by {grown} bytes");
    assert!(grown < 2 * NOTHING, "grown by {grown} bytes");
}

/// A byte of a frame announced as large: memory is only for received bytes.
#[test]
fn frames_that_do_not_go_on() {
    const CLIENTS: u64 = 300;
    let (served, before) = served(&[]);
    let announced = encode(&[Frame::new(opcode::BINARY, vec![7; 1 << 20])]);
    let _clients: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::connect(served.address);
            client.write(&announced[..15]);
            client
        })
        .collect();
    let each = growth(&served, before) / CLIENTS;
    println!("a frame that does not go on: {each} bytes");
    assert!(each < 4 * 1024, "{each} bytes each");
}

/// A request whose end does not come.
#[test]
fn handshakes_that_do_not_go_on() {
    const CLIENTS: u64 = 300;
    let (served, before) = served(&[]);
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let mut stream = connect(served.address);
            stream.write_all(REQUEST.as_bytes()).unwrap();
            stream
        })
        .collect();
    let each = growth(&served, before) / CLIENTS;
    println!("a handshake that does not go on: {each} bytes");
    assert!(each < 24 * 1024, "{each} bytes each");
    // They are all cut off when the time for handshakes is over.
    let mut rest = Vec::new();
    for stream in &mut clients {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(stream.read_to_end(&mut rest).is_ok() && rest.is_empty());
    }
}
