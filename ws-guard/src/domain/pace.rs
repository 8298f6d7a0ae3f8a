//! Rate of paced connections.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{address::Quoted, setting::whole};

/// Bytes a second that all paced connections of a source may send together.
/// The text is `16KiB/s`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pace(u32);

/// Units, the largest first.
const UNITS: [(&str, u32); 3] = [("MiB/s", 1 << 20), ("KiB/s", 1 << 10), ("B/s", 1)];
const OFF: &str = "off";
/// Minimum rate: a slower connection would stall for seconds between two segments.
const LEAST: u64 = 1 << 10;
const MOST: u64 = 1 << 30;

impl Pace {
    /// Convert the kernel's form, in which 0 is off.
    pub const fn from_kernel(bytes: u32) -> Pace {
        Pace(bytes)
    }

    pub const fn to_kernel(self) -> u32 {
        self.0
    }
}

impl Default for Pace {
    fn default() -> Pace {
        Pace(16 << 10)
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, unit): &&(&str, u32)| self.0.is_multiple_of(*unit);
        match UNITS.iter().find(whole) {
            Some((name, unit)) if self.0 > 0 => write!(f, "{}{name}", self.0 / unit),
            _ => f.write_str(OFF),
        }
    }
}

impl From<Pace> for String {
    fn from(pace: Pace) -> String {
        pace.to_string()
    }
}

impl TryFrom<String> for Pace {
    type Error = String;

    fn try_from(text: String) -> Result<Pace, String> {
        text.parse()
    }
}

impl FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Pace, String> {
        let text = text.trim();
        if text == OFF {
            return Ok(Pace(0));
        }
        let unit = |(name, unit): &(&str, u32)| {
            let number = text.strip_suffix(name)?;
            // Excludes other units with the same end, such as KB/s.
            (!number.ends_with(char::is_alphabetic)).then_some((number, *unit))
        };
        let (number, unit) = UNITS.iter().find_map(unit).ok_or_else(|| {
            format!(
                "{} is not a rate: write it as 16KiB/s, in B/s, KiB/s or MiB/s, or off",
                Quoted(text)
            )
        })?;
        let per_unit = u64::from(unit);
        let rate: u64 = whole(number, LEAST.div_ceil(per_unit), MOST / per_unit)?;
        u32::try_from(rate * per_unit).map(Pace).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_back_and_errors_name_the_remedy() {
        for (text, bytes, shown) in [
            ("16KiB/s", 16_384, "16KiB/s"),
            ("1024KiB/s", 1 << 20, "1MiB/s"),
            ("1500B/s", 1500, "1500B/s"),
            (" 1024 MiB/s", 1 << 30, "1024MiB/s"),
            ("off", 0, "off"),
        ] {
            let pace: Pace = text.parse().unwrap();
            assert_eq!((pace.to_kernel(), pace.to_string().as_str()), (bytes, shown), "{text}");
            assert_eq!(shown.parse::<Pace>().unwrap(), pace);
        }
        for (text, wrong) in [
            ("16", "write it as 16KiB/s"),
            ("16KB/s", "write it as 16KiB/s"),
            ("KiB/s", "not a whole number"),
            ("0KiB/s", "out of range"),
            ("1023B/s", "from 1024"),
            ("1025MiB/s", "to 1024"),
            ("-1KiB/s", "not a whole number"),
            ("1.5MiB/s", "not a whole number"),
        ] {
            let error = text.parse::<Pace>().unwrap_err();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }
}
