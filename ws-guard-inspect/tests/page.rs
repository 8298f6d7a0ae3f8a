//! HTML page: self-contained, and drawn by a browser.

mod common;

use std::{io::Cursor, process::Command};

use base64::{Engine, prelude::BASE64_STANDARD};
use common::{Talk, frame};
use serde_json::Value;
use sha2::{Digest, Sha256};
use ws_guard_inspect::{
    Ends, Finding, FlowReport, Inspector, Side, Visitor,
    input::{Capture, Packet},
    packet::Segment,
    page::{self, Page},
};

/// Data and markup that must stay data.
const REASON: &[u8] = b"\x03\xe8</script><!--<script><b>\xe2\x80\xa8";

#[derive(Default)]
struct Drawing(Page);

impl Visitor for Drawing {
    fn segment(&mut self, _: &Packet<'_>, segment: &Segment<'_>) {
        self.0.segment(segment);
    }

    fn finding(&mut self, ends: &Ends, finding: &Finding) {
        self.0.finding(ends, finding);
    }

    fn flow(&mut self, report: FlowReport) {
        self.0.flow(&report);
    }
}

fn page(file: &[u8]) -> String {
    let mut inspector = Inspector::new(Drawing::default());
    inspector.keep(page::SHOWN);
    let mut capture = Capture::new(Cursor::new(file.to_vec()), 1).unwrap();
    while let Some(packet) = capture.packet().unwrap() {
        inspector.packet(&packet);
    }
    let mut out = Vec::new();
    inspector.end().0.0.write("a <b>capture</b>", &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Build a talk with three frames in one segment, across a sequence number wrap.
/// Then a cut frame of the server, and both closes.
fn talk() -> Talk {
    let mut talk = Talk::open(false, [u32::MAX - 200, 9], false);
    let three = ["a", "bc", "def"].map(|text| frame(Side::Client, 0x81, text.as_bytes())).concat();
    talk.send(Side::Client, &three);
    let long = frame(Side::Server, 0x82, &[7; 300]);
    talk.send(Side::Server, &long[..3]);
    talk.send(Side::Server, &long[3..]);
    talk.send(Side::Client, &frame(Side::Client, 0x88, REASON));
    talk.send(Side::Server, &frame(Side::Server, 0x88, REASON));
    talk
}

/// Return the text between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from}"));
    rest.split_once(to).unwrap().0
}

#[test]
fn the_page_is_whole_in_itself() {
    let page = page(&talk().pcap());
    let policy = between(&page, "Content-Security-Policy\" content=\"", "\"");
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for (kind, from, to) in [("script", "<script>", "</script>"), ("style", "<style>", "</style>")]
    {
        let hash = BASE64_STANDARD.encode(Sha256::digest(between(&page, from, to)));
        assert!(policy.contains(&format!("{kind}-src 'sha256-{hash}'")), "{from} {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    for outside in ["http://", "https://", " src=", "@import", "url(", "fetch(", "innerHTML"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let text = between(&page, "id=\"data\">", "</script>");
    let data: Value = serde_json::from_str(text).expect("what the network sent stays data");
    let flow = &data["flows"][0];
    assert_eq!(flow["report"]["frames_client"], 4);
    let [segments, frames, notes] =
        ["segments", "frames", "notes"].map(|list| flow[list].as_array().unwrap());
    assert_eq!((segments.len(), frames.len()), (7, 6));
    let close = notes.iter().find(|note| note[1] == "close").unwrap();
    assert!(close[6].as_str().unwrap().contains("</script><!--<script>"));
}

#[test]
fn a_browser_draws_it_and_follows_links() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    std::fs::write(&path, page(&talk().pcap())).unwrap();
    // Finding on the cut frame, by the link of its row in the list.
    let shown = |place: &str| {
        let mut chromium = Command::new("chromium");
        chromium.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=3000",
        ]);
        chromium.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        chromium.args(["--dump-dom", &format!("file://{}{place}", path.display())]);
        match chromium.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            output => Some(String::from_utf8_lossy(&output.unwrap().stdout).into_owned()),
        }
    };
    let Some(all) = shown("") else {
        println!("skipped: there is no chromium here (Debian: apt-get install chromium)");
        return;
    };
    assert!(between(&all, "id=\"title\">", "<").contains("a &lt;b&gt;capture"), "{all}");
    assert!(between(&all, "id=\"count\">", "<").starts_with("5 findings"), "{all}");
    let list = between(&all, "id=\"list\"", "</section>");
    let row = between(list, "server <b>split_header </b>", "<");
    assert!(row.starts_with("header of frame 1 is cut after 3 bytes"), "{row}");
    let before = list.split_once("<b>split_header").unwrap().0;
    let (_, link) = before.rsplit_once("href=\"").unwrap();
    let bytes = shown(link.split_once('"').unwrap().0).unwrap();
    let detail = between(&bytes, "id=\"detail\">", "</section>");
    assert!(detail.contains("in 2 segments: packet 7 bytes 0–3, packet 8 bytes 0–301"), "{detail}");
    assert!(detail.contains("length of the payload in 16 bits: 300"), "{detail}");
    // A frame after the wrap of sequence numbers, unmasked.
    let last = shown("#0/f/0/3").unwrap();
    assert!(between(&last, "id=\"detail\">", "</section>").contains("payload: def"), "{last}");
    let close = shown("#0/f/0/4").unwrap();
    let detail = between(&close, "id=\"detail\">", "</section>");
    assert!(detail.contains("in 1 segment: packet 9 bytes 0–"), "{detail}");
}
