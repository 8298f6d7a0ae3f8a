//! Kernel programs at both hooks, one packet at a time.
use anyhow::{Context, Result, ensure};
use ws_guard_common::{
    flow::{Flow, SETTLED_NS},
    maps::{Counter, FlowKey, name, program},
};
use ws_guard_testkit::{
    packets::Packet,
    programs::{Programs, Raw, Run, object},
};

/// The protected port.
pub const PORT: u16 = 80;
const PROGRAMS: [&str; 3] = [program::XDP_INGRESS, program::TC_INGRESS, program::TC_EGRESS];
const XDP_PASS: u32 = 2;
/// Offset of the TCP header's window in an Ethernet frame without IP options.
const WINDOW_V4: usize = 14 + 20 + 14;
const WINDOW_V6: usize = 14 + 40 + 14;
/// TC_ACT_UNSPEC: the next program decides.
const TC_UNSPEC: u32 = u32::MAX;
/// Sizes of the tables for a batch, and no more: the tables are allocated whole.
const SIZES: [(&str, u32); 2] = [(name::FLOWS, 64), (name::SOURCES, 64)];

/// Hook on which a connection's client is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    /// Return the longest payload of a segment that the programs can be run on.
    /// In bytes: at TC the packet has to fit in a page, with the kernel's own data there.
    pub fn longest(self) -> usize {
        match self {
            Hook::Xdp => 60_000,
            Hook::Tc => 3_400,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Hook::Xdp => program::XDP_INGRESS,
            Hook::Tc => program::TC_INGRESS,
        }
    }
}

/// The programs, with separate tables.
pub struct Kernel {
    pub programs: Programs,
}

impl Kernel {
    pub fn load() -> Result<Kernel> {
        let mut programs = Programs::load(&object(), &PROGRAMS, &SIZES)?;
        programs.set_ports(&[PORT])?;
        Ok(Kernel { programs })
    }

    /// Run a packet of a client; return the output, or `None` where it is dropped.
    pub fn client(&self, hook: Hook, packet: &[u8]) -> Result<Option<Vec<u8>>> {
        let Run { verdict, packet } = self.programs.run(hook.program(), packet)?;
        let pass = if hook == Hook::Xdp { XDP_PASS } else { TC_UNSPEC };
        Ok((verdict == pass).then_some(packet))
    }

    /// Run a packet of the server; return its window, the only change allowed.
    /// No policy here drops any except 101s of throttled sources.
    pub fn server(&self, packet: &Packet) -> Result<u16> {
        let run = self.programs.run(program::TC_EGRESS, &packet.build()?)?;
        ensure!(run.verdict == TC_UNSPEC, "a packet of the server is dropped");
        let at = if packet.from.is_ipv4() { WINDOW_V4 } else { WINDOW_V6 };
        let field = run.packet.get(at..at + 2).context("a packet without a window")?;
        let window = u16::from_be_bytes(field.try_into()?);
        let wanted = Packet { window, ..packet.clone() }.build()?;
        ensure!(run.packet == wanted, "a packet of the server is changed");
        Ok(window)
    }

    /// Return how many segments passed a held edge as probes, of one new byte:
    /// which ones is a matter of time.
    pub fn probes(&mut self) -> Result<u64> {
        Ok(self.programs.counters()?.get(Counter::Probes))
    }

    /// Return the segments that were dropped at a connection's first excess.
    /// Its source's first windows were used up before.
    pub fn policed(&mut self) -> Result<u64> {
        Ok(self.programs.counters()?.get(Counter::DroppedPoliced))
    }

    /// Return the segments that may hide frames and did not pass.
    pub fn unsynced(&mut self) -> Result<u64> {
        Ok(self.programs.counters()?.get(Counter::DroppedUnsynced))
    }

    pub fn flow(&mut self, key: FlowKey) -> Result<Option<Flow>> {
        self.programs.flow(key)
    }

    /// Age the flow's latest segment until the server has settled, as if we had waited.
    pub fn rest(&mut self, key: FlowKey) -> Result<()> {
        let Some(mut flow) = self.programs.flow(key)? else { return Ok(()) };
        flow.repeated_ns = flow.last_ns.saturating_sub(SETTLED_NS / 4);
        flow.last_ns = flow.last_ns.saturating_sub(SETTLED_NS / 2 * 3);
        self.programs.put(name::FLOWS, Raw(key), Raw(flow)).context("ageing a flow")
    }
}
