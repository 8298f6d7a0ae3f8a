//! Kernel programs without a network, run on one packet at a time.
//! They are loaded, never attached, and run by `BPF_PROG_TEST_RUN`.
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
pub use aya::Pod;
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, lpm_trie},
    programs::{Program, ProgramError, TestRun, TestRunOptions, Xdp, XdpMode},
};
use ws_guard_common::{
    flow::Flow,
    forwarded::names::HeaderNames,
    heartbeat::Heartbeats,
    maps::{
        Address, Counter, Counters, FlowKey, Midstream, Network, Operation, Pending, Policy, Ports,
        Request, Rule, SCOPES, Server, ServerKey, Shared, SourceKey, Suspect, Tunnels, Unopened,
        global, name, program, syns,
    },
    out_of_order::{self, Held},
    pages::{self, Page},
    source::Source,
    trail::Trail,
};

use crate::tools;

/// Name of the variable for an object file to test instead of the committed one.
pub const OBJECT_VARIABLE: &str = "WS_GUARD_OBJECT";

/// Return the path of the object to test.
pub fn object() -> PathBuf {
    let committed = || tools::workspace().join("ws-guard/bpf/ws-guard.bpf.o");
    std::env::var_os(OBJECT_VARIABLE).map_or_else(committed, PathBuf::from)
}

/// Wrapper that lets aya's maps hold the types of `ws-guard-common`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        // SAFETY: each is `repr(C)` and consists of integers only: any bytes are a value.
        $(unsafe impl Pod for Raw<$type> {})+
    };
}

pod!(
    Address,
    Unopened,
    Counters,
    Flow,
    FlowKey,
    HeaderNames,
    Heartbeats,
    Held,
    Page,
    Network,
    Pending,
    Policy,
    Ports,
    Rule,
    Server,
    ServerKey,
    Shared,
    Source,
    SourceKey,
    Midstream,
    Suspect,
    Trail,
    Tunnels
);

/// Result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Return value of the program: an XDP action, or a TC action as unsigned.
    pub verdict: u32,
    /// Packet after the run.
    pub packet: Vec<u8>,
}

/// Loaded programs, with private maps.
pub struct Programs {
    pub(crate) ebpf: Ebpf,
    /// Number of segments behind gaps at the time they were last forgotten.
    gaps: u64,
}

impl Programs {
    /// Load `programs` of `object`, with `sizes` for the entries of its tables.
    ///
    /// # Errors
    /// If the file cannot be read, or the kernel refuses a map or a program.
    pub fn load(object: &Path, programs: &[&str], sizes: &[(&str, u32)]) -> Result<Programs> {
        Programs::load_with(object, programs, sizes, Tunnels::default())
    }

