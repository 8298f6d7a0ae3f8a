//! The process and the system: files that move or are full, and limits.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    served::Served,
    stage::{Client, PATIENCE, REQUEST, connect, free_port, refused, wait_for},
};

/// Send a handshake that is refused, and so logged.
fn be_refused(address: SocketAddr) {
    assert!(refused(connect(address), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").contains(" 426 "));
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_renamed_access_log_is_begun_anew_on_sighup() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("access.jsonl"), folder.path().join("access.jsonl.1"));
    let served = Served::start(&["--access-log", path.to_str().unwrap()]);
    be_refused(served.address);
    assert!(wait_for(PATIENCE, || (lines(&path) == 1).then_some(())).is_some());
    fs::rename(&path, &old).unwrap();
    kill(Pid::from_raw(served.process.pid() as i32), Signal::SIGHUP).unwrap();
    assert!(wait_for(PATIENCE, || path.exists().then_some(())).is_some(), "a new file");
    be_refused(served.address);
    assert!(wait_for(PATIENCE, || (lines(&path) == 1).then_some(())).is_some(), "a line in it");
    assert_eq!(lines(&old), 1);
}

#[test]
fn lines_that_a_full_disk_loses_are_counted_and_said_once() {
    let port = free_port();
    let metrics = format!("127.0.0.1:{port}");
    let served = Served::start(&["--access-log", "/dev/full", "--metrics-listen", &metrics]);
    for _ in 0..20 {
        be_refused(served.address);
    }
    let lost = || Served::metric(port, "wsguard_server_access_log_lost_total");
    assert!(wait_for(PATIENCE, || (lost() == 20.0).then_some(())).is_some(), "{}", lost());
    assert_eq!(served.says("lines of the access log /dev/full are lost"), 1);
}

/// Open connections until there is no place left;
/// return those admitted, and the answer to one more.
fn fill(address: SocketAddr, most: usize) -> (Vec<TcpStream>, String) {
    let mut open = Vec::new();
    for _ in 0..most {
        let mut stream = connect(address);
        stream.write_all(format!("{REQUEST}\r\n").as_bytes()).unwrap();
        let mut head = [0; 12];
        // With all places for handshakes taken, it is dropped.
        if stream.read_exact(&mut head).is_err() {
            return (open, String::new());
        }
        if !head.starts_with(b"HTTP/1.1 101") {
            return (open, String::from_utf8_lossy(&head).into_owned());
        }
        open.push(stream);
    }
    (open, String::new())
}

#[test]
fn too_few_descriptors_are_said_and_the_documented_answer_holds() {
    let port = free_port();
    let metrics = format!("127.0.0.1:{port}");
    let served = Served::limited("ulimit -Sn 200; ulimit -Hn 400", &["--metrics-listen", &metrics]);
    assert_eq!(served.says("this process may open 400 files, and 21536 are needed"), 1);
    let (open, answer) = fill(served.address, 400);
    assert_eq!(answer, "HTTP/1.1 503");
    assert!(open.len() >= 100, "the soft limit was raised: {}", open.len());
    // Silent connections take the places left for handshakes, and no more.
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(served.address)).collect();
    let refused = "wsguard_server_refused_total{reason=\"server_full\"}";
    assert!(Served::metric(port, refused) >= 1.0, "metrics are answered");
    drop(open);
    drop(silent);
    let again = || (fill(served.address, 1).0.len() == 1).then_some(());
    assert!(wait_for(PATIENCE, again).is_some(), "places become free");
    assert_eq!(served.says("cannot accept connections"), 0);
}

#[test]
fn silent_connections_to_the_metrics_port_do_not_exclude_others() {
    let port = free_port();
    let metrics = format!("127.0.0.1:{port}");
    let served = Served::limited("ulimit -n 1024", &["--metrics-listen", &metrics]);
    let silent: Vec<TcpStream> =
        (0..1500).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    assert!(silent.len() > 1000);
    let ready = refused(
        connect(([127, 0, 0, 1], port).into()),
        b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
    Client::connect(served.address);
}
