//! `cargo xtask bench`: cost of ws-guard.
mod crowd;
mod defences;
mod flood;
mod inspect;
pub mod kernel;
mod latency;
mod loss;
mod messaging;
mod observe;
#[path = "../../../ws-guard-ebpf/src/bin/ws-guard-bench/patch.rs"]
mod patch;
mod prealloc;
mod rows;
mod run;
mod server;
mod table;
mod tables;
mod worst;

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;
use ws_guard_testkit::tools;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure what honest clients and the server feel of a flood, by what is done about it
    Flood(flood::Args),
    /// Read captures with `ws-guard inspect` and with tshark, and an endless one through a pipe
    Inspect(inspect::Args),
    /// Time a packet in the kernel programs, compared with programs that do less
    Kernel(kernel::Args),
    /// Time echoes between two namespaces, without the guard and with it at each hook
    Latency(latency::Args),
    /// Measure what the guard costs clients on paths that lose and reorder packets
    Loss(loss::Args),
    /// Share topics over Redis, compared with socket.io, and let ten thousand clients come back
    Messaging(messaging::Args),
    /// Scrape and list a guard with full tables, and watch it at rest
    Observe(observe::Args),
    /// Let the companion server and servers on other libraries echo, and hold idle connections
    Server(server::Args),
    /// Time packets with tables that grow with their use, and with tables allocated at the start
    Tables(tables::Args),
    /// Search for the packets that cost the kernel programs most
    Worst(worst::Args),
}

pub fn main(args: Args) -> Result<()> {
    match args.what {
        What::Flood(args) => flood::main(args),
        What::Inspect(args) => inspect::main(args),
        What::Kernel(args) => kernel::main(args),
        What::Latency(args) => latency::main(args),
        What::Loss(args) => loss::main(args),
        What::Messaging(args) => messaging::main(args),
        What::Observe(args) => observe::main(args),
        What::Server(args) => server::main(args),
        What::Tables(args) => tables::main(args),
        What::Worst(args) => worst::main(args),
    }
}

/// Write the result of a run, with its kernel, as JSON below the target directory.
fn write<T: Serialize>(name: &str, results: &T) -> Result<()> {
    #[derive(Serialize)]
    struct Report<'a, T> {
        kernel: String,
        results: &'a T,
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let report = Report { kernel: kernel.trim().to_owned(), results };
    let path = tools::target().join("bench").join(name).with_extension("json");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// Return the median: the middle value, or the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle)) {
        (1, Some(value)) => *value,
        (_, Some(value)) => (values[middle - 1] + value) / 2.0,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([9.0, 1.0, 5.0].into_iter()), 5.0);
        assert_eq!(median([9.0, 1.0, 5.0, 6.0].into_iter()), 5.5);
    }
}
