//! Packets of one pcap or pcapng file, read in constant memory.

use std::io::Read;

use pcap_parser::{
    Block, LegacyPcapReader, PcapBlockOwned, PcapError, PcapNGReader,
    traits::{PcapNGPacketBlock, PcapReaderIterator},
};

use super::{
    Damage,
    open::{Opened, Trouble, open},
};
use crate::finding::Place;

/// Size of the read buffer in bytes.
const BUFFER: usize = 256 << 10;
/// Maximum length of a block in bytes: packets have at most 256 KiB.
const LONGEST_BLOCK: usize = 16 << 20;
/// Block type of the format's obsolete packets.
const OBSOLETE_PACKET: u32 = 2;
/// Maximum number of interfaces kept for one pcapng section.
const MOST_INTERFACES: usize = 4096;

/// Captured packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub place: Place,
    /// LINKTYPE of the interface.
    pub link: i32,
    pub data: &'a [u8],
    /// Original length of the packet, of which `data` may be a part.
    pub original: u32,
}

impl Packet<'_> {
    /// Check whether the capture truncated the packet.
    pub const fn is_snapped(&self) -> bool {
        self.data.len() < self.original as usize
    }
}

/// Parameters for reading the packets of one interface.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: i32,
    snap_len: u32,
    /// Time stamp units in a second.
    units: u128,
    /// Seconds to be added to time stamps.
    offset_s: i64,
}

/// Position of the current packet in the reader's buffer.
struct Found {
    consumed: usize,
    packet: Option<(Interface, u64, u32)>,
}

/// Reader of one capture.
pub struct Capture {
    reader: Box<dyn PcapReaderIterator>,
    trouble: Trouble,
    file: u32,
    packets: u64,
    capacity: usize,
    interfaces: Vec<Interface>,
    /// Bytes of the reader's buffer that the latest packet occupies.
    pending: usize,
}

impl Capture {
    /// Read the first header. `file`: number of the capture, for [`Place`].
    pub fn new(source: impl Read + 'static, file: u32) -> Result<Capture, Damage> {
        let at_start = |what: String| Damage { offset: 0, what };
        let opened = open(Box::new(source)).map_err(|error| at_start(error.to_string()))?;
        let Opened { bytes, is_pcapng, trouble } = opened;
        let reader: Result<Box<dyn PcapReaderIterator>, _> = if is_pcapng {
            PcapNGReader::new(BUFFER, bytes).map(|reader| Box::new(reader) as _)
        } else {
            LegacyPcapReader::new(BUFFER, bytes).map(|reader| Box::new(reader) as _)
        };
        let reader = reader.map_err(|error| {
            at_start(match error {
                PcapError::Eof | PcapError::Incomplete(_) => "the file ends in its header".into(),
                _ => "neither pcap nor pcapng (plain, gzip or zstd)".into(),
            })
        })?;
        let interfaces = Vec::new();
        Ok(Capture { reader, trouble, file, packets: 0, capacity: BUFFER, interfaces, pending: 0 })
    }

    /// Return the next packet; `None` at the end.
    pub fn packet(&mut self) -> Result<Option<Packet<'_>>, Damage> {
        let Some((interface, time_ns, original)) = self.find()? else {
            return Ok(None);
        };
        self.packets += 1;
        let place = Place { file: self.file, packet: self.packets, time_ns };
        // Fetched again: what is borrowed from the reader cannot leave the loop that refills it.
        let offset = self.offset();
        let data = match self.reader.next() {
            Ok((_, PcapBlockOwned::Legacy(block))) => block.data,
            Ok((_, PcapBlockOwned::NG(Block::EnhancedPacket(block)))) => {
                block.data.get(..block.caplen as usize).unwrap_or(block.data)
            }
            Ok((_, PcapBlockOwned::NG(Block::SimplePacket(block)))) => {
                let length = block.origlen.min(interface.snap_len) as usize;
                block.data.get(..length).unwrap_or(block.data)
            }
            _ => return Err(Damage { offset, what: "a block changed while it was read".into() }),
        };
        Ok(Some(Packet { place, link: interface.link, data, original }))
    }

    fn offset(&self) -> u64 {
        self.reader.consumed() as u64
    }

    /// Read up to a packet, and leave it in the buffer.
    fn find(&mut self) -> Result<Option<(Interface, u64, u32)>, Damage> {
        self.reader.consume(std::mem::take(&mut self.pending));
        loop {
            if self.reader.reader_exhausted() && self.reader.data().is_empty() {
                return Ok(None);
            }
            let offset = self.offset();
            let damage = |what: &str| Err(Damage { offset, what: what.into() });
            let found = match self.reader.next() {
                Ok((consumed, block)) => {
                    let packet = read_block(&mut self.interfaces, &block);
                    packet.map(|packet| Found { consumed, packet })
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(missing)) if missing > LONGEST_BLOCK => {
                    return damage(&format!("what should be a packet has {missing} bytes"));
                }
                Err(PcapError::Incomplete(_)) => {
                    self.refill(offset)?;
                    continue;
                }
                Err(PcapError::BufferTooSmall) => {
                    self.grow(offset)?;
                    continue;
                }
                Err(PcapError::UnexpectedEof) => return damage("the file ends inside a packet"),
                Err(_) => return damage("what should be a packet is none"),
            };
            match found {
                Ok(Found { consumed, packet: Some(packet) }) => {
                    self.pending = consumed;
                    return Ok(Some(packet));
                }
                Ok(Found { consumed: 0, .. }) => return damage("an empty block"),
                Ok(Found { consumed, packet: None }) => self.reader.consume(consumed),
                Err(what) => return damage(what),
            }
        }
    }

    fn refill(&mut self, offset: u64) -> Result<(), Damage> {
        let before = self.reader.data().len();
        let refilled = self.reader.refill().is_ok();
        if !refilled {
            let trouble = self.trouble.borrow_mut().take();
            let what = trouble.map_or("read error".into(), |error| error.to_string());
            return Err(Damage { offset, what });
        }
        let stuck = self.reader.data().len() == before && !self.reader.reader_exhausted();
        if stuck { self.grow(offset) } else { Ok(()) }
    }

    fn grow(&mut self, offset: u64) -> Result<(), Damage> {
        if self.capacity >= LONGEST_BLOCK {
            let what = format!("a block of more than {} MiB", LONGEST_BLOCK >> 20);
            return Err(Damage { offset, what });
        }
        self.capacity *= 2;
        self.reader.grow(self.capacity);
        self.refill(offset)
    }
}