    /// Load programs that look into tunnels.
    pub fn load_with(
        object: &Path,
        programs: &[&str],
        sizes: &[(&str, u32)],
        tunnels: Tunnels,
    ) -> Result<Programs> {
        let bytes = std::fs::read(object).with_context(|| object.display().to_string())?;
        let mut loader = EbpfLoader::new();
        // As the daemon does: with the debug log off, the verifier removes its code.
        loader.override_global("AYA_LOG_LEVEL", &0u8, false);
        let tunnels = Raw(tunnels);
        loader.override_global(global::TUNNELS, &tunnels, true);
        for (map, size) in sizes {
            loader.map_max_entries(map, *size);
        }
        let mut ebpf = loader.load(&bytes).with_context(|| object.display().to_string())?;
        for name in programs {
            let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
            let loaded = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => bail!("{name} is neither XDP nor TC"),
            };
            loaded.map_err(|error| anyhow!("loading {name}: {}", last_words(&error)))?;
        }
        Ok(Programs { ebpf, gaps: 0 })
    }

    /// Return the number of instructions that the verifier processed, over all paths.
    pub fn verified_instructions(&self, name: &str) -> Result<u32> {
        let info = self.program(name)?.info().with_context(|| format!("asking for {name}"))?;
        info.verified_instruction_count().context("the kernel does not count them: before 5.16")
    }

    fn program(&self, name: &str) -> Result<&Program> {
        self.ebpf.program(name).with_context(|| format!("no program {name}"))
    }

    fn test_run(&self, name: &str, options: TestRunOptions<'_>) -> Result<(u32, u32, Duration)> {
        let result = match self.program(name)? {
            Program::Xdp(program) => program.test_run(options),
            Program::SchedClassifier(program) => program.test_run(options),
            _ => bail!("{name} is neither XDP nor TC"),
        };
        let result = result.with_context(|| format!("running {name}"))?;
        Ok((result.return_value, result.data_size_out, result.duration))
    }

    /// Run a program once.
    pub fn run(&self, name: &str, packet: &[u8]) -> Result<Run> {
        let mut out = vec![0; packet.len()];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let (verdict, size, _) = self.test_run(name, options)?;
        out.truncate(size as usize);
        Ok(Run { verdict, packet: out })
    }

    /// Run a program `repeat` times on one packet, which keeps the changes of each run.
    /// Returns the last verdict, and the mean time of a run as reported by the kernel: whole
    /// nanoseconds, rounded down.
    pub fn repeat(&self, name: &str, packet: &[u8], repeat: u32) -> Result<(u32, Duration)> {
        let options = TestRunOptions { data_in: Some(packet), repeat, ..TestRunOptions::new() };
        let (verdict, _, duration) = self.test_run(name, options)?;
        Ok((verdict, duration))
    }

    /// Attach a loaded XDP program to an interface of this thread's namespace.
    /// It is attached in the driver, until it is dropped.
    pub fn attach_xdp(&mut self, name: &str, interface: &str) -> Result<()> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut Xdp = program.try_into()?;
        let attached = program.attach(interface, XdpMode::Driver);
        attached.with_context(|| format!("attaching {name} to {interface}"))?;
        Ok(())
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    /// Write an element of an array.
    pub fn set<V: Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        let mut array = Array::<&mut MapData, V>::try_from(self.map(map)?)?;
        array.set(index, value, 0).with_context(|| format!("writing {map}"))
    }

    /// Read an element of an array.
    pub fn get<V: Pod>(&mut self, map: &str, index: u32) -> Result<V> {
        let array = Array::<&mut MapData, V>::try_from(self.map(map)?)?;
        array.get(&index, 0).with_context(|| format!("reading {map}"))
    }

    fn table<K: Pod, V: Pod>(&mut self, map: &str) -> Result<HashMap<&mut MapData, K, V>> {
        HashMap::try_from(self.map(map)?).with_context(|| format!("opening {map}"))
    }

    fn look_up<K: Pod, V: Pod>(&mut self, map: &str, key: K) -> Result<Option<V>> {
        match self.table::<K, V>(map)?.get(&key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {map}")),
        }
    }

    /// Write an entry of a hash table.
    pub fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) -> Result<()> {
        self.table::<K, V>(map)?.insert(key, value, 0).with_context(|| format!("writing {map}"))
    }

    fn empty<K: Pod, V: Pod>(&mut self, map: &str) -> Result<()> {
        let mut table = self.table::<K, V>(map)?;
        let keys = table.keys().collect::<Result<Vec<K>, _>>()?;
        keys.iter().try_for_each(|key| table.remove(key)).with_context(|| format!("emptying {map}"))
    }

    fn entries<K: Pod, V: Pod>(&mut self, map: &str) -> Result<usize> {
        Ok(self.table::<K, V>(map)?.keys().collect::<Result<Vec<K>, _>>()?.len())
    }

    /// Put a policy in force, in its scope.
    pub fn set_policy(&mut self, policy: Policy) -> Result<()> {
        self.set(name::POLICY, policy.scope % SCOPES, Raw(policy))?;
        self.set(name::ACTIVE, 0, 0u32)
    }

    /// Protect only these ports, under the policy of scope 0.
    pub fn set_ports(&mut self, protected: &[u16]) -> Result<()> {
        self.set_scopes(&protected.iter().map(|port| (*port, 0)).collect::<Vec<_>>())
    }

    /// Protect only these ports, each under the policy of its scope.
    pub fn set_scopes(&mut self, protected: &[(u16, u8)]) -> Result<()> {
        let mut ports = Ports([0; 65_536]);
        for (port, scope) in protected {
            ports.0[usize::from(*port)] = scope + 1;
        }
        self.set(name::PORTS, 0, Raw(ports))
    }

    /// Exempt an address from all actions; the policy must have rules enabled.
    pub fn allow(&mut self, address: IpAddr) -> Result<()> {
        self.set_rule(address, Rule { flags: Rule::ALLOW, ..Rule::default() })
    }

    /// Set a rule for one address; the policy must have rules enabled.
    pub fn set_rule(&mut self, address: IpAddr, rule: Rule) -> Result<()> {
        let map = self.map(name::RULES)?;
        let mut rules = lpm_trie::LpmTrie::<&mut MapData, Raw<Network>, Raw<Rule>>::try_from(map)?;
        rules.insert(&whole(address), Raw(rule), 0).context("adding a rule")
    }

    /// Trust an address's `Forwarded` and `X-Forwarded-For`.
    /// The policy must have trusted proxies enabled.
    pub fn trust(&mut self, address: IpAddr) -> Result<()> {
        self.set(name::HEADERS, 0, Raw(HeaderNames::usual()))?;
        let map = self.map(name::PROXIES)?;
        let mut proxies = lpm_trie::LpmTrie::<&mut MapData, Raw<Network>, u32>::try_from(map)?;
        proxies.insert(&whole(address), 1, 0).context("adding a trusted proxy")
    }

    /// Remove flows, their data behind gaps, sources, requests and throttles.
    /// The counters are kept.
    pub fn forget(&mut self) -> Result<()> {
        self.empty::<Raw<FlowKey>, Raw<Flow>>(name::FLOWS)?;
        self.empty::<Raw<FlowKey>, Raw<Pending>>(name::PENDING)?;
        self.empty::<Raw<FlowKey>, Raw<Pending>>(name::PROVEN)?;
        self.empty::<Raw<FlowKey>, Raw<Midstream>>(name::MIDSTREAM)?;
        self.empty::<Raw<FlowKey>, Raw<Unopened>>(name::BEGINNINGS)?;
        self.empty::<Raw<SourceKey>, Raw<Source>>(name::SOURCES)?;
        self.empty::<Raw<SourceKey>, Raw<Source>>(name::COARSE)?;
        self.empty::<Raw<Address>, Raw<Suspect>>(name::SUSPECTS)?;
        self.empty::<Raw<FlowKey>, Raw<Heartbeats>>(name::HEARTBEATS)?;
        self.forget_servers()?;
        let gaps = self.counters()?.events[Counter::Gaps as usize];
        // Nine megabytes: not for each row.
        if gaps > self.gaps {
            for slot in 0..out_of_order::SLOTS {
                self.set(name::HELD, slot, Raw(Held::default()))?;
            }
            for page in 0..pages::ALL {
                self.set(name::PAGES, page, Raw(Page::default()))?;
            }
        }
        self.gaps = gaps;
        self.set(name::SHARED, 0, Raw(Shared::default()))
    }

    /// Forget the SYNs in the two places of a connection's.
    pub fn forget_syns(&mut self, key: &FlowKey) -> Result<()> {
        let pair = syns::syn_pair(key);
        self.set(name::SYNS, pair, 0u64)?;
        self.set(name::SYNS, pair | 1, 0u64)
    }

    pub fn flow(&mut self, key: FlowKey) -> Result<Option<Flow>> {
        let value = self.look_up::<_, Raw<Flow>>(name::FLOWS, Raw(key))?;
        Ok(value.map(|Raw(flow)| flow))
    }

    /// Mark a flow's trail as in use by another CPU, or clear the mark.
    pub fn set_trail_busy(&mut self, key: FlowKey, busy: bool) -> Result<()> {
        let flow = self.flow(key)?.context("no such flow")?;
        let index = u32::from(flow.trail).checked_sub(1).context("the flow has no trail")?;
        let Raw(mut trail): Raw<Trail> = self.get(name::TRAILS, index)?;
        trail.busy = busy.into();
        self.set(name::TRAILS, index, Raw(trail))
    }

    /// Change an existing flow, as another CPU or other programs would.
    pub fn change_flow(&mut self, key: FlowKey, change: impl FnOnce(&mut Flow)) -> Result<()> {
        let mut flow = self.flow(key)?.context("no such flow")?;
        change(&mut flow);
        self.put(name::FLOWS, Raw(key), Raw(flow))
    }

    pub fn source(&mut self, address: IpAddr) -> Result<Option<Source>> {
        let key = Raw(SourceKey { address: address.into(), scope: 0 });
        Ok(self.look_up::<_, Raw<Source>>(name::SOURCES, key)?.map(|Raw(source)| source))
    }

    /// Return the figures of a flow's server.
    pub fn server(&mut self, flow: FlowKey) -> Result<Option<Server>> {
        let key = Raw(ServerKey::from(&flow));
        match self.servers()?.get(&key, 0) {
            Ok(values) => Ok(Some(values.iter().fold(Server::default(), |mut sum, Raw(one)| {
                sum.add(one);
                sum
            }))),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("reading the figures of servers"),
        }
    }

    fn forget_servers(&mut self) -> Result<()> {
        let mut table = self.servers()?;
        let keys = table.keys().collect::<Result<Vec<_>, _>>()?;
        keys.iter().try_for_each(|key| table.remove(key)).context("forgetting servers")
    }

    fn servers(&mut self) -> Result<PerCpuHashMap<&mut MapData, Raw<ServerKey>, Raw<Server>>> {
        let map = self.map(name::SERVERS)?;
        PerCpuHashMap::try_from(map).context("opening the figures of servers")
    }

    /// Return the numbers of flows and of sources.
    pub fn occupancy(&mut self) -> Result<(usize, usize)> {
        let flows = self.entries::<Raw<FlowKey>, Raw<Flow>>(name::FLOWS)?;
        Ok((flows, self.entries::<Raw<SourceKey>, Raw<Source>>(name::SOURCES)?))
    }

    /// Return the counters, summed over all CPUs.
    pub fn counters(&mut self) -> Result<Totals> {
        let map = self.map(name::COUNTERS)?;
        let array = PerCpuArray::<&mut MapData, Raw<Counters>>::try_from(map)?;
        let mut totals = Totals {
            events: [0; Counter::ROOM],
            violations_in: [0; ws_guard_common::frame::Violation::COUNT],
        };
        for Raw(counters) in array.get(&0, 0).context("reading the counters")?.iter() {
            totals.events.iter_mut().zip(counters.events).for_each(|(sum, n)| *sum += n);
            let kinds = totals.violations_in.iter_mut().zip(counters.violations_in);
            kinds.for_each(|(sum, n)| *sum += n);
        }
        Ok(totals)
    }

    /// Throttle a source as an operator does, until it is released.
    /// The control program must be loaded.
    pub fn throttle(&self, address: IpAddr) -> Result<()> {
        self.request(address, Operation::Throttle, 0, ws_guard_common::source::UNTIL_RELEASED)
    }

    /// Ban a source; the control program must be loaded.
    pub fn ban(&self, address: IpAddr) -> Result<()> {
        self.request(address, Operation::Ban, 0, ws_guard_common::source::UNTIL_RELEASED)
    }

    /// Release a source; the control program must be loaded.
    pub fn release(&self, address: IpAddr) -> Result<()> {
        self.request(address, Operation::Release, 0, 0)
    }

    /// Report pings of a source as a terminator does.
    /// The control program must be loaded.
    pub fn report(&self, address: IpAddr, pings: u32) -> Result<()> {
        self.request(address, Operation::Report, pings, 0)
    }

    fn request(&self, address: IpAddr, operation: Operation, pings: u32, until: u64) -> Result<()> {
        let source = SourceKey { address: address.into(), scope: 0 };
        let request = Request { operation: operation as u32, pings, until, source, _pad: 0 };
        let mut packet = vec![0; 14];
        packet.extend(request.operation.to_ne_bytes());
        packet.extend(request.pings.to_ne_bytes());
        packet.extend(request.until.to_ne_bytes());
        packet.extend(request.source.address.0.iter().flat_map(|word| word.to_ne_bytes()));
        packet.extend(request.source.scope.to_ne_bytes());
        packet.extend([0; 4]);
        let run = self.run(program::CONTROL, &packet)?;
        ensure!(run.verdict == 0, "the control program answered {}", run.verdict);
        Ok(())
    }
}

/// Return the key of a network that is one address.
fn whole(address: IpAddr) -> lpm_trie::Key<Raw<Network>> {
    lpm_trie::Key::new(Network::ALL_BITS, Raw(Network::of(&address.into())))
}

/// Return the kernel's reason against a program.
/// The verifier's log can be megabytes, and its last lines have the reason.
fn last_words(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return error.to_string();
    };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    format!("{io_error}\n{}", last.join("\n"))
}

/// Counters summed over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub events: [u64; Counter::ROOM],
    pub violations_in: [u64; ws_guard_common::frame::Violation::COUNT],
}

impl Totals {
    pub fn get(&self, counter: Counter) -> u64 {
        self.events[counter as usize]
    }

    /// Return the counts since `earlier`.
    pub fn since(&self, earlier: &Totals) -> Totals {
        let mut more = *self;
        more.events.iter_mut().zip(earlier.events).for_each(|(n, before)| *n -= before);
        let kinds = more.violations_in.iter_mut().zip(earlier.violations_in);
        kinds.for_each(|(n, before)| *n -= before);
        more
    }
}
