//! A held window on the wire:
//! the server's window behind the guard, the client's in front of it, and the client's progress.
//! `WS_GUARD_PICTURE=FILE` draws it.
use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_common::seq::after;
use ws_guard_testkit::{
    capture::{Capture, Captured},
    client::{Client, ConnectOptions},
    flood::{Bounds, flood},
    netns::{Family, INTERFACE, PairOptions},
    node::{INSIDE, Node},
    packets::flag,
    servers::{Library, Server},
};

use crate::{
    inspected::Inspecting,
    process::Guard,
    stage::{PORT, WAIT, eventually},
};

/// Default of `--pace`.
const RATE: u64 = 16 << 10;
/// Number of pings: enough are left to send at the release for it to be visible.
const PINGS: u64 = 1_900;
const HELD: Duration = Duration::from_secs(5);

/// A segment, and its time of arrival in seconds.
type Seen = (f64, Captured);

/// Capture until `stop`.
fn watch(mut capture: Capture, start: Instant, stop: &AtomicBool) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    while !stop.load(Relaxed) {
        if let Some(segment) = capture.next(Duration::from_millis(20), |_| true)? {
            seen.push((start.elapsed().as_secs_f64(), segment));
        }
    }
    Ok(seen)
}

/// Return the shift that a SYN or SYN-ACK offers (RFC 7323, 2.2).
pub fn shift(options: &[u8]) -> Option<u32> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            0 => return None,
            1 => at += 1,
            3 => return Some((*options.get(at + 2)?).into()),
            _ => at += usize::from(*options.get(at + 1)?).max(2),
        }
    }
}

/// Points over time, in bytes from the flood's first one.
#[derive(Default)]
struct Lines {
    sent: Vec<(f64, f64)>,
    acknowledged: Vec<(f64, f64)>,
    told: Vec<(f64, f64)>,
    offered: Vec<(f64, f64)>,
}

/// Return what both sides of the guard saw, from `from` on.
fn lines(client: &[Seen], server: &[Seen], port: u16, from: f64) -> Result<Lines> {
    let of_server = |seen: &&Seen| seen.1.destination.port() == port;
    let answers = |seen: &&Seen| {
        of_server(seen) && seen.1.flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK
    };
    let syn_ack = client.iter().find(answers).context("no SYN-ACK")?;
    let shift = shift(&syn_ack.1.options).context("no window scale")?;
    let mut base = client.iter().filter(of_server).filter(|seen| seen.0 < from);
    let last = &base.next_back().context("nothing before the flood")?.1;
    let bytes = |seq: u32| f64::from(seq.wrapping_sub(last.ack));
    let edge = |segment: &Captured| segment.ack.wrapping_add(u32::from(segment.window) << shift);
    let mut lines = Lines::default();
    // Nothing is held yet: both sides have the same edge.
    lines.told.push((0.0, bytes(edge(last))));
    lines.offered.push((0.0, bytes(edge(last))));
    for (time, segment) in client.iter().filter(|seen| seen.0 >= from) {
        let time = time - from;
        if segment.destination.port() == port {
            // Others have overtaken it between two CPUs: its window is old.
            let old = lines.acknowledged.last().is_some_and(|last| last.1 > bytes(segment.ack));
            if !old {
                lines.acknowledged.push((time, bytes(segment.ack)));
                lines.told.push((time, bytes(edge(segment))));
            }
        } else if segment.source.port() == port && !segment.payload.is_empty() {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            lines.sent.push((time, bytes(end)));
        }
    }
    for (time, segment) in server.iter().filter(|seen| seen.0 >= from).filter(of_server) {
        lines.offered.push((time - from, bytes(edge(segment))));
    }
    ensure!(!lines.told.is_empty() && !lines.offered.is_empty() && !lines.sent.is_empty());
    Ok(lines)
}

/// Return the running maximum of the points.
fn highest(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut most = 0.0f64;
    let highest = points.iter().map(|(time, bytes)| {
        most = most.max(*bytes);
        (*time, most)
    });
    highest.collect()
}

/// Return the last value up to a time.
fn at(points: &[(f64, f64)], time: f64) -> f64 {
    points.iter().take_while(|point| point.0 <= time).last().map_or(0.0, |point| point.1)
}

