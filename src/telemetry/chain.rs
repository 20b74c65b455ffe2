//! The chain of the audit log: how rows are bound to the ones before them, and how that is checked.
//!
//! Stores append with [`append`]; the command line checks with [`verify`] what it was given. What a chain cannot show is that its
//! newest rows are missing: note down a number and its hash elsewhere, and ask for it again.

use sha2::{Digest, Sha256};

use crate::domain::trail::{AuditEntry, AuditRow};

/// Puts `row` behind `last`; the first where there is none.
pub fn append(last: Option<&AuditEntry>, row: AuditRow) -> AuditEntry {
    let number = last.map_or(1, |last| last.number + 1);
    let previous = last.map(|last| last.hash.clone()).unwrap_or_default();
    let hash = hash(&previous, number, &row);
    AuditEntry { number, previous, hash, row }
}

/// SHA-256 over fields that are each preceded by their length, so that no two rows look the same.
fn hash(previous: &str, number: u64, row: &AuditRow) -> String {
    let mut digest = Sha256::new();
    let wall = String::from(row.wall);
    for field in [previous, &number.to_string(), &wall, &row.who, &row.from, &row.what, &row.outcome] {
        digest.update((field.len() as u64).to_be_bytes());
        digest.update(field.as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The row is not what its hash was made of.
    #[error("row {0} was changed after it was written: its hash does not fit")]
    Changed(u64),
    /// A row does not follow the one before it.
    #[error("row {next} does not follow row {after}: rows between them were taken out, put in or reordered")]
    Gap {
        /// The row before.
        after: u64,
        /// The row that should follow.
        next: u64,
    },
    /// A row without a place behind rows that have one.
    #[error("a row without a place in the chain stands behind row {0}")]
    Unchained(u64),
}

/// What a log that holds together consists of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Rows in the chain.
    pub rows: usize,
    /// Rows from before there was a chain; nothing is known of them.
    pub unchained: usize,
    /// Number of the first row in the chain; older ones were removed because of their age.
    pub first: u64,
    /// Number of the last one.
    pub last: u64,
    /// Its hash.
    pub head: String,
}

/// Checks rows, oldest first.
pub fn verify(entries: &[AuditEntry]) -> Result<Verified, Broken> {
    let mut verified = Verified::default();
    let mut last: Option<&AuditEntry> = None;
    for entry in entries {
        if entry.number == 0 {
            if let Some(last) = last {
                return Err(Broken::Unchained(last.number));
            }
            verified.unchained += 1;
            continue;
        }
        if let Some(last) = last
            && (entry.number != last.number + 1 || entry.previous != last.hash)
        {
            return Err(Broken::Gap { after: last.number, next: entry.number });
        }
        if entry.hash != hash(&entry.previous, entry.number, &entry.row) {
            return Err(Broken::Changed(entry.number));
        }
        if last.is_none() {
            verified.first = entry.number;
        }
        verified.rows += 1;
        last = Some(entry);
    }
    if let Some(last) = last {
        verified.last = last.number;
        verified.head = last.hash.clone();
    }
    Ok(verified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::WallTime;

    fn log(length: u64) -> Vec<AuditEntry> {
        let mut entries: Vec<AuditEntry> = Vec::new();
        for index in 0..length {
            let row = AuditRow {
                wall: WallTime(1_795_000_000_000_000 + index as i64),
                who: "ann".to_owned(),
                from: "127.0.0.1:1".to_owned(),
                what: format!("pause main {index}"),
                outcome: "accepted".to_owned(),
            };
            entries.push(append(entries.last(), row));
        }
        entries
    }

    #[test]
    fn a_log_as_it_was_written_holds_together() {
        let entries = log(5);
        let verified = verify(&entries).expect("whole");
        assert_eq!((verified.rows, verified.first, verified.last), (5, 1, 5));
        assert_eq!(verified.head, entries[4].hash);
        let trimmed = verify(&entries[2..]).expect("the oldest may be gone");
        assert_eq!((trimmed.rows, trimmed.first), (3, 3));
        assert_eq!(verify(&[]), Ok(Verified::default()));
    }

    #[test]
    fn every_change_is_found() {
        let entries = log(5);
        for field in 0..5 {
            let mut changed = entries.clone();
            let row = &mut changed[2].row;
            match field {
                0 => row.wall = WallTime(row.wall.0 + 1_000),
                1 => row.who = "bob".to_owned(),
                2 => row.from.push('0'),
                3 => row.what = "resume main".to_owned(),
                _ => row.outcome.clear(),
            }
            assert_eq!(verify(&changed), Err(Broken::Changed(3)), "field {field}");
        }
        let mut removed = entries.clone();
        removed.remove(2);
        assert_eq!(verify(&removed), Err(Broken::Gap { after: 2, next: 4 }));
        let mut swapped = entries.clone();
        swapped.swap(1, 2);
        assert!(verify(&swapped).is_err());
        let mut forged = entries.clone();
        forged[2] = append(Some(&forged[1]), AuditRow { who: "bob".to_owned(), ..forged[2].row.clone() });
        assert_eq!(verify(&forged), Err(Broken::Gap { after: 3, next: 4 }), "a new hash does not help");
    }

    #[test]
    fn a_field_cannot_borrow_from_its_neighbour() {
        let row = |who: &str, from: &str| AuditRow {
            wall: WallTime(1),
            who: who.to_owned(),
            from: from.to_owned(),
            what: String::new(),
            outcome: String::new(),
        };
        assert_ne!(hash("", 1, &row("ab", "c")), hash("", 1, &row("a", "bc")));
    }
}
