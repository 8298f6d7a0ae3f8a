//! Sources of the compiled object, as a hash that it carries in a separate section.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use object::{Object, ObjectSection};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;
use ws_guard_testkit::tools;

use crate::{build_ebpf::RUSTFLAGS, setup::linker};

/// The ELF section that holds a hash.
pub const SECTION: &str = ".ws_guard.sources";
/// Crates whose sources go into the object.
const CRATES: [&str; 2] = ["ws-guard-ebpf", "ws-guard-common"];

/// Hash everything that determines the object, in hexadecimal:
/// sources and manifests of both crates, the versions of their dependencies, the build profile,
/// flags and linker.
pub fn hash() -> Result<String> {
    let root = tools::workspace();
    let mut hash = Sha256::new();
    let mut add = |name: &str, bytes: &[u8]| {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for name in CRATES {
        for file in files(&root.join(name))? {
            let relative = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().into_owned();
            add(&relative, &read(&file)?);
        }
    }
    add("profile", release_profile(&root)?.as_bytes());
    for (package, version) in locked(&root)? {
        add(&package, version.as_bytes());
    }
    add("rustflags", RUSTFLAGS.join(" ").as_bytes());
    add("linker", linker::VERSION.as_bytes());
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Return the hash in the object at `path`; `None` when it carries none.
pub fn of_object(path: &Path) -> Result<Option<String>> {
    let bytes = read(path)?;
    let elf = object::File::parse(&*bytes)
        .with_context(|| format!("{} is not an ELF object", path.display()))?;
    let Some(section) = elf.section_by_name(SECTION) else { return Ok(None) };
    let text = section.data().with_context(|| format!("reading {SECTION}"))?;
    Ok(Some(String::from_utf8_lossy(text).trim().to_owned()))
}

/// Return manifest and sources of a crate, in order.
/// Its tests, benchmarks and fuzz targets are excluded.
fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = vec![folder.join("Cargo.toml")];
    // The benchmark's programs make a separate object, which is not committed.
    let benchmark = folder.join("src/bin");
    let entries = WalkDir::new(folder.join("src")).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| entry.path() != benchmark) {
        let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
        if entry.file_type().is_file() {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}

fn release_profile(root: &Path) -> Result<String> {
    let path = root.join("Cargo.toml");
    let manifest: toml::Table = toml::from_str(&fs::read_to_string(&path)?)
        .with_context(|| format!("reading {}", path.display()))?;
    let profile = manifest.get("profile").and_then(|profiles| profiles.get("release"));
    Ok(profile.map(ToString::to_string).unwrap_or_default())
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// Return the versions of the registry packages that the programs are built from.
fn locked(root: &Path) -> Result<BTreeMap<String, String>> {
    let path = root.join("Cargo.lock");
    let lock: Lock = toml::from_str(&fs::read_to_string(&path)?)
        .with_context(|| format!("reading {}", path.display()))?;
    let mut open = vec![CRATES[0]];
    let mut seen = BTreeSet::new();
    let mut versions = BTreeMap::new();
    while let Some(wanted) = open.pop() {
        // A dependency is a name, followed by a version where there are several.
        let (name, version) = wanted.split_once(' ').unwrap_or((wanted, ""));
        let found = lock.package.iter().find(|p| p.name == name && p.version.starts_with(version));
        let Some(package) = found else { continue };
        // Development dependencies are in the lock file too, but not in the object.
        if CRATES[1] == name || !seen.insert(wanted) {
            continue;
        }
        versions.insert(wanted.to_owned(), package.version.clone());
        open.extend(package.dependencies.iter().map(String::as_str));
    }
    Ok(versions)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_ebpf;

    #[test]
    fn the_committed_object_is_fresh() {
        let committed = of_object(&build_ebpf::committed()).expect("the committed object");
        assert_eq!(
            committed.as_deref(),
            Some(hash().expect("the sources").as_str()),
            "ws-guard/bpf/ws-guard.bpf.o is stale: run `cargo xtask build-ebpf` and commit it"
        );
    }

    #[test]
    fn the_lock_file_names_what_the_programs_use() {
        let versions = locked(&tools::workspace()).expect("Cargo.lock");
        assert!(versions.contains_key("aya-ebpf"), "{versions:?}");
        assert!(!versions.contains_key("tokio"), "{versions:?}");
    }
}
