//! What a former primary had written and nobody else has, as its agent says when it comes back: part of a step's words, and read from them.

use std::fmt;

use super::clock::WallTime;

/// How the words begin.
const MARK: &str = "lost: ";
/// What follows the number.
const BYTES: &str = " bytes of WAL";
/// What the time follows.
const LAST: &str = ", last commit of ";

/// WAL that the new history does not contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostWal {
    /// From where the histories part until the last record.
    pub bytes: u64,
    /// When the last transaction in it was committed, on the former primary's clock; `None` if it held none, or nobody can tell.
    pub last_commit_at: Option<WallTime>,
}

impl LostWal {
    /// What `words` say; `None` if they say nothing of it.
    pub fn find(words: &str) -> Option<Self> {
        let (bytes, rest) = words.split_once(MARK)?.1.split_once(BYTES)?;
        let at = rest.strip_prefix(LAST).and_then(|rest| rest.split([';', ' ']).next());
        let last_commit_at = at.and_then(|at| WallTime::try_from(at.to_owned()).ok());
        Some(Self { bytes: bytes.parse().ok()?, last_commit_at })
    }
}

impl fmt::Display for LostWal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{MARK}{}{BYTES}", self.bytes)?;
        self.last_commit_at.map_or(Ok(()), |at| write!(formatter, "{LAST}{at}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read() {
        let at = WallTime::try_from("2026-11-28T21:18:05.5Z".to_owned()).ok();
        for lost in [LostWal { bytes: 4096, last_commit_at: at }, LostWal { bytes: 0, last_commit_at: None }] {
            assert_eq!(LostWal::find(&format!("rewound; it held 2 commits; {lost}; more")), Some(lost));
        }
        assert_eq!(LostWal::find("in_place"), None);
    }
}
