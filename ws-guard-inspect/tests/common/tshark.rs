//! Results of Debian's tshark on a capture, for comparison.

use std::process::Command;

use ws_guard_inspect::{Side, What};

use super::inspected;

/// Frame in both: from the client, packet in which it ends, FIN, opcode, length.
pub type Seen = (bool, u64, bool, u8, u64);

/// Close frame: from the client, its code.
pub type Close = (bool, u16);

/// Run tshark and return its frames and close codes; `None` if not installed.
pub fn tshark(file: &[u8], port: u16) -> Option<(Vec<Seen>, Vec<Close>)> {
    let capture = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(capture.path(), file).unwrap();
    let fields = ["frame.number", "tcp.dstport", "websocket.fin", "websocket.opcode"];
    let lengths = ["websocket.payload_length", "websocket.payload_length_ext_16"];
    let mut command = Command::new("tshark");
    command.args(["-n", "-Y", "websocket", "-T", "fields", "-r"]).arg(capture.path());
    let last = ["websocket.payload_length_ext_64", "websocket.payload.close.status_code"];
    for field in fields.iter().chain(&lengths).chain(&last) {
        command.args(["-e", field]);
    }
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let frames = text.lines().flat_map(|line| frames_of(line, port)).collect();
    Some((frames, text.lines().flat_map(|line| closes_of(line, port)).collect()))
}

/// Parse the codes of the close frames in a line of tshark.
fn closes_of(line: &str, port: u16) -> Vec<Close> {
    let fields: Vec<&str> = line.split('\t').collect();
    let codes = fields[7].split(',').filter(|part| !part.is_empty());
    codes.map(|code| (fields[1] == port.to_string(), code.parse().unwrap())).collect()
}

/// Parse the frames in a packet's line: each field lists the values of all frames.
fn frames_of(line: &str, port: u16) -> Vec<Seen> {
    let fields: Vec<&str> = line.split('\t').collect();
    let list = |index: usize| fields[index].split(',').filter(|part| !part.is_empty());
    let packet = fields[0].parse().unwrap();
    let from_client = fields[1] == port.to_string();
    let (mut short, mut long) = (list(5), list(6));
    let lengths: Vec<u64> = list(4)
        .map(|length| match length {
            "126" => short.next().unwrap().parse().unwrap(),
            "127" => long.next().unwrap().parse().unwrap(),
            length => length.parse().unwrap(),
        })
        .collect();
    let all = list(2).zip(list(3)).zip(lengths);
    all.map(|((fin, opcode), length)| {
        (from_client, packet, ["1", "True"].contains(&fin), opcode.parse().unwrap(), length)
    })
    .collect()
}

/// Return the inspector's frames and close codes, in the order in which frames end.
pub fn inspector(file: &[u8]) -> (Vec<Seen>, Vec<Close>) {
    let (told, _) = inspected(file);
    let mut seen: Vec<Seen> = Vec::new();
    for (side, is_client) in [(Side::Client, true), (Side::Server, false)] {
        let frames = told.frames(side).into_iter().map(|(_, _, frame)| {
            (is_client, frame.ends_in_packet, frame.fin, frame.opcode, frame.length)
        });
        seen.extend(frames);
    }
    seen.sort_by_key(|(_, packet, ..)| *packet);
    let closes = told.findings.iter().filter_map(|(_, finding)| match &finding.what {
        What::Close { code: Some(code), .. } => Some((finding.direction == Side::Client, *code)),
        _ => None,
    });
    (seen, closes.collect())
}

/// Compare both on connections to `port`; `false` where tshark is not installed.
pub fn compare(file: &[u8], port: u16) -> bool {
    let Some((theirs, their_closes)) = tshark(file, port) else {
        println!("skipped: there is no tshark here (Debian: apt-get install tshark)");
        return false;
    };
    let (ours, our_closes) = inspector(file);
    if let Some(place) = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
        panic!("frame {place}: {:?}, tshark {:?}", ours[place], theirs[place]);
    }
    assert!(!ours.is_empty(), "no frames");
    assert_eq!(ours.len(), theirs.len(), "frames");
    assert!(!our_closes.is_empty(), "no closes");
    assert_eq!(our_closes, their_closes, "closes");
    true
}
