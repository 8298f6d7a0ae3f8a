//! Guards of earlier versions, loaded, attached and pinned as their daemons did.
//!
//! `ws-guard/tests/older` has an object of each schema that a daemon takes over.
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode, links::FdLink, tc::TcAttachOptions,
};
use nix::net::if_::if_nametoindex;
use ruzstd::decoding::StreamingDecoder;
use ws_guard_common::maps::{name, program};

use crate::{programs::Programs, tools};

const BEHIND: &str = ".bpf.o.zst";

/// Maps that outlive a daemon, as far as a schema has them.
const PINNED: [&str; 21] = [
    name::FLOWS,
    name::PENDING,
    name::PROVEN,
    "STRANGERS",
    name::MIDSTREAM,
    name::HEARTBEATS,
    name::TRAILS,
    name::HELD,
    name::SOURCES,
    name::COARSE,
    name::RULES,
    name::PROXIES,
    name::HEADERS,
    name::SUSPECTS,
    name::BEGINNINGS,
    name::POLICY,
    name::ACTIVE,
    name::PORTS,
    name::SHARED,
    name::COUNTERS,
    name::EVENTS,
];

/// Return the schemas for which there are objects.
pub fn schemas() -> Result<Vec<u32>> {
    let mut schemas = Vec::new();
    for entry in fs::read_dir(folder())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("schema-").and_then(|name| name.strip_suffix(BEHIND));
        schemas.push(number.with_context(|| format!("{name} is no object"))?.parse()?);
    }
    schemas.sort_unstable();
    Ok(schemas)
}

fn folder() -> PathBuf {
    tools::workspace().join("ws-guard/tests/older")
}

/// Pinned programs and maps of an earlier schema.
pub struct Older {
    /// Programs for setting a policy and ports.
    pub programs: Programs,
    pin_dir: PathBuf,
}

impl Older {
    /// Load the programs, and pin them with their maps.
    pub fn load(schema: u32, pin_dir: &Path) -> Result<Older> {
        let path = folder().join(format!("schema-{schema}{BEHIND}"));
        let packed = File::open(&path).with_context(|| path.display().to_string())?;
        let mut object = Vec::new();
        StreamingDecoder::new(packed)?.read_to_end(&mut object)?;
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&object)?;
        let all = [program::XDP_INGRESS, program::TC_EGRESS, program::CONTROL];
        let mut programs = Programs::load(file.path(), &all, &[])?;
        for folder in ["links", "filters", "programs"] {
            fs::create_dir_all(pin_dir.join(folder))?;
        }
        fs::create_dir(pin_dir.join(format!("schema-{schema}")))?;
        for name in PINNED {
            let Some(map) = programs.ebpf.map(name) else { continue };
            map.pin(pin_dir.join(name)).with_context(|| format!("pinning {name}"))?;
        }
        let control = programs.ebpf.program_mut(program::CONTROL).context("no control program")?;
        control.pin(pin_dir.join("programs").join(program::CONTROL))?;
        Ok(Older { programs, pin_dir: pin_dir.into() })
    }

    /// Attach to an interface of this thread's namespace: XDP in the driver, and TCX.
    pub fn attach(&mut self, interface: &str) -> Result<()> {
        let links = self.pin_dir.join("links");
        let ebpf = &mut self.programs.ebpf;
        let egress = ebpf.program_mut(program::TC_EGRESS).context("no TC program")?;
        let egress: &mut SchedClassifier = egress.try_into()?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = egress.attach_with_options(interface, TcAttachType::Egress, first)?;
        let link = FdLink::try_from(egress.take_link(id)?)?;
        link.pin(links.join(format!("{interface}-out-tcx")))?;
        let ingress = ebpf.program_mut(program::XDP_INGRESS).context("no XDP program")?;
        let ingress: &mut Xdp = ingress.try_into()?;
        let id = ingress.attach_to_if_index(if_nametoindex(interface)?, XdpMode::Driver)?;
        let link = FdLink::try_from(ingress.take_link(id)?)?;
        link.pin(links.join(format!("{interface}-in-xdp-native")))?;
        Ok(())
    }
}
