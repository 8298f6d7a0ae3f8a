//! The image around the binary.
//! Buildah keeps its files below `target/image`, and nothing of it in the machine's own store of
//! images.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;
use ws_guard_testkit::tools;

use super::binary::Architecture;
use crate::{setup, step};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Image that `ws-guard` in a manifest means.
pub const NAME: &str = "docker.io/library/ws-guard";
/// Image that `ws-guard-chaos` in a manifest means.
pub const CHAOS: &str = "docker.io/library/ws-guard-chaos";
/// User in the image, unprivileged as in the manifests.
const USER: &str = "65532:65532";
/// Capabilities that are permitted, not effective:
/// with the effective bit the kernel refuses to start the file where it may not have all of them
/// (capabilities(7)), and the companion server has none.
const CAPABILITIES: &str = "cap_bpf,cap_net_admin,cap_perfmon+p";

/// An image of one file.
pub struct Image<'a> {
    /// Name without a tag, which is the version.
    pub name: &'a str,
    pub file: &'a Path,
    /// Its name in the image's root folder.
    pub inside: &'a str,
    pub architecture: Architecture,
    /// Set if it is run, as [`USER`].
    pub runs: bool,
    /// Set if it may have [`CAPABILITIES`].
    pub capable: bool,
    /// Labels in addition to those of every image.
    pub labels: Vec<(&'static str, String)>,
}

impl Image<'_> {
    /// Return the image of the program.
    pub fn of_program(binary: &Path, architecture: Architecture) -> Image<'_> {
        let (name, inside) = (NAME, "ws-guard");
        let labels = Vec::new();
        Image { name, file: binary, inside, architecture, runs: true, capable: true, labels }
    }

    /// Return the image of the clients and the checker of chaos runs.
    pub fn of_chaos(binary: &Path, architecture: Architecture) -> Image<'_> {
        let (name, inside) = (CHAOS, "ws-guard-chaos");
        Image { name, inside, capable: false, ..Image::of_program(binary, architecture) }
    }

    /// Make it; `output` becomes an OCI archive. Return the digest of its manifest.
    pub fn make(&self, output: &Path) -> Result<String> {
        let store = Store::new()?;
        let container = store.ask(&["from", "--arch", self.architecture.oci(), "scratch"])?;
        let made = store.fill(&container, self, output);
        // Even after a failure, whose error matters more.
        let removed = store.ask(&["rm", &container]);
        made.and_then(|digest| removed.map(|_| digest))
    }

    fn configuration(&self) -> Vec<String> {
        let own = [
            ("org.opencontainers.image.title", self.inside.to_owned()),
            ("org.opencontainers.image.version", VERSION.to_owned()),
            ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY").to_owned()),
            ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ];
        let labels = own.iter().chain(&self.labels);
        let mut args: Vec<String> =
            labels.map(|(name, value)| format!("--label={name}={value}")).collect();
        args.push(format!("--arch={}", self.architecture.oci()));
        if self.runs {
            args.push(format!("--user={USER}"));
            args.push(format!("--entrypoint=[\"/{}\"]", self.inside));
            args.push("--workingdir=/".to_owned());
        }
        args
    }
}

/// Buildah with a separate store.
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

    /// Return the output of buildah.
    fn ask(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().context("running buildah")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "`buildah {}`: {}", args.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn fill(&self, container: &str, image: &Image, output: &Path) -> Result<String> {
        let root = PathBuf::from(self.ask(&["mount", container])?);
        let inside = root.join(image.inside);
        let mode = if image.runs { "--mode=0755" } else { "--mode=0644" };
        let mut install = Command::new("install");
        install.args([mode, "--owner=0", "--group=0"]).arg(image.file).arg(&inside);
        step::run(&format!("copying {}", image.inside), install)?;
        if image.capable {
            let mut setcap = Command::new(setup::program("setcap").context("there is no setcap")?);
            setcap.arg(CAPABILITIES).arg(&inside);
            step::run("giving it its capabilities", setcap)?;
        }
        if image.runs {
            copy_licences(&root)?;
        }
        self.ask(&["umount", container])?;
        let mut args = vec!["config".to_owned()];
        args.extend(image.configuration());
        args.push(container.to_owned());
        self.ask(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.commit(container, image.name, output)
    }

    /// Commit the image; return the digest of the manifest.
    fn commit(&self, container: &str, name: &str, output: &Path) -> Result<String> {
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let layout = tools::target().join("image/layout");
        if layout.exists() {
            fs::remove_dir_all(&layout).with_context(|| layout.display().to_string())?;
        }
        let place = format!("oci:{}:{VERSION}", layout.display());
        // The same binary gives the same image at any time.
        let commit = self.command(&[
            "commit",
            "--quiet",
            "--timestamp=0",
            "--disable-compression=false",
            container,
            &place,
        ]);
        step::run("writing the image", commit)?;
        let digest = name_image(&layout.join("index.json"), name)?;
        step::run("packing the image", pack(&layout, output))?;
        Ok(digest)
    }
}

/// Give the image in an index its full name.
/// Importers take the name from there; an unqualified one is not the name that the kubelet asks
/// for. Return the digest of its manifest.
fn name_image(index: &Path, name: &str) -> Result<String> {
    let text = fs::read(index).with_context(|| index.display().to_string())?;
    let mut json: Value = serde_json::from_slice(&text)?;
    let annotations = &mut json["manifests"][0]["annotations"];
    annotations["io.containerd.image.name"] = format!("{name}:{VERSION}").into();
    annotations["org.opencontainers.image.ref.name"] = VERSION.into();
    fs::write(index, serde_json::to_vec(&json)?).with_context(|| index.display().to_string())?;
    let digest = json["manifests"][0]["digest"].as_str();
    Ok(digest.context("the image has no digest")?.to_owned())
}

fn copy_licences(root: &Path) -> Result<()> {
    for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let from = tools::workspace().join(license);
        fs::copy(&from, root.join(license)).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// Pack a layout as an archive, the same bytes at any time.
fn pack(layout: &Path, output: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"]);
    tar.arg(output).arg("-C").arg(layout).arg(".");
    tar
}
