//! Backups as the repository lists them, the WAL beside them, and what can be restored from both. Pure.
//!
//! How a repository is asked, and by which program, never enters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::WallTime;
use super::lsn::{Fork, Lsn};

/// How much a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupType {
    /// Everything.
    Full,
    /// What changed since the last full one.
    Diff,
    /// What changed since the last one of any type.
    Incr,
}

impl BackupType {
    /// As it is written everywhere.
    pub fn label(self) -> &'static str {
        match self {
            BackupType::Full => "full",
            BackupType::Diff => "diff",
            BackupType::Incr => "incr",
        }
    }
}

impl fmt::Display for BackupType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

impl FromStr for BackupType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [BackupType::Full, BackupType::Diff, BackupType::Incr];
        all.into_iter()
            .find(|one| one.label() == text)
            .ok_or_else(|| format!("{text:?} is no type of backup: full, diff or incr"))
    }
}

/// Up to where a restore replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "target", rename_all = "snake_case")]
pub enum RecoveryTarget {
    /// To the end of the WAL in the repository.
    Latest,
    /// To the last commit that was made until then, on the primary's clock.
    Time {
        /// When.
        at: WallTime,
    },
    /// To this position, the record that ends there included.
    Lsn {
        /// Where.
        lsn: Lsn,
    },
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryTarget::Latest => formatter.write_str("the end of the WAL in the repository"),
            RecoveryTarget::Time { at } => write!(formatter, "{at}"),
            RecoveryTarget::Lsn { lsn } => write!(formatter, "LSN {lsn}"),
        }
    }
}

/// One backup in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupSet {
    /// The repository's name for it, as in `20261128-143346F`.
    pub label: String,
    /// How much it holds.
    pub backup_type: BackupType,
    /// When it was begun.
    pub began: WallTime,
    /// When it was complete: nothing before can be restored from it.
    pub ended: WallTime,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// First WAL segment that it needs.
    #[schema(value_type = String)]
    pub first_segment: WalSegment,
    /// Last WAL segment without which it is worth nothing.
    #[schema(value_type = String)]
    pub last_segment: WalSegment,
    /// The database, in bytes.
    pub database_bytes: u64,
    /// What it takes in the repository beside the backups that it rests on, in bytes.
    pub repository_bytes: u64,
    /// Backups that it rests on.
    pub reference: Vec<String>,
    /// PostgreSQL's major version.
    pub major_version: u32,
    /// The repository noted an error (a page with a wrong checksum).
    pub has_error: bool,
}

/// What an agent found in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Repository {
    /// Every backup, oldest first.
    pub backups: Vec<BackupSet>,
    /// First WAL segment of the current database.
    #[schema(value_type = Option<String>)]
    pub first_segment: Option<WalSegment>,
    /// Last one.
    #[schema(value_type = Option<String>)]
    pub last_segment: Option<WalSegment>,
    /// When WAL last arrived in it, by the primary's word.
    #[serde(default)]
    pub newest_wal_at: Option<WallTime>,
    /// Why nothing can be restored from it; `None` if something can.
    pub problem: Option<String>,
    /// Whether the WAL goes on without a gap from the newest backup.
    #[serde(default)]
    pub continuity: Continuity,
}

/// Whether WAL can be followed from the newest backup to the newest segment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(tag = "continuity", rename_all = "snake_case")]
pub enum Continuity {
    /// Not looked at, or not answered in time.
    #[default]
    Unknown,
    /// It can.
    Whole,
    /// It cannot.
    Broken {
        /// Where it ends, and what to do.
        problem: String,
    },
}

