//! Findings in connections, and their positions.

use std::{fmt, net::SocketAddr};

use serde::{Serialize, Serializer};
use ws_guard_common::frame::Violation;

use crate::{explain::opcode_name, message::Message};

/// Packet: number of its file (from 1), its own as other tools count, and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub file: u32,
    pub packet: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ends {
    pub client: SocketAddr,
    pub server: SocketAddr,
}

/// Side of a connection, as the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub const fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }
}

/// Position in the stream of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct At {
    pub file: u32,
    pub packet: u64,
    #[serde(serialize_with = "rfc3339", rename = "time")]
    pub time_ns: u64,
    /// TCP sequence number.
    pub seq: u32,
    /// Offset in the packet's TCP payload, in bytes.
    pub offset: u32,
}

impl At {
    pub const fn new(place: Place, seq: u32, offset: u32) -> At {
        At { file: place.file, packet: place.packet, time_ns: place.time_ns, seq, offset }
    }
}

/// Format a packet's name: with its file, unless that is the first.
pub fn packet(file: u32, packet: u64) -> String {
    match file {
        0 | 1 => format!("packet {packet}"),
        _ => format!("packet {packet} of file {file}"),
    }
}

/// Format a time as in RFC 3339.
pub fn time(ns: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns);
    humantime::format_rfc3339_nanos(time).to_string()
}

pub fn rfc3339<S: Serializer>(ns: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time(*ns))
}

/// WebSocket frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Number among the side's frames, from 1.
    pub frame: u64,
    pub opcode: u8,
    pub fin: bool,
    /// Three bits after FIN: RSV1 to RSV3.
    pub rsv: u8,
    /// Payload length in bytes.
    pub length: u64,
    /// Header length in bytes, masking key included.
    pub header: u32,
    /// Packet with the last byte; the finding has the one with the first.
    pub ends_in_packet: u64,
    /// Number of segments that the frame spans.
    pub segments: u32,
    /// Leading bytes as on the wire, where requested and captured.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// Kind and details of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    Frame(Frame),
    /// Content of a message, where requested.
    Message(Message),
    /// Header and body of a length-delimited protocol.
    Unit {
        frame: u64,
        length: u64,
        header: u32,
        ends_in_packet: u64,
        segments: u32,
    },
    /// Frames that begin inside a segment, where a reader has to split it.
    SplitPoint {
        frames: u32,
        len: u32,
        offsets: Vec<u32>,
    },
    /// Segment that ends inside a header, after `have` of its bytes.
    SplitHeader {
        frame: u64,
        have: u32,
    },
    /// Frame that spans several segments.
    SplitFrame {
        frame: u64,
        segments: u32,
        length: u64,
        ends_in_packet: u64,
    },
    /// Frame that lacks `missing` bytes at the end of the capture or connection.
    Unfinished {
        frame: u64,
        length: u64,
        missing: u64,
    },
    /// Violation of RFC 6455.
    Violation {
        violation: Broken,
        frame: u64,
        rfc: &'static str,
    },
    /// PING, and its answer: its own PONG or a later ping's.
    Ping {
        frame: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        answered_us: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        answered_in_packet: Option<u64>,
    },
    /// PONG whose payload is no PING's.
    UnaskedPong {
        frame: u64,
        length: u64,
    },
    Close {
        frame: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<u16>,
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    Retransmission {
        len: u32,
    },
    OutOfOrder {
        len: u32,
    },
    /// Bytes that were sent, but are not in the capture.
    Gap {
        len: u32,
    },
    /// Bytes truncated by the capture.
    Snapped {
        len: u32,
    },
    /// Closure of the side's receive window, and its duration once it has reopened.
    ZeroWindow {
        #[serde(skip_serializing_if = "Option::is_none")]
        closed_us: Option<u64>,
    },
    /// Small receive window despite acknowledged data, and its duration once reopened.
    HeldWindow {
        #[serde(skip_serializing_if = "Option::is_none")]
        held_us: Option<u64>,
        /// Bytes acknowledged meanwhile, and the advance of the window's right edge.
        acknowledged: u64,
        advanced: u64,
        /// Smallest and greatest window before, in bytes.
        smallest: u32,
        greatest: u32,
    },
    /// Loss of the frames' position.
    Unsynced,
    /// Frames found by a chain of headers that proves them.
    PickedUp,
}

