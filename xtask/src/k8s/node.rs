//! A cluster of one node, in a separate network namespace;
//! the other end of its uplink is the outside, with the clients.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use ws_guard_testkit::{
    netns::{Family, Namespace, Pair, PairOptions},
    process::Process,
};

use super::{
    binaries::{built, home, unpacked},
    wait,
};
use crate::step;

pub const NAME: &str = "node1";
/// Names of its uplink, and of its ends of the pods' interfaces.
pub const UPLINK: &str = "veth0";
pub const POD_INTERFACES: &str = "veth????????";
/// Number of client addresses outside.
pub const CLIENTS: u8 = 150;
/// Networks of pods and services, routed from outside.
const ROUTED: [&str; 2] = ["10.244.0.0/24", "10.96.0.0/16"];
const API_PORT: u16 = 16443;
/// Folders of the node that the guard uses, by the chart's and this node's names.
/// The node shares the file systems with this machine, where those of the first names may belong to
/// another guard.
pub const FOLDERS: [(&str, &str); 2] =
    [("/sys/fs/bpf/ws-guard", PINS), ("/var/lib/ws-guard", STATE)];
const PINS: &str = "/sys/fs/bpf/ws-guard-test-node";
const STATE: &str = "/var/lib/ws-guard-test-node";
/// Files that name the API server: on the node, and outside.
const INSIDE: &str = "kubeconfig";
const OUTSIDE: &str = "outside.kubeconfig";
const CONTROLLERS: &str = "/sys/fs/cgroup";

/// Processes, namespaces and files of a node, all gone when it is dropped.
pub struct Node {
    pair: Pair,
    run: PathBuf,
    processes: BTreeMap<&'static str, Process>,
    /// Namespaces of pods that are not ours.
    foreign: BTreeSet<String>,
}

impl Node {
    /// Bring it up; the archives are the images of its pods.
    pub fn up(images: &[PathBuf]) -> Result<Node> {
        for folder in [PINS, STATE] {
            let free = !Path::new(folder).exists();
            ensure!(free, "{folder} exists: another such test runs, or was killed; remove it then");
        }
        let run = home().join("run");
        if run.exists() {
            unmount(&run)?;
            fs::remove_dir_all(&run).with_context(|| run.display().to_string())?;
        }
        let pair = Pair::new(PairOptions { clients: CLIENTS, ..PairOptions::default() })?;
        let mut node = Node { pair, run, processes: BTreeMap::new(), foreign: pod_namespaces() };
        node.network()?;
        node.configure()?;
        for name in ["etcd", "containerd", "apiserver"] {
            node.start(name)?;
        }
        wait("the API server answers", Duration::from_secs(120), || {
            Ok(node.kubectl().args(["get", "--raw", "/readyz"]).output()?.status.success())
        })?;
        for name in ["controllers", "scheduler"] {
            node.start(name)?;
        }
        for image in images {
            let mut import = node.ctr();
            import.args(["images", "import"]).arg(image);
            step::run("importing an image", import)?;
        }
        for name in ["kubelet", "proxy"] {
            node.start(name)?;
        }
        wait("the node is ready", Duration::from_secs(120), || {
            let mut get = node.kubectl();
            get.args(["wait", "--for=condition=Ready", "--timeout=1s", "node", NAME]);
            Ok(get.output()?.status.success())
        })?;
        Ok(node)
    }

    pub fn inside(&self) -> &Namespace {
        &self.pair.server
    }

    pub fn outside(&self) -> &Namespace {
        &self.pair.client
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.run.join(INSIDE)
    }

    /// Return the same for the outside.
    pub fn kubeconfig_outside(&self) -> PathBuf {
        self.run.join(OUTSIDE)
    }

    pub fn kubectl(&self) -> Command {
        let mut kubectl = self.inside().command("kubectl");
        kubectl.arg("--kubeconfig").arg(self.kubeconfig());
        kubectl
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new(unpacked("usr/bin/ctr"));
        ctr.arg("--address").arg(self.run.join("ctd.sock")).args(["--namespace", "k8s.io"]);
        ctr
    }

    fn network(&self) -> Result<()> {
        self.inside().sysctl("net/ipv4/ip_forward", "1")?;
        // It does not exist without the module, and then bridged packets pass no rules anyway.
        let _ = self.inside().sysctl("net/bridge/bridge-nf-call-iptables", "1");
        let address = Family::V4.server();
        self.inside().ip(&format!("route add default via {}", Family::V4.client(0)))?;
        for network in ROUTED {
            self.outside().ip(&format!("route add {network} via {address}"))?;
        }
        Ok(())
    }

