//! Sizes of TLS records that may hold a ping.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use ws_guard_common::record::{Cipher, LONGEST_PING, MAX_LENGTH, SHORTEST_PING};

use super::{address::Quoted, setting::whole};

/// Minimum and maximum length in a record's header.
/// It includes the cipher's overhead, but not the header. The text is `22-208`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecordBytes {
    pub min: u16,
    pub max: u16,
}

impl Default for RecordBytes {
    /// Return the range of masked pings of any length, under any supported cipher.
    fn default() -> RecordBytes {
        let shortest = Cipher::ALL.iter().map(|cipher| cipher.length(SHORTEST_PING)).min();
        let longest = Cipher::ALL.iter().map(|cipher| cipher.length(LONGEST_PING)).max();
        RecordBytes { min: shortest.unwrap_or(0), max: longest.unwrap_or(MAX_LENGTH) }
    }
}

impl fmt::Display for RecordBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

impl From<RecordBytes> for String {
    fn from(range: RecordBytes) -> String {
        range.to_string()
    }
}

impl TryFrom<String> for RecordBytes {
    type Error = String;

    fn try_from(text: String) -> Result<RecordBytes, String> {
        text.parse()
    }
}

impl FromStr for RecordBytes {
    type Err = String;

    fn from_str(text: &str) -> Result<RecordBytes, String> {
        let (min, max) = text
            .split_once('-')
            .ok_or_else(|| format!("{} is not a range: write it as 22-208", Quoted(text)))?;
        let limit = u64::from(MAX_LENGTH);
        let range = RecordBytes { min: whole(min, 1, limit)?, max: whole(max, 1, limit)? };
        if range.min > range.max {
            return Err(format!("{} ends before it begins: write it as 22-208", Quoted(text)));
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_back_and_errors_name_the_remedy() {
        let range: RecordBytes = "22-39".parse().unwrap();
        assert_eq!((range.min, range.max, range.to_string()), (22, 39, "22-39".into()));
        assert_eq!(RecordBytes::default().to_string(), "22-208");
        for (text, wrong) in [
            ("22", "write it as 22-208"),
            ("30-22", "ends before it begins"),
            ("0-22", "out of range"),
            ("22-99999", "out of range"),
            ("a-b", "not a whole number"),
        ] {
            assert!(text.parse::<RecordBytes>().unwrap_err().contains(wrong), "{text}");
        }
    }
}
