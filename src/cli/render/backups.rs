//! `backups`: what is in the repository, oldest first, and how far it reaches.

use super::{Cell, Look, Table, Tone, words};
use crate::api::wire::BackupList;

/// The whole list.
pub fn render(list: &BackupList, look: Look) -> String {
    let mut table = Table::new(&["BACKUP", "TYPE", "COMPLETE", ">DATABASE", ">REPOSITORY", "CONSISTENT", "READ BACK"]);
    for set in &list.repository.backups {
        let read_back = match list.verified.get(&set.label) {
            _ if set.has_error => Cell::toned("has an error", Tone::Bad),
            Some(verified) => Cell::toned(verified.at.to_string(), Tone::Good),
            None => Cell::toned("no", Tone::Warning),
        };
        let size = |bytes: u64| if look.terminal { words::bytes(bytes) } else { bytes.to_string() };
        table.row(vec![
            set.label.as_str().into(),
            set.backup_type.label().into(),
            set.ended.to_string().into(),
            size(set.database_bytes).into(),
            size(set.repository_bytes).into(),
            set.stop_lsn.to_string().into(),
            read_back,
        ]);
    }
    if !look.terminal {
        return table.render(look);
    }
    let mut text = match table.is_empty() {
        true => "No backup yet. Next: stormglass backup\n".to_owned(),
        false => table.render(look),
    };
    let repository = &list.repository;
    if let (Some(first), Some(last)) = (repository.first_segment, repository.last_segment) {
        text.push_str(&format!("\nWAL from {first} to {last}"));
        match repository.newest_wal_at {
            Some(at) => text.push_str(&format!(", the newest of {at}\n")),
            None => text.push('\n'),
        }
    }
    if let Some(problem) = &repository.problem {
        text.push_str(&format!("{}: {problem}\n", look.paint(Tone::Warning, "Repository")));
    }
    text.push_str(&format!("Seen by {}.\n", list.seen_by));
    text
}
