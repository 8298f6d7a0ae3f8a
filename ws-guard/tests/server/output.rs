//! Limit on pending output for a client that does not read, with changes of it.

use std::{fs, io::Write, net::Ipv4Addr, sync::Arc, thread, time::Duration};

use ws_guard_server::output_limit::OutputLimit;
use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::{
    served::Served,
    stage::{Client, PATIENCE, Stage, connect_from, free_port, wait_for},
};

/// Send small messages without reading, until nothing more is taken for a while.
pub fn fill(client: &mut Client) {
    let batch = encode(&vec![Frame::new(opcode::BINARY, vec![7; 1000]); 100]);
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while client.stream.write_all(&batch).is_ok() {}
}

fn sleeper(stage: &Stage) -> Client {
    Client::request(connect_from(Ipv4Addr::LOCALHOST, stage.address, Some(4096)), "", &[])
}

/// Bytes that the server holds for one connection besides its limited output.
/// A buffer that it has read into, of 132 KiB, and one of 56 KiB that it writes from, with a few
/// bytes in it or many.
const BESIDE: f64 = 188.0 * 1024.0;

#[test]
fn output_waits_up_to_the_limit_and_follows_its_change() {
    let limit = Arc::new(OutputLimit::new(None, Some(8 * 1024)));
    let stage = Stage::start(|config| {
        config.output = limit.clone();
        config.write_timeout = PATIENCE * 10;
    });
    let buffered = || stage.metric("wsguard_server_buffered_bytes");
    let mut client = sleeper(&stage);
    fill(&mut client);
    let with_little = buffered();
    assert!(with_little > 0.0 && with_little <= 8.0 * 1024.0 + BESIDE, "{with_little}");
    drop(client);

    limit.set(Some(1 << 20));
    let mut client = sleeper(&stage);
    fill(&mut client);
    let with_much = buffered();
    assert!(with_much >= f64::from(1 << 20), "{with_much}");
    assert!(with_much <= 2.0 * f64::from(1 << 20) + BESIDE, "{with_much}");
}

/// The file's limit, and a change of it, which applies to open connections as well.
#[test]
fn the_file_sets_it_and_a_wrong_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    let write = |bytes: u32| fs::write(&file, format!("[server]\nmax-output = {bytes}\n")).unwrap();
    write(1 << 20);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let served =
        Served::start(&["--config", &file.display().to_string(), "--metrics-listen", &listen]);
    let buffered = || Served::metric(port, "wsguard_server_buffered_bytes");
    let held = |most: f64| {
        let stream = connect_from(Ipv4Addr::LOCALHOST, served.address, Some(4096));
        let mut client = Client::request(stream, "", &[]);
        fill(&mut client);
        let held = buffered();
        drop(client);
        wait_for(PATIENCE, || (buffered() == 0.0).then_some(())).expect("it is given back");
        assert!(held <= most + BESIDE, "{held} over {most}");
        held
    };
    assert!(held(2.0 * f64::from(1 << 20)) >= f64::from(1 << 20));
    write(100);
    let said = |what: &'static str| {
        let heard = served.process.wait_for(PATIENCE, |line| line.contains(what).then_some(()));
        heard.unwrap_or_else(|_| panic!("it does not say {what}"));
    };
    said("server.max-output: 100 bytes are not from 4096 to 16777216");
    assert!(held(2.0 * f64::from(1 << 20)) >= f64::from(1 << 20), "the old one is not in force");
    write(4096);
    said("took over");
    thread::sleep(Duration::from_millis(50));
    held(4096.0);
}
