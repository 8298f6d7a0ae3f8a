//! Pings of clients: exact answers, and limits.

use std::{io::Write, net::Ipv4Addr, time::Duration};

use ws_guard_common::window::Rate;
use ws_guard_server::{PingRates, pings::CLOCK_STEP_MS};
use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::stage::{Client, Stage, connect_from, limited, unlimited};

fn rate(limit: u32, window_ms: u32) -> Rate {
    Rate::new(limit, window_ms, CLOCK_STEP_MS).unwrap()
}

/// Return the pongs before the echo of a message that is sent now.
fn pongs(client: &mut Client) -> Vec<Vec<u8>> {
    client.send(&[Frame::text("end")]);
    let frames = std::iter::from_fn(|| client.next());
    let pongs = frames.take_while(|frame| frame.opcode == opcode::PONG);
    pongs.map(|frame| frame.payload).collect()
}

#[test]
fn a_pong_is_the_ping_to_the_byte() {
    let stage = Stage::start(|_| {});
    let mut client = Client::connect(stage.address);
    // The earlier content must not show.
    client.send(&[Frame::new(opcode::BINARY, vec![0xAA; 5000])]);
    client.message();
    let payloads: Vec<Vec<u8>> = [0, 1, 60, 125].map(|len| vec![len as u8; len]).into();
    let pings: Vec<Frame> = payloads.iter().cloned().map(Frame::ping).collect();
    client.send(&pings);
    assert_eq!(pongs(&mut client), payloads);
}

#[test]
fn a_source_gets_a_limited_number_of_pongs_in_any_window() {
    let stage = Stage::start(|config| {
        config.pings = limited(PingRates { source: rate(30, 2000), ..PingRates::default() })
    });
    let mut first = Client::connect(stage.address);
    let mut second = Client::connect(stage.address);
    let pings = vec![Frame::ping("?"); 20];
    first.send(&pings);
    assert_eq!(pongs(&mut first).len(), 20);
    second.send(&pings);
    assert_eq!(pongs(&mut second).len(), 10);
    let elsewhere = connect_from(Ipv4Addr::new(127, 0, 0, 2), stage.address, None);
    let mut neighbour = Client::request(elsewhere, "", &[]);
    neighbour.send(&pings);
    assert_eq!(pongs(&mut neighbour).len(), 20);
    let sample = |what| stage.metric(&format!("wsguard_server_pings_total{{what=\"{what}\"}}"));
    assert_eq!((sample("answered"), sample("over_limit")), (50.0, 10.0));
    std::thread::sleep(Duration::from_millis(2100));
    first.send(&pings);
    assert_eq!(pongs(&mut first).len(), 20);
}

#[test]
fn a_connection_has_a_limit_of_its_own() {
    let stage = Stage::start(|config| {
        config.pings = limited(PingRates { connection: rate(5, 60_000), ..PingRates::default() })
    });
    for _ in 0..3 {
        let mut client = Client::connect(stage.address);
        client.send(&vec![Frame::ping("?"); 8]);
        assert_eq!(pongs(&mut client).len(), 5);
    }
}

/// Pending output for a client that does not read has one pong, the latest.
#[test]
fn pongs_that_cannot_go_out_become_one() {
    let stage = Stage::start(|config| config.pings = unlimited());
    let stream = connect_from(Ipv4Addr::LOCALHOST, stage.address, Some(4096));
    let mut client = Client::request(stream, "", &[]);
    let mut writer = client.stream.try_clone().unwrap();
    writer.set_nonblocking(false).unwrap();
    let passed_over = || stage.metric("wsguard_server_pings_total{what=\"passed_over\"}");
    let mut number = 0u64;
    while passed_over() < 1000.0 {
        let pings: Vec<Frame> = (number..number + 500)
            .map(|number| Frame::ping([&number.to_be_bytes()[..], &[7; 117]].concat()))
            .collect();
        number += 500;
        writer.write_all(&encode(&pings)).unwrap();
    }
    let answered = stage.metric("wsguard_server_pings_total{what=\"answered\"}");
    client.send(&[Frame::new(opcode::CLOSE, [])]);
    let mut seen: Vec<u64> = Vec::new();
    while let Some(frame) = client.next() {
        if frame.opcode == opcode::PONG {
            assert_eq!(frame.payload.len(), 125);
            seen.push(u64::from_be_bytes(*frame.payload.first_chunk().unwrap()));
        }
    }
    assert!(seen.is_sorted(), "in their order");
    assert_eq!(seen.last(), Some(&(number - 1)), "the latest is answered");
    assert!((seen.len() as u64) < number - 900, "{} of {number}, {answered}", seen.len());
}
