//! Reads `pg_control` by way of `pg_controldata`.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::errors::failed;
use super::programs;
use super::settings::Setup;
use crate::domain::ids::SystemIdentifier;
use crate::domain::lsn::{Lsn, Timeline};
use crate::domain::report::ControlData;
use crate::ports::postgres::PostgresError;

const ACTION: &str = "read pg_control";

/// One small file is read; only a stalled disk takes longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// As `pg_controldata` of every supported version says it in the C locale.
const CHECKSUM_WARNING: &str = "CRC checksum does not match";

/// The control file has this size in every version (`PG_CONTROL_FILE_SIZE`).
const FILE_BYTES: u64 = 8192;

/// [`ControlData`] and what only this adapter needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Control {
    pub data: ControlData,
    /// Where recovery from the latest checkpoint begins.
    pub redo: Lsn,
    /// Timeline of the minimum recovery point; zero if there is none.
    pub recovery_timeline: Timeline,
    pub wal_segment_bytes: u64,
}

/// `None` without data.
pub(super) async fn read(setup: &Arc<Setup>) -> Result<Option<Control>, PostgresError> {
    let here = setup.clone();
    setup.lanes.control.run(TIMEOUT, ACTION, move || read_now(&here)).await
}

/// Returns when the disk has answered, whenever that is.
fn read_now(setup: &Setup) -> Result<Option<Control>, PostgresError> {
    if !setup.has_data() {
        return Ok(None);
    }
    if let Some(problem) = damage(&setup.data.join("global/pg_control"))? {
        return Err(PostgresError::Damaged { action: ACTION, problem });
    }
    let mut command = programs::command(setup, ACTION, "pg_controldata")?.into_std();
    command.arg("-D").arg(&setup.data).env("LC_ALL", "C");
    let output = command.output().map_err(|error| failed(ACTION, error))?;
    let text = programs::said(ACTION, &output)?.stdout;
    // A warning and no error: what follows it is garbage.
    if text.contains(CHECKSUM_WARNING) {
        let problem = "the checksum of global/pg_control is wrong".to_owned();
        return Err(PostgresError::Damaged { action: ACTION, problem });
    }
    let version = fs::read_to_string(setup.data.join("PG_VERSION")).map_err(|error| failed(ACTION, error))?;
    parse(&text, &version).map(Some).map_err(|problem| failed(ACTION, problem))
}

/// What is wrong with the file before anybody reads it.
fn damage(file: &Path) -> Result<Option<String>, PostgresError> {
    match fs::metadata(file) {
        Ok(metadata) if metadata.len() < FILE_BYTES => {
            Ok(Some(format!("global/pg_control has {} bytes instead of {FILE_BYTES}", metadata.len())))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some("global/pg_control is missing".to_owned())),
        Err(error) => Err(failed(ACTION, error)),
    }
}

fn parse(text: &str, version: &str) -> Result<Control, String> {
    let fields: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
    let get = |key: &'static str| fields.get(key).copied().ok_or_else(|| format!("pg_controldata printed no {key:?}"));
    let number = |key| get(key)?.parse::<u64>().map_err(|error| format!("{key}: {error}"));
    let timeline = |key| get(key)?.parse().map(Timeline).map_err(|error| format!("{key}: {error}"));
    let lsn = |key| get(key)?.parse::<Lsn>().map_err(|error| format!("{key}: {error}"));
    Ok(Control {
        data: ControlData {
            system_identifier: SystemIdentifier(number("Database system identifier")?),
            cluster_state: get("Database cluster state")?.to_owned(),
            timeline: timeline("Latest checkpoint's TimeLineID")?,
            checkpoint: lsn("Latest checkpoint location")?,
            major_version: version.trim().parse().map_err(|error| format!("PG_VERSION: {error}"))?,
        },
        redo: lsn("Latest checkpoint's REDO location")?,
        recovery_timeline: timeline("Min recovery ending loc's timeline")?,
        wal_segment_bytes: number("Bytes per WAL segment")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
pg_control version number:            1300
Database system identifier:           7575000000000000001
Database cluster state:               shut down
pg_control last modified:             Sat 21 Nov 2026 06:40:00 AM UTC
Latest checkpoint location:           0/3000028
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       2
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
Bytes per WAL segment:                16777216
";

    #[test]
    fn reads_what_the_program_prints() {
        let control = parse(PRINTED, "15\n").expect("complete");
        assert_eq!(control.data.checkpoint, "0/3000028".parse().expect("valid"));
        assert_eq!((control.data.timeline, control.data.major_version), (Timeline(2), 15));
        assert!(control.data.is_shut_down());
        assert_eq!((control.recovery_timeline, control.wal_segment_bytes), (Timeline(0), 16 << 20));
        assert!(
            parse("Database cluster state: shut down", "15").expect_err("incomplete").contains("system identifier")
        );
    }
}
