//! Texts of a release: its section of the changelog, and checksums of files.
use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use ws_guard_testkit::tools;

/// Return the changelog's entry for this version.
pub fn notes(version: &str) -> Result<String> {
    let text = fs::read_to_string(tools::workspace().join("CHANGELOG.md"))?;
    section(&text, version).with_context(|| format!("CHANGELOG.md has nothing of {version}"))
}

/// Return the section whose heading names `version`:
/// `## [1.2.3] - DATE`, or `## [Unreleased]: 1.2.3`.
fn section(text: &str, version: &str) -> Option<String> {
    let names = |line: &str| {
        let heading = line.strip_prefix("## ");
        let words = heading.map(|line| line.split([' ', '[', ']', ':']).any(|w| w == version));
        words == Some(true)
    };
    let mut lines = text.lines().skip_while(|line| !names(line));
    lines.next()?;
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("## ")).collect();
    let section = lines.join("\n").trim().to_owned();
    (!section.is_empty()).then_some(section + "\n")
}

/// Return the SHA-256 of each file, as `sha256sum --check` reads them.
pub fn sums(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    let mut text = String::new();
    for file in files {
        let name =
            file.file_name().context("a file without a name")?.to_string_lossy().into_owned();
        writeln!(text, "{}  {name}", sum(&file)?)?;
    }
    Ok(text)
}

/// Return the SHA-256 of a file, in hexadecimal.
pub fn sum(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_ends_at_the_next_version() {
        let text =
            "# Changelog\n\n## [Unreleased]: 1.10.0\n\n### Added\n- a\n\n## [1.1.0] - today\n- b\n";
        assert_eq!(section(text, "1.10.0").as_deref(), Some("### Added\n- a\n"));
        assert_eq!(section(text, "1.1.0").as_deref(), Some("- b\n"));
        assert_eq!(section(text, "1.1"), None);
        assert!(notes(crate::image::VERSION).is_ok(), "this version is in the changelog");
    }

    #[test]
    fn sums_are_those_of_sha256sum() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("abc"), "abc").expect("written");
        let sums = sums(folder.path()).expect("sums");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sums, format!("{abc}  abc\n"));
    }
}
