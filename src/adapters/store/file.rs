//! The file: taken for one process, checked before it is trusted, made in one piece.
//!
//! Nothing here changes a file that it refuses.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{FlockOperation, flock};

use super::schema;
use crate::ports::store::StoreError;

/// What every SQLite database begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Length of the header that holds the application's identity.
const HEADER_LENGTH: usize = 100;
/// Where it stands there.
const APPLICATION_ID_OFFSET: usize = 68;
/// How long a person with a SQLite shell may hold us up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// The log is written back in quiet moments; this bound, in pages of 4 KiB, is for a day without any.
const LOG_PAGES_MAX: u32 = 8192;
/// What to do about a file that is beyond use.
const WAY_OUT: &str = "move the file aside and start again: the controller rebuilds its record from the agents once every node \
                       has spoken; operations, events and audit rows come back only from a copy of the file";

/// An open store. The fields are dropped in this order: the lock must outlive the connection.
pub(super) struct Opened {
    pub(super) connection: Connection,
    _lock: File,
}

/// Opens or makes the store.
pub(super) fn open(path: &Path) -> Result<Opened, StoreError> {
    let failed = |problem: String| StoreError::Failed { action: "open", location: path.display().to_string(), problem };
    let path = settled(path).map_err(|error| failed(format!("{error}: check the directory and its owner")))?;
    let lock = lock(&beside(&path, ".lock")).map_err(failed)?;
    if path.try_exists().map_err(|error| failed(error.to_string()))? {
        check_header(&path).map_err(failed)?;
    } else {
        make(&path).map_err(failed)?;
    }
    let connection = connect(&path).map_err(failed)?;
    Ok(Opened { connection, _lock: lock })
}

/// One name for one file, so that two spellings of it meet at the same lock. Makes the directory if only that is missing.
fn settled(path: &Path) -> io::Result<PathBuf> {
    if path.try_exists()? {
        return path.canonicalize();
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not the path of a file"));
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if !directory.try_exists()? {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
    }
    Ok(directory.canonicalize()?.join(name))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A lock of its own file: SQLite's own locks end with any descriptor of the database that the process closes.
fn lock(path: &Path) -> Result<File, String> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| format!("open the lock {}: {error}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only for the message: an unreadable holder is still a holder.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let holder = if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") };
            return Err(format!(
                "{holder} has it open, and a store belongs to one controller: stop that one, or give this one its own \
                 data_directory"
            ));
        }
        Err(error) => return Err(format!("lock {}: {error}: use a local file system", path.display())),
    }
    let note = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    note.map_err(|error| format!("write the lock {}: {error}", path.display()))?;
    Ok(file)
}

/// Looks at the first bytes without SQLite, which would take an empty file for a new database.
fn check_header(path: &Path) -> Result<(), String> {
    let mut header = Vec::with_capacity(HEADER_LENGTH);
    File::open(path)
        .and_then(|file| file.take(HEADER_LENGTH as u64).read_to_end(&mut header))
        .map_err(|error| format!("{error}: check its owner and permissions"))?;
    if header.len() < HEADER_LENGTH {
        return Err(format!("the file has only {} bytes, so it was truncated: {WAY_OUT}", header.len()));
    }
    if !header.starts_with(MAGIC) {
        return Err(format!("this is not a SQLite database, or its beginning was overwritten: {WAY_OUT}"));
    }
    let identity = header[APPLICATION_ID_OFFSET..APPLICATION_ID_OFFSET + 4]
        .iter()
        .fold(0, |value: u32, byte| value << 8 | u32::from(*byte));
    if identity != schema::APPLICATION_ID {
        return Err(
            "this is the database of another program: set data_directory to a directory of the controller's own"
                .to_owned(),
        );
    }
    Ok(())
}

/// Makes a store beside its place and moves it there complete: a file that is there is never half made.
fn make(path: &Path) -> Result<(), String> {
    if beside(path, "-wal").exists() {
        return Err(format!(
            "the file is missing, but its log {}-wal is there: put the file back, or remove the log too",
            path.display()
        ));
    }
    let draft = beside(path, ".new");
    for leftover in ["", "-journal", "-wal", "-shm"] {
        match fs::remove_file(beside(&draft, leftover)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("remove {}{leftover}: {error}", draft.display()));
            }
            _ => {}
        }
    }
    write_draft(&draft)?;
    fs::rename(&draft, path)
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all())
        .map_err(|error| format!("move {} into place: {error}", draft.display()))
}

fn write_draft(draft: &Path) -> Result<(), String> {
    let context = |error: &dyn std::fmt::Display| format!("make {}: {error}", draft.display());
    // Made here and not by SQLite, for its permissions: the audit log is nobody else's to read.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft).map_err(|error| context(&error))?;
    let mut connection = Connection::open_with_flags(draft, flags()).map_err(|error| context(&explain(&error)))?;
    connection
        .pragma_update(None, "synchronous", "FULL")
        .and_then(|()| schema::begin(&connection))
        .and_then(|()| schema::migrate(&mut connection, 0))
        .map_err(|error| context(&explain(&error)))?;
    connection.close().map_err(|(_, error)| context(&explain(&error)))?;
    File::open(draft).and_then(|file| file.sync_all()).map_err(|error| context(&error))
}

fn flags() -> OpenFlags {
    // No CREATE: a file that vanished must not come back empty.
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW
}

fn connect(path: &Path) -> Result<Connection, String> {
    let mut connection = Connection::open_with_flags(path, flags()).map_err(|error| explain(&error))?;
    prepare(&mut connection).map_err(|error| match error {
        Refusal::Database(error) => explain(&error),
        Refusal::Said(problem) => problem,
    })?;
    Ok(connection)
}

enum Refusal {
    Database(rusqlite::Error),
    Said(String),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

fn prepare(connection: &mut Connection) -> Result<(), Refusal> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Refusal::Said(format!("the file is damaged ({verdict}): {WAY_OUT}")));
    }
    let version = schema::version(connection)?;
    if version > schema::VERSION {
        return Err(Refusal::Said(format!(
            "the file was written by a newer version of stormglass (schema {version}; this one knows {}): \
             start that version, or give this one its own data_directory",
            schema::VERSION
        )));
    }
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Refusal::Said(format!(
            "the file system allows no write-ahead log (journal mode {mode}): use a local file system"
        )));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES_MAX)?;
    if version < schema::VERSION {
        schema::migrate(connection, version)?;
    }
    release_memory(connection)?;
    Ok(())
}

/// Gives back what the connection keeps in memory, pages of the file and statements: a controller of many clusters has as many stores, and most are quiet.
pub(super) fn release_memory(connection: &Connection) -> rusqlite::Result<()> {
    connection.flush_prepared_statement_cache();
    connection.execute_batch("PRAGMA shrink_memory")
}

/// SQLite's error with what to do about it.
pub(super) fn explain(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            "the disk is full and nothing was written: free space on its file system".to_owned()
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("the file is damaged ({error}): {WAY_OUT}")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("another program holds the database ({error}): close it")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            format!("{error}: check owner, permissions and the file system")
        }
        Some(ErrorCode::SystemIoFailure) => format!("{error}: look at the disk that the file is on"),
        _ => error.to_string(),
    }
}