impl Repository {
    /// The newest backup from which `target` can be reached, or why there is none.
    pub fn choose(&self, target: &RecoveryTarget) -> Result<&BackupSet, String> {
        let Some(oldest) = self.backups.first() else {
            return Err("the repository holds no backup: take one with stormglass backup".to_owned());
        };
        let usable = |set: &&BackupSet| {
            !set.has_error
                && match target {
                    RecoveryTarget::Latest => true,
                    RecoveryTarget::Time { at } => set.ended < *at,
                    RecoveryTarget::Lsn { lsn } => set.stop_lsn <= *lsn,
                }
        };
        self.backups.iter().rev().find(usable).ok_or_else(|| match target {
            RecoveryTarget::Latest => "every backup in the repository has an error: see stormglass backups".to_owned(),
            RecoveryTarget::Time { at } => format!(
                "{at} is before the first backup: {} was complete at {}, restore to a later time",
                oldest.label, oldest.ended
            ),
            RecoveryTarget::Lsn { lsn } => format!(
                "LSN {lsn} is before the first backup: {} is consistent from {} on, restore to a later position",
                oldest.label, oldest.stop_lsn
            ),
        })
    }
}

/// A WAL segment by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WalSegment {
    /// Timeline.
    pub timeline: u32,
    /// The two halves of the number, as in the name.
    pub high: u32,
    /// The lower half.
    pub low: u32,
}

impl WalSegment {
    /// The segment's number, counted from the beginning of the WAL.
    pub fn number(self, segment_bytes: u64) -> u64 {
        u64::from(self.high) * ((1 << 32) / segment_bytes) + u64::from(self.low)
    }

    /// Where it begins.
    pub fn begin(self, segment_bytes: u64) -> Lsn {
        Lsn(self.number(segment_bytes) * segment_bytes)
    }

    /// The segment of that number.
    pub fn of(timeline: u32, number: u64, segment_bytes: u64) -> Self {
        let in_high = (1 << 32) / segment_bytes;
        let part = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self { timeline, high: part(number / in_high), low: part(number % in_high) }
    }
}

impl fmt::Display for WalSegment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{:08X}{:08X}{:08X}", self.timeline, self.high, self.low))
    }
}

impl FromStr for WalSegment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let part = |from: usize| {
            let digits = text.get(from..from + 8).filter(|digits| digits.bytes().all(|it| it.is_ascii_hexdigit()));
            digits.and_then(|digits| u32::from_str_radix(digits, 16).ok())
        };
        match (text.len(), part(0), part(8), part(16)) {
            (24, Some(timeline), Some(high), Some(low)) => Ok(Self { timeline, high, low }),
            _ => Err(format!("{text:?} is no name of a WAL segment")),
        }
    }
}

impl TryFrom<String> for WalSegment {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<WalSegment> for String {
    fn from(segment: WalSegment) -> String {
        segment.to_string()
    }
}

/// The WAL that the repository holds of one database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archive {
    /// Every complete segment, with the time at which it came.
    pub segments: BTreeMap<WalSegment, WallTime>,
    /// Ancestors of each timeline, oldest first.
    pub histories: BTreeMap<u32, Vec<Fork>>,
    /// Size of a segment, in bytes.
    pub segment_bytes: u64,
}

impl Archive {
    /// The newest timeline that the repository knows and that `timeline` leads to.
    fn newest_after(&self, timeline: u32) -> u32 {
        let leads_to = |(newer, forks): &(&u32, &Vec<Fork>)| {
            **newer > timeline && forks.iter().any(|fork| fork.timeline.0 == timeline)
        };
        self.histories.iter().filter(leads_to).map(|(newer, _)| *newer).max().unwrap_or(timeline)
    }

