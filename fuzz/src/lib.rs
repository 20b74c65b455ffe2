//! What the fuzzers feed: the functions of `tests/parsers/targets.rs`, which `make test` feeds as well, and the trainer's tables.

#[path = "../../tests/parsers/targets.rs"]
pub mod targets;

#[path = "../../training/table.rs"]
#[allow(dead_code)]
mod table;

/// The trainer's tables.
pub mod csv {
    use super::table::Table;

    /// A table is read, or refused with file and line.
    pub fn tables(bytes: &[u8]) {
        match Table::parse(bytes, "table.csv") {
            Ok(table) => assert_eq!(table.samples.features(), table.columns.len()),
            Err(error) => assert!(format!("{error:#}").starts_with("table.csv: "), "{error:#}"),
        }
    }
}
