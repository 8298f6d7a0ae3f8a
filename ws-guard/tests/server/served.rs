//! The server as a separate process.

use std::{net::SocketAddr, process::Command, time::Duration};

use ws_guard_testkit::{process::Process, usage::Usage};

use super::stage::{PATIENCE, connect, refused, wait_for};

/// `ws-guard serve` on a free port.
pub struct Served {
    pub process: Process,
    pub address: SocketAddr,
}

impl Served {
    /// Start it without stall handling, since the machine may be busy.
    pub fn start(more: &[&str]) -> Served {
        Served::with(more, &[])
    }

    /// Start it with these variables in its environment.
    pub fn with(more: &[&str], variables: &[(&str, &str)]) -> Served {
        let calm = ["--stall-refuse", "1h", "--stall-shed", "1h"];
        Served::spawn(&[&calm, more].concat(), variables)
    }

    /// Start it with its default stall handling, unless told otherwise.
    pub fn watchful(more: &[&str]) -> Served {
        Served::spawn(more, &[])
    }

    fn spawn(more: &[&str], variables: &[(&str, &str)]) -> Served {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
        command.envs(variables.iter().copied());
        Served::run(command, more)
    }

    /// Start it after shell commands that change its limits.
    pub fn limited(before: &str, more: &[&str]) -> Served {
        let mut shell = Command::new("sh");
        let script = format!("{before}; exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_ws-guard")]);
        let calm = ["--stall-refuse", "1h", "--stall-shed", "1h"];
        Served::run(shell, &[&calm, more].concat())
    }

    fn run(mut command: Command, more: &[&str]) -> Served {
        command.args(["serve", "--listen", "127.0.0.1:0", "--shards", "1"]).args(more);
        let defaults = [("--max-connections", "20000"), ("--access-log", "/dev/null")];
        for (flag, value) in defaults.iter().filter(|(flag, _)| !more.contains(flag)) {
            command.args([flag, value]);
        }
        let process = Process::spawn("ws-guard serve", command).expect("it starts");
        let address = process
            .wait_for(PATIENCE, |line| {
                line.split("serving WebSocket connections on ").nth(1)?.trim().parse().ok()
            })
            .expect("it says where it listens");
        Served { process, address }
    }

    /// Wait for a line with this text; return the number of such lines.
    pub fn says(&self, text: &str) -> usize {
        let count = || self.process.lines().iter().filter(|line| line.contains(text)).count();
        wait_for(Duration::from_secs(2), || Some(count()).filter(|count| *count > 0)).unwrap_or(0)
    }

    /// Return a sample of its metrics at this port; 0 where there is none.
    pub fn metric(port: u16, sample: &str) -> f64 {
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = refused(connect(([127, 0, 0, 1], port).into()), request);
        let line = answer.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Return its anonymous resident memory, in bytes.
    pub fn anonymous(&self) -> u64 {
        Usage::of(self.process.pid()).expect("it runs").anonymous
    }

    /// Return the CPU time that it has used.
    pub fn cpu(&self) -> Duration {
        Usage::of(self.process.pid()).expect("it runs").cpu
    }
}