    /// The last segment that replay of `set` towards `target` reads, or what is missing on the way.
    pub fn reach(&self, set: &BackupSet, target: &RecoveryTarget) -> Result<WalSegment, String> {
        let size = self.segment_bytes;
        let newest = self.newest_after(set.first_segment.timeline);
        let forks = self.histories.get(&newest).cloned().unwrap_or_default();
        // A timeline begins in the segment in which its ancestor was left, and rewrites the beginning of that one.
        let timeline_of = |number: u64| {
            forks.iter().find(|fork| number < fork.switched_at.0 / size).map_or(newest, |fork| fork.timeline.0)
        };
        let numbers: BTreeSet<u64> = self
            .segments
            .keys()
            .map(|segment| (segment.number(size), segment.timeline))
            .filter(|(number, timeline)| timeline_of(*number) == *timeline)
            .map(|(number, _)| number)
            .collect();
        let first = set.first_segment.number(size);
        let last_needed = set.last_segment.number(size);
        let end = numbers.iter().next_back().copied().unwrap_or(0);
        let mut reached = None;
        for number in first..=end.max(last_needed) {
            let segment = WalSegment::of(timeline_of(number), number, size);
            if !numbers.contains(&number) {
                return Err(match reached {
                    _ if number <= last_needed => format!(
                        "WAL segment {segment}, without which backup {} is worth nothing, is not in the repository: restore from \
                         another backup",
                        set.label
                    ),
                    Some(_) if number < end => format!(
                        "there is a gap in the WAL of the repository: segment {segment} is missing; the last position before it is \
                         {}: restore with --to-lsn up to there, or from a backup taken after the gap",
                        Lsn(number * size)
                    ),
                    _ => format!("WAL segment {segment} is not in the repository"),
                });
            }
            reached = Some(segment);
            let is_consistent = number >= last_needed;
            let is_enough = match target {
                RecoveryTarget::Latest => false,
                RecoveryTarget::Lsn { lsn } => lsn.0 <= (number + 1) * size,
                // Whole seconds: it came within the one that begins there. Replay itself finds out exactly.
                RecoveryTarget::Time { at } => {
                    self.segments.get(&segment).is_some_and(|came| came.plus(Duration::from_secs(1)) > *at)
                }
            };
            if is_consistent && is_enough {
                return Ok(segment);
            }
        }
        let last = reached.ok_or_else(|| "the repository holds no WAL of that backup".to_owned())?;
        match target {
            RecoveryTarget::Latest => Ok(last),
            RecoveryTarget::Lsn { lsn } => Err(format!(
                "LSN {lsn} is after the end: the WAL in the repository ends at {}: restore with --latest, or wait until more is archived",
                Lsn((last.number(size) + 1) * size)
            )),
            RecoveryTarget::Time { at } => {
                let came = self.segments.get(&last).map_or_else(|| "an unknown time".to_owned(), ToString::to_string);
                Err(format!(
                    "{at} is after the end: the last WAL in the repository is of {came}: restore with --latest, or wait until more \
                     is archived"
                ))
            }
        }
    }
}

/// How many rows a table of the ledger has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCount {
    /// `database/schema.table`.
    pub table: String,
    /// Rows.
    pub rows: u64,
}

/// The state of the live cluster when a drill began. Written into the journal as one line of JSON, which the next steps read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillMark {
    /// The primary's position at that moment; all before is in the repository by the time the step has ended.
    pub lsn: Lsn,
    /// Age of the newest WAL in the repository at that moment: what a total loss would have cost.
    pub rpo: Duration,
    /// The ledger's tables at that moment.
    pub counts: Vec<RowCount>,
}

/// Where a copy is restored to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum CopyPlace {
    /// In the agent's directory for drills; removed afterwards.
    Scratch,
    /// Beside the data directory, whose place it takes once it is complete.
    Beside,
    /// In a directory that the operator named; it stays there, stopped.
    Into {
        /// Which, on the node's host.
        directory: String,
    },
}

/// What a restore will do, found before anything is touched. Written into the journal as one line of JSON, which the next steps read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The backup that replay begins from.
    pub label: String,
    /// When that was complete.
    pub ended: WallTime,
    /// The last WAL segment that replay reads.
    pub last_segment: WalSegment,
    /// The database, in bytes.
    pub database_bytes: u64,
    /// Room where the copy will be, in bytes.
    pub free_bytes: u64,
}

macro_rules! one_line {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
            }
        }

        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                serde_json::from_str(text).map_err(|error| error.to_string())
            }
        }
    };
}

one_line!(RestorePlan);
one_line!(DrillMark);

/// The backup's label at the beginning of a step's note, as in `20261128-143346F: full, 22.1 MiB`.
pub fn label_of(note: &str) -> Option<&str> {
    let label = note.split(':').next()?.trim();
    is_label(label).then_some(label)
}

