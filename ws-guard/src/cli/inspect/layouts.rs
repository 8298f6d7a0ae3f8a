//! Layouts of length-delimited protocols from a file.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use ws_guard_inspect::protocol::OnPort;

/// Content of a file: the equivalent of `--protocol` and `--nested`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    protocol: Vec<Entry>,
    #[serde(default)]
    nested: Vec<Entry>,
}

/// A port, and a layout by name or by fields.
#[derive(Debug, Deserialize)]
struct Entry {
    port: u16,
    layout: Option<String>,
    #[serde(flatten)]
    fields: toml::Table,
}

/// Protocols on ports: alone, and inside WebSocket messages.
#[derive(Debug, Default)]
pub struct Layouts {
    pub protocol: Vec<OnPort>,
    pub nested: Vec<OnPort>,
}

impl Layouts {
    pub fn read(path: &Path) -> Result<Layouts> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| name.to_string())?;
        Layouts::parse(&text).with_context(|| name.to_string())
    }

    fn parse(text: &str) -> Result<Layouts> {
        let File { protocol, nested } = toml::from_str(text)?;
        let all = |entries: Vec<Entry>| entries.into_iter().map(Entry::read).collect::<Result<_>>();
        Ok(Layouts { protocol: all(protocol)?, nested: all(nested)? })
    }
}

impl Entry {
    /// Parse the entry as an argument, so that file and command line accept the same.
    fn read(self) -> Result<OnPort> {
        let Entry { port, layout, fields } = self;
        let wrong = |what: String| anyhow!("layout of port {port}: {what}");
        let layout = match layout {
            Some(layout) if fields.is_empty() => layout,
            Some(_) => return Err(wrong("either `layout` or fields of its own".into())),
            None => {
                let words = fields.iter().map(|(name, value)| match value {
                    toml::Value::String(text) => format!("{name}:{text}"),
                    value => format!("{name}:{value}"),
                });
                words.collect::<Vec<_>>().join(",")
            }
        };
        Ok(OnPort { port, protocol: layout.parse().map_err(wrong)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_the_command_line_does() {
        let text = "[[protocol]]\nport = 9000\nheader = 8\nmagic = \"cafebabe\"\nmagic-at = 4\n\
            order = \"little\"\n[[nested]]\nport = 80\nlayout = \"length-prefix\"\n";
        let layouts = Layouts::parse(text).unwrap();
        let of: OnPort = "9000=header:8,magic:cafebabe,magic-at:4,order:little".parse().unwrap();
        let head = b"\x05\0\0\0\xca\xfe\xba\xbe";
        assert_eq!(layouts.protocol[0].protocol.body(head), of.protocol.body(head));
        assert_eq!((layouts.protocol[0].port, layouts.protocol.len()), (9000, 1));
        assert_eq!(layouts.nested, ["80=length-prefix".parse().unwrap()]);
        assert!(Layouts::parse("").unwrap().protocol.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_port() {
        for (text, what) in [
            ("[[protocol]]\nport = 9000\nlayout = \"protobuf\"", "port 9000: neither a preset"),
            ("[[protocol]]\nport = 9000\nheader = 0", "port 9000: header: 1 to 256 bytes"),
            ("[[protocol]]\nport = 9000\nheader = 4\nhight = 4", "unknown field"),
            ("[[protocol]]\nport = 9\nlayout = \"length-prefix\"\nwidth = 4", "either `layout`"),
            ("[[protocols]]\nport = 9000", "unknown field `protocols`"),
            ("[[protocol]]\nport = 99999\nheader = 4", "99999"),
        ] {
            let error = format!("{:#}", Layouts::parse(text).unwrap_err());
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
