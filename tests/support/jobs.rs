//! Folders of job files.

use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A temporary folder of job files.
#[derive(Debug)]
pub struct JobsFolder(TempDir);

impl JobsFolder {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A copy of the jobs that Samovar ships.
    pub fn shipped() -> Self {
        let folder = Self::new();
        for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        folder
    }

    /// With this job, a TOML text.
    pub fn job(self, name: &str, toml: &str) -> Self {
        self.write(&format!("{name}.toml"), toml);
        self
    }

    /// With these upstreams, a TOML text.
    pub fn upstreams(self, toml: &str) -> Self {
        self.write("upstreams.toml", toml);
        self
    }

    /// Writes a file anew.
    pub fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.path().join(file);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
