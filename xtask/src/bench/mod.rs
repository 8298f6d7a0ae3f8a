//! `cargo xtask bench`: what ws-guard costs.
mod kernel;
#[path = "../../../ws-guard-ebpf/src/bin/ws-guard-bench/patch.rs"]
mod patch;
mod rows;
mod run;
mod server;
mod table;

use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Time a packet in the kernel programs, beside programs that do less
    Kernel(kernel::Args),
    /// Let the companion server and servers on other libraries echo, and hold idle connections
    Server(server::Args),
}

pub fn main(args: Args) -> Result<()> {
    match args.what {
        What::Kernel(args) => kernel::main(args),
        What::Server(args) => server::main(args),
    }
}

/// The middle one, or the mean of the two in the middle.
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
