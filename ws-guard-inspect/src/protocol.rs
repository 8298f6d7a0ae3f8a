//! Length-delimited protocols over TCP: a fixed-size header with the body's length.

use std::str::FromStr;

use crate::finding::Broken;

/// Maximum length of a header in bytes.
const MOST_HEADER: u32 = 256;
/// Default maximum length of a plausible body in bytes.
const MAX: u64 = 64 << 20;

/// Layouts by name, those of `ws-guard serve`.
const PRESETS: [(&str, &str); 3] = [
    ("length-magic", "header:8,magic:cafebabe,magic-at:4"),
    ("fixed-header", "header:7,offset:3,magic:123401"),
    ("length-prefix", "header:4"),
];

/// Part of a unit that the length counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Body,
    /// Header and body.
    All,
    /// Everything after the length itself.
    Rest,
}

/// Layout of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Name or layout as the user gave it.
    pub name: String,
    /// Length of the header in bytes.
    header: u32,
    /// Offset of the length in the header, and its width: 1 to 8 bytes.
    offset: u32,
    width: u32,
    is_little: bool,
    counted: Counted,
    /// Constant bytes of every header, and their offset.
    magic: Vec<u8>,
    magic_at: u32,
    /// Maximum length of the body.
    max: u64,
}

impl Protocol {
    pub const fn header(&self) -> usize {
        self.header as usize
    }

    /// Check whether bytes begin with a header that is not a coincidence.
    /// That takes a magic of two bytes at least.
    pub fn is_proven_by(&self, bytes: &[u8]) -> bool {
        let head = bytes.get(..self.header());
        self.magic.len() > 1 && head.is_some_and(|head| self.body(head).is_ok())
    }

    /// Return the length of the body after a complete header.
    pub fn body(&self, head: &[u8]) -> Result<u64, Broken> {
        let field = |at: u32, count: usize| head.get(at as usize..at as usize + count);
        if field(self.magic_at, self.magic.len()) != Some(&self.magic) {
            return Err(Broken::Magic);
        }
        let bytes = field(self.offset, self.width as usize).unwrap_or_default();
        let add = |length: u64, byte: &u8| length << 8 | u64::from(*byte);
        let length = match self.is_little {
            true => bytes.iter().rev().fold(0, add),
            false => bytes.iter().fold(0, add),
        };
        let before = match self.counted {
            Counted::Body => 0,
            Counted::All => self.header,
            Counted::Rest => self.header - self.offset - self.width,
        };
        let body = length.checked_sub(before.into()).ok_or(Broken::TooShort)?;
        if body > self.max { Err(Broken::TooLong) } else { Ok(body) }
    }
}

impl FromStr for Protocol {
    type Err = String;

    /// Parse a preset's name, or fields.
    /// `header:8,offset:0,width:4,order:big,counts:body,magic:cafebabe,magic-at:4,max:65536`.
    fn from_str(text: &str) -> Result<Protocol, String> {
        let preset = PRESETS.iter().find(|(name, _)| *name == text).map(|(_, fields)| *fields);
        let mut protocol = Protocol {
            name: text.into(),
            header: 0,
            offset: 0,
            width: 4,
            is_little: false,
            counted: Counted::Body,
            magic: Vec::new(),
            magic_at: 0,
            max: MAX,
        };
        for field in preset.unwrap_or(text).split(',') {
            protocol.set(field)?;
        }
        protocol.check()?;
        Ok(protocol)
    }
}

