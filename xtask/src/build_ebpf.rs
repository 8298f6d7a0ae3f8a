//! `cargo xtask build-ebpf`: build the kernel programs, renew the committed object.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use ws_guard_testkit::tools;

use crate::{
    setup::{self, Toolchain, linker},
    sources, step,
};

const TARGET: &str = "bpfel-unknown-none";
/// The program whose object is committed and embedded.
const PRODUCT: &str = "ws-guard";
/// Flags that determine the object.
/// The crate aya-ebpf needs `bpf_target_arch` for the layout of `pt_regs`, which none of our
/// programs uses. Version 3 of the instruction set (Linux 5.12) has 32-bit arithmetic, needed for
/// sequence numbers. Small values are zeroed and copied in line: expanding copies "in order" leaves
/// a call to a loop over bytes in place of each, a function call that costs the verifier stack and
/// time.
pub const RUSTFLAGS: [&str; 6] = [
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Ctarget-cpu=v3",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    "-Clink-arg=--disable-expand-memcpy-in-order",
    // All functions in one section: aya 0.14 identifies them by their offset alone, and confuses
    // two when a second section, that of cold functions, has one at the same offset.
    "-Clink-arg=--llvm-args=-profile-guided-section-prefix=false",
];

#[derive(clap::Args)]
pub struct Args {
    /// Build nothing; say whether the committed object is fresh, and fail when it is stale
    #[arg(long)]
    check: bool,
}

pub fn main(args: Args) -> Result<()> {
    if args.check {
        return check();
    }
    let toolchain = setup::ebpf()?;
    let objects = build(&toolchain)?;
    let fresh = product(&objects)?;
    let committed = committed();
    if let Some(folder) = committed.parent() {
        fs::create_dir_all(folder)?;
    }
    let renewed = fs::read(&committed).ok() != fs::read(&fresh).ok();
    fs::copy(&fresh, &committed).with_context(|| format!("writing {}", committed.display()))?;
    let size = fs::metadata(&committed)?.len();
    let what = if renewed { "renewed" } else { "unchanged" };
    println!("{} ({size} bytes) {what}, built with {toolchain}", shown(&committed));
    Ok(())
}

/// Return the path of the object in the repository.
pub fn committed() -> PathBuf {
    tools::workspace().join("ws-guard/bpf/ws-guard.bpf.o")
}

/// Fail when the committed object was not built from the present sources.
pub fn check() -> Result<()> {
    let path = committed();
    let wanted = sources::hash()?;
    let found = sources::of_object(&path)
        .context("there is no committed object: run `cargo xtask build-ebpf`")?;
    if found.as_deref() != Some(wanted.as_str()) {
        bail!(
            "{} is stale: it was built from {}, the sources are {wanted}; run `cargo xtask build-ebpf` and commit it",
            shown(&path),
            found.as_deref().unwrap_or("unknown sources")
        );
    }
    println!("{} is fresh: built from {wanted}", shown(&path));
    Ok(())
}

/// Compile all programs; return the finished objects, `target/ebpf/NAME.bpf.o`.
pub fn build(toolchain: &Toolchain) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo(toolchain, "build");
    cargo.args(["--release", "--bins"]);
    step::run("compiling the kernel programs", cargo)?;
    let built = target().join(TARGET).join("release");
    let mut objects = Vec::new();
    let files = fs::read_dir(&built).with_context(|| format!("listing {}", built.display()))?;
    for file in files {
        let path = file?.path();
        if path.is_file() && path.extension().is_none() && !hidden(&path) {
            objects.push(finish(toolchain, &path)?);
        }
    }
    objects.sort();
    Ok(objects)
}

/// Return the product among the objects of [`build`].
pub fn product(objects: &[PathBuf]) -> Result<PathBuf> {
    let wanted = object_path(PRODUCT.as_ref());
    let found = objects.iter().find(|path| **path == wanted);
    found.cloned().with_context(|| format!("the build did not make {}", wanted.display()))
}

/// Lint the kernel programs, warnings as errors; return how they were checked.
pub fn lint(toolchain: &Toolchain) -> Result<&'static str> {
    let clippy = toolchain.bin.join("cargo-clippy");
    let (mut cargo, how) = if clippy.exists() {
        (cargo_at(toolchain, &clippy, "clippy"), "clippy")
    } else {
        (cargo(toolchain, "check"), "cargo check alone: this toolchain has no clippy")
    };
    cargo.args(["--release", "--bins"]);
    if clippy.exists() {
        cargo.args(["--", "-Dwarnings"]);
    } else {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", encoded(toolchain, &["-Dwarnings"]));
    }
    step::run("linting the kernel programs", cargo)?;
    Ok(how)
}