    fn configure(&self) -> Result<()> {
        for folder in ["certs", "cni"] {
            fs::create_dir_all(self.run.join(folder))?;
        }
        let fill = |text: &str| {
            text.replace("@RUN@", &self.run.to_string_lossy())
                .replace("@ROOT@", &home().join("root").to_string_lossy())
        };
        let write = |name: &str, text: &str| {
            fs::write(self.run.join(name), fill(text)).with_context(|| name.to_owned())
        };
        write("containerd.toml", include_str!("containerd.toml"))?;
        write("kubelet.yaml", include_str!("kubelet.yaml"))?;
        write("cni/bridge.conflist", include_str!("bridge.conflist"))?;
        write("tokens.csv", "admin-of-a-test,admin,admin,\"system:masters\"\n")?;
        let loopback = [127, 0, 0, 1].into();
        for (name, address) in [(INSIDE, loopback), (OUTSIDE, Family::V4.server())] {
            write(name, &kubeconfig(address))?;
        }
        let mut key = Command::new("openssl");
        key.args(["genrsa", "-out"]).arg(self.run.join("sa.key")).arg("2048");
        step::run("making the key of service accounts", key)
    }

    /// Start one of the node's processes.
    pub fn start(&mut self, name: &'static str) -> Result<()> {
        let (program, args) = part(name, &self.run)?;
        let mut command = self.inside().command(program);
        let path = std::env::var("PATH").unwrap_or_default();
        let root = |path: &str| unpacked(path).display().to_string();
        command.args(args);
        command.env("PATH", format!("{}:{}:{path}", root("usr/bin"), root("usr/sbin")));
        command.env("LD_LIBRARY_PATH", root("usr/lib/x86_64-linux-gnu"));
        self.processes.insert(name, Process::spawn(name, command)?);
        Ok(())
    }

    /// End one of the node's processes.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        let mut process = self.processes.remove(name).context("it does not run")?;
        process.terminate().map(drop)
    }

    /// Return the network namespace of the pod with this address.
    pub fn pod(&self, address: IpAddr) -> Result<Namespace> {
        let own = |name: &String| -> Result<bool> {
            let mut show = Command::new("ip");
            show.args(["-netns", name, "-json", "address", "show", "to", &address.to_string()]);
            let output = show.output().context("running ip")?;
            let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            Ok(found[0]["ifname"].is_string())
        };
        for name in pod_namespaces().difference(&self.foreign) {
            if own(name)? {
                return Ok(Namespace::borrow(name));
            }
        }
        bail!("no pod of this node has the address {address}")
    }

    /// Return the last lines of a process, for a message.
    pub fn said(&self, name: &str) -> String {
        let lines = self.processes.get(name).map(Process::lines).unwrap_or_default();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Kill a container's process at once, as the kernel does when memory is short.
    pub fn kill(&self, container: &str) -> Result<()> {
        let mut kill = self.ctr();
        kill.args(["tasks", "kill", "--signal", "SIGKILL", container]);
        step::run("killing the daemon", kill)
    }

    /// Give an existing image another name as well.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        let mut tag = self.ctr();
        tag.args(["images", "tag", "--force", image, name]);
        step::run("naming an image", tag)
    }

    /// List the guard's leftovers on the node.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for entry in fs::read_dir(PINS).into_iter().flatten() {
            left.push(entry?.path().display().to_string());
        }
        for words in [&["link", "show"][..], &["filter", "show", "dev", "veth0"]] {
            let program = if words[0] == "link" { "ip" } else { "tc" };
            let output = self.inside().command(program).args(words).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let programs = text.lines().filter(|line| line.contains("xdp") || line.contains("bpf"));
            left.extend(programs.map(str::to_owned));
        }
        Ok(left)
    }

    fn down(&mut self) -> Result<()> {
        for name in ["proxy", "kubelet"] {
            if let Some(process) = self.processes.get(name) {
                // It would start the containers again.
                process.signal(Signal::SIGKILL)?;
            }
        }
        self.remove_containers()?;
        self.processes.clear();
        unmount(&self.run)?;
        for name in pod_namespaces().difference(&self.foreign) {
            let mut delete = Command::new("ip");
            delete.args(["netns", "delete", name]);
            step::run("removing a pod's namespace", delete)?;
        }
        for folder in [PINS, STATE] {
            // It was free before, so all of it is this node's; after a failure pins are among it.
            let _ = fs::remove_dir_all(folder);
        }
        remove_cgroups();
        Ok(())
    }

    fn remove_containers(&self) -> Result<()> {
        let list = |what: &str| -> Result<Vec<String>> {
            let output = self.ctr().args([what, "list", "--quiet"]).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
        };
        for task in list("tasks")? {
            self.ctr().args(["tasks", "kill", "--signal", "SIGKILL", &task]).output()?;
        }
        let _ = wait("no container runs", Duration::from_secs(30), || {
            for task in list("tasks")? {
                self.ctr().args(["tasks", "delete", "--force", &task]).output()?;
            }
            Ok(list("tasks")?.is_empty())
        });
        for container in list("containers")? {
            self.ctr().args(["containers", "delete", &container]).output()?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            eprintln!("the node could not be removed: {error:#}");
        }
    }
}

