//! Export of one connection as pcapng, with its findings as packet comments.
//!
//! Many findings in a packet are known only later: a ping's answer, the end of a frame. So packets
//! are set aside, and written with their comments at the end of the capture.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    net::SocketAddr,
};

use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, Linktype, OptionCode, PcapNGOption,
    SectionHeaderBlock, ToVec,
};

use crate::{
    finding::{Ends, Finding, Kind, Place},
    input::Packet,
    packet::Segment,
    report::FlowReport,
};

/// Maximum number of comments kept; later packets have none.
const MOST_COMMENTS: usize = 1_000_000;
/// Longest comment in bytes: an option has at most 65,535.
const LONGEST: usize = 4_096;
/// Nanosecond resolution, as a value of `if_tsresol`.
const NANOSECONDS: u8 = 9;

/// Position of a packet: file and number.
type Key = (u32, u64);

/// Comment on a packet.
struct Comment {
    ends: Ends,
    text: String,
    /// Number, in the capture, of another packet that the text names.
    other: Option<u64>,
}

/// Export of one connection.
pub struct Export<F: Read + Write + Seek> {
    /// Packets set aside.
    aside: BufWriter<F>,
    comments: HashMap<Key, Vec<Comment>>,
    left: usize,
    failed: Option<io::Error>,
}

/// Totals of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub packets: u64,
    pub comments: u64,
}

/// Packet set aside.
struct Aside {
    place: Place,
    link: i32,
    original: u32,
    ends: [SocketAddr; 2],
    data: Vec<u8>,
}

impl<F: Read + Write + Seek> Export<F> {
    /// Create an export that sets packets aside in the empty `file`.
    pub fn new(file: F) -> Export<F> {
        let comments = HashMap::new();
        Export { aside: BufWriter::new(file), comments, left: MOST_COMMENTS, failed: None }
    }

    /// Set a packet aside.
    pub fn packet(&mut self, packet: &Packet<'_>, segment: &Segment<'_>) {
        if self.failed.is_none() {
            self.failed = put_aside(&mut self.aside, packet, segment).err();
        }
    }

    /// Add a finding as a comment.
    pub fn finding(&mut self, ends: &Ends, finding: &Finding) {
        let kind = finding.what.kind();
        if self.left == 0 || matches!(kind, Kind::Frame | Kind::Unit) {
            return;
        }
        self.left -= 1;
        let inside = if finding.nested { "inside messages: " } else { "" };
        let (side, offset) = (finding.direction.name(), finding.at.offset);
        let mut text =
            format!("{}: {inside}{} ({side}, offset {offset})", kind.name(), finding.what);
        let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        let key = (finding.at.file, finding.at.packet);
        let other = finding.what.other_packet();
        self.comments.entry(key).or_default().push(Comment { ends: *ends, text, other });
    }

    /// Write the connection's packets.
    pub fn write(self, flow: &FlowReport, out: &mut impl Write) -> io::Result<Written> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut file = self.aside.into_inner().map_err(io::IntoInnerError::into_error)?;
        let numbers = numbers(&self.comments, flow, &mut file)?;
        file.rewind()?;
        let mut aside = BufReader::new(file);
        let mut links = Vec::new();
        let mut written = Written::default();
        out.write_all(&section()?)?;
        while let Some(packet) = take_back(&mut aside)? {
            if !packet.is_of(flow) {
                continue;
            }
            if !links.contains(&packet.link) {
                links.push(packet.link);
                out.write_all(&interface(packet.link)?)?;
            }
            let interface = links.iter().position(|link| *link == packet.link).unwrap_or(0);
            let key = (packet.place.file, packet.place.packet);
            let comments = self.comments.get(&key).into_iter().flatten();
            let comments = comments.filter(|comment| comment.ends == flow.ends);
            let comments: Vec<String> =
                comments.map(|comment| comment.renumbered(key, &numbers)).collect();
            written.packets += 1;
            written.comments += comments.len() as u64;
            out.write_all(&enhanced(&packet, interface as u32, &comments)?)?;
        }
        out.flush()?;
        Ok(written)
    }
}

/// Packet numbers in the export, by those in the captures, for comments.
type Numbers = HashMap<u64, Vec<(Key, u64)>>;

fn numbers(
    comments: &HashMap<Key, Vec<Comment>>,
    flow: &FlowReport,
    aside: &mut (impl Read + Seek),
) -> io::Result<Numbers> {
    let of_it = comments.values().flatten().filter(|comment| comment.ends == flow.ends);
    let named = of_it.filter_map(|comment| comment.other);
    let mut numbers: Numbers = named.map(|packet| (packet, Vec::new())).collect();
    aside.rewind()?;
    let mut aside = BufReader::new(aside);
    let mut written = 0;
    while let Some(packet) = take_back(&mut aside)? {
        if packet.is_of(flow) {
            written += 1;
            let Place { file, packet, .. } = packet.place;
            if let Some(places) = numbers.get_mut(&packet) {
                places.push(((file, packet), written));
            }
        }
    }
    Ok(numbers)
}

