//! Execution of commands in the guard's pods.
use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context, Result};

use crate::{Cluster, merge, pods::Pod};

/// Maximum number of nodes queried concurrently.
const AT_ONCE: usize = 16;

/// Answer of one node.
pub struct Answer {
    pub node: String,
    pub output: String,
    pub error: String,
    pub code: u8,
}

/// Build the `kubectl exec` of a guard's command.
/// The pin directory is the mount point in the manifests.
fn command(cluster: &Cluster, pod: &Pod, options: &[&str], words: &[String]) -> Command {
    let mut kubectl = cluster.kubectl();
    kubectl.arg("exec").args(options).args([&pod.name, "--container", "guard", "--"]);
    kubectl.args(["/ws-guard", "--pin-dir=/bpf"]).args(words);
    kubectl
}

/// Return the exit code of kubectl, which is the one of the command that it ran.
fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| code.try_into().ok()).unwrap_or(1)
}

/// Run the command in all pods, and return the answers in their order.
pub fn ask(cluster: &Cluster, pods: &[Pod], words: &[String]) -> Vec<Answer> {
    let one = |pod: &Pod| {
        let output = command(cluster, pod, &[], words).stdin(Stdio::null()).output();
        let node = pod.node.clone();
        match output {
            Ok(output) => Answer {
                node,
                output: String::from_utf8_lossy(&output.stdout).into_owned(),
                error: String::from_utf8_lossy(&output.stderr).into_owned(),
                code: code(output.status),
            },
            Err(error) => Answer {
                node,
                output: String::new(),
                error: format!("running kubectl: {error}"),
                code: 1,
            },
        }
    };
    let mut answers = Vec::new();
    for pods in pods.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let running: Vec<_> = pods.iter().map(|pod| scope.spawn(move || one(pod))).collect();
            answers.extend(running.into_iter().filter_map(|thread| thread.join().ok()));
        });
    }
    answers
}

/// Run the command on one node, attached to the terminal.
pub fn attach(cluster: &Cluster, pod: &Pod, words: &[String]) -> Result<u8> {
    let status = command(cluster, pod, &["--stdin", "--tty"], words).status();
    Ok(code(status.context("running kubectl")?))
}

/// Print lines of all pods as they arrive, until all commands end.
pub fn follow(cluster: &Cluster, pods: &[Pod], words: &[String]) -> Result<u8> {
    let width = pods.iter().map(|pod| pod.node.len()).max().unwrap_or(0);
    let one = |pod: &Pod| -> Result<u8> {
        let mut child = command(cluster, pod, &[], words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("running kubectl")?;
        let stdout = child.stdout.take().context("kubectl has no output")?;
        for line in BufReader::new(stdout).lines() {
            let line = merge::line(&pod.node, width, &line?);
            writeln!(std::io::stdout().lock(), "{line}")?;
        }
        Ok(code(child.wait()?))
    };
    let codes: Vec<Result<u8>> = thread::scope(|scope| {
        let running: Vec<_> = pods.iter().map(|pod| scope.spawn(move || one(pod))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    codes.into_iter().try_fold(0, |highest, code| Ok(code?.max(highest)))
}