impl Protocol {
    fn set(&mut self, field: &str) -> Result<(), String> {
        let wrong = |what: &str| format!("{what} in {field:?}");
        let Some((name, value)) = field.split_once(':') else {
            let names = PRESETS.map(|(name, _)| name).join(", ");
            return Err(wrong(&format!("neither a preset ({names}) nor NAME:VALUE")));
        };
        let number = || value.parse().map_err(|_| wrong("no number"));
        match (name, value) {
            ("header", _) => self.header = number()?,
            ("offset", _) => self.offset = number()?,
            ("width", _) => self.width = number()?,
            ("magic-at", _) => self.magic_at = number()?,
            ("max", _) => self.max = value.parse().map_err(|_| wrong("no number"))?,
            ("order", "big") => self.is_little = false,
            ("order", "little") => self.is_little = true,
            ("counts", "body") => self.counted = Counted::Body,
            ("counts", "all") => self.counted = Counted::All,
            ("counts", "rest") => self.counted = Counted::Rest,
            ("magic", _) => self.magic = hexadecimal(value).ok_or_else(|| wrong("no hex bytes"))?,
            _ => return Err(wrong("unknown field or value")),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let fits = |at: u32, count: u64| u64::from(at) + count <= u64::from(self.header);
        let rules = [
            (self.header >= 1 && self.header <= MOST_HEADER, "header: 1 to 256 bytes"),
            (self.width >= 1 && self.width <= 8, "width: 1 to 8 bytes"),
            (fits(self.offset, self.width.into()), "the length lies outside the header"),
            (fits(self.magic_at, self.magic.len() as u64), "the magic lies outside the header"),
        ];
        let broken = rules.iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |(_, rule)| Err((*rule).into()))
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Protocol and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnPort {
    pub port: u16,
    pub protocol: Protocol,
}

impl FromStr for OnPort {
    type Err = String;

    fn from_str(text: &str) -> Result<OnPort, String> {
        let (port, protocol) = text.split_once('=').ok_or("PORT=LAYOUT is wanted")?;
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        Ok(OnPort { port, protocol: protocol.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_the_servers_layouts() {
        let of = |name: &str, head: &[u8]| name.parse::<Protocol>().unwrap().body(head);
        assert_eq!(of("length-magic", b"\0\0\0\x05\xca\xfe\xba\xbe"), Ok(5));
        assert_eq!(of("length-magic", b"\0\0\0\x05\xca\xfe\xba\xbf"), Err(Broken::Magic));
        assert_eq!(of("fixed-header", b"\x12\x34\x01\0\0\0\x05"), Ok(5));
        assert_eq!(of("fixed-header", b"\x12\x34\x02\0\0\0\x05"), Err(Broken::Magic));
        assert_eq!(of("length-prefix", b"\0\0\x01\x05"), Ok(261));
        assert_eq!(of("length-prefix", b"\xff\0\x01\x05"), Err(Broken::TooLong));
    }

    #[test]
    fn widths_orders_and_what_the_length_counts() {
        for (fields, head, body) in [
            ("header:2,width:2,order:little", &b"\x01\x02"[..], Ok(0x201)),
            ("header:3,width:3", b"\x01\x02\x03", Ok(0x1_0203)),
            ("header:6,offset:2,width:2,counts:all", b"\0\0\0\x08\0\0", Ok(2)),
            ("header:6,offset:2,width:2,counts:rest", b"\0\0\0\x08\0\0", Ok(6)),
            ("header:6,offset:2,width:2,counts:all", b"\0\0\0\x05\0\0", Err(Broken::TooShort)),
            ("header:8,width:8", &[0xFF; 8], Err(Broken::TooLong)),
            ("header:1,width:1,max:3", b"\x04", Err(Broken::TooLong)),
        ] {
            assert_eq!(fields.parse::<Protocol>().unwrap().body(head), body, "{fields}");
        }
    }

    #[test]
    fn wrong_layouts_are_refused() {
        for text in [
            "",
            "protobuf",
            "header:0",
            "header:257",
            "header:3",
            "header:4,width:9",
            "header:4,width:0",
            "header:4,magic:abc",
            "header:4,magic:ab,magic-at:4",
            "header:4,order:pdp",
            "width:4",
            "header:4,offset:4294967295",
            "header:-1",
        ] {
            assert!(text.parse::<Protocol>().is_err(), "{text:?}");
        }
        assert_eq!("9000=length-prefix".parse::<OnPort>().unwrap().port, 9000);
        assert!("length-prefix".parse::<OnPort>().is_err());
    }
}