#[test]
fn the_client_goes_up_to_the_held_edge_and_not_beyond() -> Result<()> {
    needs_root!();
    let node = Node::new(1, PairOptions::default())?;
    let pod = &node.pods[0];
    let server = Server::start(&pod.namespace, Library::TokioTungstenite, PORT, None)?;
    let guard = Guard::start(node.namespace(), &format!("--port {PORT} --window-seconds 60"))?;
    let places = [(&node.pair.client, INTERFACE), (&pod.namespace, INSIDE)];
    let inspecting = places.map(|(namespace, name)| Inspecting::start(namespace, name));
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let (in_front, behind, port, marks) = thread::scope(|scope| -> Result<_> {
        let stop = &stop;
        let captures = [Capture::new(&node.pair.client)?, Capture::new(&pod.namespace)?];
        let [in_front, behind] =
            captures.map(|capture| scope.spawn(move || watch(capture, start, stop)));
        let done = flood_and_release(&node, &guard, start);
        stop.store(true, Relaxed);
        let [in_front, behind] = [in_front, behind]
            .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        let (port, marks) = done?;
        Ok((in_front?, behind?, port, marks))
    })?;
    let [from, release] = marks;
    let [front, back] = inspecting;
    check(&front?.end()?, &back?.end()?, release - from)?;
    let lines = lines(&in_front, &behind, port, from)?;
    let release = release - from;

    // The edge in front never moves left by more than a unit of the scale.
    let told = highest(&lines.told);
    let held: Vec<&(f64, f64)> = lines.told.iter().filter(|point| point.0 < release).collect();
    let unit = f64::from(1 << 14);
    for (point, most) in lines.told.iter().zip(&told) {
        ensure!(
            most.1 - point.1 < unit,
            "at {:.3} s it moved from {} to {}",
            point.0,
            most.1,
            point.1
        );
    }
    // The granted bytes are the pace's, and less than the server offered.
    let first = at(&lines.told, 0.5);
    let last = held.last().context("never held")?.1;
    let most = (RATE * (release as u64 + 2)) as f64;
    println!("edge {first} at 0.5 s, {last} at the release at {release:.2} s: {most} may be added");
    ensure!(last - first <= most, "{} bytes were granted, {most} may be", last - first);
    let offered = at(&lines.offered, release);
    ensure!(offered > last + unit, "the server itself offered {offered}, and the edge was {last}");
    // The client heeds it, and learns the server's own edge afterwards.
    for (time, end) in lines.sent.iter().filter(|point| point.0 < release) {
        let edge = at(&told, *time);
        ensure!(after(edge as u32 + 1, *end as u32), "{end} at {time:.3} s, beyond {edge}");
    }
    let sent = lines.sent.iter().map(|point| point.1).fold(0.0, f64::max);
    let own = highest(&lines.offered).last().context("nothing offered")?.1;
    ensure!(sent > last, "nothing was sent after the release");
    ensure!(at(&told, f64::MAX) >= own - unit, "the edge in front is not the server's own again");
    if let Some(path) = std::env::var_os("WS_GUARD_PICTURE") {
        std::fs::write(path, picture(&lines, release))?;
    }
    server.stop()?;
    guard.finish()
}

/// Check that the inspector reports the held window, only in front of the guard.
/// It has to do so for the whole time.
fn check(in_front: &Value, behind: &Value, held: f64) -> Result<()> {
    let of = |flow: &Value, what: &str| flow["of_server"][what].as_u64().unwrap_or(u64::MAX);
    let said = in_front["summary"].as_str().unwrap_or_default();
    let found = of(in_front, "held_window_us") as f64 / 1e6;
    println!("held for {held:.2} s, the inspector: {found:.2} s; {said}");
    ensure!(of(in_front, "held_windows") > 0, "{in_front}");
    // The client notices the release with its next probe, which is late on a busy machine.
    let late = WAIT.as_secs_f64();
    ensure!((held / 2.0..held + late).contains(&found), "{in_front}");
    ensure!(said.contains("as where a guard paces the client"), "{said}");
    ensure!(of(behind, "held_windows") + of(behind, "zero_windows") == 0, "{behind}");
    ensure!(!behind["summary"].as_str().unwrap_or_default().contains("paces"), "{behind}");
    Ok(())
}