/// Rule that a frame breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Violation that the tracker sees in the header.
    Header(Violation),
    /// Close frame with one byte, or with a code that must not be sent.
    CloseCode,
    /// Close reason that is not UTF-8.
    CloseReason,
    /// Data frame after the side's close frame.
    AfterClose,
    /// Text message that is not UTF-8, where messages are shown.
    Text,
    /// Compressed message that is not deflate data, where messages are shown.
    Deflate,
    /// Length-delimited protocol: a header without the protocol's magic.
    Magic,
    /// Body longer than the maximum.
    TooLong,
    /// Length smaller than the part of the header that it includes.
    TooShort,
}

impl Broken {
    pub const fn name(self) -> &'static str {
        match self {
            Broken::Header(violation) => violation.name(),
            Broken::CloseCode => "invalid_close_code",
            Broken::CloseReason => "invalid_close_reason",
            Broken::AfterClose => "data_after_close",
            Broken::Text => "text_not_utf8",
            Broken::Deflate => "not_deflate",
            Broken::Magic => "wrong_magic",
            Broken::TooLong => "length_too_long",
            Broken::TooShort => "length_too_short",
        }
    }

    /// Return the section of the RFC that has the rule, or the layout.
    pub const fn rfc(self) -> &'static str {
        match self {
            Broken::Header(violation) => match violation {
                Violation::ReservedOpcode
                | Violation::ReservedBits
                | Violation::NonMinimalLength
                | Violation::LengthTopBit => "RFC 6455, 5.2",
                Violation::Unmasked | Violation::Masked => "RFC 6455, 5.1",
                Violation::ControlTooLong | Violation::ControlFragmented => "RFC 6455, 5.5",
                Violation::UnexpectedContinuation | Violation::InterleavedData => "RFC 6455, 5.4",
                Violation::BadRecord => "RFC 8446, 5.1",
            },
            Broken::CloseCode => "RFC 6455, 7.4",
            Broken::CloseReason => "RFC 6455, 5.5.1 and 8.1",
            Broken::AfterClose => "RFC 6455, 5.5.1",
            Broken::Text => "RFC 6455, 5.6 and 8.1",
            Broken::Deflate => "RFC 7692, 7.2",
            Broken::Magic | Broken::TooLong | Broken::TooShort => "the layout",
        }
    }
}

impl Serialize for Broken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Kind of a finding, as used in selections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Frame,
    Message,
    Unit,
    SplitPoint,
    SplitHeader,
    SplitFrame,
    Unfinished,
    Violation,
    Ping,
    UnaskedPong,
    Close,
    Retransmission,
    OutOfOrder,
    Gap,
    Snapped,
    ZeroWindow,
    HeldWindow,
    Unsynced,
    PickedUp,
}

impl Kind {
    pub const ALL: [Kind; 19] = [
        Kind::Frame,
        Kind::Message,
        Kind::Unit,
        Kind::SplitPoint,
        Kind::SplitHeader,
        Kind::SplitFrame,
        Kind::Unfinished,
        Kind::Violation,
        Kind::Ping,
        Kind::UnaskedPong,
        Kind::Close,
        Kind::Retransmission,
        Kind::OutOfOrder,
        Kind::Gap,
        Kind::Snapped,
        Kind::ZeroWindow,
        Kind::HeldWindow,
        Kind::Unsynced,
        Kind::PickedUp,
    ];

    /// Return the name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Frame => "frame",
            Kind::Message => "message",
            Kind::Unit => "unit",
            Kind::SplitPoint => "split_point",
            Kind::SplitHeader => "split_header",
            Kind::SplitFrame => "split_frame",
            Kind::Unfinished => "unfinished",
            Kind::Violation => "violation",
            Kind::Ping => "ping",
            Kind::UnaskedPong => "unasked_pong",
            Kind::Close => "close",
            Kind::Retransmission => "retransmission",
            Kind::OutOfOrder => "out_of_order",
            Kind::Gap => "gap",
            Kind::Snapped => "snapped",
            Kind::ZeroWindow => "zero_window",
            Kind::HeldWindow => "held_window",
            Kind::Unsynced => "unsynced",
            Kind::PickedUp => "picked_up",
        }
    }
}

impl What {
    pub const fn kind(&self) -> Kind {
        match self {
            What::Frame(_) => Kind::Frame,
            What::Message(_) => Kind::Message,
            What::Unit { .. } => Kind::Unit,
            What::SplitPoint { .. } => Kind::SplitPoint,
            What::SplitHeader { .. } => Kind::SplitHeader,
            What::SplitFrame { .. } => Kind::SplitFrame,
            What::Unfinished { .. } => Kind::Unfinished,
            What::Violation { .. } => Kind::Violation,
            What::Ping { .. } => Kind::Ping,
            What::UnaskedPong { .. } => Kind::UnaskedPong,
            What::Close { .. } => Kind::Close,
            What::Retransmission { .. } => Kind::Retransmission,
            What::OutOfOrder { .. } => Kind::OutOfOrder,
            What::Gap { .. } => Kind::Gap,
            What::Snapped { .. } => Kind::Snapped,
            What::ZeroWindow { .. } => Kind::ZeroWindow,
            What::HeldWindow { .. } => Kind::HeldWindow,
            What::Unsynced => Kind::Unsynced,
            What::PickedUp => Kind::PickedUp,
        }
    }
}

