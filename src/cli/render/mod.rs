//! Documents of the wire as text, for people on a terminal and for pipes. Pure: fetches nothing, asks no clock.
//!
//! `?` is unknown, `-` does not apply; neither is ever written as 0. Colour repeats what a word says already.

pub mod backups;
pub mod cluster;
pub mod doctor;
pub mod explain;
pub mod lists;
pub mod model;
pub mod notification;
pub mod operation;
pub mod plan;
pub mod risk;
pub mod sequence;
pub mod status;
pub mod words;

/// How text is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// For a terminal: aligned, with header and rounded times. Else tabs, no header, exact values.
    pub terminal: bool,
    /// With colour.
    pub colour: bool,
    /// With more detail.
    pub verbose: bool,
}

/// What a word means; colour follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    Plain,
    /// As it should be.
    Good,
    /// Look at it.
    Warning,
    /// Act.
    Bad,
    /// Less important than the rest.
    Faint,
}

impl Look {
    /// `text` in the colour of `tone`.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            _ if !self.colour => return text.to_owned(),
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31;1",
            Tone::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// With a meaning.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// Rows under a header.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows. A title that begins with `>` is aligned to the right.
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.header.len(), "a row has a cell for every column");
        self.rows.push(cells);
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text: aligned with a header on a terminal; one tab-separated line a row in a pipe.
    pub fn render(&self, look: Look) -> String {
        if !look.terminal {
            return self.rows.iter().map(|row| tabbed(row.iter().map(|cell| cell.text.as_str()))).collect();
        }
        let titles: Vec<&str> = self.header.iter().map(|title| title.trim_start_matches('>')).collect();
        let widths: Vec<usize> = titles
            .iter()
            .enumerate()
            .map(|(column, title)| {
                let cells = self.rows.iter().map(|row| row[column].text.chars().count());
                cells.chain([title.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let header: Vec<Cell> = titles.iter().map(|title| Cell::toned(*title, Tone::Faint)).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let fill = " ".repeat(widths[column] - cell.text.chars().count());
                let painted = look.paint(cell.tone, &cell.text);
                let is_last = column + 1 == row.len();
                match (self.header[column].starts_with('>'), is_last) {
                    (true, _) => line.push_str(&format!("{fill}{painted}")),
                    (false, true) => line.push_str(&painted),
                    (false, false) => line.push_str(&format!("{painted}{fill}")),
                }
                if !is_last {
                    line.push_str("  ");
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// One line for a pipe. A tab or newline inside a value would be read as a separator.
pub fn tabbed<'t>(values: impl IntoIterator<Item = &'t str>) -> String {
    let mut line: Vec<String> = Vec::new();
    for value in values {
        line.push(value.replace(['\t', '\n', '\r'], " "));
    }
    line.join("\t") + "\n"
}
