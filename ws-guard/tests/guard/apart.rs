//! `run --listen`: the server's process has no privilege; the guard survives it.
use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring,
    pki_types::CertificateDer,
};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, Pair, PairOptions},
};

use crate::{
    process::Guard,
    stage::{Flow, PORT, WAIT, eventually},
    talk::{pings, round_trip},
};

const HEALTH: u16 = 9464;

/// Return the one process that a daemon has started, while there is one.
fn child(guard: &Guard) -> Result<Option<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", guard.pid()))? {
        // A thread may end meanwhile.
        let of_task = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(of_task.split_whitespace().map(str::to_owned));
    }
    ensure!(children.len() <= 1, "{children:?}");
    Ok(children.pop().map(|pid| pid.parse()).transpose()?)
}

/// Read the fields of `/proc/PID/task/TID/status`.
fn fields(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path)?;
    let pair = |line: &str| {
        line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
    };
    Ok(text.lines().filter_map(pair).collect())
}

/// Return the targets of its descriptors.
fn descriptors(pid: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        if let Ok(name) = fs::read_link(descriptor?.path()) {
            names.push(name.display().to_string());
        }
    }
    names.sort();
    Ok(names)
}

fn scrape(pair: &Pair, path: &str) -> Result<String> {
    let at = SocketAddr::new(Family::V4.server(), HEALTH);
    let mut stream = pair.client.run(|| TcpStream::connect_timeout(&at, WAIT))??;
    stream.set_read_timeout(Some(WAIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn start(pair: &Pair, folder: &Path, more: &str) -> Result<Guard> {
    let log = folder.join("access.jsonl");
    let words = format!(
        "--port {PORT} --listen [::]:{PORT} --metrics-listen [::]:{HEALTH} --access-log {} \
         --stall-refuse 1h --stall-shed 1h --state-file none {more}",
        log.display()
    );
    Guard::start(&pair.server, &words)
}

fn connect(pair: &Pair) -> Result<Client> {
    Client::connect(&pair.client, (Family::V4.server(), PORT).into(), ConnectOptions::default())
}

#[test]
fn its_process_has_no_privilege_and_no_descriptor_of_the_guard() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let folder = tempfile::tempdir()?;
    // A descriptor that the daemon inherits without knowing.
    let inherited = fs::File::create(folder.path().join("inherited"))?;
    fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let guard = start(&pair, folder.path(), "")?;
    let of_daemon = descriptors(guard.pid())?;
    ensure!(of_daemon.iter().any(|name| name.ends_with("/inherited")), "{of_daemon:?}");
    let mut client = connect(&pair)?;
    round_trip(&mut client, "echo")?;
    let pid = child(&guard)?.context("a process")?;
    // Capabilities belong to a thread: one that kept them could be made to use them.
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fields(&task?.path().join("status"))?;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let bits = u64::from_str_radix(&status[set], 16)?;
            ensure!(bits == 0, "{set} of thread {threads} is {bits:x}");
        }
        ensure!(status["NoNewPrivs"] == "1", "{status:?}");
        for ids in ["Uid", "Gid"] {
            let all: Vec<&str> = status[ids].split_whitespace().collect();
            ensure!(all == ["60700"; 4], "{ids}: {all:?}");
        }
        ensure!(status["Groups"].is_empty(), "{status:?}");
        threads += 1;
    }
    ensure!(threads >= 3, "{threads} threads");
    let log = folder.path().join("access.jsonl").display().to_string();
    let mine =
        ["socket:[", "pipe:[", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/dev/null", &log];
    for name in descriptors(pid)? {
        ensure!(mine.iter().any(|known| name.starts_with(known)), "descriptor {name}");
    }
    client.close()?;
    guard.finish()
}

#[test]
fn the_guard_survives_its_death_and_starts_it_again() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let folder = tempfile::tempdir()?;
    let guard = start(&pair, folder.path(), "--action observe")?;
    guard.run("policy set --max-ping-rate 7 --window-seconds 600 --connection-share 0")?;
    let (daemon, first) = (guard.pid(), child(&guard)?.context("a process")?);
    let mut client = connect(&pair)?;
    client.send(&pings(0, 3), &Cut::Whole)?;
    round_trip(&mut client, "echo")?;

    kill(Pid::from_raw(first.try_into()?), Signal::SIGKILL)?;
    eventually("another process", || Ok(child(&guard)?.is_some_and(|pid| pid != first)))?;
    // The policy in force holds for the new process from its first connection on.
    let mut again = None;
    eventually("it serves again", || {
        again = connect(&pair).ok();
        Ok(again.is_some())
    })?;
    let mut again = again.context("a connection")?;
    again.send(&pings(0, 20), &Cut::Whole)?;
    again.send_one(Frame::text("echo"))?;
    ensure!(again.wait(WAIT, |r| !r.kept.is_empty()), "no echo");
    ensure!(again.received().pongs == 7, "{} pongs", again.received().pongs);

    ensure!(guard.pid() == daemon, "the daemon is another one");
    let flows: Vec<Flow> = guard.ask("flows")?;
    let pinged: u64 = flows.iter().map(|flow| flow.pings_in).sum();
    ensure!(pinged == 23, "the guard has counted {pinged}: {flows:?}");
    let events = guard.events("")?;
    let told: Vec<&str> = events
        .iter()
        .filter(|event| event["kind"] == "server")
        .filter_map(|event| event["message"].as_str())
        .collect();
    ensure!(told.len() == 2 && told[0].contains("signal: 9"), "{told:?}");
    ensure!(told[0].ends_with("started again in 500ms"), "{told:?}");
    let metrics = scrape(&pair, "/metrics")?;
    for sample in ["wsguard_server_restarts_total 1", "wsguard_server_opened_total 1"] {
        ensure!(metrics.lines().any(|line| line == sample), "{sample} is not in {metrics}");
    }
    again.close()?;

    // The back-off grows each time.
    let second = child(&guard)?.context("a process")?;
    kill(Pid::from_raw(second.try_into()?), Signal::SIGKILL)?;
    eventually("its second death is told", || {
        let events = guard.events("")?;
        let told = events.iter().filter_map(|event| event["message"].as_str());
        Ok(told.filter(|said| said.ends_with("started again in 1s")).count() == 1)
    })?;
    // A daemon that ends meanwhile does not wait for it.
    guard.finish()
}