fn cargo(toolchain: &Toolchain, subcommand: &str) -> Command {
    cargo_at(toolchain, &toolchain.bin.join("cargo"), subcommand)
}

fn cargo_at(toolchain: &Toolchain, program: &Path, subcommand: &str) -> Command {
    let mut command = Command::new(program);
    // Settings of the calling cargo for its own toolchain.
    for name in ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env_remove(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [toolchain.bin.clone(), linker::folder()];
    let folders = folders.into_iter().chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(folders) {
        command.env("PATH", path);
    }
    command
        .current_dir(tools::workspace())
        .env("CARGO", toolchain.bin.join("cargo"))
        .env("RUSTC", toolchain.bin.join("rustc"))
        // Debian's compiler is a release, and building `core` is not stable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", encoded(toolchain, &[]))
        .args([subcommand, "--package", "ws-guard-ebpf", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(target());
    command
}

/// Format flags for CARGO_ENCODED_RUSTFLAGS.
/// No path of this machine gets into the object, so that the same sources make the same bytes
/// anywhere.
fn encoded(toolchain: &Toolchain, more: &[&str]) -> String {
    let home = std::env::var("CARGO_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|_| std::env::home_dir().unwrap_or_default().join(".cargo"));
    let mut flags: Vec<String> = RUSTFLAGS.iter().chain(more).map(ToString::to_string).collect();
    let remaps =
        [(home, "/cargo"), (toolchain.sysroot.clone(), "/rust"), (tools::workspace(), "/ws-guard")];
    for (from, to) in remaps {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    flags.join("\x1f")
}

/// Strip debug and line information, keep BTF, and add the hash of the sources.
///
/// The compiler's output stays in `target/ebpf/bpfel-unknown-none/release`: a verifier log of that
/// object names source lines.
fn finish(toolchain: &Toolchain, built: &Path) -> Result<PathBuf> {
    let name = built.file_name().unwrap_or_default();
    let object = object_path(name.as_ref());
    let stamp = target().join("sources");
    fs::write(&stamp, sources::hash()?)?;
    let llvm = toolchain.llvm_folder()?;
    let mut strip = Command::new(llvm.join("llvm-strip"));
    strip.args(["--strip-debug", "-o"]).arg(&object).arg(built);
    quietly(strip)?;
    let objcopy = llvm.join("llvm-objcopy");
    let functions = function_info(&objcopy, &object)?;
    let mut finish = Command::new(objcopy);
    finish
        .arg(format!("--update-section={BTF_EXT}={}", functions.display()))
        // Offsets are in place already: no loader applies these.
        .arg(format!("--remove-section=.rel{BTF_EXT}"))
        .arg(format!("--add-section={}={}", sources::SECTION, stamp.display()))
        .arg(&object);
    quietly(finish)?;
    Ok(object)
}

/// The section of function and line information (Documentation/bpf/btf.rst, 4.2).
const BTF_EXT: &str = ".BTF.ext";
/// Its magic number, first two bytes, little endian.
const BTF_MAGIC: [u8; 2] = 0xEB9F_u16.to_le_bytes();

/// Write the object's [`BTF_EXT`] without line information, half of the object.
fn function_info(objcopy: &Path, object: &Path) -> Result<PathBuf> {
    let file = target().join("function-info");
    let mut dump = Command::new(objcopy);
    dump.arg(format!("--dump-section={BTF_EXT}={}", file.display())).arg(object).arg("/dev/null");
    quietly(dump)?;
    let info = functions_only(&fs::read(&file)?)
        .with_context(|| format!("unknown layout of {BTF_EXT} in {}", object.display()))?;
    fs::write(&file, info)?;
    Ok(file)
}

/// Return `struct btf_ext_header` and its function information, in front.
fn functions_only(section: &[u8]) -> Option<Vec<u8>> {
    let field = |at: usize| Some(u32::from_le_bytes(section.get(at..at + 4)?.try_into().ok()?));
    let (header, functions) = (field(4)?, field(12)?);
    let known = section.starts_with(&BTF_MAGIC) && field(8)? == 0 && field(28)? == 0;
    let mut info = section.get(..(header + functions) as usize)?.to_vec();
    // Offset and length of the line information, then those of relocations, of which there are
    // none.
    for (at, value) in [(16, functions), (20, 0), (24, functions)] {
        info.get_mut(at..at + 4)?.copy_from_slice(&value.to_le_bytes());
    }
    known.then_some(info)
}

fn quietly(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Return a separate target directory, as other flags would rebuild everything.
fn target() -> PathBuf {
    tools::target().join("ebpf")
}

fn object_path(name: &Path) -> PathBuf {
    target().join(format!("{}.bpf.o", name.display()))
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(tools::workspace()).unwrap_or(path).display().to_string()
}
