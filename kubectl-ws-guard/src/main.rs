//! `kubectl ws-guard`: a guard's command on one node or all, with merged answers.
mod exec;
mod merge;
mod pods;
mod table;

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Result, bail};
use clap::Parser;

use exec::Answer;
use pods::Pod;

const EXAMPLES: &str = "\
Examples:
  kubectl ws-guard throttled                      sources over the limit, on every node
  kubectl ws-guard --node worker-3 flows -o wide  connections on one node
  kubectl ws-guard sources -o json                one array, each element with its node
  kubectl ws-guard events -f                      what happens anywhere, as it happens
  kubectl ws-guard --node worker-3 top            live, on one node
  kubectl ws-guard throttle 203.0.113.7           on every node

Exit codes: 0 all nodes answered, 1 a node has no running guard or cannot be reached; otherwise the
highest of the nodes' own exit codes, see `ws-guard --help`.";

/// Run a ws-guard command on the nodes of a cluster, and merge the answers.
#[derive(Parser)]
#[command(name = "kubectl ws-guard", bin_name = "kubectl ws-guard", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    cluster: Cluster,
    /// Only this node; repeatable
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// Command of ws-guard and its options
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// Where the guard is deployed.
#[derive(clap::Args)]
struct Cluster {
    /// Namespace of the guard
    #[arg(short, long, default_value = "ws-guard", env = "WS_GUARD_NAMESPACE")]
    namespace: String,
    /// Context of the kubeconfig file
    #[arg(long)]
    context: Option<String>,
    /// Kubeconfig file, in the place of kubectl's own choice
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<u8> {
    let (pods, missing) = pods::find(&cli.cluster, &cli.nodes)?;
    for reason in &missing {
        eprintln!("error: {reason}");
    }
    if pods.is_empty() {
        bail!(
            "no guard runs there: `kubectl -n {} get pods` shows what does",
            cli.cluster.namespace
        );
    }
    let mut command = cli.command.clone();
    let code = if command[0] == "top" && !command.iter().any(|word| word == "--once") {
        let [pod] = &pods[..] else {
            bail!("`top` takes the terminal: choose one of the nodes with --node")
        };
        exec::attach(&cli.cluster, pod, &command)?
    } else if command.iter().any(|word| ["-f", "--follow"].contains(&word.as_str())) {
        exec::follow(&cli.cluster, &pods, &command)?
    } else if take_watch(&mut command) {
        loop {
            once(cli, &pods, &command)?;
            println!();
            thread::sleep(Duration::from_secs(1));
        }
    } else {
        once(cli, &pods, &command)?
    };
    Ok(code.max(u8::from(!missing.is_empty())))
}

/// Run the command on all nodes concurrently, and print the merged answers.
fn once(cli: &Cli, pods: &[Pod], command: &[String]) -> Result<u8> {
    let answers = exec::ask(&cli.cluster, pods, command);
    for Answer { node, error, .. } in &answers {
        for line in error.lines() {
            eprintln!("{node}: {line}");
        }
    }
    print!("{}", merge::merge(&answers)?);
    Ok(answers.iter().map(|answer| answer.code).max().unwrap_or(0))
}

/// Remove `--watch`, and return whether it was there.
/// The plug-in repeats the query itself, because tables of one moment are merged.
fn take_watch(command: &mut Vec<String>) -> bool {
    let before = command.len();
    command.retain(|word| !["-w", "--watch"].contains(&word.as_str()));
    command.len() < before
}
