//! The file system of a virtual machine: an archive unpacked into memory.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use cpio::newc::{self, Builder};

use super::Kernel;
use crate::{setup, step};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Files by their absolute path in the machine.
#[derive(Default)]
pub struct Initramfs {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Initramfs {
    /// Add a file with this content.
    pub fn add(&mut self, path: impl Into<PathBuf>, content: Vec<u8>) {
        self.files.insert(path.into(), content);
    }

    /// Add a file of this machine, at the same place.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        self.add_file_as(path, path)
    }

    fn add_file_as(&mut self, from: &Path, to: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| from.display().to_string())?;
        self.add(to, content);
        Ok(())
    }

    /// Add a program of this machine and the libraries it is linked with.
    /// Without its debug information, which `strip` removes: the archive lies in the machine's
    /// memory.
    pub fn add_program(&mut self, path: &Path, to: &Path, strip: &Path) -> Result<()> {
        let libraries = libraries(path)?;
        let stripped = tempfile::NamedTempFile::new().context("a place for a stripped program")?;
        let mut command = Command::new(strip);
        let output = command.arg("--strip-debug").arg(path).arg(stripped.path()).output();
        let output = output.with_context(|| format!("running {}", strip.display()))?;
        let stripped = if output.status.success() { stripped.path() } else { path };
        self.add_file_as(stripped, to)?;
        libraries.iter().try_for_each(|library| self.add_file(library))
    }

    /// Add a program that is somewhere in PATH.
    pub fn add_tool(&mut self, name: &str, to: &str, strip: &Path) -> Result<()> {
        let path = setup::program(name)
            .with_context(|| format!("there is no {name} here: run `cargo xtask setup`"))?;
        self.add_program(&path, Path::new(to), strip)
    }

    /// Add modules, their dependencies, and the files that `modprobe` reads about them.
    pub fn add_modules(&mut self, kernel: &Kernel, names: &[&str]) -> Result<()> {
        let mut files = kernel.modules(names)?;
        let folder = kernel.root.join("lib/modules").join(&kernel.name);
        for entry in fs::read_dir(&folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("modules.") {
                files.push(entry.path());
            }
        }
        for file in files {
            let inside = file.strip_prefix(&kernel.root).unwrap_or(&file);
            self.add_file_as(&file, &Path::new("/").join(inside))?;
        }
        Ok(())
    }

    /// Write the archive, folders first (the kernel's `initramfs/buffer-format.rst`).
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let mut archive = BufWriter::new(file);
        let mut number = 0;
        let mut entry = |name: &Path, mode: u32, content: &[u8]| -> Result<()> {
            number += 1;
            let name = name.strip_prefix("/").unwrap_or(name).to_str().context("not text")?;
            let size = u32::try_from(content.len()).context("4 GiB or more")?;
            let builder = Builder::new(name).ino(number).nlink(1).mode(mode);
            let mut writer = builder.write(&mut archive, size);
            writer.write_all(content)?;
            writer.finish()?;
            Ok(())
        };
        for folder in self.folders() {
            entry(&folder, DIRECTORY, &[])?;
        }
        for (name, content) in &self.files {
            entry(name, PROGRAM, content).with_context(|| name.display().to_string())?;
        }
        newc::trailer(&mut archive)?.flush()?;
        Ok(())
    }

    /// Return every folder above a file, those further up first.
    fn folders(&self) -> Vec<PathBuf> {
        let above = self.files.keys().flat_map(|file| file.ancestors().skip(1));
        let named =
            above.filter(|path| path.components().any(|c| matches!(c, Component::Normal(_))));
        let mut folders: Vec<PathBuf> = named.map(Path::to_owned).collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

/// Return the libraries that a program is linked with, and the dynamic linker.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = program.to_str().context("not text")?;
    // It fails for a program that is linked statically.
    let Some(listed) = step::output("ldd", &[text]) else { return Ok(Vec::new()) };
    let missing = listed.lines().find(|line| line.contains("not found"));
    ensure!(missing.is_none(), "{text}: {}", missing.unwrap_or_default().trim());
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut files = Initramfs::default();
        files.add("/a/b/c", b"content".to_vec());
        files.add("/init", Vec::new());
        let archive = tempfile::NamedTempFile::new().expect("a file");
        files.write(archive.path()).expect("an archive");
        let mut reader = Cursor::new(fs::read(archive.path()).expect("the archive"));
        let mut names = Vec::new();
        loop {
            let entry = newc::Reader::new(reader).expect("an entry");
            if entry.entry().is_trailer() {
                break;
            }
            names.push((entry.entry().name().to_owned(), entry.entry().file_size()));
            reader = entry.finish().expect("the next");
        }
        let expected = [("a", 0), ("a/b", 0), ("a/b/c", 7), ("init", 0)];
        assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
    }
}