/// Write a fresh certificate and key for `localhost`, the key for root alone;
/// return the certificate that a client trusts.
fn certify(folder: &Path) -> Result<CertificateDer<'static>> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?;
    fs::set_permissions(folder.join("key.pem"), Permissions::from_mode(0o600))?;
    fs::write(folder.join("certificate.pem"), made.cert.pem())?;
    Ok(made.cert.der().clone())
}

/// Check whether a client that trusts only this certificate accepts the server's.
fn shows(pair: &Pair, trusted: &CertificateDer<'static>) -> Result<bool> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone())?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = SocketAddr::new(Family::V4.server(), PORT);
    let mut stream = pair.client.run(|| TcpStream::connect_timeout(&server, WAIT))??;
    stream.set_read_timeout(Some(WAIT))?;
    let mut session = ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
    while session.is_handshaking() {
        match session.complete_io(&mut stream) {
            Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(false),
            done => done?,
        };
    }
    // Refused without an upgrade, and logged.
    session.writer().write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = [0; 12];
    StreamOwned::new(session, stream).read_exact(&mut answer)?;
    ensure!(&answer == b"HTTP/1.1 426", "{}", String::from_utf8_lossy(&answer));
    Ok(true)
}

/// Files that change on disk, handed to the server's process.
/// It may read neither the key nor the folder of the log: the daemon opens them.
#[test]
fn what_changes_on_disk_is_handed_to_its_process() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let first = certify(folder.path())?;
    let tls = format!(
        "--tls-certificate {} --tls-key {}",
        path("certificate.pem").display(),
        path("key.pem").display()
    );
    let guard = start(&pair, folder.path(), &tls)?;
    let pid = child(&guard)?.context("a process")?;
    ensure!(shows(&pair, &first)?, "the first certificate is not shown");
    let second = certify(folder.path())?;
    eventually("the second certificate is shown", || shows(&pair, &second))?;
    ensure!(!shows(&pair, &first)?, "the first certificate is shown again");

    let (log, old) = (path("access.jsonl"), path("access.jsonl.1"));
    fs::rename(&log, &old)?;
    kill(Pid::from_raw(guard.pid().try_into()?), Signal::SIGHUP)?;
    eventually("there is a new log", || Ok(log.exists()))?;
    eventually("it is written", || {
        Ok(shows(&pair, &second)? && fs::read_to_string(&log)?.lines().count() > 0)
    })?;
    ensure!(child(&guard)? == Some(pid), "it is another process");
    guard.finish()
}

#[test]
fn the_daemons_death_ends_its_process() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let folder = tempfile::tempdir()?;
    let guard = start(&pair, folder.path(), "")?;
    let first = child(&guard)?.context("a process")?;
    // The next daemon listens on the same port.
    guard.restart()?;
    let second = child(&guard)?.context("a process")?;
    ensure!(first != second, "the same process");
    // Its new parent may be slow to collect it.
    let status = format!("/proc/{first}/status");
    eventually("the first process ends", || {
        let state = fields(Path::new(&status)).ok().and_then(|mut fields| fields.remove("State"));
        Ok(state.is_none_or(|state| state.starts_with('Z')))
    })?;
    let mut client = connect(&pair)?;
    round_trip(&mut client, "echo")?;
    client.close()?;
    guard.finish()
}
