//! `cargo xtask release --dry-run`: all parts of a release, in one folder.
//! Nothing is published.
mod bytecode;
mod listing;
mod plugin;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::tools;

use crate::{
    image::{self, Architecture, Build, NAME, Profile, VERSION},
    package, setup, step, vm,
};

/// Maximum size of the image, in bytes.
const LARGEST_IMAGE: u64 = 15 << 20;
const ARCHITECTURES: [Architecture; 2] = [Architecture::Amd64, Architecture::Arm64];

#[derive(clap::Args)]
pub struct Args {
    /// Make everything, publish nothing; publishing is done by hand, from what this makes
    #[arg(long, required = true)]
    dry_run: bool,
    /// Compile each program once; without this, a second time from a copy of the sources, and the two
    /// images have to be the same
    #[arg(long)]
    once: bool,
    /// Images and plug-ins for this architecture alone; repeatable [default: both]
    #[arg(long, value_enum, value_name = "NAME")]
    architecture: Vec<Architecture>,
    /// Folder for the files, emptied first [default: target/release-VERSION]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub fn main(args: Args) -> Result<()> {
    let default = || tools::target().join(format!("release-{VERSION}"));
    let folder = args.output.unwrap_or_else(default);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    setup::release()?;
    fs::write(folder.join("RELEASE-NOTES.md"), listing::notes(VERSION)?)?;
    let chosen = match args.architecture.is_empty() {
        true => ARCHITECTURES.to_vec(),
        false => args.architecture,
    };
    let mut digests = images(&folder, &chosen, args.once)?;
    digests.push(bytecode::make(&folder)?);
    fs::write(folder.join("IMAGE-DIGESTS"), digests.join("\n") + "\n")?;
    packages(&folder)?;
    chart(&folder)?;
    plugin::make(&folder, &chosen)?;
    bill_of_materials(&folder)?;
    let sums = listing::sums(&folder)?;
    print!("{sums}");
    fs::write(folder.join("SHA256SUMS"), sums)?;
    println!("{}: nothing was published", folder.display());
    Ok(())
}

/// Make an image for each architecture; return `cosign sign`'s arguments by line.
fn images(folder: &Path, chosen: &[Architecture], once: bool) -> Result<Vec<String>> {
    let build = Build::new(Profile::Release, chosen[0]).together(chosen);
    let elsewhere = tempfile::tempdir_in(tools::target())?;
    let other = if once { None } else { Some(build.elsewhere(elsewhere.path())?) };
    let mut digests = Vec::new();
    for &architecture in chosen {
        let archive = folder.join(format!("ws-guard-{VERSION}-image-{}.tar", architecture.oci()));
        let digest = image::make(&build.of(architecture), &archive)?;
        let bytes = fs::metadata(&archive)?.len();
        ensure!(bytes < LARGEST_IMAGE, "{} has {bytes} bytes", archive.display());
        if let Some(other) = &other {
            let again = elsewhere.path().join("again.tar");
            let other = image::make(&other.of(architecture), &again)?;
            ensure!(digest == other, "built twice, the image is {digest} and {other}");
            same(&archive, &again)?;
        }
        if architecture == Architecture::Arm64 {
            vm::arm64::try_out(&build.of(architecture).guard()?)?;
        }
        digests.push(format!("{NAME}@{digest}"));
    }
    Ok(digests)
}

/// Check that two builds are the same bytes.
fn same(first: &Path, second: &Path) -> Result<()> {
    let sums = (listing::sum(first)?, listing::sum(second)?);
    let shown = first.display();
    ensure!(sums.0 == sums.1, "made twice, {shown} has the sums {} and {}", sums.0, sums.1);
    println!("made twice, the same bytes: {shown}");
    Ok(())
}

/// Make the Debian package; pack it twice.
fn packages(folder: &Path) -> Result<()> {
    let package = package::make(Profile::Release, folder)?;
    let elsewhere = tempfile::tempdir_in(tools::target())?;
    same(&package, &package::make(Profile::Release, elsewhere.path())?)
}

/// Pack the chart as Helm does: a folder of the chart's name.
fn chart(folder: &Path) -> Result<()> {
    let mut tar = archive(&folder.join(format!("ws-guard-{VERSION}.tgz")));
    tar.arg("-C").arg(tools::workspace().join("deploy/helm")).arg("ws-guard");
    step::run("packing the chart", tar)
}

/// Return a command for a compressed archive, the same bytes at any time;
/// its files are still to be added.
fn archive(output: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.args(["--use-compress-program", "gzip -n9", "-cf"]).arg(output);
    tar
}

/// List the crates in the binary, in CycloneDX's format.
/// Its tool writes next to the manifest of each crate of the workspace.
fn bill_of_materials(folder: &Path) -> Result<()> {
    const NAME: &str = "ws-guard-bill-of-materials";
    let workspace = tools::workspace();
    let mut list = Command::new(tools::cargo_cyclonedx());
    list.args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--no-build-deps"]);
    list.args(["--target", &Architecture::Amd64.target(), "--override-filename", NAME]);
    list.arg("--manifest-path").arg(workspace.join("ws-guard/Cargo.toml"));
    list.current_dir(&workspace);
    let listed = step::run("listing the crates in the binary", list);
    let bill = workspace.join("ws-guard").join(format!("{NAME}.json"));
    let kept = listed.and_then(|()| {
        let to = folder.join(format!("ws-guard-{VERSION}.cdx.json"));
        fs::copy(&bill, to).map(drop).with_context(|| bill.display().to_string())
    });
    let found = walkdir::WalkDir::new(&workspace).max_depth(4).into_iter().flatten();
    for file in found.filter(|file| file.file_name() == format!("{NAME}.json").as_str()) {
        fs::remove_file(file.path()).with_context(|| file.path().display().to_string())?;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_its_dashboards_and_rules() {
        let folder = tempfile::tempdir().expect("a folder");
        chart(folder.path()).expect("a chart");
        let packed = folder.path().join(format!("ws-guard-{VERSION}.tgz"));
        let listed = step::output("tar", &["-tvzf", packed.to_str().expect("a path")]);
        let listed = listed.expect("a list");
        let has = |name: &str| listed.lines().any(|line| line.ends_with(name));
        for name in ["Chart.yaml", "files/grafana/overview.json", "files/prometheus/alerts.yaml"] {
            assert!(has(&format!(" ws-guard/{name}")), "no {name} in\n{listed}");
        }
        assert!(listed.lines().all(|line| !line.starts_with('l')), "{listed}");
    }

    #[test]
    fn two_builds_have_to_be_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let first = file("first", "a build");
        assert!(same(&first, &file("again", "a build")).is_ok());
        let error = same(&first, &file("other", "a build at /home/somebody")).unwrap_err();
        assert!(error.to_string().contains("made twice"), "{error}");
    }
}
