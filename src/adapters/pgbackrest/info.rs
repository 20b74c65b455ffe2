//! Reads what pgBackRest prints as JSON: `info`, and `repo-ls` of the archive.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::domain::backup::{Archive, BackupSet, BackupType, Repository, WalSegment, is_label};
use crate::domain::clock::WallTime;
use crate::domain::ids::SystemIdentifier;
use crate::domain::lsn::{Fork, Lsn, Timeline};

/// Status that says that there is no backup yet: everything else is as it should be.
const NO_BACKUP: i64 = 2;

#[derive(Deserialize)]
struct Stanza {
    #[serde(default)]
    archive: Vec<ArchiveRange>,
    #[serde(default)]
    backup: Vec<Backup>,
    #[serde(default)]
    db: Vec<Database>,
    repo: Vec<RepositoryStatus>,
    status: Status,
}

#[derive(Deserialize)]
struct RepositoryStatus {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    code: i64,
    message: String,
}

#[derive(Deserialize)]
struct ArchiveRange {
    database: DatabaseKey,
    id: String,
    max: Option<String>,
    min: Option<String>,
}

#[derive(Deserialize)]
struct DatabaseKey {
    id: u64,
}

#[derive(Deserialize)]
struct Database {
    id: u64,
    #[serde(rename = "system-id")]
    system_id: u64,
    version: String,
}

#[derive(Deserialize)]
struct Backup {
    archive: Segments,
    database: DatabaseKey,
    #[serde(default)]
    error: Option<bool>,
    info: Sizes,
    label: String,
    lsn: Option<Positions>,
    #[serde(default)]
    reference: Option<Vec<String>>,
    timestamp: Times,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    tablespace: Option<Vec<Tablespace>>,
}

#[derive(Deserialize)]
struct Tablespace {
    name: String,
}

#[derive(Deserialize)]
struct Segments {
    start: Option<String>,
    stop: Option<String>,
}

#[derive(Deserialize)]
struct Positions {
    start: String,
    stop: String,
}

#[derive(Deserialize)]
struct Sizes {
    size: u64,
    repository: RepositorySizes,
}

#[derive(Deserialize)]
struct RepositorySizes {
    delta: u64,
}

#[derive(Deserialize)]
struct Times {
    start: i64,
    stop: i64,
}

/// What `info` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Info {
    pub repository: Repository,
    /// Whose data the newest backups and the WAL are.
    pub system_identifier: Option<SystemIdentifier>,
    /// Names of the tablespaces of the backup that was asked about.
    pub tablespaces: Vec<String>,
    /// The archive's name for the current database, as in `15-1`.
    pub archive_id: Option<String>,
    /// The repository does not know this database yet.
    pub is_new: bool,
}

/// Reads the output of `info --output=json`. Backups of former databases of the stanza (before an upgrade) do not count.
pub(super) fn parse(text: &[u8]) -> Result<Info, String> {
    // pgBackRest repeats what it could not decrypt, as it is.
    let printable = |letter: char| if letter.is_control() { ' ' } else { letter };
    let text: String = String::from_utf8_lossy(text).chars().map(printable).collect();
    let stanzas: Vec<Stanza> = serde_json::from_str(&text).map_err(|error| match super::run::complaint(&text) {
        said if text.contains("unable to load info file") => said,
        _ => format!("info printed what is not understood: {error}"),
    })?;
    let Some(stanza) = stanzas.into_iter().next() else {
        return Err("info printed nothing about the stanza".to_owned());
    };
    let current = stanza.db.iter().max_by_key(|database| database.id);
    let current_id = current.map(|database| database.id);
    let range = stanza.archive.iter().find(|range| Some(range.database.id) == current_id);
    let segment = |name: &Option<String>| name.as_deref().and_then(|name| name.parse::<WalSegment>().ok());
    let of_current = |backup: &&Backup| Some(backup.database.id) == current_id;
    let major = current.and_then(|database| database.version.split('.').next()?.parse().ok()).unwrap_or(0);
    let tablespaces = stanza.backup.iter().filter(of_current).flat_map(|backup| backup.tablespace.iter().flatten());
    let status = stanza.repo.first().map_or(&stanza.status, |repository| &repository.status);
    let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    let problem = (status.code != 0).then(|| match super::run::complaint(&status.message) {
        said if said.is_empty() => first_line(&status.message),
        said => said,
    });
    Ok(Info {
        tablespaces: tablespaces.map(|tablespace| tablespace.name.clone()).collect(),
        archive_id: range.map(|range| range.id.clone()),
        system_identifier: current.map(|database| SystemIdentifier(database.system_id)),
        is_new: status.code != 0 && status.code != NO_BACKUP && stanza.db.is_empty(),
        repository: Repository {
            backups: stanza.backup.iter().filter(of_current).filter_map(|backup| set(backup, major)).collect(),
            first_segment: range.and_then(|range| segment(&range.min)),
            last_segment: range.and_then(|range| segment(&range.max)),
            problem,
            ..Repository::default()
        },
    })
}

