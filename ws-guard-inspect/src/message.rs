//! Content of messages: unmasked payload, inflated where compressed.
//!
//! Bytes are inflated as they arrive and only the first ones are kept, so that a message of any
//! length costs as much memory as a short one. A window of 32 KiB reads whatever was negotiated.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::{Decompress, FlushDecompress, Status};
use serde::{Serialize, Serializer, ser::SerializeMap};
use ws_guard_common::frame::opcode;

use crate::{
    explain::opcode_name,
    finding::{At, Broken, Side, What},
    lane::Event,
    utf8::Utf8,
};

/// Maximum inflated length of a message that is followed, in bytes.
const MOST: u64 = 16 << 20;
/// End of a compressed message that the sender removes (RFC 7692, 7.2.2).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// Message in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Number of its first frame.
    pub frame: u64,
    #[serde(skip)]
    pub opcode: u8,
    /// Payload length on the wire in bytes.
    pub length: u64,
    pub compressed: bool,
    /// Length of the content in bytes, as far as it is known.
    pub bytes: u64,
    /// Leading bytes of the content.
    #[serde(flatten)]
    pub shown: Shown,
    /// Reason why the content is incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
}

/// Bytes for display: `text` where they are UTF-8, or `base64`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown(pub Vec<u8>);

impl Shown {
    /// Return the bytes as text; the last character may be cut off.
    fn text(&self) -> Option<&str> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => Some(text),
            Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => {
                std::str::from_utf8(&self.0[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        }
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self.text() {
            Some(text) => map.serialize_entry("text", text)?,
            None => map.serialize_entry("base64", &BASE64_STANDARD.encode(&self.0))?,
        }
        map.end()
    }
}

/// Reason why a message's content is not shown in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// Message with bytes missing from the capture.
    NotCaptured,
    /// Message that refers to an earlier, unknown message.
    EarlierUnknown,
    /// Message that is not valid deflate data.
    NotDeflate,
    /// Message that inflates beyond the maximum, as a zip bomb does.
    TooMuch,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::NotCaptured => f.write_str("the rest is not in the capture"),
            Note::EarlierUnknown => {
                f.write_str("the rest cannot be inflated: an earlier message is not known")
            }
            Note::NotDeflate => f.write_str("the rest is no valid deflate data"),
            Note::TooMuch => {
                write!(f, "it inflates to more than {} MiB and is not followed further", MOST >> 20)
            }
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Message { frame, opcode, length, compressed, bytes, shown, note } = self;
        write!(f, "{frame}: {}, {length} bytes", opcode_name(*opcode))?;
        if *compressed {
            write!(f, ", inflated {bytes}")?;
        }
        match shown.text() {
            Some(text) => write!(f, ": {text:?}")?,
            None => {
                f.write_str(": ")?;
                shown.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            }
        }
        if *bytes > shown.0.len() as u64 {
            f.write_str("…")?;
        }
        note.map_or(Ok(()), |note| write!(f, "; {note}"))
    }
}

/// Messages of one direction.
#[derive(Debug)]
pub struct Messages {
    side: Side,
    /// Number of bytes kept of each message.
    keep: usize,
    /// Inflater with the window of earlier messages.
    inflater: Option<Decompress>,
    /// `true` if the window lacks earlier messages.
    is_partial: bool,
    open: Option<Open>,
}

/// Message that is not complete yet.
#[derive(Debug)]
struct Open {
    at: At,
    message: Message,
    utf8: Utf8,
}

impl Messages {
    pub const fn new(side: Side, keep: usize) -> Messages {
        Messages { side, keep, inflater: None, is_partial: false, open: None }
    }

    /// Begin a message with its first frame.
    pub fn begin(&mut self, at: At, frame: u64, opcode: u8, compressed: bool) {
        let (shown, note) = (Shown::default(), None);
        let message = Message { frame, opcode, length: 0, compressed, bytes: 0, shown, note };
        self.open = Some(Open { at, message, utf8: Utf8::default() });
    }

    /// Process the next bytes of unmasked payload.
    pub fn push(&mut self, bytes: &[u8]) {
        let Some(open) = &mut self.open else { return };
        open.message.length += bytes.len() as u64;
        if open.message.note.is_some() {
            return;
        }
        if !open.message.compressed {
            open.say(bytes, self.keep);
            return;
        }
        self.inflate(bytes);
    }

    fn inflate(&mut self, mut bytes: &[u8]) {
        let Some(open) = &mut self.open else { return };
        let inflater = self.inflater.get_or_insert_with(|| Decompress::new(false));
        let mut space = [0; 8 << 10];
        loop {
            let (read, written) = (inflater.total_in(), inflater.total_out());
            let status = inflater.decompress(bytes, &mut space, FlushDecompress::Sync);
            let read = (inflater.total_in() - read) as usize;
            let written = (inflater.total_out() - written) as usize;
            open.say(&space[..written], self.keep);
            bytes = &bytes[read..];
            let note = match status {
                _ if open.message.bytes > MOST => Note::TooMuch,
                Ok(Status::StreamEnd) => {
                    // A final block, after which another stream may begin.
                    inflater.reset(false);
                    if bytes.is_empty() || read == 0 {
                        return;
                    }
                    continue;
                }
                Ok(_) if read == 0 && written == 0 => return,
                Ok(_) => continue,
                Err(_) if self.is_partial => Note::EarlierUnknown,
                Err(_) => Note::NotDeflate,
            };
            open.message.note = Some(note);
            return self.forget();
        }
    }

    /// Reset the window, which lacks messages from now on.
    fn forget(&mut self) {
        self.inflater = None;
        self.is_partial = true;
    }

    /// Record that bytes of the message are not in the capture.
    pub fn miss(&mut self) {
        let Some(open) = &mut self.open else { return };
        open.message.note.get_or_insert(Note::NotCaptured);
        if open.message.compressed {
            self.forget();
        }
    }

    /// Finish a complete message: report its content, and return its violation.
    pub fn end(&mut self, out: &mut Vec<Event>) -> Option<Broken> {
        let is_deflate = |open: &Open| open.message.compressed && open.message.note.is_none();
        if self.open.as_ref().is_some_and(is_deflate) {
            self.inflate(&TAIL);
        }
        let Open { at, message, utf8 } = self.open.take()?;
        let broken = match message.note {
            None if message.opcode == opcode::TEXT && !utf8.is_whole() => Some(Broken::Text),
            Some(Note::NotDeflate) => Some(Broken::Deflate),
            _ => None,
        };
        let (frame, side) = (message.frame, self.side);
        out.push(Event::Found(side, at, What::Message(message)));
        out.extend(broken.map(|violation| {
            let rfc = violation.rfc();
            Event::Found(side, at, What::Violation { violation, frame, rfc })
        }));
        broken
    }

    /// Record that messages are missing.
    pub fn interrupt(&mut self) {
        self.open = None;
        self.forget();
    }
}

impl Open {
    fn say(&mut self, bytes: &[u8], keep: usize) {
        let Message { opcode, bytes: said, shown, .. } = &mut self.message;
        *said += bytes.len() as u64;
        let room = keep.saturating_sub(shown.0.len()).min(bytes.len());
        shown.0.extend_from_slice(&bytes[..room]);
        if *opcode == opcode::TEXT {
            self.utf8.push(bytes);
        }
    }
}
