//! The second line: the prototype's programs, at the sockets of one control group.
use std::path::Path;

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, SockHash},
    programs::{CgroupAttachMode, SkSkb, SockOps},
};

use super::{
    PORT, SINK,
    cgroup::Cgroup,
    connection::{Connection, Settings},
};

// SAFETY: `repr(C)` and integers only.
unsafe impl Pod for Settings {}
// SAFETY: `repr(C)`, integers and one `bool`, which is written by the programs alone; the padding of
// what is read is not looked at.
unsafe impl Pod for Connection {}

/// What is done with a message at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Follow the client's frames, and let so many pings of a connection pass.
    Follow {
        limit: u32,
    },
}

/// What the programs counted on the connections that are open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub connections: u64,
    pub messages: u64,
    pub pings: u64,
}

/// Attached until it is dropped.
pub struct Line {
    ebpf: Ebpf,
    cgroup: Cgroup,
}

impl Line {
    /// For connections that sockets of this group accept at the ports of the benchmark. `parser`: with a stream parser,
    /// which takes any message as it comes.
    pub fn new(object: &Path, verdict: Verdict, parser: bool) -> Result<Line> {
        let bytes = std::fs::read(object).with_context(|| object.display().to_string())?;
        let ebpf = EbpfLoader::new().load(&bytes).context("loading the maps")?;
        let mut line = Line { ebpf, cgroup: Cgroup::new()? };
        let (name, limit) = match verdict {
            Verdict::Pass => ("socket_pass", None),
            Verdict::Follow { limit } => ("socket_follow", Some(limit)),
        };
        let settings = Settings {
            ports: [PORT.into(), SINK.into()],
            limit: limit.unwrap_or(0),
            follows: limit.is_some().into(),
        };
        let map = line.ebpf.map_mut("SETTINGS").context("no map SETTINGS")?;
        Array::try_from(map)?.set(0, settings, 0).context("writing SETTINGS")?;
        if parser {
            line.attach_to_sockets("socket_parse")?;
        }
        line.attach_to_sockets(name)?;
        line.watch()?;
        Ok(line)
    }

    /// Do something so that what listens afterwards is watched.
    pub fn inside<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        self.cgroup.inside(f)
    }

    pub fn totals(&mut self) -> Result<Totals> {
        let map = self.ebpf.map_mut("CONNECTIONS").context("no map CONNECTIONS")?;
        let table = HashMap::<_, u64, Connection>::try_from(map)?;
        let mut totals = Totals::default();
        for entry in table.iter() {
            let (_, connection) = entry.context("reading CONNECTIONS")?;
            totals.connections += 1;
            totals.messages += connection.messages;
            totals.pings += connection.pings;
        }
        Ok(totals)
    }

    /// Put the program that drops everything in the place of the one that is attached.
    pub fn drop_everything(&mut self) -> Result<()> {
        self.attach_to_sockets("socket_drop")
    }

    fn attach_to_sockets(&mut self, name: &str) -> Result<()> {
        let map = self.ebpf.map("SOCKETS").context("no map SOCKETS")?;
        let sockets = SockHash::<_, u64>::try_from(map)?.fd().try_clone()?;
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut SkSkb = program.try_into()?;
        program.load().with_context(|| format!("loading {name}"))?;
        program.attach(&sockets).with_context(|| format!("attaching {name}"))?;
        Ok(())
    }

    fn watch(&mut self) -> Result<()> {
        let name = "socket_established";
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut SockOps = program.try_into()?;
        program.load().with_context(|| format!("loading {name}"))?;
        let attached = program.attach(self.cgroup.open()?, CgroupAttachMode::Single);
        attached.with_context(|| format!("attaching {name}"))?;
        Ok(())
    }
}
