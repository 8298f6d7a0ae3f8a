//! Containers of a rendered pod, run from the image by runc.
//! They run as under a kubelet and a container runtime, except for the seccomp profile, which is
//! the runtime's own.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ws_guard_testkit::{netns::Namespace, process::Process, tools};

use crate::{files::run, node::Node};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Return the image, or why there is none.
pub fn archive() -> Result<PathBuf, String> {
    let default = tools::target().join("image/ws-guard-dev.tar");
    let path = std::env::var_os("WS_GUARD_IMAGE").map_or(default, PathBuf::from);
    match path.exists() {
        true => Ok(path),
        false => Err(format!(
            "there is no image at {}: `cargo xtask image --profile dev` makes it",
            path.display()
        )),
    }
}

/// An image, unpacked with the attributes of its files.
pub struct Image {
    root: PathBuf,
    entrypoint: Vec<Value>,
}

impl Image {
    /// Unpack it for one container: runc creates the mount points in it.
    pub fn unpack(archive: &Path, folder: &Path) -> Result<Image> {
        let (layout, root) = (folder.join("image"), folder.join("rootfs"));
        fs::create_dir_all(&layout)?;
        fs::create_dir_all(&root)?;
        untar(archive, &layout)?;
        let blob = |digest: &Value| -> Result<PathBuf> {
            let digest = digest.as_str().context("no digest")?;
            Ok(layout.join("blobs").join(digest.replace(':', "/")))
        };
        let parse =
            |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
        let index = parse(layout.join("index.json"))?;
        let names = &index["manifests"][0]["annotations"];
        let full = format!("docker.io/library/ws-guard:{VERSION}");
        ensure!(names["io.containerd.image.name"] == full, "the kubelet asks for {full}: {names}");
        ensure!(names["org.opencontainers.image.ref.name"] == VERSION, "{names}");
        let manifest = parse(blob(&index["manifests"][0]["digest"])?)?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            untar(&blob(&layer["digest"])?, &root)?;
        }
        let config = parse(blob(&manifest["config"]["digest"])?)?;
        ensure!(config["config"]["User"] == "65532:65532", "the image's user: {config}");
        let entrypoint = config["config"]["Entrypoint"].as_array().context("no entrypoint")?;
        Ok(Image { root, entrypoint: entrypoint.clone() })
    }
}

fn untar(archive: &Path, folder: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--same-owner", "-xpf"]).arg(archive);
    tar.arg("-C").arg(folder);
    run(tar).map(drop)
}

/// A container; ended and removed when dropped.
pub struct Container {
    name: String,
    /// State directory of runc.
    state: PathBuf,
    process: Process,
}

impl Container {
    /// Start the container of this name in a pod, in a network namespace;
    /// `host_ip` is the node's address.
    pub fn start(
        pod: &Value,
        name: &str,
        node: &Node,
        network: &Namespace,
        host_ip: &str,
    ) -> Result<Container> {
        let container = named(pod, name)?;
        let archive = archive().map_err(anyhow::Error::msg)?;
        let name = node.name(name);
        let bundle = node.folder().join("containers").join(&name);
        if bundle.exists() {
            fs::remove_dir_all(&bundle)?;
        }
        fs::create_dir_all(&bundle)?;
        let image = Image::unpack(&archive, &bundle)?;
        let spec = Spec { pod, container, node, network, host_ip, image: &image };
        fs::write(bundle.join("config.json"), spec.config(&name)?.to_string())?;
        let state = node.folder().join("runc");
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&bundle).arg(&name);
        let process = Process::spawn(&name, runc)?;
        Ok(Container { name, state, process })
    }

    /// Wait until it ends by itself; return its output.
    pub fn finish(mut self) -> Result<String> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.process.ended()? {
                break status;
            }
            ensure!(std::time::Instant::now() < deadline, "{}: {}", self.name, self.said());
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        self.process.terminate()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.said());
        Ok(self.said())
    }

    /// Send SIGTERM, and return all output. The container has to end in order.
    pub fn stop(mut self) -> Result<String> {
        let status = self.process.terminate()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.said());
        Ok(self.said())
    }

    pub fn said(&self) -> String {
        self.process.lines().join("\n")
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Run another program in it, as `kubectl exec` does; return its output.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&self.state).args(["exec", &self.name]).args(words);
        run(runc)
    }

    /// Return the process in it, as numbered in this PID namespace.
    pub fn pid(&self) -> Result<u32> {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&self.state).args(["state", &self.name]);
        let state: Value = serde_json::from_str(&run(runc)?)?;
        let pid = state["pid"].as_u64().context("runc knows no process")?;
        Ok(u32::try_from(pid)?)
    }

    /// Format the memory charged to its cgroup, now and at its peak.
    /// Maps and page cache are included; the resident memory is added.
    pub fn memory(&self) -> Result<String> {
        let now = self.charged(["memory.usage_in_bytes", "memory.current"]);
        let most = self.charged(["memory.max_usage_in_bytes", "memory.peak"]);
        let (resident, anonymous) = (self.status("VmRSS")?, self.status("RssAnon")?);
        Ok(format!("charged {now}, at most {most}; resident {resident}, anonymous {anonymous}"))
    }

    /// Read a file of its cgroup, version 1 or 2; `?` where neither exists.
    fn charged(&self, [first, second]: [&str; 2]) -> String {
        let root = Path::new("/sys/fs/cgroup");
        let mut files =
            [root.join("memory").join(&self.name).join(first), root.join(&self.name).join(second)]
                .into_iter();
        let bytes =
            files.find_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
        bytes.map_or("?".to_owned(), |bytes| format!("{} kB", bytes / 1024))
    }

    /// Return a line of /proc/PID/status.
    pub fn status(&self, field: &str) -> Result<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        Ok(line.with_context(|| format!("no {field} in {text}"))?.trim().to_owned())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&self.state).args(["delete", "--force", &self.name]);
        if let Err(error) = run(runc) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

