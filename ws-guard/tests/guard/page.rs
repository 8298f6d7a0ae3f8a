//! The page of the metrics port in a browser during a flood.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use ws_guard_testkit::{
    browser::Browser,
    client::{Client, ConnectOptions, Cut},
    flood::{Bounds, flood},
    netns::{Family, Pair, PairOptions},
};

use crate::{
    process::Guard,
    stage::{PORT, WAIT, source_name},
    talk::{pings, round_trip},
};

const METRICS: u16 = 9464;
/// Duration that outlasts the test.
const LONG: Duration = Duration::from_secs(300);
/// Pause after each 500 pings: the page needs no busy CPU.
const PAUSE: Duration = Duration::from_millis(50);
/// Maximum number of simultaneous viewers.
const VIEWERS: usize = 16;
/// Environment variable with the folder for pictures of the documentation.
const PICTURES: &str = "PAGE_PICTURES";
const DESK: (u32, u32) = (1100, 900);
const PHONE: (u32, u32) = (360, 740);

/// Collector, from the first script on, of what the policy refused and what failed.
const WATCH: &str = "window.refused = []; \
    addEventListener('securitypolicyviolation', (e) => refused.push(e.violatedDirective)); \
    addEventListener('error', (e) => refused.push(String(e.message)));";
/// Text of a part of the page.
const CLIENTS: &str = "document.getElementById('clients').innerText";
/// Lowest contrast ratio of any visible text, and its place (WCAG 2, 1.4.3).
const CONTRAST: &str = r"(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\d.]+/g).map((n) => n / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return color === 'rgba(0, 0, 0, 0)' ? (node.parentElement ? ground(node.parentElement) : 'rgb(255, 255, 255)') : color;
  };
  const shown = [...document.querySelectorAll('body *')].filter((n) => n.offsetParent && [...n.childNodes].some((c) => c.nodeType === 3 && c.data.trim()));
  const all = shown.map((n) => {
    const [a, b] = [light(getComputedStyle(n).color), light(ground(n))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), n.tagName + ' ' + n.textContent];
  });
  return all.sort((x, y) => x[0] - y[0])[0];
})()";

/// A guard with a companion server under a flood, and its two clients.
struct Scene {
    // Dropped in this order: the guard is unloaded in a namespace that still exists.
    guard: Guard,
    pair: Pair,
}

impl Scene {
    fn start(more: &str) -> Result<Scene> {
        let pair = Pair::new(PairOptions { clients: 2, ..PairOptions::default() })?;
        let words = format!(
            "--port {PORT} --listen [::]:{PORT} --metrics-listen [::]:{METRICS} --access-log \
             /dev/null --shards 1 --stall-refuse 1h --stall-shed 1h --state-file none --pace \
             1000000B/s {more}"
        );
        let guard = Guard::start(&pair.server, &words)?;
        Ok(Scene { guard, pair })
    }

    fn client(&self, n: u8) -> Result<Client> {
        let at = (Family::V4.server(), PORT).into();
        let source = Some(Family::V4.client(n));
        let options = ConnectOptions { source, ..ConnectOptions::default() };
        Client::connect(&self.pair.client, at, options)
    }

