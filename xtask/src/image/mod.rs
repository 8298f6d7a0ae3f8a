//! `cargo xtask image`: a static binary alone in a container image, by buildah.
mod binary;
mod build;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use ws_guard_testkit::tools;

use crate::setup;
pub use binary::{Architecture, Build, Profile};
use build::CHAOS;
pub use build::{Image, NAME, VERSION};

#[derive(clap::Args)]
pub struct Args {
    /// How the binary is compiled: `release`, or `dev` for a quick look
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// File for the image, an OCI archive [default: target/image/ws-guard.tar, for dev ws-guard-dev.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image of the clients and the checker of chaos runs instead, target/image/ws-guard-chaos.tar
    #[arg(long)]
    chaos: bool,
}

pub fn main(args: Args) -> Result<()> {
    let build = Build::new(args.profile, Architecture::HOST);
    let (name, output) = if args.chaos {
        let default = || tools::target().join("image/ws-guard-chaos.tar");
        let output = args.output.unwrap_or_else(default);
        prepare()?;
        let program = build.program("ws-guard-chaos", "ws-guard-chaos")?;
        Image::of_chaos(&program, build.architecture).make(&output)?;
        (CHAOS, output)
    } else {
        let output = args.output.unwrap_or_else(|| archive(args.profile));
        make(&build, &output)?;
        (NAME, output)
    };
    let (shown, short) = (output.display(), name.rsplit('/').next().unwrap_or(name));
    println!("{shown}: {name}:{VERSION}");
    println!("into a node's containerd: ctr --namespace k8s.io images import {shown}");
    println!("to a registry: skopeo copy oci-archive:{shown} docker://REGISTRY/{short}");
    Ok(())
}

/// Return the default path of an image.
fn archive(profile: Profile) -> PathBuf {
    let name = match profile {
        Profile::Release => "ws-guard.tar",
        Profile::Dev => "ws-guard-dev.tar",
    };
    tools::target().join("image").join(name)
}

/// Make the image that tests run, compiled quickly.
pub fn for_tests() -> Result<PathBuf> {
    let output = last_for_tests();
    make(&Build::new(Profile::Dev, Architecture::HOST), &output)?;
    Ok(output)
}

/// Return the path of the last such image.
pub fn last_for_tests() -> PathBuf {
    archive(Profile::Dev)
}

/// Compile, and put the binary into an image at `output`.
/// Return the image's digest.
pub fn make(build: &Build, output: &Path) -> Result<String> {
    prepare()?;
    Image::of_program(&build.guard()?, build.architecture).make(output)
}

/// Prepare everything for making an image.
fn prepare() -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(
        root,
        "an image is made as root: no other user can give a file capabilities that count on another \
         machine"
    );
    setup::image()
}