/// What comes before the checksum of the manifest in what was noted of a backup that was read back.
pub const MANIFEST_MARK: &str = "manifest sha256 ";

/// The checksum of the manifest, in what was noted of a backup that was read back.
pub fn manifest_of(note: &str) -> Option<&str> {
    let digest = note.rsplit_once(MANIFEST_MARK)?.1.trim();
    (digest.len() == 64 && digest.bytes().all(|letter| letter.is_ascii_hexdigit())).then_some(digest)
}

/// True for what may be the name of a backup: it stands in paths and on command lines.
pub fn is_label(text: &str) -> bool {
    text.len() >= 16
        && text.len() <= 40
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lsn::Timeline;

    const SIZE: u64 = 16 << 20;

    fn segment(name: &str) -> WalSegment {
        name.parse().expect("a name")
    }

    fn set(label: &str, ended: i64, first: &str, last: &str) -> BackupSet {
        let last_segment = segment(last);
        BackupSet {
            label: label.to_owned(),
            backup_type: BackupType::Full,
            began: WallTime((ended - 10) * 1_000_000),
            ended: WallTime(ended * 1_000_000),
            start_lsn: segment(first).begin(SIZE),
            stop_lsn: Lsn(last_segment.begin(SIZE).0 + 0x100),
            first_segment: segment(first),
            last_segment,
            database_bytes: 1,
            repository_bytes: 1,
            reference: Vec::new(),
            major_version: 15,
            has_error: false,
        }
    }

    fn archive(names: &[(&str, i64)]) -> Archive {
        let came = |at: i64| WallTime(at * 1_000_000);
        Archive {
            segments: names.iter().map(|(name, at)| (segment(name), came(*at))).collect(),
            histories: BTreeMap::new(),
            segment_bytes: SIZE,
        }
    }

    const ONE: &str = "000000010000000000000001";
    const TWO: &str = "000000010000000000000002";
    const THREE: &str = "000000010000000000000003";
    const FOUR: &str = "000000010000000000000004";

    #[test]
    fn segments_are_numbered_as_postgresql_does() {
        let name = segment("0000000200000001000000FF");
        assert_eq!(name.number(SIZE), 0x1FF);
        assert_eq!(name.begin(SIZE), "1/FF000000".parse().expect("valid"));
        assert_eq!(WalSegment::of(2, 0x1FF, SIZE), name);
        assert_eq!(name.to_string(), "0000000200000001000000FF");
        for bad in ["", "00000001", "000000010000000000000002.partial", "00000001000000000000000G"] {
            assert!(bad.parse::<WalSegment>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_newest_backup_before_the_target_is_chosen() {
        let first = set("20261128-100000F", 100, ONE, ONE);
        let second = set("20261128-110000F", 200, THREE, THREE);
        let repository = Repository { backups: vec![first, second], ..Repository::default() };
        let chosen = |target| repository.choose(&target).map(|set| set.label.as_str());
        assert_eq!(chosen(RecoveryTarget::Latest), Ok("20261128-110000F"));
        assert_eq!(chosen(RecoveryTarget::Time { at: WallTime(150_000_000) }), Ok("20261128-100000F"));
        assert_eq!(chosen(RecoveryTarget::Lsn { lsn: "0/2000000".parse().expect("valid") }), Ok("20261128-100000F"));
        let early = chosen(RecoveryTarget::Time { at: WallTime(99_000_000) }).expect_err("before the first");
        assert!(early.contains("before the first backup"), "{early}");
        let early = chosen(RecoveryTarget::Lsn { lsn: Lsn(5) }).expect_err("before the first");
        assert!(early.contains("before the first backup"), "{early}");
        assert!(Repository::default().choose(&RecoveryTarget::Latest).expect_err("none").contains("stormglass backup"));
    }

    #[test]
    fn a_backup_with_an_error_is_passed_over() {
        let bad = BackupSet { has_error: true, ..set("20261128-110000F", 200, THREE, THREE) };
        let repository =
            Repository { backups: vec![set("20261128-100000F", 100, ONE, ONE), bad], ..Repository::default() };
        assert_eq!(repository.choose(&RecoveryTarget::Latest).expect("the other").label, "20261128-100000F");
    }

    #[test]
    fn wal_is_followed_to_the_target_and_a_gap_is_named() {
        let backup = set("20261128-100000F", 100, ONE, TWO);
        let whole = archive(&[(ONE, 90), (TWO, 100), (THREE, 160), (FOUR, 220)]);
        assert_eq!(whole.reach(&backup, &RecoveryTarget::Latest), Ok(segment(FOUR)));
        let at = |seconds: i64| RecoveryTarget::Time { at: WallTime(seconds * 1_000_000) };
        assert_eq!(whole.reach(&backup, &at(150)), Ok(segment(THREE)));
        assert!(whole.reach(&backup, &at(300)).expect_err("later").contains("after the end"));
        let lsn = |text: &str| RecoveryTarget::Lsn { lsn: text.parse().expect("valid") };
        assert_eq!(whole.reach(&backup, &lsn("0/3000010")), Ok(segment(THREE)));
        assert!(whole.reach(&backup, &lsn("0/6000000")).expect_err("later").contains("after the end"));

        let holed = archive(&[(ONE, 90), (TWO, 100), (FOUR, 220)]);
        let gap = holed.reach(&backup, &RecoveryTarget::Latest).expect_err("a gap");
        assert!(gap.contains(THREE) && gap.contains("0/3000000"), "{gap}");
        assert!(holed.reach(&backup, &lsn("0/2000020")).is_ok(), "the gap is after the target");
        let useless = archive(&[(ONE, 90), (FOUR, 220)]).reach(&backup, &RecoveryTarget::Latest).expect_err("useless");
        assert!(useless.contains("worth nothing"), "{useless}");
    }

    #[test]
    fn wal_is_followed_across_a_promotion() {
        let backup = set("20261128-100000F", 100, ONE, ONE);
        // Timeline 2 begins within segment 3; segment 3 of timeline 1 is not needed, segment 2 is.
        let fork = Fork { timeline: Timeline(1), switched_at: Lsn(3 * SIZE + 100) };
        let mut promoted =
            archive(&[(ONE, 90), (TWO, 100), ("000000020000000000000003", 200), ("000000020000000000000004", 210)]);
        promoted.histories.insert(2, vec![fork]);
        assert_eq!(promoted.reach(&backup, &RecoveryTarget::Latest), Ok(segment("000000020000000000000004")));
        promoted.segments.remove(&segment(TWO));
        let gap = promoted.reach(&backup, &RecoveryTarget::Latest).expect_err("what the dead primary did not archive");
        assert!(gap.contains(TWO), "{gap}");
    }

    #[test]
    fn marks_and_results_survive_the_journal() {
        let mark = DrillMark {
            lsn: Lsn(77),
            rpo: Duration::from_millis(1500),
            counts: vec![RowCount { table: "app/public.orders".into(), rows: 9 }],
        };
        assert_eq!(mark.to_string().parse::<DrillMark>().expect("read back"), mark);
        assert_eq!(label_of("20261128-143346F: full, 22 MiB"), Some("20261128-143346F"));
        assert_eq!(label_of("20261128-143346F_20261128-150000I: incr"), Some("20261128-143346F_20261128-150000I"));
        for bad in ["", "full", "../../etc/passwd0000", "20261128 143346F"] {
            assert_eq!(label_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_checksum_of_a_manifest_is_found_in_a_note() {
        let digest = "0123456789abcdef".repeat(4);
        assert_eq!(manifest_of(&format!("L: 7 files read back, {MANIFEST_MARK}{digest}")), Some(digest.as_str()));
        for bad in
            ["", "L: 7 files", &format!("L: {MANIFEST_MARK}12"), &format!("L: {MANIFEST_MARK}{}", "x".repeat(64))]
        {
            assert_eq!(manifest_of(bad), None, "{bad}");
        }
    }
}