    /// Run `looking` while one client floods and another does not.
    fn play(&self, looking: impl FnOnce(&Browser) -> Result<()>) -> Result<()> {
        let (mut flooder, mut calm) = (self.client(0)?, self.client(1)?);
        calm.send(&pings(0, 3), &Cut::Whole)?;
        round_trip(&mut calm, "served")?;
        let stop = AtomicBool::new(false);
        let bounds = Bounds { pings: u64::MAX, time: LONG, pause: PAUSE };
        thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(&mut flooder, bounds, || !stop.load(Relaxed)));
            let looked = self.browse(looking);
            stop.store(true, Relaxed);
            flooding.join().map_err(|_| anyhow!("the flood panicked"))??;
            looked
        })
    }

    fn browse(&self, looking: impl FnOnce(&Browser) -> Result<()>) -> Result<()> {
        let browser = Browser::start(&self.pair.server)?;
        browser.ask("Page.enable", json!({}))?;
        browser.ask("Page.addScriptToEvaluateOnNewDocument", json!({"source": WATCH}))?;
        browser.look(DESK.0, DESK.1, false)?;
        browser.open(&format!("http://127.0.0.1:{METRICS}/"))?;
        browser.wait(&format!("{CLIENTS}.includes('throttled')"))?;
        looking(&browser)
    }

    /// Begin a request to the metrics port.
    fn ask(&self, path: &str) -> Result<TcpStream> {
        let at = SocketAddr::new(Family::V4.server(), METRICS);
        let mut stream = self.pair.client.run(|| TcpStream::connect_timeout(&at, WAIT))??;
        stream.set_read_timeout(Some(WAIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        Ok(stream)
    }
}

/// Read the status line.
fn status(mut stream: &TcpStream) -> Result<String> {
    let mut head = [0; 15];
    stream.read_exact(&mut head)?;
    Ok(String::from_utf8_lossy(&head[9..12]).into_owned())
}

#[test]
fn a_browser_shows_a_flood_without_an_address() -> Result<()> {
    needs_root!();
    if let Some(reason) = Browser::missing() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let scene = Scene::start("")?;
    scene.play(|browser| {
        shows_the_flood(browser)?;
        goes_on_by_itself(browser)?;
        asks_nobody_else(browser)?;
        can_be_read(browser)?;
        can_be_used_with_keys(browser)?;
        let shown = browser.text("document.documentElement.outerHTML")?;
        let clients = [0, 1].map(|n| source_name(Family::V4.client(n)));
        let named = clients.iter().find(|client| shown.contains(client.as_str()));
        ensure!(named.is_none(), "{named:?} is on the page");
        keeps_viewers_apart(&scene)
    })?;
    scene.guard.finish()
}

#[test]
fn addresses_show_where_they_may() -> Result<()> {
    needs_root!();
    if Browser::missing().is_some() {
        return Ok(());
    }
    let scene = Scene::start("--page-addresses")?;
    let flooder = source_name(Family::V4.client(0));
    scene.play(|browser| {
        browser.wait(&format!("{CLIENTS}.includes('{flooder}')"))?;
        browser.wait(&format!("document.getElementById('events').innerText.includes('{flooder}')"))
    })?;
    scene.guard.finish()
}

fn shows_the_flood(browser: &Browser) -> Result<()> {
    for wanted in [
        "document.getElementById('word').innerText.startsWith('All well · 1 client throttled')",
        "/^127|^10\\.77\\.255\\.1:9001/.test(document.querySelector('#servers th').innerText)",
        "document.querySelectorAll('#connections tr').length === 2",
        "document.getElementById('events').innerText.includes('limit 30 in 10 s')",
        "document.querySelector('#clients details').textContent.includes('throttled')",
        "Number(document.querySelectorAll('#points td')[0].textContent.replace(',', '')) > 0",
        "Number(document.querySelectorAll('#points td')[1].textContent.replace(',', '')) > 0",
    ] {
        browser.wait(wanted)?;
    }
    draws(browser, "rates", false)?;
    for ((width, height), dark, name) in [(DESK, false, "page-light"), (PHONE, true, "page-phone")]
    {
        browser.look(width, height, dark)?;
        let fits =
            format!("innerWidth === {width} && document.documentElement.scrollWidth <= {width}");
        browser.wait(&fits)?;
        draws(browser, "rates", dark)?;
        let lowest = browser.value(CONTRAST)?;
        ensure!(lowest[0].as_f64().is_some_and(|ratio| ratio >= 4.5), "{name}: {lowest}");
        if let Some(folder) = std::env::var_os(PICTURES) {
            let path = std::path::Path::new(&folder).join(name).with_extension("base64");
            std::fs::write(path, browser.picture()?)?;
        }
    }
    browser.look(DESK.0, DESK.1, false)
}

/// Check that the curve of pings has its colour.
fn draws(browser: &Browser, chart: &str, dark: bool) -> Result<()> {
    let [r, g, b] = if dark { [0x58, 0xa6, 0xff] } else { [0x09, 0x69, 0xda] };
    browser.wait(&format!(
        "(() => {{ const c = document.querySelector('#{chart} canvas'); \
         const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; \
         for (let i = 0; i < d.length; i += 4) \
         if (d[i] === {r} && d[i + 1] === {g} && d[i + 2] === {b}) return true; return false; }})()"
    ))
}

/// Check that opened parts stay open while figures change.
fn goes_on_by_itself(browser: &Browser) -> Result<()> {
    browser.value("document.querySelector('#clients summary').click()")?;
    let pings = "document.querySelectorAll('#clients td')[2].innerText";
    let before = browser.text(pings)?;
    browser.wait(&format!("{pings} !== '{before}'"))?;
    browser.wait("document.querySelector('#clients details').open")
}

fn asks_nobody_else(browser: &Browser) -> Result<()> {
    let outside = "performance.getEntriesByType('resource').map((e) => e.name)\
                   .filter((name) => !name.startsWith(location.origin))";
    ensure!(browser.value(outside)? == json!([]), "{}", browser.value(outside)?);
    let refused = browser.value("refused")?;
    ensure!(refused == json!([]), "{refused}");
    // And could not: no script within the markup, nothing from elsewhere.
    let inside = "(() => { const s = document.createElement('style'); s.textContent = 'x{}'; \
                  document.head.append(s); })()";
    browser.value(inside)?;
    let away = "fetch('http://127.0.0.2/').then(() => 'went', () => 'refused')";
    ensure!(browser.text(away)? == "refused");
    browser.wait("['style-src-elem', 'connect-src'].every((d) => refused.includes(d))")
}

fn can_be_read(browser: &Browser) -> Result<()> {
    let spoken = browser.spoken()?;
    let has = |role: &str, name: &str| spoken.iter().any(|(r, n)| r == role && n.contains(name));
    for (role, name) in [
        ("heading", "Clients throttled or paced now"),
        ("region", "Health"),
        ("image", "Pings"),
        ("image", "Heartbeats in ms"),
        ("columnheader", "Pings in window"),
        ("rowheader", "client "),
        ("button", "Pause"),
        ("link", "Skip to the clients"),
        ("status", ""),
    ] {
        ensure!(has(role, name), "no {role} {name} in {spoken:?}");
    }
    let nameless = spoken.iter().find(|(role, name)| {
        ["button", "image", "link", "region", "heading"].contains(&role.as_str()) && name.is_empty()
    });
    ensure!(nameless.is_none(), "{nameless:?} has no name");
    Ok(())
}

fn can_be_used_with_keys(browser: &Browser) -> Result<()> {
    let at = "(document.activeElement.id || document.activeElement.className \
              || document.activeElement.tagName)";
    browser.value("document.activeElement.blur()")?;
    let mut passed = Vec::new();
    for _ in 0..40 {
        browser.press("Tab", 9)?;
        passed.push(browser.text(at)?);
        match passed.last().map(String::as_str) {
            Some("pause") => {
                browser.press(" ", 32)?;
                let pressed = "document.activeElement.getAttribute('aria-pressed') === 'true'";
                browser.wait(pressed)?;
                browser.press(" ", 32)?;
            }
            Some("BODY") => break,
            _ => {}
        }
    }
    for stop in ["skip", "pause", "scroll", "SUMMARY"] {
        ensure!(passed.iter().any(|id| id == stop), "no key leads to {stop}: {passed:?}");
    }
    Ok(())
}

/// Check that viewers that read nothing delay nothing.
/// One viewer too many is told so.
fn keeps_viewers_apart(scene: &Scene) -> Result<()> {
    // The browser takes one place.
    let viewers = (1..VIEWERS).map(|_| scene.ask("/page/live")).collect::<Result<Vec<_>>>()?;
    for viewer in &viewers {
        ensure!(status(viewer)? == "200");
    }
    ensure!(status(&scene.ask("/page/live")?)? == "503");
    ensure!(status(&scene.ask("/metrics")?)? == "200");
    let mut policy = String::new();
    scene.ask("/")?.read_to_string(&mut policy)?;
    let line = policy.lines().find(|line| line.starts_with("content-security-policy:"));
    let line = line.context("no policy")?;
    ensure!(line.contains("default-src 'none'") && !line.contains("unsafe"), "{line}");
    Ok(())
}