impl Comment {
    /// Return the text, with the other packet's number in the export.
    fn renumbered(&self, of: Key, numbers: &Numbers) -> String {
        let Some(other) = self.other else { return self.text.clone() };
        // It is a later packet, of the same file or of a later one.
        let mut places = numbers.get(&other).into_iter().flatten();
        match places.find(|(key, _)| *key >= of) {
            Some((_, number)) => {
                self.text.replacen(&format!("packet {other}"), &format!("packet {number}"), 1)
            }
            None => self.text.clone(),
        }
    }
}

impl Aside {
    /// Check whether the packet belongs to the connection.
    fn is_of(&self, flow: &FlowReport) -> bool {
        let both = [flow.ends.client, flow.ends.server];
        let is_between = both.iter().all(|end| self.ends.contains(end));
        is_between && (flow.first..=flow.last).contains(&self.place.time_ns)
    }
}

/// Encode an address of either family in sixteen bytes, with its port.
fn point(address: SocketAddr) -> [u8; 19] {
    let mut bytes = [0; 19];
    let (is_v6, ip) = match address.ip() {
        std::net::IpAddr::V4(ip) => (0, ip.to_ipv6_mapped()),
        std::net::IpAddr::V6(ip) => (1, ip),
    };
    bytes[0] = is_v6;
    bytes[1..17].copy_from_slice(&ip.octets());
    bytes[17..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

fn put_aside(out: &mut impl Write, packet: &Packet<'_>, segment: &Segment<'_>) -> io::Result<()> {
    let Place { file, packet: number, time_ns } = packet.place;
    out.write_all(&file.to_le_bytes())?;
    out.write_all(&number.to_le_bytes())?;
    out.write_all(&time_ns.to_le_bytes())?;
    out.write_all(&packet.link.to_le_bytes())?;
    out.write_all(&packet.original.to_le_bytes())?;
    out.write_all(&point(segment.source))?;
    out.write_all(&point(segment.destination))?;
    out.write_all(&(packet.data.len() as u32).to_le_bytes())?;
    out.write_all(packet.data)
}

/// Read the next packet that was set aside.
fn take_back(source: &mut impl Read) -> io::Result<Option<Aside>> {
    let mut first = [0; 4];
    match source.read_exact(&mut first) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let file = u32::from_le_bytes(first);
    let packet = u64::from_le_bytes(array(source)?);
    let time_ns = u64::from_le_bytes(array(source)?);
    let link = i32::from_le_bytes(array(source)?);
    let original = u32::from_le_bytes(array(source)?);
    let ends = [take_point(source)?, take_point(source)?];
    let mut data = vec![0; u32::from_le_bytes(array(source)?) as usize];
    source.read_exact(&mut data)?;
    Ok(Some(Aside { place: Place { file, packet, time_ns }, link, original, ends, data }))
}

fn array<const N: usize>(source: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_point(source: &mut impl Read) -> io::Result<SocketAddr> {
    let [is_v6] = array(source)?;
    let ip = std::net::Ipv6Addr::from(array::<16>(source)?);
    let port = u16::from_be_bytes(array(source)?);
    let v4 = ip.to_ipv4_mapped().filter(|_| is_v6 == 0);
    Ok(SocketAddr::new(v4.map_or(ip.into(), Into::into), port))
}

fn option(code: OptionCode, text: &str) -> PcapNGOption<'_> {
    PcapNGOption { code, len: text.len() as u16, value: Cow::Borrowed(text.as_bytes()) }
}

fn bytes(block: &mut impl ToVec) -> io::Result<Vec<u8>> {
    block.to_vec().map_err(|error| io::Error::other(error.to_string()))
}

fn section() -> io::Result<Vec<u8>> {
    bytes(&mut SectionHeaderBlock {
        block_type: 0,
        block_len1: 0,
        bom: 0,
        major_version: 1,
        minor_version: 0,
        section_len: -1,
        options: vec![option(OptionCode(4), "ws-guard inspect")],
        block_len2: 0,
    })
}

fn interface(link: i32) -> io::Result<Vec<u8>> {
    bytes(&mut InterfaceDescriptionBlock {
        block_type: 0,
        block_len1: 0,
        linktype: Linktype(link),
        reserved: 0,
        snaplen: 0,
        options: Vec::new(),
        block_len2: 0,
        if_tsresol: NANOSECONDS,
        if_tsoffset: 0,
    })
}

fn enhanced(packet: &Aside, interface: u32, comments: &[String]) -> io::Result<Vec<u8>> {
    bytes(&mut EnhancedPacketBlock {
        block_type: 0,
        block_len1: 0,
        if_id: interface,
        ts_high: (packet.place.time_ns >> 32) as u32,
        ts_low: packet.place.time_ns as u32,
        caplen: packet.data.len() as u32,
        origlen: packet.original,
        data: &packet.data,
        options: comments.iter().map(|text| option(OptionCode::Comment, text)).collect(),
        block_len2: 0,
    })
}