/// Flood and release the connection; return its port, and the times of both.
fn flood_and_release(node: &Node, guard: &Guard, start: Instant) -> Result<(u16, [f64; 2])> {
    let at = SocketAddr::new(node.pods[0].address(Family::V4), PORT);
    let mut client = Client::connect(&node.pair.client, at, ConnectOptions::default())?;
    let local = client.local();
    thread::sleep(Duration::from_millis(200));
    let begin = start.elapsed().as_secs_f64();
    let bounds = Bounds { pings: PINGS, time: HELD, pause: Duration::ZERO };
    let flooded = flood(&mut client, bounds, || true)?;
    ensure!(flooded.broken.is_none(), "{flooded:?}");
    thread::sleep(HELD.saturating_sub(flooded.time));
    guard.run("policy set --max-ping-rate 1000000")?;
    let release = start.elapsed().as_secs_f64();
    guard.run(&format!("release {}", local.ip()))?;
    ensure!(client.drain(Duration::from_secs(10)), "the server does not take the rest");
    eventually("the pacing ends", || {
        let flows: Value = guard.ask("flows")?;
        Ok(flows[0]["paced"] == false)
    })?;
    thread::sleep(Duration::from_millis(300));
    Ok((local.port(), [begin, release]))
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;

/// Draw an SVG. Lines are steps: a value holds until the next one.
fn picture(lines: &Lines, release: f64) -> String {
    let ends = [&lines.sent, &lines.told].map(|points| points.last().map_or(0.0, |point| point.0));
    let (time, bytes) = (ends[0].max(ends[1]).ceil(), 400.0 * 1024.0);
    let x = |at: f64| LEFT + at / time * WIDTH;
    let y = |at: f64| TOP + HEIGHT - at.min(bytes) / bytes * HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 430\" width=\"760\" height=\"430\" \
         font-family=\"sans-serif\" font-size=\"13\" role=\"img\" aria-labelledby=\"title\">\n  \
         <title id=\"title\">Bytes over time of a paced flood: the server's own edge is far above, the \
         edge that the client is told rises by the pace, and what the client sends follows \
         it</title>\n  <rect width=\"760\" height=\"430\" fill=\"#ffffff\"/>\n  <text x=\"{LEFT}\" y=\"28\" \
         font-weight=\"bold\" fill=\"#222222\">A flood of pings over one connection, its window held at 16 \
         KiB/s</text>\n"
    );
    for step in 0..=4 {
        let at = f64::from(step) * bytes / 4.0;
        let _ = writeln!(
            svg,
            "  <path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#dddddd\"/>\n  <text x=\"62\" y=\"{2:.1}\" \
             text-anchor=\"end\" fill=\"#666666\">{3} KiB</text>",
            y(at),
            LEFT + WIDTH,
            y(at) + 4.0,
            at / 1024.0
        );
    }
    for second in 0..=time as u32 {
        let at = x(second.into());
        let _ = writeln!(
            svg,
            "  <text x=\"{at:.1}\" y=\"370\" text-anchor=\"middle\" fill=\"#666666\">{second} s</text>"
        );
    }
    let rows = [
        ("the server's own edge, behind the guard", "#7f8c8d", &lines.offered),
        ("the edge that the client is told", "#e6a49d", &lines.told),
        ("acknowledged by the server", "#27ae60", &lines.acknowledged),
        ("sent by the client", "#1f3a93", &lines.sent),
    ];
    for (n, (name, colour, points)) in rows.iter().enumerate() {
        let _ = writeln!(
            svg,
            "  <path d=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{}\"/>",
            steps(points, x, y),
            [2, 8, 4, 1][n]
        );
        let (column, row) = (LEFT + 330.0 * (n % 2) as f64, 394.0 + 20.0 * (n / 2) as f64);
        let _ = writeln!(
            svg,
            "  <rect x=\"{column}\" y=\"{}\" width=\"20\" height=\"4\" fill=\"{colour}\"/>\n  <text \
             x=\"{}\" y=\"{row}\" fill=\"#222222\">{name}</text>",
            row - 6.0,
            column + 28.0
        );
    }
    let at = x(release);
    let _ = writeln!(
        svg,
        "  <path d=\"M{at:.1} {TOP}V{}\" stroke=\"#222222\" stroke-dasharray=\"4 4\"/>\n  <text \
         x=\"{:.1}\" y=\"{}\" text-anchor=\"end\" fill=\"#222222\">released</text>\n</svg>",
        TOP + HEIGHT,
        at - 6.0,
        TOP + 14.0
    );
    svg
}

/// Return a path of steps, without points that make no visible change.
fn steps(points: &[(f64, f64)], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let mut last = None;
    for (time, bytes) in highest(points) {
        let at = (x(time), y(bytes));
        match last {
            None => path = format!("M{LEFT} {:.1}H{:.1}V{:.1}", TOP + HEIGHT, at.0, at.1),
            Some((_, before)) if f64::abs(before - at.1) < 0.3 => continue,
            Some(_) => {
                let _ = write!(path, "H{:.1}V{:.1}", at.0, at.1);
            }
        }
        last = Some(at);
    }
    let end = points.last().map_or(LEFT, |point| x(point.0));
    let _ = write!(path, "H{end:.1}");
    path
}
