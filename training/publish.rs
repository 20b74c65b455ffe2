//! Models on disk: written whole, promoted by name, old ones removed.
//!
//! What lives here: a model's folder, and `PROMOTED`, the file that says which one scores (the last promoted first, as the controller
//! reads it). What never enters: a half-written model under its own name.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use stormglass::predict::{Model, ModelDocument};

/// The document of a model.
pub const DOCUMENT: &str = "model.json";
/// Its weights.
pub const WEIGHTS: &str = "weights.safetensors";
/// Its card.
pub const CARD: &str = "README.md";
/// Which model scores.
const PROMOTED: &str = "PROMOTED";

/// Writes a file so that a reader, also after a crash, finds the old one or the new one.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.new"));
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = File::create(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Writes a model's three files, the document last: a folder without it is no model.
pub fn write_model(folder: &Path, document: &ModelDocument, weights: &[u8], card: &str) -> anyhow::Result<()> {
    write_whole(&folder.join(WEIGHTS), weights)?;
    write_whole(&folder.join(CARD), card.as_bytes())?;
    write_whole(&folder.join(DOCUMENT), document.to_json().as_bytes())
}

/// Reads and checks a model.
pub fn read_model(folder: &Path) -> anyhow::Result<Model> {
    let text = fs::read_to_string(folder.join(DOCUMENT))
        .with_context(|| format!("read {}", folder.join(DOCUMENT).display()))?;
    let weights = fs::read(folder.join(WEIGHTS)).with_context(|| format!("read {}", folder.join(WEIGHTS).display()))?;
    let document = ModelDocument::from_json(&text).with_context(|| folder.display().to_string())?;
    Model::new(document, &weights).with_context(|| folder.display().to_string())
}

/// Names that were promoted, the last one first.
pub fn promoted(models: &Path) -> anyhow::Result<Vec<String>> {
    match fs::read_to_string(models.join(PROMOTED)) {
        Ok(text) => Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", models.join(PROMOTED).display())),
    }
}

/// Copies a model below `models` under its name and version, promotes it, and removes models of the same name that are no longer among
/// the last `keep` promoted. Answers the new folder.
pub fn publish(candidate: &Path, models: &Path, keep: usize) -> anyhow::Result<PathBuf> {
    let model = read_model(candidate)?;
    let document = model.document();
    let name = folder_name(&model);
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    ensure!(is_plain && !name.starts_with('.'), "{name:?} is no name of a folder: use letters, digits, '.', '_', '-'");
    let folder = models.join(&name);
    let is_same = || {
        let bytes = |folder: &Path| fs::read(folder.join(DOCUMENT)).ok();
        bytes(&folder).is_some() && bytes(&folder) == bytes(candidate)
    };
    // The very same model: an attempt was cut off before it was promoted.
    if !is_same() {
        ensure!(!folder.exists(), "{} is there already: fit with another --version", folder.display());
        place(candidate, models, &name, &folder)?;
    }
    // Read again from where it stands, before anybody is told of it.
    read_model(&folder)?;
    let mut names = promoted(models)?;
    names.retain(|before| *before != name);
    names.insert(0, name);
    let old: Vec<String> = names
        .iter()
        .filter(|name| read_model(&models.join(name)).is_ok_and(|model| model.document().name == document.name))
        .skip(keep.max(1))
        .cloned()
        .collect();
    names.retain(|name| !old.contains(name));
    write_whole(&models.join(PROMOTED), (names.join("\n") + "\n").as_bytes())?;
    for name in old {
        let path = models.join(name);
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(folder)
}

/// Name of the folder in which a model is published.
pub fn folder_name(model: &Model) -> String {
    format!("{}-{}", model.document().name, model.document().version)
}

/// Copies a model to `folder` as a whole.
fn place(candidate: &Path, models: &Path, name: &str, folder: &Path) -> anyhow::Result<()> {
    let draft = models.join(format!(".{name}.new"));
    if draft.exists() {
        fs::remove_dir_all(&draft).with_context(|| format!("remove {}", draft.display()))?;
    }
    fs::create_dir_all(&draft).with_context(|| format!("create {}", draft.display()))?;
    for file in [WEIGHTS, CARD, DOCUMENT] {
        let from = candidate.join(file);
        if from.exists() {
            let bytes = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
            write_whole(&draft.join(file), &bytes)?;
        }
    }
    fs::rename(&draft, folder).with_context(|| format!("rename {} to {}", draft.display(), folder.display()))?;
    Ok(())
}
