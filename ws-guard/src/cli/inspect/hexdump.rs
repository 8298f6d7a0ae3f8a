//! Explanation of one frame's header, byte by byte.

use std::fmt::Write;

use anyhow::bail;
use serde_json::json;
use ws_guard_inspect::{
    Ends, FrameName,
    explain::{Part, explain},
    finding::{At, Frame, time},
};

use super::Format;
use crate::cli::output::printable;

/// Bytes shown: the longest header and rows of payload.
pub const SHOWN: usize = 14 + 64;

/// A frame to show.
pub struct Dump {
    pub ends: Ends,
    pub at: At,
    pub frame: Frame,
}

/// Render the frame as text or JSON.
pub fn render(name: FrameName, dumps: &[Dump], format: Format) -> anyhow::Result<String> {
    if dumps.is_empty() {
        let FrameName { side, number } = name;
        bail!(
            "no connection has a frame {}:{number}: `--kind frame` lists all that there are",
            side.name()
        );
    }
    let mut text = String::new();
    for dump in dumps {
        match format {
            Format::Json | Format::Jsonl => {
                text += &serde_json::to_string(&document(name, dump))?;
                text.push('\n');
            }
            Format::Table | Format::Wide => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text += &lines(name, dump);
            }
        }
    }
    Ok(text)
}

fn hex(part: &Part) -> String {
    part.bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

fn document(name: FrameName, dump: &Dump) -> serde_json::Value {
    let parts = explain(name.side, &dump.frame);
    let part = |part: &Part| json!({ "at": part.offset, "hex": hex(part), "means": part.meaning });
    let mut document =
        json!({ "direction": name.side, "parts": parts.iter().map(part).collect::<Vec<_>>() });
    for value in [json!(dump.ends), json!(dump.at), json!(dump.frame)] {
        if let (Some(document), Some(more)) = (document.as_object_mut(), value.as_object()) {
            document.extend(more.clone());
        }
    }
    document
}

fn lines(name: FrameName, Dump { ends, at, frame }: &Dump) -> String {
    let mut text = format!(
        "{} → {}, {} frame {frame}\npacket {} at offset {}, to packet {}, {}\n\n",
        ends.client,
        ends.server,
        name.side.name(),
        at.packet,
        at.offset,
        frame.ends_in_packet,
        time(at.time_ns),
    );
    for part in explain(name.side, frame) {
        // Eight bytes per row fit a terminal; the first row of a longer part carries the meaning.
        for (row, bytes) in hex(&part).as_bytes().chunks(24).enumerate() {
            let (bytes, at) = (String::from_utf8_lossy(bytes), part.offset + row * 8);
            let meaning = if row == 0 { printable(&part.meaning) } else { "".into() };
            let line = format!("{at:4}  {:23}  {meaning}", bytes.trim_end());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    let (shown, whole) =
        (frame.bytes.len() as u64, frame.length.saturating_add(frame.header.into()));
    if shown < whole {
        let _ = writeln!(text, "      {} of {whole} bytes are shown", shown);
    }
    text
}
