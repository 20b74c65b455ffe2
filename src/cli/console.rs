//! Where a command reads and writes: the terminal, pipes, or memory in tests.
//!
//! Data goes to stdout, everything else to stderr.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::sync::{Arc, Mutex};

use super::arguments::ColourChoice;
use crate::config::environment;

/// The three streams and what is known of them.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    input: Arc<Mutex<dyn BufRead + Send>>,
    /// stdout is a terminal: tables with header and colour.
    pub out_is_terminal: bool,
    /// stderr is a terminal: live progress.
    pub err_is_terminal: bool,
    /// Somebody can answer a question.
    pub interactive: bool,
    /// Write colour.
    pub colour: bool,
    refuses_colour: bool,
    /// The operator's bearer token.
    pub token: Option<String>,
}

/// What a command wrote in a test.
#[derive(Clone, Default)]
pub struct Captured {
    out: Buffer,
    err: Buffer,
}

impl Captured {
    /// stdout so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// stderr so far.
    pub fn err(&self) -> String {
        self.err.text()
    }
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no writer panics")).into_owned()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Stdin that locks only while it is read, so that nobody holds it while a command works.
struct Stdin;

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::stdin().read(buffer)
    }
}

impl Console {
    /// The streams of this process.
    pub fn of_process() -> Self {
        let out_is_terminal = io::stdout().is_terminal();
        let err_is_terminal = io::stderr().is_terminal();
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            input: Arc::new(Mutex::new(io::BufReader::new(Stdin))),
            out_is_terminal,
            // indicatif looks at its own stream only; a table that is piped away deserves plain lines.
            err_is_terminal: err_is_terminal && out_is_terminal,
            interactive: io::stdin().is_terminal() && err_is_terminal,
            colour: false,
            refuses_colour: environment::refuses_colour(),
            token: environment::token(),
        }
    }

    /// Streams in memory, as on a terminal with somebody who types `input`, or piped with nobody there.
    pub fn in_memory(terminal: bool, input: &str, token: Option<&str>) -> (Self, Captured) {
        let captured = Captured::default();
        let console = Self {
            out: Box::new(captured.out.clone()),
            err: Box::new(captured.err.clone()),
            input: Arc::new(Mutex::new(io::Cursor::new(input.as_bytes().to_vec()))),
            out_is_terminal: terminal,
            // Live progress goes past these streams, straight to the process's terminal.
            err_is_terminal: false,
            interactive: terminal,
            colour: false,
            refuses_colour: true,
            token: token.map(str::to_owned),
        };
        (console, captured)
    }

    /// Applies `--color`.
    pub fn choose_colour(&mut self, choice: ColourChoice) {
        self.colour = match choice {
            ColourChoice::Always => true,
            ColourChoice::Never => false,
            ColourChoice::Auto => self.out_is_terminal && !self.refuses_colour,
        };
    }

    /// Data.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Everything else. A stderr that nobody reads stops no command.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.err, "{text}").and_then(|()| self.err.flush());
    }

    /// Everything that is piped in.
    pub fn read_all(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.input.lock().expect("no reader panics").read_to_string(&mut text)?;
        Ok(text)
    }

    /// Asks and waits for a line; `None` at the end of the input.
    pub async fn ask(&mut self, question: &str) -> Option<String> {
        let _ = write!(self.err, "{question} ").and_then(|()| self.err.flush());
        let input = Arc::clone(&self.input);
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            match input.lock().expect("no reader panics").read_line(&mut line) {
                Ok(0) | Err(_) => None,
                Ok(_) => Some(line.trim().to_owned()),
            }
        });
        line.await.ok().flatten()
    }
}