fn named<'a>(pod: &'a Value, name: &str) -> Result<&'a Value> {
    let all = ["initContainers", "containers"].map(|field| pod[field].as_array());
    let mut all = all.into_iter().flatten().flatten();
    all.find(|container| container["name"] == name).with_context(|| format!("no container {name}"))
}

/// Everything for a container's configuration.
struct Spec<'a> {
    pod: &'a Value,
    container: &'a Value,
    node: &'a Node,
    network: &'a Namespace,
    host_ip: &'a str,
    image: &'a Image,
}

impl Spec<'_> {
    /// Return the configuration of the OCI runtime specification.
    fn config(&self, name: &str) -> Result<Value> {
        Ok(json!({
            "ociVersion": "1.0.2",
            "process": self.process()?,
            "root": {"path": self.image.root, "readonly": self.security("readOnlyRootFilesystem") == true},
            "hostname": "node",
            "mounts": self.mounts()?,
            "linux": {
                "namespaces": [
                    {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "network", "path": self.network.path()},
                ],
                "cgroupsPath": format!("/{name}"),
                "resources": {"memory": {"limit": self.memory_limit()?}},
            },
        }))
    }

    /// Return a field of the security context: the container's, or else the pod's.
    fn security(&self, field: &str) -> &Value {
        let own = &self.container["securityContext"][field];
        if own.is_null() { &self.pod["securityContext"][field] } else { own }
    }

    fn process(&self) -> Result<Value> {
        let args = self.container["args"].as_array().context("no args")?;
        let words = args.iter().map(|word| {
            let word = word.as_str().unwrap_or_default().replace("$(HOST_IP)", self.host_ip);
            Value::String(word)
        });
        let all: Vec<Value> = self.image.entrypoint.iter().cloned().chain(words).collect();
        // The capabilities that a runtime leaves after `drop: [ALL]`.
        let added = self.security("capabilities")["add"].as_array().cloned().unwrap_or_default();
        let names = added.iter().filter_map(Value::as_str).map(|name| format!("CAP_{name}"));
        let held: Vec<String> = names.collect();
        Ok(json!({
            "args": all,
            "cwd": "/",
            "env": [format!("HOST_IP={}", self.host_ip)],
            "user": {"uid": self.security("runAsUser"), "gid": self.security("runAsGroup")},
            "capabilities": {"bounding": held, "permitted": held, "effective": held},
            "noNewPrivileges": self.security("allowPrivilegeEscalation") == false,
        }))
    }

    fn mounts(&self) -> Result<Vec<Value>> {
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        ];
        for mount in self.container["volumeMounts"].as_array().into_iter().flatten() {
            let volumes = self.pod["volumes"].as_array().into_iter().flatten();
            let volume = volumes.into_iter().find(|volume| volume["name"] == mount["name"]);
            let volume = volume.with_context(|| format!("{mount} mounts no volume"))?;
            let source = self.node.volume(volume)?;
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            mounts.push(json!({
                "destination": mount["mountPath"], "type": "bind", "source": source,
                "options": ["rbind", "rprivate", access],
            }));
        }
        Ok(mounts)
    }

    /// Return the memory limit in bytes.
    fn memory_limit(&self) -> Result<u64> {
        let text = self.container["resources"]["limits"]["memory"].as_str().context("no limit")?;
        let megabytes: u64 = text.strip_suffix("Mi").context("not in Mi")?.parse()?;
        Ok(megabytes << 20)
    }
}