/// `None` for a backup that is not complete enough to be restored.
fn set(backup: &Backup, major_version: u32) -> Option<BackupSet> {
    let lsn = backup.lsn.as_ref()?;
    let seconds = |at: i64| WallTime(at.saturating_mul(1_000_000));
    is_label(&backup.label).then_some(())?;
    Some(BackupSet {
        label: backup.label.clone(),
        backup_type: backup.kind.parse::<BackupType>().ok()?,
        began: seconds(backup.timestamp.start),
        ended: seconds(backup.timestamp.stop),
        start_lsn: lsn.start.parse().ok()?,
        stop_lsn: lsn.stop.parse().ok()?,
        first_segment: backup.archive.start.as_deref()?.parse().ok()?,
        last_segment: backup.archive.stop.as_deref()?.parse().ok()?,
        database_bytes: backup.info.size,
        repository_bytes: backup.info.repository.delta,
        reference: backup.reference.clone().unwrap_or_default(),
        major_version,
        has_error: backup.error.unwrap_or(false),
    })
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    time: i64,
}

/// Complete segments in the output of `repo-ls --recurse --output=json`, and the names of history files.
pub(super) fn parse_archive(text: &[u8]) -> Result<(BTreeMap<WalSegment, WallTime>, Vec<String>), String> {
    let entries: BTreeMap<String, Entry> =
        serde_json::from_slice(text).map_err(|error| format!("repo-ls printed what is not understood: {error}"))?;
    let (mut segments, mut histories) = (BTreeMap::new(), Vec::new());
    for (path, entry) in entries.iter().filter(|(_, entry)| entry.kind == "file") {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name.ends_with(".history") {
            histories.push(path.clone());
        } else if let Some(segment) = name.get(..24).and_then(|begin| begin.parse::<WalSegment>().ok())
            // After the name comes a dash with the checksum; `.partial` and `.backup` are no segments.
            && name[24..].starts_with('-')
        {
            segments.insert(segment, WallTime(entry.time.saturating_mul(1_000_000)));
        }
    }
    Ok((segments, histories))
}

/// Ancestors in a history file, oldest first.
pub(super) fn parse_history(text: &str) -> Vec<Fork> {
    let fork = |line: &str| {
        let mut fields = line.split_whitespace();
        let timeline = Timeline(fields.next()?.parse().ok()?);
        let switched_at: Lsn = fields.next()?.parse().ok()?;
        Some(Fork { timeline, switched_at })
    };
    text.lines().filter_map(fork).collect()
}

/// Size of a WAL segment that fits to every backup's positions and names; the usual one where several do.
pub(super) fn segment_bytes(backups: &[BackupSet]) -> u64 {
    const USUAL: u64 = 16 << 20;
    let fits = |size: u64| {
        backups.iter().all(|set| {
            let inside = |segment: WalSegment, lsn: Lsn| {
                u64::from(segment.high) == lsn.0 >> 32 && u64::from(segment.low) == (lsn.0 & 0xFFFF_FFFF) / size
            };
            inside(set.first_segment, set.start_lsn) && inside(set.last_segment, set.stop_lsn)
        })
    };
    let others = (20..=30).map(|power| 1_u64 << power);
    std::iter::once(USUAL).chain(others).find(|size| fits(*size)).unwrap_or(USUAL)
}

