//! nginx before servers of which one is stopped: with `ready.lua`, it holds up no client.
use std::{fmt::Write, fs, net::SocketAddr, process::Command};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use ws_guard_testkit::{process::Process, tools};

use super::{
    leaving::is_let_in,
    served::Served,
    stage::{PATIENCE, free_port, wait_for},
};

/// Clients after each change.
const CLIENTS: usize = 12;

struct Edge {
    nginx: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Edge {
    /// Start nginx before servers, each with the port of its metrics.
    fn start(servers: &[(&Served, u16)]) -> Edge {
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let [modules, path] = tools::lua_in_nginx();
        let mut list = String::new();
        for (served, metrics) in servers {
            let (ip, port) = (served.address.ip(), served.address.port());
            writeln!(list, "{{ \"{ip}\", {port}, {metrics} }},").unwrap();
        }
        let file = folder.path().join("nginx.conf");
        let config = format!(
            "{modules}daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
  access_log off;
  {path}
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  init_by_lua_block {{ ready = require \"ready\" }}
  init_worker_by_lua_block {{ ready.watch {{ {list} }} }}
  upstream fleet {{ server 0.0.0.1; balancer_by_lua_block {{ ready.pick() }} }}
  server {{
    listen {address};
    location / {{
      proxy_pass http://fleet;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
    }}
  }}
}}
"
        );
        fs::write(&file, config).unwrap();
        let mut command = Command::new(tools::nginx());
        command.arg("-p").arg(folder.path()).arg("-c").arg(&file).args(["-e", "stderr"]);
        let nginx = Process::spawn("nginx", command).expect("`cargo xtask setup` unpacks it");
        let up = || is_let_in(address).then_some(());
        assert!(wait_for(PATIENCE, up).is_some(), "{:?}", nginx.lines());
        Edge { nginx, address, _folder: folder }
    }

    /// Check that clients are let in, one after the other.
    fn lets_all_in(&self) {
        for number in 0..CLIENTS {
            assert!(is_let_in(self.address), "client {number}: {:?}", self.nginx.lines());
        }
    }
}

fn opened(metrics: u16) -> f64 {
    Served::metric(metrics, "wsguard_server_opened_total")
}

#[test]
fn clients_go_past_a_server_that_is_stopped() {
    let ports = [free_port(), free_port()];
    let [mut first, second] =
        ports.map(|port| Served::start(&["--metrics-listen", &format!("127.0.0.1:{port}")]));
    let edge = Edge::start(&[(&first, ports[0]), (&second, ports[1])]);
    edge.lets_all_in();
    let before = opened(ports[0]);
    assert!(before >= CLIENTS as f64 / 2.0, "they take turns: {before}");
    first.process.signal(Signal::SIGSTOP).unwrap();
    let noticed = |line: &str| line.contains("timed out").then_some(());
    edge.nginx.wait_for(PATIENCE, noticed).unwrap();
    edge.lets_all_in();
    first.process.signal(Signal::SIGCONT).unwrap();
    let again = || (is_let_in(edge.address) && opened(ports[0]) > before).then_some(());
    assert!(wait_for(PATIENCE, again).is_some(), "it gets clients once it goes on");
    first.process.signal(Signal::SIGKILL).unwrap();
    first.process.terminate().unwrap();
    edge.lets_all_in();
    // None at all: clients get an answer, and nginx goes on.
    second.process.signal(Signal::SIGKILL).unwrap();
    wait_for(PATIENCE, || (!is_let_in(edge.address)).then_some(())).expect("no server is there");
}
