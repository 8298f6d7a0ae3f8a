//! Decisions of operators: they outlive the daemon, its pins, and so a reboot.
use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ws_guard_testkit::{
    client::{Client, Cut},
    frame::Frame,
    netns::Family,
};

use crate::stage::{Stage, eventually, number};

/// Kill the daemon and remove its pins, as in a reboot; then start a new one.
fn reboot(stage: &mut Stage) -> Result<()> {
    stage.kill()?;
    stage.unload()?;
    stage.start()
}

/// Send `pings` pings and a message; return the number of pings answered.
fn answered(client: &mut Client, pings: usize) -> Result<u64> {
    client.send(&vec![Frame::ping("?"); pings], &Cut::Whole)?;
    client.send_one(Frame::text("done"))?;
    eventually("the echo", || Ok(client.received().messages == client.sent().messages))?;
    Ok(client.received().pongs)
}

fn decided(stage: &Stage) -> Result<[Value; 3]> {
    Ok([stage.ask("allow")?, stage.ask("throttled")?, stage.policy()?["cidrs"].clone()])
}

#[test]
fn decisions_outlive_a_kill_and_a_reboot() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(4, &[])?;
    let source = |n| Family::V4.client(n).to_string();
    stage.cli(&["allow", &source(0)])?;
    stage.cli(&["throttle", &source(1)])?;
    stage.cli(&["throttle", &source(2), "--for", "1h"])?;
    stage.cli(&["throttle", &source(3), "--for", "1s"])?;
    let network = format!("{}/32", source(3));
    stage.cli(&["policy", "set", "--cidr", &network, "--max-ping-rate", "5"])?;
    let end = |stage: &Stage| -> Result<Value> {
        let row = stage.source(Family::V4.client(2))?;
        Ok(row["throttled_until"].clone())
    };
    let (before, ends) = (decided(&stage)?, end(&stage)?);
    ensure!(before[2] == json!([{"cidr": network, "max_ping_rate": 5}]), "{}", before[2]);
    std::thread::sleep(Duration::from_millis(1200));

    reboot(&mut stage)?;
    let after = decided(&stage)?;
    ensure!(after[0] == before[0] && after[2] == before[2], "{after:?}, before: {before:?}");
    let throttled: Vec<&str> = after[1]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row["source"].as_str())
        .collect();
    ensure!(throttled.len() == 2, "one of three has ended: {throttled:?}");
    let seconds = |time: &Value| -> Result<Duration> {
        let time = humantime::parse_rfc3339(time.as_str().context("a time")?)?;
        Ok(time.duration_since(std::time::UNIX_EPOCH)?)
    };
    let (was, is) = (seconds(&ends)?, seconds(&end(&stage)?)?);
    ensure!(was.abs_diff(is) < Duration::from_millis(100), "it ended at {was:?}, now at {is:?}");

    // And it is in force, not only listed.
    let pongs = |n: u8| -> Result<u64> { answered(&mut stage.connect(n)?, 40) };
    let found = [pongs(0)?, pongs(1)?, pongs(3)?];
    ensure!(found == [40, 5, 5], "allowed, throttled, limited to 5: {found:?}");

    // Revoked decisions stay revoked, with the pins alive too.
    stage.cli(&["release", &source(1)])?;
    stage.cli(&["policy", "unset", "--cidr", &network])?;
    reboot(&mut stage)?;
    ensure!(decided(&stage)?[2] == json!([]), "settings are back: {:?}", decided(&stage)?);
    ensure!(answered(&mut stage.connect(1)?, 10)? == 10, "it is throttled again");
    stage.kill()?;
    stage.start()?;
    ensure!(decided(&stage)?[0] == before[0], "{:?}", decided(&stage)?);
    stage.finish()
}

