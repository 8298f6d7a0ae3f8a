//! Images besides the guard's: a sleeper for pods, a foreign server, a proxy.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use ws_guard_testkit::tools;

use super::binaries::home;
use crate::{step, vm::libraries};

/// Image of the container that holds every pod's namespaces.
pub const PAUSE: &str = "k8s.gcr.io/pause:3.2";
pub const ECHO: &str = "docker.io/library/ws-guard-test-echo:1";
pub const NGINX: &str = "docker.io/library/ws-guard-test-nginx:1";

const SLEEPER: &str = "\
package main
import (\"os\"; \"os/signal\"; \"syscall\")
func main() {
\tended := make(chan os.Signal, 1)
\tsignal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
\t<-ended
}
";

/// Return the paths of [`make`]'s archives.
pub fn archives() -> Vec<PathBuf> {
    [PAUSE, ECHO, NGINX].into_iter().map(output).collect()
}

fn output(name: &str) -> PathBuf {
    let short = name.rsplit(['/', ':']).nth(1).unwrap_or(name);
    home().join("img").join(format!("{short}.tar"))
}

/// Make all of them, as archives.
pub fn make() -> Result<Vec<PathBuf>> {
    let folder = home().join("img");
    fs::create_dir_all(&folder)?;
    let sleeper = folder.join("pause.go");
    fs::write(&sleeper, SLEEPER)?;
    let pause = [(compile(&sleeper, "pause")?, "/pause".into())];
    let echo = [(compile(&tools::foreign().join("echo.go"), "echo")?, "/echo".into())];
    Ok(vec![
        archive(PAUSE, &pause, &["/pause"])?,
        archive(ECHO, &echo, &["/echo"])?,
        archive(NGINX, &nginx()?, &["/nginx"])?,
    ])
}

/// Collect Debian's nginx, its libraries, and the users that it needs.
fn nginx() -> Result<Vec<(PathBuf, PathBuf)>> {
    let program = tools::nginx();
    let libraries = libraries(&program)?.into_iter().map(|path| (path.clone(), path));
    let mut files = vec![(program, "/nginx".into())];
    files.extend(libraries);
    let users = "root:x:0:0::/:/\nnobody:x:65534:65534::/:/\n";
    let groups = "root:x:0:\nnobody:x:65534:\nnogroup:x:65534:\n";
    for (name, text) in [("passwd", users), ("group", groups)] {
        let path = home().join("img").join(name);
        fs::write(&path, text)?;
        files.push((path, Path::new("/etc").join(name)));
    }
    Ok(files)
}

/// Compile a static program from one file of Go.
fn compile(source: &Path, name: &str) -> Result<PathBuf> {
    let program = home().join("img").join(name);
    let mut go = Command::new("go");
    go.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode").env("GOFLAGS", "");
    go.env("GOCACHE", home().join("gocache")).env("CGO_ENABLED", "0");
    go.arg("build").arg("-o").arg(&program).arg(source);
    step::run(&format!("compiling {name}"), go)?;
    Ok(program)
}

/// Write an archive of one layer with these files, for `ctr images import`.
fn archive(name: &str, files: &[(PathBuf, PathBuf)], entry: &[&str]) -> Result<PathBuf> {
    let folder = tempfile::tempdir_in(home())?;
    let root = folder.path().join("root");
    for sub in ["tmp", "etc"] {
        fs::create_dir_all(root.join(sub))?;
    }
    for (from, to) in files {
        let to = root.join(to.strip_prefix("/").unwrap_or(to));
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        fs::copy(from, &to).with_context(|| from.display().to_string())?;
    }
    let image = folder.path().join("image");
    fs::create_dir_all(&image)?;
    tar(&root, &image.join("layer.tar"))?;
    let digest = hex(&Sha256::digest(fs::read(image.join("layer.tar"))?));
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": entry},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{}],
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(image.join("config.json"), config.to_string())?;
    fs::write(image.join("manifest.json"), manifest.to_string())?;
    let output = output(name);
    tar(&image, &output)?;
    Ok(output)
}

fn tar(folder: &Path, output: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--mtime=@0", "--sort=name", "-cf"]).arg(output);
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    tar.arg("-C").arg(folder).args(names.collect::<Result<Vec<_>>>()?);
    step::run("packing an image", tar)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
