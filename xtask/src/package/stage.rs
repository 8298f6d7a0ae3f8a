//! Contents of the package that are not in the repository:
//! binary, manual pages, completions, and a changelog in Debian's format.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::tools;

use crate::{image, step};

/// Shell, and the name of its completion script.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "ws-guard.bash"), ("zsh", "_ws-guard"), ("fish", "ws-guard.fish")];

/// Return the folder that the package's `Cargo.toml` names.
fn folder() -> PathBuf {
    tools::workspace().join("target/package")
}

pub fn fill(binary: &Path) -> Result<()> {
    let (man, completions) = (folder().join("man"), folder().join("completions"));
    for made in [&man, &completions] {
        if made.exists() {
            fs::remove_dir_all(made).with_context(|| made.display().to_string())?;
        }
        fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    // As Debian requires; the image's binary keeps the names of functions, for backtraces.
    let mut strip = Command::new("strip");
    strip.arg("--strip-unneeded").arg("-o").arg(folder().join("ws-guard")).arg(binary);
    step::run("taking symbols out of the binary", strip)?;
    let mut manual = Command::new(binary);
    manual.arg("manual").arg(&man);
    step::run("writing manual pages", manual)?;
    for (shell, name) in COMPLETIONS {
        let output =
            Command::new(binary).args(["completions", shell]).stdin(Stdio::null()).output();
        let output = output.context("running the packaged binary")?;
        ensure!(output.status.success(), "`ws-guard completions {shell}` failed");
        fs::write(completions.join(name), output.stdout)?;
    }
    fs::write(folder().join("changelog"), changelog(image::VERSION, &date()?))?;
    Ok(())
}

/// Return the commit's time, seconds since 1970: same sources, same package.
pub fn time() -> Result<String> {
    git("%ct")
}

fn date() -> Result<String> {
    git("%cD")
}

fn git(format: &str) -> Result<String> {
    let workspace = tools::workspace();
    let workspace = workspace.to_str().context("the workspace's path is no UTF-8")?;
    let format = format!("--format={format}");
    step::output("git", &["-C", workspace, "log", "-1", &format]).context("asking git for the time")
}

fn changelog(version: &str, date: &str) -> String {
    format!(
        "ws-guard ({version}-1) unstable; urgency=medium\n\n  * Version {version}; changes are listed \
         in CHANGELOG.md of the sources.\n\n -- ws-guard authors <maintainers@ws-guard.invalid>  \
         {date}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changelog_has_debians_form() {
        let text = changelog("1.2.3", "Mon, 2 Jan 2006 15:04:05 +0000");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ws-guard (1.2.3-1) unstable; urgency=medium");
        assert!(lines[2].starts_with("  * ") && lines[4].starts_with(" -- "), "{text}");
    }
}