impl What {
    /// Return the other packet that the finding's text names, if any.
    pub const fn other_packet(&self) -> Option<u64> {
        match self {
            What::SplitFrame { ends_in_packet, .. } => Some(*ends_in_packet),
            What::Ping { answered_in_packet, .. } => *answered_in_packet,
            _ => None,
        }
    }
}

/// Finding in a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Sender of the bytes in question.
    pub direction: Side,
    /// `true` for findings inside messages.
    /// `seq` counts the bytes of their payload, `offset` is one in the message, and the packet is
    /// the one in which the message ends.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
    #[serde(flatten)]
    pub at: At,
    #[serde(flatten)]
    pub what: What,
}

impl Finding {
    pub const fn new(direction: Side, at: At, what: What) -> Finding {
        Finding { direction, nested: false, at, what }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Frame(frame) => frame.fmt(f),
            What::Message(message) => message.fmt(f),
            What::Unit { frame, length, .. } => write!(f, "{frame}: {length} bytes"),
            What::SplitPoint { frames, len, offsets } => {
                let offsets: Vec<String> = offsets.iter().map(u32::to_string).collect();
                let offsets = offsets.join(", ");
                let frames =
                    if *frames == 1 { "1 frame begins" } else { &format!("{frames} frames begin") };
                write!(f, "{frames} in {len} bytes: cut at {offsets}")
            }
            What::SplitHeader { frame, have } => {
                write!(f, "header of frame {frame} is cut after {have} bytes")
            }
            What::SplitFrame { frame, segments, length, ends_in_packet } => write!(
                f,
                "frame {frame} of {length} bytes lies in {segments} segments, to packet {ends_in_packet}"
            ),
            What::Unfinished { frame, length, missing } => {
                write!(f, "frame {frame} of {length} bytes lacks its last {missing} at the end")
            }
            What::Violation { violation, frame, rfc } => {
                write!(f, "{} in frame {frame} ({rfc})", violation.name())
            }
            What::Ping { answered_us: Some(us), answered_in_packet: Some(packet), .. } => {
                write!(f, "answered after {us} µs in packet {packet}")
            }
            What::Ping { answered_in_packet: Some(packet), .. } => {
                write!(f, "answered by a later ping's pong in packet {packet}")
            }
            What::Ping { .. } => f.write_str("not answered"),
            What::UnaskedPong { frame, length } => {
                write!(f, "frame {frame} of {length} bytes answers no ping")
            }
            What::Close { code, reason, .. } => match (code, reason.as_str()) {
                (None, _) => f.write_str("without a code"),
                (Some(code), "") => write!(f, "{code}"),
                (Some(code), reason) => write!(f, "{code}, {reason:?}"),
            },
            What::Retransmission { len } => write!(f, "{len} bytes came again"),
            What::OutOfOrder { len } => write!(f, "{len} bytes came before others"),
            What::Gap { len } => write!(f, "{len} bytes are not in the capture"),
            What::Snapped { len } => write!(f, "{len} bytes were cut off by the capture"),
            What::ZeroWindow { closed_us: Some(us) } => write!(f, "closed for {us} µs"),
            What::ZeroWindow { closed_us: None } => f.write_str("closed to the end"),
            What::HeldWindow { held_us, acknowledged, advanced, smallest, greatest } => {
                match held_us {
                    Some(us) => write!(f, "held for {us} µs")?,
                    None => f.write_str("held to the end")?,
                }
                write!(
                    f,
                    ": {acknowledged} bytes acknowledged, the right edge moved by {advanced}, down to {smallest} bytes of {greatest}"
                )
            }
            What::Unsynced => f.write_str("where its frames begin is not known from here"),
            What::PickedUp => f.write_str("eight headers in a row prove its frames"),
        }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = opcode_name(self.opcode);
        let more = if self.fin { "" } else { ", more follows" };
        let compressed = if self.rsv & 4 != 0 { ", RSV1" } else { "" };
        write!(f, "{}: {name}, {} bytes{compressed}{more}", self.frame, self.length)
    }
}