/// The archive made of its parts.
pub(super) fn archive(
    segments: BTreeMap<WalSegment, WallTime>,
    histories: BTreeMap<u32, Vec<Fork>>,
    backups: &[BackupSet],
) -> Archive {
    Archive { segments, histories, segment_bytes: segment_bytes(backups) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As pgBackRest 2.45 printed it.
    const PRINTED: &str = r#"[{"archive":[{"database":{"id":1,"repo-key":1},"id":"15-1","max":"000000010000000000000003","min":"000000010000000000000001"}],"backup":[{"archive":{"start":"000000010000000000000002","stop":"000000010000000000000002"},"backrest":{"format":5,"version":"2.45"},"database":{"id":1,"repo-key":1},"error":false,"info":{"delta":23033509,"repository":{"delta":3074480,"size":3074480},"size":23033509},"label":"20261128-143346F","lsn":{"start":"0/2000028","stop":"0/2000100"},"prior":null,"reference":null,"timestamp":{"start":1795876426,"stop":1795876433},"type":"full"}],"cipher":"aes-256-cbc","db":[{"id":1,"repo-key":1,"system-id":7713230491909963350,"version":"15"}],"name":"main","repo":[{"cipher":"aes-256-cbc","key":1,"status":{"code":0,"message":"ok"}}],"status":{"code":0,"lock":{"backup":{"held":false}},"message":"ok"}}]"#;
    const NEW: &str = r#"[{"archive":[],"backup":[],"cipher":"none","db":[],"name":"main","repo":[{"cipher":"none","key":1,"status":{"code":1,"message":"missing stanza path"}}],"status":{"code":1,"lock":{"backup":{"held":false}},"message":"missing stanza path"}}]"#;

    #[test]
    fn reads_what_info_prints() {
        let info = parse(PRINTED.as_bytes()).expect("understood");
        assert_eq!(info.system_identifier, Some(SystemIdentifier(7_713_230_491_909_963_350)));
        assert_eq!(info.archive_id.as_deref(), Some("15-1"));
        let [set] = info.repository.backups.as_slice() else { panic!("one backup: {info:?}") };
        assert_eq!(
            (set.label.as_str(), set.backup_type, set.major_version),
            ("20261128-143346F", BackupType::Full, 15)
        );
        assert_eq!(set.ended, WallTime(1_795_876_433_000_000));
        assert_eq!((set.database_bytes, set.repository_bytes), (23_033_509, 3_074_480));
        assert!(info.repository.problem.is_none() && !info.is_new);
        assert_eq!(segment_bytes(&info.repository.backups), 16 << 20);
    }

    #[test]
    fn a_repository_that_was_never_used_is_new_and_says_so() {
        let info = parse(NEW.as_bytes()).expect("understood");
        assert!(info.is_new && info.repository.backups.is_empty());
        assert_eq!(info.repository.problem.as_deref(), Some("missing stanza path"));
        assert!(parse(b"[]").is_err() && parse(b"no").is_err());
    }

    #[test]
    fn what_could_not_be_decrypted_is_no_riddle() {
        let mut text = NEW
            .replace("missing stanza path", "[FormatError] key/value found outside of section at line 1: N6*")
            .into_bytes();
        let at = text.iter().position(|byte| *byte == b'*').expect("there");
        text[at] = 0x01;
        let problem = parse(&text).expect("understood").repository.problem.expect("a problem");
        assert!(problem.contains("another passphrase"), "{problem}");
    }

    #[test]
    fn reads_what_repo_ls_prints() {
        let text = r#"{".":{"type":"path"},"15-1/0000000100000000/000000010000000000000001-c0f0f115ab32ff40f2ecd44d0ae9cb5775ef9798.gz":{"type":"file","size":1,"time":1795876427},"15-1/0000000100000000/000000010000000000000002.00000028.backup":{"type":"file","size":400,"time":1},"15-1/0000000100000000/000000010000000000000003.partial-c0f0.gz":{"type":"file","size":400,"time":1},"15-1/00000002.history":{"type":"file","size":40,"time":2}}"#;
        let (segments, histories) = parse_archive(text.as_bytes()).expect("understood");
        assert_eq!(segments.len(), 1, "{segments:?}");
        assert_eq!(histories, ["15-1/00000002.history"]);
        let forks = parse_history("1\t0/3000060\tno recovery target specified\n");
        assert_eq!(forks, [Fork { timeline: Timeline(1), switched_at: "0/3000060".parse().expect("valid") }]);
    }
}
