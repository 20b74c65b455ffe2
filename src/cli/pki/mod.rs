//! The directory of an authority: which file is what, and how one is replaced without ever being half there.
//!
//! What stands in a certificate is [`signing`]'s. No private key is ever printed, and none is readable by others.

pub mod signing;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::cli::exit::{Exit, Failure};
use crate::domain::certificate::CertificateSummary;
use crate::domain::ids::HolderName;

/// The authority's certificate and key.
const AUTHORITY: &str = "authority";
/// Every authority that hosts believe: the present one first.
pub const BUNDLE: &str = "authorities.crt";
/// Mode of a key.
const SECRET: u32 = 0o600;
/// Mode of a certificate.
const PUBLIC: u32 = 0o644;

/// One file that a command is going to write.
pub struct Draft {
    path: PathBuf,
    text: String,
    mode: u32,
}

impl Draft {
    /// Something that everybody may read.
    pub fn public(path: PathBuf, text: String) -> Self {
        Self { path, text, mode: PUBLIC }
    }

    /// A private key.
    pub fn secret(path: PathBuf, text: String) -> Self {
        Self { path, text, mode: SECRET }
    }

    /// Where it is going to be.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directory of an authority.
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The directory, there or not.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The authority's certificate.
    pub fn authority_certificate(&self) -> PathBuf {
        self.root.join(format!("{AUTHORITY}.crt"))
    }

    /// The authority's key.
    pub fn authority_key(&self) -> PathBuf {
        self.root.join(format!("{AUTHORITY}.key"))
    }

    /// What every host gets.
    pub fn bundle(&self) -> PathBuf {
        self.root.join(BUNDLE)
    }

    /// Certificate and key of `name`.
    pub fn pair(&self, name: &HolderName) -> Result<(PathBuf, PathBuf), Failure> {
        if [AUTHORITY, "authorities"].contains(&name.as_str()) {
            let message = format!("{name} is the authority's own name here: choose another one");
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok((self.root.join(format!("{name}.crt")), self.root.join(format!("{name}.key"))))
    }

    /// Text of a file that must be there.
    pub fn text(&self, path: &Path) -> Result<String, Failure> {
        fs::read_to_string(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if path == self.authority_certificate() || path == self.authority_key() => {
                let message =
                    format!("there is no authority in {}: {} is missing", self.root.display(), path.display());
                Failure::new(Exit::NotFound, message)
                    .advise("name its directory with --directory, or make one: stormglass pki init --directory DIR")
            }
            io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("there is no {}", path.display())),
            _ => Failure::new(Exit::Failed, format!("read {}: {error}", path.display())),
        })
    }

    /// The certificate in a file, and what it says.
    pub fn certificate(&self, path: &Path) -> Result<CertificateSummary, Failure> {
        let mut all = summaries(path, &self.text(path)?)?;
        if all.len() == 1 {
            return Ok(all.remove(0).1);
        }
        Err(Failure::new(Exit::Failed, format!("{} holds {} certificates, not one", path.display(), all.len())))
    }

    /// Every certificate of the directory that was issued here, sorted by name.
    pub fn issued(&self) -> Result<Vec<(HolderName, CertificateSummary)>, Failure> {
        let unreadable =
            |error: io::Error| Failure::new(Exit::Failed, format!("read {}: {error}", self.root.display()));
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let is_certificate = path.extension().is_some_and(|extension| extension == "crt");
            if !is_certificate || path == self.authority_certificate() || path == self.bundle() {
                continue;
            }
            let Some(name) = path.file_stem().and_then(|stem| HolderName::new(stem.to_str()?).ok()) else { continue };
            let summary = self.certificate(&path)?;
            if summary.holder.as_ref().is_some_and(|holder| holder.name == name) {
                found.push((name, summary));
            }
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    /// Puts new files in place of old ones: all are on disk before the first takes its name. Whoever reads between two renames
    /// finds a key and a certificate that do not belong together, keeps what it has, and looks again.
    pub fn replace(&self, drafts: &[Draft]) -> Result<(), Failure> {
        let waiting = |draft: &Draft| {
            let mut name = draft.path.clone().into_os_string();
            name.push(".new");
            PathBuf::from(name)
        };
        for draft in drafts {
            let path = waiting(draft);
            let failed = |error: io::Error| Failure::new(Exit::Failed, format!("write {}: {error}", path.display()));
            // Left behind by a command that was cut off.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(draft.mode).open(&path).map_err(failed)?;
            file.write_all(draft.text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        for draft in drafts {
            fs::rename(waiting(draft), &draft.path).map_err(|error| {
                let message = format!("put {} in place: {error}", draft.path.display());
                Failure::new(Exit::Unknown, message).advise("run the same command again: it begins anew")
            })?;
        }
        let sync = File::open(&self.root).and_then(|directory| directory.sync_all());
        sync.map_err(|error| Failure::new(Exit::Unknown, format!("write {}: {error}", self.root.display())))
    }

    /// Makes the directory, readable by its owner only.
    pub fn make(&self) -> Result<(), Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.map_err(|error| Failure::new(Exit::Failed, format!("make {}: {error}", self.root.display())))
    }
}

/// Every certificate of a text in PEM, in DER, and what it says.
pub fn summaries(path: &Path, text: &str) -> Result<Vec<(CertificateDer<'static>, CertificateSummary)>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, format!("read {}: {error}", path.display()));
    CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|found| {
            let der = found.map_err(|error| wrong(&error))?;
            let summary = CertificateSummary::of(&der).map_err(|error| wrong(&error))?;
            Ok((der, summary))
        })
        .collect()
}
