//! Puts a data directory aside, and a restored copy in its place.
//!
//! Invariant: data are renamed and never removed or written over; a copy is secured before it is in place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::configuration::{Managed, secure, set_signal_files, write_private};
use super::errors::{blocking, failed};
use super::files::sync_parent;
use super::process;
use super::reclone::{beside, is_mount_point};
use super::settings::Setup;
use crate::ports::postgres::{PostgresError, Presence};

/// See [`crate::ports::LocalPostgres::set_aside`].
pub(super) async fn set_aside(setup: &Arc<Setup>, name: &str) -> Result<Option<PathBuf>, PostgresError> {
    const ACTION: &str = "put the data aside";
    must_be_stopped(setup, ACTION).await?;
    let (here, aside) = (setup.clone(), beside(&setup.data, name));
    blocking(ACTION, move || {
        rename_away(&here.data, &aside)
            .map_err(|error| failed(ACTION, format!("{} to {}: {error}", here.data.display(), aside.display())))
    })
    .await
}

/// See [`crate::ports::LocalPostgres::adopt_copy`].
pub(super) async fn adopt(setup: &Arc<Setup>, copy: &Path, name: &str) -> Result<Option<PathBuf>, PostgresError> {
    const ACTION: &str = "put the restored data in place";
    must_be_stopped(setup, ACTION).await?;
    let (here, copy, aside) = (setup.clone(), copy.to_owned(), beside(&setup.data, name));
    blocking(ACTION, move || {
        let at = |path: &Path, error: io::Error| failed(ACTION, format!("{}: {error}", path.display()));
        if !copy.join("PG_VERSION").exists() {
            // A repeated command: it was renamed already.
            return if here.has_data() && (aside.exists() || !copy.exists()) {
                Ok(aside.exists().then_some(aside))
            } else {
                Err(failed(ACTION, format!("there is no restored copy in {}", copy.display())))
            };
        }
        write_private(&here).map_err(|error| at(&here.settings.private_socket_directory, error))?;
        if here.settings.config_directory.is_none() {
            secure(&here, &copy, Some(&Managed::standby_of(&here, None)))?;
        }
        // A stopped primary: only a lease starts it.
        set_signal_files(&here, &copy, false)?;
        let kept = rename_away(&here.data, &aside).map_err(|error| at(&here.data, error))?;
        fs::rename(&copy, &here.data).map_err(|error| at(&copy, error))?;
        sync_parent(&here.data).map_err(|error| at(&here.data, error))?;
        Ok(kept)
    })
    .await
}

async fn must_be_stopped(setup: &Arc<Setup>, action: &'static str) -> Result<(), PostgresError> {
    match process::presence(setup).await {
        Presence::Stopped | Presence::NoData => {}
        found => return Err(failed(action, format!("PostgreSQL must be stopped, and is: {found:?}"))),
    }
    if is_mount_point(&setup.data) {
        let problem = format!(
            "{} is a mount point and cannot be renamed: move the data one directory down",
            setup.data.display()
        );
        return Err(failed(action, problem));
    }
    Ok(())
}

/// Renames `data` to `aside`, unless that was done before. An empty directory is nothing to keep.
fn rename_away(data: &Path, aside: &Path) -> io::Result<Option<PathBuf>> {
    if aside.exists() {
        // An earlier attempt did it. What is in the way now was made since: an empty directory at most.
        return match fs::remove_dir(data) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Some(aside.to_owned())),
        };
    }
    match fs::remove_dir(data) {
        Ok(()) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => {}
    }
    fs::rename(data, aside)?;
    sync_parent(data)?;
    Ok(Some(aside.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_are_renamed_once_and_never_written_over() {
        let home = tempfile::tempdir().expect("directory");
        let (data, aside) = (home.path().join("data"), home.path().join("data.aside"));
        assert_eq!(rename_away(&data, &aside).expect("nothing is there"), None);
        fs::create_dir(&data).expect("made");
        assert_eq!(rename_away(&data, &aside).expect("an empty one"), None);
        fs::create_dir(&data).expect("made");
        fs::write(data.join("PG_VERSION"), "15").expect("written");
        assert_eq!(rename_away(&data, &aside).expect("renamed"), Some(aside.clone()));
        assert_eq!(rename_away(&data, &aside).expect("repeated"), Some(aside.clone()));
        fs::create_dir(&data).expect("made");
        fs::write(data.join("PG_VERSION"), "new").expect("written");
        rename_away(&data, &aside).expect_err("data in the way are not removed");
        assert_eq!(fs::read_to_string(aside.join("PG_VERSION")).expect("kept"), "15");
    }
}
