//! Tables of samples: CSV files, plain or gzipped, and the errors that say where one is wrong.
//!
//! What lives here: [`Table`]. What never enters: scaling; a cell is a number, or a gap (empty, `NaN`), or an error with file, line and
//! column.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use flate2::read::MultiGzDecoder;
use stormglass::predict::Samples;

/// Names of a first column that holds times, which are kept aside.
const TIME_COLUMNS: [&str; 4] = ["timestamp", "time", "date", "datetime"];

/// Samples with the names of their columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Names of the features, in the order of the samples.
    pub columns: Vec<String>,
    /// The times of the rows, as they stand in the file; empty if there is no such column.
    pub times: Vec<String>,
    /// The samples.
    pub samples: Samples,
}

/// Opens a file for reading, unpacked if its name ends with `.gz`.
pub fn open(path: &Path) -> anyhow::Result<Box<dyn Read>> {
    let file = BufReader::new(File::open(path).with_context(|| format!("open {}", path.display()))?);
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    Ok(if is_packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

impl Table {
    /// Reads a file. A first line that holds a word other than a number is a header.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        Self::parse(open(path)?, &path.display().to_string())
    }

    /// Reads CSV text; `name` stands for the file in errors.
    pub fn parse(text: impl Read, name: &str) -> anyhow::Result<Self> {
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(text);
        let mut table: Option<(Self, bool)> = None;
        let mut row = Vec::new();
        let mut record = csv::StringRecord::new();
        let mut line = 0;
        while reader.read_record(&mut record).with_context(|| format!("{name}: line {}", line + 1))? {
            line = record.position().map_or(line + 1, csv::Position::line);
            let Some((table, has_times)) = &mut table else {
                let first = Self::begin(&record);
                let is_header = first.1;
                let begun = table.insert((first.0, first.2));
                if !is_header {
                    begun.0.add(&record, begun.1, &mut row, name, line)?;
                }
                continue;
            };
            table.add(&record, *has_times, &mut row, name, line)?;
        }
        let Some((table, _)) = table else { bail!("{name}: the file is empty, expected rows of numbers") };
        ensure!(!table.columns.is_empty(), "{name}: line 1: there is no column of numbers");
        Ok(table)
    }

    /// An empty table, whether the first record is a header, and whether its first column holds times.
    fn begin(record: &csv::StringRecord) -> (Self, bool, bool) {
        let is_header = record.iter().any(|cell| cell.parse::<f32>().is_err() && !cell.is_empty());
        let has_times =
            is_header && record.get(0).is_some_and(|cell| TIME_COLUMNS.contains(&cell.to_lowercase().as_str()));
        let columns: Vec<String> = if is_header {
            record.iter().skip(usize::from(has_times)).map(str::to_owned).collect()
        } else {
            (0..record.len()).map(|column| format!("m{column:02}")).collect()
        };
        let samples = Samples::new(columns.len());
        (Self { columns, times: Vec::new(), samples }, is_header, has_times)
    }

    fn add(
        &mut self,
        record: &csv::StringRecord,
        has_times: bool,
        row: &mut Vec<Option<f32>>,
        name: &str,
        line: u64,
    ) -> anyhow::Result<()> {
        let skipped = usize::from(has_times);
        let expected = self.columns.len() + skipped;
        ensure!(
            record.len() == expected,
            "{name}: line {line}: {} columns, expected {expected} as in the first line",
            record.len()
        );
        row.clear();
        for (column, cell) in record.iter().enumerate().skip(skipped) {
            let value = match cell {
                "" => None,
                cell => Some(cell.parse::<f32>().ok().with_context(|| {
                    format!(
                        "{name}: line {line}, column {} ({}): {cell:?} is no number; leave the cell empty for a gap",
                        column + 1,
                        self.columns[column - skipped]
                    )
                })?),
            };
            row.push(value);
        }
        if has_times {
            self.times.push(record.get(0).unwrap_or_default().to_owned());
        }
        self.samples.push(row);
        Ok(())
    }

    /// The same samples with exactly these columns, in this order.
    pub fn with_columns(self, columns: &[String], name: &str) -> anyhow::Result<Self> {
        if self.columns == columns {
            return Ok(self);
        }
        let order = columns
            .iter()
            .map(|wanted| {
                self.columns.iter().position(|column| column == wanted).with_context(|| {
                    format!(
                        "{name}: column {wanted:?} is missing; the model wants {} columns, the file has {} ({})",
                        columns.len(),
                        self.columns.len(),
                        self.columns.join(", ")
                    )
                })
            })
            .collect::<anyhow::Result<Vec<usize>>>()?;
        let mut samples = Samples::new(columns.len());
        let mut row = Vec::new();
        for index in 0..self.samples.rows() {
            self.samples.read(index, &mut row);
            let ordered: Vec<Option<f32>> = order.iter().map(|&column| row[column]).collect();
            samples.push(&ordered);
        }
        Ok(Self { columns: columns.to_vec(), times: self.times, samples })
    }
}

/// Reads labels: the last cell of each line, 0 or 1; a first line of words is a header.
pub fn read_labels(path: &Path) -> anyhow::Result<Vec<bool>> {
    let table = Table::read(path)?;
    Ok(table.samples.column(table.columns.len() - 1).into_iter().map(|label| label > 0.5).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Table> {
        Table::parse(text.as_bytes(), "t.csv")
    }

    fn refused(text: &str) -> String {
        format!("{:#}", parse(text).expect_err("refused"))
    }

    #[test]
    fn a_header_is_told_from_numbers() {
        let with = parse("a,b\n1,2\n3,\n").expect("a table");
        assert_eq!((with.columns.clone(), with.samples.rows()), (vec!["a".to_owned(), "b".to_owned()], 2));
        assert_eq!(with.samples.column(1), [2.0], "an empty cell is a gap");
        let without = parse("1,2\n3,nan\n").expect("a table");
        assert_eq!((without.columns[1].as_str(), without.samples.rows()), ("m01", 2));
        assert_eq!(without.samples.column(1), [2.0]);
    }

    #[test]
    fn a_column_of_times_is_kept_aside() {
        let table = parse("timestamp,value\n2014-05-14 01:14:00,85.8\n").expect("a table");
        assert_eq!(
            (table.columns.clone(), table.times.clone()),
            (vec!["value".to_owned()], vec!["2014-05-14 01:14:00".to_owned()])
        );
    }

    #[test]
    fn errors_name_file_line_and_column() {
        assert_eq!(
            refused("a,b\n1,2\n3,x\n"),
            "t.csv: line 3, column 2 (b): \"x\" is no number; leave the cell empty for a gap"
        );
        assert_eq!(refused("a,b\n1,2,3\n"), "t.csv: line 2: 3 columns, expected 2 as in the first line");
        assert_eq!(refused(""), "t.csv: the file is empty, expected rows of numbers");
    }

    #[test]
    fn columns_are_found_by_name() {
        let table = parse("b,a,c\n1,2,3\n").expect("a table");
        let wanted = ["a".to_owned(), "b".to_owned()];
        let ordered = table.clone().with_columns(&wanted, "t.csv").expect("both are there");
        assert_eq!((ordered.samples.column(0), ordered.samples.column(1)), (vec![2.0], vec![1.0]));
        let missing = table.with_columns(&["z".to_owned()], "t.csv").expect_err("z is not there").to_string();
        assert!(missing.contains("column \"z\" is missing"), "{missing}");
    }
}
