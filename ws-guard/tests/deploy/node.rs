//! A node as the kubelet prepares it: host folders, ConfigMaps, empty folders.
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

/// Prefix of a hostPath that is redirected: the machine's pins stay out of it.
const BPFFS: &str = "/sys/fs/bpf";

/// Folders of one node, removed when dropped; pinned objects are unloaded before.
pub struct Node {
    folder: TempDir,
    /// Replaces `/sys/fs/bpf/ws-guard`.
    pub pins: PathBuf,
    number: u32,
}

impl Node {
    pub fn new() -> Result<Node> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let pins = format!("{BPFFS}/wsg-deploy-{}-{number}", std::process::id());
        let folder = TempDir::with_prefix("wsg-node-")?;
        // Containers of other users have to pass through it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Node { folder, pins: pins.into(), number })
    }

    /// Return a name for a container on it, and for its cgroup.
    pub fn name(&self, container: &str) -> String {
        format!("wsg-{}-{}-{container}", std::process::id(), self.number)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Return the folder behind a volume of a pod, made as the kubelet makes it.
    pub fn volume(&self, volume: &Value) -> Result<PathBuf> {
        let name = volume["name"].as_str().context("a volume without a name")?;
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            return self.host_path(path);
        }
        let folder = self.folder().join("volumes").join(name);
        if volume["emptyDir"].is_object() {
            fs::create_dir_all(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        } else if !volume["configMap"].is_object() || !folder.exists() {
            bail!("{volume}: a ConfigMap that was not written, or an unknown kind of volume");
        }
        Ok(folder)
    }

    fn host_path(&self, path: &str) -> Result<PathBuf> {
        let folder = match path.strip_prefix(BPFFS) {
            Some("/ws-guard") => self.pins.clone(),
            Some(_) => bail!("{path} is more of the BPF file system than is ours"),
            None => self.folder().join("host").join(path.trim_start_matches('/')),
        };
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    /// Write a ConfigMap, or a new state of it:
    /// files in a separate folder, and the symbolic link `..data` swapped from the last state's
    /// folder to that.
    pub fn config_map(&self, volume: &str, file: &str, text: &str) -> Result<()> {
        static STATE: AtomicU32 = AtomicU32::new(0);
        let folder = self.folder().join("volumes").join(volume);
        let state = format!("..state-{}", STATE.fetch_add(1, Relaxed));
        fs::create_dir_all(folder.join(&state))?;
        fs::write(folder.join(&state).join(file), text)?;
        let (new, data) = (folder.join("..data_tmp"), folder.join("..data"));
        symlink(&state, &new)?;
        fs::rename(&new, &data)?;
        if !folder.join(file).exists() {
            symlink(Path::new("..data").join(file), folder.join(file))?;
        }
        Ok(())
    }
}
