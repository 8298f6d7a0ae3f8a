//! Many clients at a time that have to come back.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use prometheus::Registry;
use tungstenite::{Message, WebSocket, error::Error, handshake::HandshakeError};
use ws_guard_server::{Config, Server, access_log::AccessLog};

const PATIENCE: Duration = Duration::from_secs(15);

fn start(change: impl FnOnce(&mut Config)) -> Server {
    let mut config = Config::new((Ipv4Addr::LOCALHOST, 0).into());
    config.shards = 2;
    // The machine that tests run on may be a busy one.
    config.stalls.refuse = Duration::from_secs(3600);
    config.stalls.shed = Duration::from_secs(3600);
    change(&mut config);
    Server::start(config, AccessLog::none(), &Registry::new()).unwrap()
}

/// A client, or status and `Retry-After` of the refusal.
fn connect(server: &Server) -> Result<WebSocket<TcpStream>, (u16, u64)> {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match tungstenite::client(format!("ws://{}/", server.address()), stream) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(Error::Http(answer))) => {
            let after = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            Err((answer.status().as_u16(), after))
        }
        Err(error) => panic!("{error}"),
    }
}

/// The close frame's code, and the time to come back after that its reason names.
fn closed(socket: &mut WebSocket<TcpStream>) -> (u16, u64) {
    loop {
        if let Message::Close(Some(frame)) = socket.read().expect("a close frame") {
            let reason = frame.reason.as_str();
            let (_, after) = reason.rsplit_once("retry-after-ms=").expect(reason);
            return (frame.code.into(), after.parse().unwrap());
        }
    }
}

#[test]
fn a_shutdown_spreads_its_clients_over_time() {
    const CLIENTS: usize = 60;
    let spread = Duration::from_millis(1500);
    let server = start(|config| config.shutdown_spread = spread);
    let sockets: Vec<_> = (0..CLIENTS).map(|_| connect(&server).unwrap()).collect();
    let begun = Instant::now();
    let readers: Vec<_> = sockets
        .into_iter()
        .map(|mut socket| {
            thread::spawn(move || {
                let closed = closed(&mut socket);
                (begun.elapsed(), closed)
            })
        })
        .collect();
    server.stop();
    let ends: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    assert!(ends.iter().all(|(_, (code, _))| *code == 1012), "{ends:?}");
    let after: BTreeSet<u64> = ends.iter().map(|(_, (_, after))| *after).collect();
    assert!(after.len() > CLIENTS / 2 && after.iter().all(|ms| *ms <= 1500), "{after:?}");
    // However late all of it is, some go early and some late.
    let mut times: Vec<Duration> = ends.iter().map(|(time, _)| *time).collect();
    times.sort();
    let between = times[CLIENTS * 9 / 10] - times[CLIENTS / 10];
    assert!(between > spread / 2, "{between:?} from the first to the last");
}

#[test]
fn so_many_are_let_in_at_a_time_and_the_rest_is_told_when_to_come_back() {
    let server = start(|config| config.admission_rate = 20);
    let (mut open, mut refused) = (Vec::new(), BTreeSet::new());
    let begun = Instant::now();
    for _ in 0..100 {
        match connect(&server) {
            Ok(socket) => open.push(socket),
            Err((status, after)) => {
                assert_eq!(status, 503);
                assert!((1..=10).contains(&after));
                refused.insert(after);
            }
        }
    }
    let most = 21 + (20.0 * begun.elapsed().as_secs_f64()) as usize;
    assert!((20..=most).contains(&open.len()), "{} of {most}", open.len());
    assert!(refused.len() > 2, "{refused:?}");
    // All get in that come again.
    let end = Instant::now() + PATIENCE;
    while open.len() < most + 5 {
        assert!(Instant::now() < end, "{} got in", open.len());
        open.extend(connect(&server).ok());
        thread::sleep(Duration::from_millis(10));
    }
}
