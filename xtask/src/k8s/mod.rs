//! `cargo xtask test k8s`:
//! the image, the chart and the plug-in on a real cluster, with real traffic.
//!
//! The cluster is that of `KUBECONFIG`, see [`given`], or Debian's Kubernetes on one node in a
//! network namespace, see [`node`]; the steps are in [`scenarios`], in the order in which an
//! operator would take them.
mod binaries;
mod cluster;
mod companion;
mod given;
mod images;
mod node;
mod scenarios;
mod stage;
pub mod traffic;
mod undo;

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{netns, tools};

use crate::{image, interrupt, setup};
use cluster::Cluster;
use given::Given;
use node::Node;
use stage::Stage;

#[derive(clap::Args)]
pub struct Args {
    /// Use the image that was made last, in the place of a new one
    #[arg(long)]
    keep_image: bool,
    /// Write the transcript into docs/kubernetes.md
    #[arg(long)]
    document: bool,
    /// Only the scenarios whose names have this part, and the installation; repeatable
    #[arg(long, value_name = "PART", conflicts_with = "document")]
    only: Vec<String>,
    /// Only bring a cluster up, say how it is reached, and keep it until interrupted
    #[arg(long, conflicts_with_all = ["document", "only"])]
    hold: bool,
    #[command(flatten)]
    given: given::Options,
}

pub fn main(args: Args) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "a cluster needs root");
    interrupt::watch()?;
    if args.hold {
        ensure!(given::kubeconfig().is_none(), "KUBECONFIG names a cluster; unset it for another");
        return hold(own(args.keep_image)?);
    }
    let mut stage = match given::kubeconfig() {
        Some(kubeconfig) => {
            ensure!(!args.document, "only a cluster of the test's own is documented");
            archives(args.keep_image)?;
            let given = Given::new(kubeconfig, args.given)?;
            Stage::new(Cluster::Given(given), None)?
        }
        None => {
            let (node, time) = own(args.keep_image)?;
            Stage::new(Cluster::Own(node), Some(time))?
        }
    };
    let result = scenarios::run(&mut stage, &args.only);
    if let Err(error) = &result {
        eprintln!("{}", stage.state());
        eprintln!("FAILED: {error:#}");
    }
    if let Cluster::Given(_) = stage.cluster {
        scenarios::clean(&stage).context("removing what the test made in the given cluster")?;
    }
    let text = stage.transcript();
    let file = tools::target().join("k8s/transcript.txt");
    fs::write(&file, &text).with_context(|| file.display().to_string())?;
    println!("{text}");
    result?;
    if args.document {
        document(&text)?;
    }
    Ok(())
}

/// Return the images of the pods.
fn archives(keep_image: bool) -> Result<Vec<PathBuf>> {
    setup::cluster()?;
    let last = image::last_for_tests();
    let guard = if keep_image && last.exists() { last } else { image::for_tests()? };
    let mut archives = images::make()?;
    archives.push(guard);
    Ok(archives)
}

/// Bring up the test's own cluster.
fn own(keep_image: bool) -> Result<(Node, Duration)> {
    for name in netns::remove_stale()? {
        eprintln!("removed the namespace {name}, which an earlier run left behind");
    }
    let archives = archives(keep_image)?;
    binaries::make()?;
    let start = Instant::now();
    let node = Node::up(&archives)?;
    Ok((node, start.elapsed()))
}

/// Keep the cluster for work from elsewhere.
fn hold((node, time): (Node, Duration)) -> Result<()> {
    println!("cluster up in {:.0} s; Ctrl-C ends it. Its clients' end:", time.as_secs_f64());
    println!(
        "nsenter --net={} env KUBECONFIG={} sh",
        node.outside().path().display(),
        node.kubeconfig_outside().display()
    );
    while !interrupt::stopped() {
        thread::sleep(Duration::from_millis(250));
    }
    Ok(())
}

/// Write the transcript into the documentation.
fn document(transcript: &str) -> Result<()> {
    const BEGIN: &str = "<!-- transcript: cargo xtask test k8s --document -->\n```\n";
    let path = tools::workspace().join("docs/kubernetes.md");
    let page = fs::read_to_string(&path).context("docs/kubernetes.md")?;
    let (before, rest) = page.split_once(BEGIN).context("there is no place for the transcript")?;
    let (_, after) = rest.split_once("```\n").context("the transcript does not end")?;
    fs::write(&path, format!("{before}{BEGIN}{transcript}```\n{after}"))?;
    Ok(())
}

/// Wait until it is so, and report the time that took.
pub fn wait(
    what: &str,
    patience: Duration,
    mut now: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    while !now()? {
        interrupt::check()?;
        ensure!(start.elapsed() < patience, "not within {} s: {what}", patience.as_secs());
        thread::sleep(Duration::from_millis(250));
    }
    Ok(start.elapsed())
}