/// Return interface, time and original length of a block's packet, if it has one.
fn read_block(
    interfaces: &mut Vec<Interface>,
    block: &PcapBlockOwned<'_>,
) -> Result<Option<(Interface, u64, u32)>, &'static str> {
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            let units = if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 };
            let link = header.network.0 & 0xFFFF;
            interfaces.push(Interface { link, snap_len: header.snaplen, units, offset_s: 0 });
        }
        PcapBlockOwned::Legacy(block) => {
            let interface = *interfaces.first().ok_or("a packet before the header")?;
            let seconds = u128::from(block.ts_sec) * interface.units;
            let time_ns = nanoseconds(seconds + u128::from(block.ts_usec), &interface);
            return Ok(Some((interface, time_ns, block.origlen)));
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
        PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
            if interfaces.len() >= MOST_INTERFACES {
                return Err("a section with more than 4,096 interfaces");
            }
            interfaces.push(Interface {
                link: description.linktype.0,
                snap_len: if description.snaplen == 0 { u32::MAX } else { description.snaplen },
                units: units(description.if_tsresol),
                offset_s: description.if_tsoffset,
            });
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let interface = interfaces.get(packet.if_id as usize);
            let interface = *interface.ok_or("a packet of an interface that is not described")?;
            let time = u128::from(packet.ts_high) << 32 | u128::from(packet.ts_low);
            return Ok(Some((interface, nanoseconds(time, &interface), packet.orig_len())));
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            let interface = *interfaces.first().ok_or("a packet without an interface")?;
            return Ok(Some((interface, 0, packet.origlen)));
        }
        PcapBlockOwned::NG(Block::Unknown(block)) if block.block_type == OBSOLETE_PACKET => {
            return Err("an obsolete packet block (`editcap -F pcapng` rewrites the file)");
        }
        PcapBlockOwned::NG(_) => {}
    }
    Ok(None)
}

/// Return the units in a second of the option `if_tsresol`.
/// The option is a power of ten, or of two where its top bit is set.
fn units(resolution: u8) -> u128 {
    let power = u32::from(resolution & 0x7F);
    if resolution & 0x80 == 0 {
        10u128.saturating_pow(power.min(38))
    } else {
        1u128 << power.min(126)
    }
}

/// Convert a time to nanoseconds since 1970, saturating.
fn nanoseconds(time: u128, interface: &Interface) -> u64 {
    let (seconds, part) = (time / interface.units, time % interface.units);
    // The fraction is below a second, and units may be so fine that the product overflows.
    let part = match part.checked_mul(1_000_000_000) {
        Some(product) => product / interface.units,
        None => part / (interface.units / 1_000_000_000),
    };
    let seconds = i128::try_from(seconds).unwrap_or(i128::MAX);
    let seconds = seconds.saturating_add(interface.offset_s.into()).max(0);
    u64::try_from(seconds.saturating_mul(1_000_000_000).saturating_add(part as i128))
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps_of_any_resolution_are_nanoseconds() {
        let of = |resolution, time| {
            let interface =
                Interface { link: 1, snap_len: 0, units: units(resolution), offset_s: 10 };
            nanoseconds(time, &interface)
        };
        assert_eq!(of(6, 1_500_000), 11_500_000_000);
        assert_eq!(of(9, 1_500_000_001), 11_500_000_001);
        assert_eq!(of(0x80 | 10, 1536), 11_500_000_000);
        assert_eq!(of(0, 1), 11_000_000_000);
        // Nonsense stays a number.
        assert_eq!(of(0xFF, u128::MAX >> 64), 10_000_000_000);
        assert_eq!(of(0, u128::from(u64::MAX)), u64::MAX);
    }
}
