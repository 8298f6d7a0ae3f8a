//! Kubernetes from Debian's source package, and what it runs on; made once and kept in `target/k8s`.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use walkdir::WalkDir;
use ws_guard_testkit::tools;

use crate::step;

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
/// Packages that have the marker, but are no part of the API.
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

/// The root of everything that is kept.
pub fn home() -> PathBuf {
    tools::target().join("k8s")
}

/// A program that was compiled.
pub fn built(name: &str) -> PathBuf {
    home().join("bin").join(name)
}

/// A path in the unpacked packages.
pub fn unpacked(path: &str) -> PathBuf {
    home().join("root").join(path)
}

/// Fetch and compile what is missing.
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

fn apt(words: &[&str], folder: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("-q").arg("-o").arg(format!("APT::Sandbox::User={}", "root"));
    apt.args(words).current_dir(folder);
    apt
}

/// Lists with the sources too, beside the machine's own, which may not have them.
fn lists() -> Result<PathBuf> {
    let folder = home().join("apt");
    for sub in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(sub))?;
    }
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources")
        .context("reading Debian's entry in the sources of apt")?;
    fs::write(
        folder.join("debian.sources"),
        sources.replace("Types: deb\n", "Types: deb deb-src\n"),
    )?;
    let shown = folder.display();
    let config = folder.join("apt.conf");
    let text = format!(
        "Dir::State::lists \"{shown}/lists\";\nDir::Etc::sourcelist \"{shown}/debian.sources\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\nDir::Cache \"{shown}/cache\";\n"
    );
    fs::write(&config, text)?;
    Ok(config)
}

fn fetch() -> Result<()> {
    if source().exists() && unpacked("usr/bin/containerd").exists() {
        return Ok(());
    }
    let config = lists()?;
    let (sources, packages) = (home().join("src"), home().join("debs"));
    for folder in [&sources, &packages, &home().join("root"), &source()] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let run = |what: &str, mut apt: Command| {
        apt.env("APT_CONFIG", &config);
        step::run(what, apt)
    };
    run("fetching the package lists", apt(&["update"], &sources))?;
    run(
        "fetching Kubernetes' source",
        apt(&["source", "--download-only", "kubernetes"], &sources),
    )?;
    run("fetching packages", apt(&[&["download"][..], &PACKAGES].concat(), &packages))?;
    for entry in fs::read_dir(&packages)? {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(entry?.path()).arg(home().join("root"));
        step::run("unpacking a package", unpack)?;
    }
    let entries = fs::read_dir(&sources)?.flatten().map(|entry| entry.path());
    let archive = entries.into_iter().find(|path| path.to_string_lossy().ends_with(".orig.tar.gz"));
    let mut unpack = Command::new("tar");
    unpack.arg("xzf").arg(archive.context("apt-get fetched no source")?).arg("-C").arg(source());
    unpack.arg("--strip-components=1");
    step::run("unpacking Kubernetes", unpack)?;
    reflect2()
}

/// The release in the source does not work with this Go: the API server fails on custom resources.
fn reflect2() -> Result<()> {
    let vendored = source().join("vendor/github.com/modern-go/reflect2");
    fs::remove_dir_all(&vendored).with_context(|| vendored.display().to_string())?;
    let mut copy = Command::new("cp");
    let newer = unpacked("usr/share/gocode/src/github.com/modern-go/reflect2");
    copy.arg("-a").arg(newer).arg(&vendored);
    step::run("renewing a library of it", copy)
}

/// Go in the mode that Debian's sources are laid out for.
fn go() -> Command {
    let mut go = Command::new("go");
    go.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOPATH", gopath()).env("CGO_ENABLED", "0");
    go.env("GOCACHE", home().join("gocache")).current_dir(source());
    go.arg("build");
    go
}

/// The description of the API, which Debian generates and does not ship.
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

/// Go packages whose comments ask to be described, by their names for the compiler.
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
