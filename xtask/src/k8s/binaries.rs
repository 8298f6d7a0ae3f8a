//! Kubernetes from Debian's source package, with its dependencies;
//! made once and kept in `target/k8s`.
use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use walkdir::WalkDir;
use ws_guard_testkit::tools;

use crate::{apt::Lists, step};

/// Debian's version, without the tags that its packaging adds.
const VERSION: &str = "1.20.2";
const PARTS: [&str; 5] =
    ["kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy"];
/// Unpacked and not installed: they would start services.
const PACKAGES: [&str; 8] = [
    "etcd-server",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "conntrack",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "golang-github-modern-go-reflect2-dev",
];
/// Packages that have the marker, but do not belong to the API.
const NO_API: [&str; 8] = [
    "_test.go",
    "/testdata/",
    "zz_generated",
    "kube-openapi/",
    "/code-generator/",
    "/generators/",
    "sample-",
    "apiextensions-apiserver/examples",
];

/// Return the root of everything that is kept.
pub fn home() -> PathBuf {
    tools::target().join("k8s")
}

/// Return the path of a compiled program.
pub fn built(name: &str) -> PathBuf {
    home().join("bin").join(name)
}

/// Return a path in the unpacked packages.
pub fn unpacked(path: &str) -> PathBuf {
    home().join("root").join(path)
}

/// Fetch and compile missing parts.
pub fn make() -> Result<()> {
    if PARTS.iter().all(|part| built(part).exists()) && unpacked("usr/bin/containerd").exists() {
        return Ok(());
    }
    eprintln!(
        "Kubernetes {VERSION} is compiled from Debian's source: ten minutes on an idle machine, once"
    );
    fetch()?;
    openapi()?;
    for part in PARTS {
        if !built(part).exists() {
            compile(part)?;
        }
    }
    Ok(())
}

fn gopath() -> PathBuf {
    home().join("kgopath")
}

fn source() -> PathBuf {
    gopath().join("src/k8s.io/kubernetes")
}

fn fetch() -> Result<()> {
    if source().exists() && unpacked("usr/bin/containerd").exists() {
        return Ok(());
    }
    let lists = Lists::with_sources()?;
    let sources = home().join("src");
    for folder in [&sources, &source()] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    lists.update()?;
    step::run(
        "fetching Kubernetes' source",
        lists.command("apt-get", &["source", "--download-only", "kubernetes"], &sources),
    )?;
    lists.unpack(&PACKAGES, &home().join("debs"), &home().join("root"))?;
    let entries = fs::read_dir(&sources)?.flatten().map(|entry| entry.path());
    let archive = entries.into_iter().find(|path| path.to_string_lossy().ends_with(".orig.tar.gz"));
    let mut unpack = Command::new("tar");
    unpack.arg("xzf").arg(archive.context("apt-get fetched no source")?).arg("-C").arg(source());
    unpack.arg("--strip-components=1");
    step::run("unpacking Kubernetes", unpack)?;
    reflect2()
}

/// Replace the release in the source, which does not work with this Go:
/// the API server fails on custom resources.
fn reflect2() -> Result<()> {
    let vendored = source().join("vendor/github.com/modern-go/reflect2");
    fs::remove_dir_all(&vendored).with_context(|| vendored.display().to_string())?;
    let mut copy = Command::new("cp");
    let newer = unpacked("usr/share/gocode/src/github.com/modern-go/reflect2");
    copy.arg("-a").arg(newer).arg(&vendored);
    step::run("renewing a library of it", copy)
}

/// Return Go in the mode that Debian's sources are laid out for.
fn go() -> Command {
    let mut go = Command::new("go");
    go.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOPATH", gopath()).env("CGO_ENABLED", "0");
    go.env("GOCACHE", home().join("gocache")).current_dir(source());
    go.arg("build");
    go
}

/// Generate the description of the API, which Debian does not ship.
fn openapi() -> Result<()> {
    let made = source().join("pkg/generated/openapi/zz_generated.openapi.go");
    if made.exists() {
        return Ok(());
    }
    let generator = built("openapi-gen");
    let mut build = go();
    build.arg("-o").arg(&generator);
    build.arg("k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen");
    step::run("compiling the generator of the API's description", build)?;
    let mut generate = Command::new(generator);
    generate.env("GO111MODULE", "off").env("GOPATH", gopath()).current_dir(source());
    generate.args(["-i", &described()?.join(",")]);
    generate.args(["-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi"]);
    generate.args(["-h", "hack/boilerplate/boilerplate.generatego.txt", "-r"]);
    generate.arg(home().join("violations"));
    step::run("describing the API", generate)
}

/// Return Go packages whose comments mark them for the API description.
/// The names are the compiler's.
fn described() -> Result<Vec<String>> {
    let mut packages = std::collections::BTreeSet::new();
    for top in ["pkg", "staging/src", "vendor/k8s.io"] {
        for entry in WalkDir::new(source().join(top)) {
            let entry = entry?;
            let path = entry.path().strip_prefix(source())?.to_string_lossy().into_owned();
            let is_go = entry.file_type().is_file() && path.ends_with(".go");
            if !is_go || NO_API.iter().any(|part| path.contains(part)) {
                continue;
            }
            if fs::read_to_string(entry.path())?.contains("+k8s:openapi-gen=") {
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                let staged =
                    folder.strip_prefix("staging/src/").map(|rest| format!("vendor/{rest}"));
                let name = staged.unwrap_or_else(|| folder.to_owned());
                packages.insert(format!("k8s.io/kubernetes/{name}"));
            }
        }
    }
    Ok(packages.into_iter().collect())
}

fn compile(part: &str) -> Result<()> {
    let mut version = String::new();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for package in [package.to_owned(), format!("k8s.io/kubernetes/vendor/{package}")] {
            for (name, value) in [("gitVersion", "v1.20.2"), ("gitMajor", "1"), ("gitMinor", "20")]
            {
                version += &format!("-X {package}.{name}={value} ");
            }
        }
    }
    let mut build = go();
    build.arg("-ldflags").arg(version.trim()).arg("-o").arg(built(part));
    build.arg(format!("k8s.io/kubernetes/cmd/{part}"));
    step::run(&format!("compiling {part}"), build)
}