#[test]
fn a_corrupt_state_file_is_kept_aside_and_named() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(1, &[])?;
    stage.cli(&["allow", "10.0.0.0/8"])?;
    stage.kill()?;
    stage.unload()?;
    let path = stage.state_file();
    let text = fs::read_to_string(&path)?;
    fs::write(&path, &text[..text.len() / 2])?;
    stage.start()?;
    let said = stage.log().join("\n");
    let dir = path.parent().context("a directory")?;
    let name = path.file_name().context("a name")?.to_string_lossy().into_owned() + ".corrupt-";
    let aside = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&name))
        .context("nothing was kept aside")?;
    ensure!(fs::read_to_string(aside.path())? == text[..text.len() / 2], "it was changed");
    ensure!(said.contains(&*aside.path().to_string_lossy()), "not named in: {said}");
    fs::remove_file(aside.path())?;
    ensure!(stage.ask("allow")? == json!([]), "something is allowed");
    // The next decision writes a whole file again.
    stage.cli(&["allow", "10.0.0.0/8"])?;
    ensure!(fs::read_to_string(&path)? == text, "{}", fs::read_to_string(&path)?);
    stage.finish()
}

#[test]
fn each_port_and_each_network_has_a_limit_of_its_own() -> Result<()> {
    needs_root!();
    let file = tempfile::NamedTempFile::new()?;
    fs::write(
        file.path(),
        "max-ping-rate = 20\n[[cidr]]\ncidr = \"10.77.0.2\"\nmax-ping-rate = 8\n",
    )?;
    let path = file.path().to_string_lossy().into_owned();
    let port = format!("{} max-ping-rate=10", crate::stage::PORT);
    let options = ["--config", &path, "--port", &port, "--connection-share", "0"];
    let mut stage = Stage::new(3, &options)?;
    let pongs = |stage: &Stage, n: u8| answered(&mut stage.connect(n)?, 40);
    ensure!(pongs(&stage, 0)? == 10, "the port's limit");
    let second: IpAddr = Family::V4.client(1);
    ensure!(second.to_string() == "10.77.0.2", "{second}");
    ensure!(pongs(&stage, 1)? == 8, "the network's limit, which wins over the port's");
    ensure!(stage.source(second)?["port"] == crate::stage::PORT, "{}", stage.source(second)?);
    // Dropped from the next packet on, in one network alone.
    stage.cli(&["policy", "set", "--cidr", "10.77.0.2", "--action", "drop"])?;
    let mut flooder = stage.connect(2)?;
    ensure!(answered(&mut flooder, 40)? == 10, "the others are defused");
    let mut again = stage.connect(1)?;
    again.send_one(Frame::ping("one too many"))?;
    eventually("the connection is dropped", || {
        Ok(number(&stage.source(second)?["dropped_total"])? > 0)
    })?;
    drop((flooder, again));
    stage.stop_server()?;
    stage.finish()
}

#[test]
fn a_flood_of_pongs_is_dropped_where_it_shall() -> Result<()> {
    needs_root!();
    let options = ["--action", "drop", "--max-pong-rate", "50"];
    let mut stage = Stage::new(2, &options)?;
    let [mut flooder, mut calm] = [stage.connect(0)?, stage.connect(1)?];
    let pongs = |client: &mut Client, count| {
        let frame = Frame::new(ws_guard_common::frame::opcode::PONG, []);
        client.send(&vec![frame; count], &Cut::Whole)
    };
    pongs(&mut flooder, 50)?;
    pongs(&mut calm, 50)?;
    ensure!(answered(&mut flooder, 1)? == 1, "50 pongs keep to the limit");
    pongs(&mut flooder, 10)?;
    eventually("it is throttled", || {
        Ok(stage.source(flooder.local().ip())?["state"] == "throttled")
    })?;
    ensure!(answered(&mut calm, 1)? == 1, "the calm one is held up as well");
    let over = stage.metrics()?["wsguard_frames_over_limit_total"];
    ensure!(over == 10, "{over} frames over the limit");
    // Raised meanwhile: in force from the next packet on, and no connection is lost.
    stage.cli(&["policy", "set", "--max-pong-rate", "0"])?;
    stage.cli(&["release", &flooder.local().ip().to_string()])?;
    ensure!(answered(&mut flooder, 1)? == 2, "the connection is gone");
    drop((flooder, calm));
    stage.stop_server()?;
    stage.finish()
}
