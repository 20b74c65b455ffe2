//! Models in a folder: one folder each, and a file that says which one scores.
//!
//! Files are read and never understood here. Invariant: `PROMOTED` is replaced as a whole, so that a reader finds the old choice or
//! the new one.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::ports::metrics::{ModelFiles, ModelStamp, ModelStore, ModelStoreError};

/// The document of a model.
const DOCUMENT: &str = "model.json";
/// Its weights.
const WEIGHTS: &str = "weights.safetensors";
/// Names of models that were promoted, the last one first, one a line.
const PROMOTED: &str = "PROMOTED";
/// Names that are kept in it.
const PROMOTED_KEPT: usize = 20;
/// Larger is no model of this program.
const SIZE_MAX_BYTES: u64 = 256 * 1024 * 1024;

/// A folder of models.
pub struct ModelFolder {
    root: PathBuf,
}

impl ModelFolder {
    /// The folder `root`, which need not be there yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn folder(&self, name: &str) -> Result<PathBuf, ModelStoreError> {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if name.is_empty() || name.starts_with('.') || !is_plain {
            return Err(refuse("find the model in", &self.root, format!("{name:?} is no name of a model")));
        }
        let folder = self.root.join(name);
        if folder.join(DOCUMENT).is_file() {
            return Ok(folder);
        }
        let known = self.list().unwrap_or_default();
        let known =
            if known.is_empty() { "there is none".to_owned() } else { format!("there is {}", known.join(", ")) };
        Err(refuse("find the model in", &self.root, format!("no folder {name} with {DOCUMENT} in it; {known}")))
    }

    fn list(&self) -> Result<Vec<String>, ModelStoreError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(refuse("list the models in", &self.root, error.to_string())),
        };
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().join(DOCUMENT).is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The last promoted one first.
    fn promotions(&self) -> Result<Vec<String>, ModelStoreError> {
        let file = self.root.join(PROMOTED);
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(refuse("read", &file, error.to_string())),
        }
    }

    fn write_promotions(&self, names: &[String]) -> Result<(), ModelStoreError> {
        let (file, draft) = (self.root.join(PROMOTED), self.root.join(".PROMOTED.new"));
        let write = || -> std::io::Result<()> {
            let mut out = std::fs::File::create(&draft)?;
            out.write_all((names.join("\n") + "\n").as_bytes())?;
            out.sync_all()?;
            std::fs::rename(&draft, &file)?;
            std::fs::File::open(&self.root)?.sync_all()
        };
        write().map_err(|error| refuse("write", &file, format!("{error}: the controller must be able to write there")))
    }
}

fn refuse(action: &'static str, location: &Path, problem: String) -> ModelStoreError {
    ModelStoreError { action, location: location.display().to_string(), problem }
}

fn read(file: &Path) -> Result<Vec<u8>, ModelStoreError> {
    let size = std::fs::metadata(file).map_err(|error| refuse("read", file, error.to_string()))?.len();
    if size > SIZE_MAX_BYTES {
        return Err(refuse("read", file, format!("{size} bytes are no model of this program")));
    }
    std::fs::read(file).map_err(|error| refuse("read", file, error.to_string()))
}

// The files are small and on a local disk, and whoever calls this waits for nothing else.
#[async_trait]
impl ModelStore for ModelFolder {
    async fn names(&self) -> Result<Vec<String>, ModelStoreError> {
        self.list()
    }

    async fn promoted(&self) -> Result<Option<String>, ModelStoreError> {
        Ok(self.promotions()?.into_iter().next())
    }

    async fn stamp(&self, name: &str) -> Result<ModelStamp, ModelStoreError> {
        use std::os::unix::fs::MetadataExt as _;
        let folder = self.folder(name)?;
        let mut stamp = name.to_owned();
        for file in [DOCUMENT, WEIGHTS] {
            let file = folder.join(file);
            let data = std::fs::metadata(&file).map_err(|error| refuse("look at", &file, error.to_string()))?;
            stamp += &format!(" {}:{}:{}.{}", data.ino(), data.len(), data.mtime(), data.mtime_nsec());
        }
        Ok(ModelStamp(stamp))
    }

    async fn read(&self, name: &str) -> Result<ModelFiles, ModelStoreError> {
        let folder = self.folder(name)?;
        let document = folder.join(DOCUMENT);
        let text = String::from_utf8(read(&document)?)
            .map_err(|_| refuse("read", &document, "it is no text in UTF-8".to_owned()))?;
        Ok(ModelFiles { name: name.to_owned(), document: text, weights: read(&folder.join(WEIGHTS))? })
    }

    async fn promote(&self, name: &str) -> Result<(), ModelStoreError> {
        self.folder(name)?;
        let mut names = self.promotions()?;
        if names.first().is_none_or(|first| first != name) {
            names.insert(0, name.to_owned());
        }
        names.truncate(PROMOTED_KEPT);
        self.write_promotions(&names)
    }

    async fn roll_back(&self) -> Result<String, ModelStoreError> {
        let names = self.promotions()?;
        let Some(before) = names.get(1) else {
            let problem = "no other model was promoted before: see stormglass model list".to_owned();
            return Err(refuse("roll back in", &self.root.join(PROMOTED), problem));
        };
        self.folder(before)?;
        self.write_promotions(&names[1..])?;
        Ok(before.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(names: &[&str]) -> (tempfile::TempDir, ModelFolder) {
        let root = tempfile::tempdir().expect("directory");
        for name in names {
            let folder = root.path().join(name);
            std::fs::create_dir_all(&folder).expect("made");
            std::fs::write(folder.join(DOCUMENT), format!("{{\"name\":\"{name}\"}}")).expect("written");
            std::fs::write(folder.join(WEIGHTS), name.as_bytes()).expect("written");
        }
        let store = ModelFolder::new(root.path());
        (root, store)
    }

    #[tokio::test]
    async fn what_was_promoted_scores_until_it_is_rolled_back() {
        let (_root, store) = folder_with(&["one", "two"]);
        assert_eq!(store.names().await.expect("listed"), ["one", "two"]);
        assert_eq!(store.promoted().await.expect("read"), None);
        store.promote("one").await.expect("promoted");
        assert!(store.roll_back().await.is_err(), "there is none before it");
        store.promote("two").await.expect("promoted");
        store.promote("two").await.expect("promoted again");
        assert_eq!(store.promoted().await.expect("read").as_deref(), Some("two"));
        assert_eq!(store.roll_back().await.expect("rolled back"), "one");
        assert_eq!(store.promoted().await.expect("read").as_deref(), Some("one"));
    }

    #[tokio::test]
    async fn a_model_that_is_not_there_is_named_with_those_that_are() {
        let (_root, store) = folder_with(&["one"]);
        let error = store.promote("two").await.expect_err("missing").to_string();
        assert!(error.contains("two") && error.contains("there is one"), "{error}");
        assert!(store.read("../one").await.is_err(), "no way out of the folder");
        assert!(ModelFolder::new("/nonexistent").names().await.expect("none").is_empty());
    }

    #[tokio::test]
    async fn the_stamp_changes_with_the_files() {
        let (root, store) = folder_with(&["one"]);
        let before = store.stamp("one").await.expect("there");
        assert_eq!(store.stamp("one").await.expect("there"), before);
        std::fs::write(root.path().join("one").join(WEIGHTS), b"other weights").expect("written");
        assert_ne!(store.stamp("one").await.expect("there"), before);
        assert_eq!(store.read("one").await.expect("read").weights, b"other weights");
    }
}
