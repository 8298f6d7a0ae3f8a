//! The image around the binary. Buildah keeps what it works on below `target/image`, and nothing of
//! it in the machine's own store of images.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;
use ws_guard_testkit::tools;

use crate::{setup, step};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What `ws-guard` in a manifest stands for.
pub const NAME: &str = "docker.io/library/ws-guard";
/// Who runs it: nobody in particular, as in the manifests.
const USER: &str = "65532:65532";
/// Permitted, not effective: with the effective bit the kernel refuses to start the file where it may
/// not have all of them (capabilities(7)), and the companion server has none.
const CAPABILITIES: &str = "cap_bpf,cap_net_admin,cap_perfmon+p";

/// Make the image; `output` becomes an OCI archive.
pub fn image(binary: &Path, output: &Path) -> Result<()> {
    let store = Store::new()?;
    let container = store.ask(&["from", "scratch"])?;
    let made = store.fill(&container, binary, output);
    // Also when it failed; and what failed matters more.
    let removed = store.ask(&["rm", &container]);
    made.and(removed.map(drop))
}

/// Buildah with a store of its own.
struct Store {
    folder: PathBuf,
}

impl Store {
    fn new() -> Result<Store> {
        let folder = tools::target().join("image/store");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Store { folder })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.folder.join("images"));
        command.arg("--runroot").arg(self.folder.join("run"));
        // Works on every file system; the images are small.
        command.args(["--storage-driver", "vfs"]).args(args);
        command
    }

    /// What buildah answers.
    fn ask(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().context("running buildah")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "`buildah {}`: {}", args.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn fill(&self, container: &str, binary: &Path, output: &Path) -> Result<()> {
        let root = PathBuf::from(self.ask(&["mount", container])?);
        let inside = root.join("ws-guard");
        let mut install = Command::new("install");
        install.args(["--mode=0755", "--owner=0", "--group=0"]).arg(binary).arg(&inside);
        step::run("copying the binary", install)?;
        let mut setcap = Command::new(setup::program("setcap").context("there is no setcap")?);
        setcap.arg(CAPABILITIES).arg(&inside);
        step::run("giving it its capabilities", setcap)?;
        for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
            let from = tools::workspace().join(license);
            fs::copy(&from, root.join(license)).with_context(|| from.display().to_string())?;
        }
        self.ask(&["umount", container])?;
        self.configure(container)?;
        self.commit(container, output)
    }

    fn configure(&self, container: &str) -> Result<()> {
        let version = format!("--label=org.opencontainers.image.version={VERSION}");
        let source =
            concat!("--label=org.opencontainers.image.source=", env!("CARGO_PKG_REPOSITORY"));
        let license =
            concat!("--label=org.opencontainers.image.licenses=", env!("CARGO_PKG_LICENSE"));
        let title = "--label=org.opencontainers.image.title=ws-guard";
        let user = format!("--user={USER}");
        let labels = [title, &version, source, license];
        let mut args = vec!["config", &user, "--entrypoint=[\"/ws-guard\"]", "--workingdir=/"];
        args.extend(labels);
        args.push(container);
        self.ask(&args).map(drop)
    }

    fn commit(&self, container: &str, output: &Path) -> Result<()> {
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let layout = tools::target().join("image/layout");
        if layout.exists() {
            fs::remove_dir_all(&layout).with_context(|| layout.display().to_string())?;
        }
        let name = format!("oci:{}:{VERSION}", layout.display());
        // The same binary is the same image, whenever it is made.
        let commit = self.command(&[
            "commit",
            "--quiet",
            "--timestamp=0",
            "--disable-compression=false",
            container,
            &name,
        ]);
        step::run("writing the image", commit)?;
        name_image(&layout.join("index.json"))?;
        step::run("packing the image", pack(&layout, output))
    }
}

/// Give the image in an index its full name. What imports the archive takes the name from there; one
/// that is not qualified is not the name that the kubelet asks for.
fn name_image(index: &Path) -> Result<()> {
    let text = fs::read(index).with_context(|| index.display().to_string())?;
    let mut json: Value = serde_json::from_slice(&text)?;
    let annotations = &mut json["manifests"][0]["annotations"];
    annotations["io.containerd.image.name"] = format!("{NAME}:{VERSION}").into();
    annotations["org.opencontainers.image.ref.name"] = VERSION.into();
    fs::write(index, serde_json::to_vec(&json)?).with_context(|| index.display().to_string())
}

/// A layout as an archive, the same bytes whenever it is made.
fn pack(layout: &Path, output: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"]);
    tar.arg(output).arg("-C").arg(layout).arg(".");
    tar
}