/// Return a configuration that names the API server at this address.
fn kubeconfig(api: IpAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: \"https://{api}:{API_PORT}\", insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: admin, user: {{token: admin-of-a-test}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n"
    )
}

/// Return program and arguments of a part of the cluster.
fn part(name: &str, run: &Path) -> Result<(PathBuf, Vec<String>)> {
    let at = |path: &str| run.join(path).display().to_string();
    let kubeconfig = format!("--kubeconfig={}", at("kubeconfig"));
    let address = Family::V4.server();
    let (program, args) = match name {
        "etcd" => (
            unpacked("usr/bin/etcd"),
            format!(
                "--data-dir {} --listen-client-urls http://127.0.0.1:23790 \
                 --advertise-client-urls http://127.0.0.1:23790 \
                 --listen-peer-urls http://127.0.0.1:23800 \
                 --initial-advertise-peer-urls http://127.0.0.1:23800 \
                 --initial-cluster default=http://127.0.0.1:23800 --unsafe-no-fsync",
                at("etcd")
            ),
        ),
        "containerd" => {
            (unpacked("usr/bin/containerd"), format!("--config {}", at("containerd.toml")))
        }
        "apiserver" => (
            built("kube-apiserver"),
            format!(
                "--etcd-servers=http://127.0.0.1:23790 --secure-port={API_PORT} --bind-address=0.0.0.0 \
                 --advertise-address={address} --cert-dir={certs} --token-auth-file={tokens} \
                 --authorization-mode=Node,RBAC \
                 --service-account-issuer=https://kubernetes.default.svc \
                 --service-account-signing-key-file={key} --service-account-key-file={key} \
                 --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true --insecure-port=0 \
                 --kubelet-preferred-address-types=InternalIP",
                certs = at("certs"),
                tokens = at("tokens.csv"),
                key = at("sa.key")
            ),
        ),
        "controllers" => (
            built("kube-controller-manager"),
            format!(
                "{kubeconfig} --service-account-private-key-file={} --root-ca-file={} \
                 --leader-elect=false --port=0 --secure-port=16257 --bind-address=127.0.0.1 \
                 --cert-dir={}",
                at("sa.key"),
                at("certs/apiserver.crt"),
                at("controllers")
            ),
        ),
        "scheduler" => (
            built("kube-scheduler"),
            format!(
                "{kubeconfig} --leader-elect=false --port=0 --secure-port=16259 \
                 --bind-address=127.0.0.1 --cert-dir={}",
                at("scheduler")
            ),
        ),
        "kubelet" => (
            built("kubelet"),
            format!(
                "{kubeconfig} --config={} --container-runtime=remote \
                 --container-runtime-endpoint=unix://{} --root-dir={} --cert-dir={} \
                 --hostname-override={NAME} --node-ip={address}",
                at("kubelet.yaml"),
                at("ctd.sock"),
                at("kubelet"),
                at("pki")
            ),
        ),
        "proxy" => (
            built("kube-proxy"),
            format!(
                "{kubeconfig} --proxy-mode=iptables --cluster-cidr=10.244.0.0/24 \
                 --hostname-override={NAME} --conntrack-max-per-core=0 \
                 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
                 --healthz-bind-address=127.0.0.1:16260 --metrics-bind-address=127.0.0.1:16261"
            ),
        ),
        _ => bail!("no part of a node is called {name}"),
    };
    Ok((program, args.split_whitespace().map(str::to_owned).collect()))
}

/// Return the names of the namespaces that network plug-ins make for pods.
fn pod_namespaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("cni-")).collect()
}

/// Unmount everything below a folder, the innermost first.
fn unmount(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let prefix = format!("{}/", folder.display());
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut points: Vec<&str> = points.filter(|point| point.starts_with(&prefix)).collect();
    points.sort_unstable_by(|one, other| other.cmp(one));
    for point in points {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {point}"))?;
    }
    Ok(())
}

/// Remove the containers' cgroups, empty by now.
fn remove_cgroups() {
    let controllers = fs::read_dir(CONTROLLERS).into_iter().flatten().flatten();
    for controller in controllers {
        for group in ["kubepods", "k8s.io"] {
            let top = controller.path().join(group);
            let folders = walkdir::WalkDir::new(top).contents_first(true);
            for folder in folders.into_iter().flatten().filter(|entry| entry.file_type().is_dir()) {
                let _ = fs::remove_dir(folder.path());
            }
        }
    }
}
