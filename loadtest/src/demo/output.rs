//! The only place of the demo that writes to the terminal.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Error;

/// Where nobody watches, the state of the lanes is said this often.
const PLAIN_EVERY: Duration = Duration::from_secs(6);

/// Lines that are drawn again and again on a terminal, and said now and then elsewhere.
pub(super) struct Output {
    terminal: bool,
    drawn: usize,
    said_at: Instant,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), drawn: 0, said_at: Instant::now() }
    }

    /// Text that stays.
    pub(super) fn say(&mut self, text: &str) {
        self.drawn = 0;
        // A reader that went away is no reason to stop.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// The lanes as they stand.
    pub(super) fn draw(&mut self, lines: &[String]) {
        if self.terminal {
            self.redraw(lines);
        } else if self.said_at.elapsed() >= PLAIN_EVERY {
            self.said_at = Instant::now();
            self.say(&format!("{}\n", lines.join("\n")));
        }
    }

    /// The lanes for the last time.
    pub(super) fn last(&mut self, lines: &[String]) {
        if self.terminal {
            self.redraw(lines);
            self.say("");
        } else {
            self.say(&format!("{}\n", lines.join("\n")));
        }
    }

    fn redraw(&mut self, lines: &[String]) {
        let mut out = String::new();
        if self.drawn > 0 {
            out.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in lines {
            out.push_str(&format!("\x1b[2K{line}\n"));
        }
        self.drawn = lines.len();
        let _ = std::io::stdout().lock().write_all(out.as_bytes());
    }
}

/// Says why the demo could not be played.
pub(super) fn complain(error: &Error, dir: &Path) {
    let logs = dir.join("logs");
    let _ = writeln!(std::io::stderr().lock(), "\ndemo: {error}\nThe programs' logs are in {}", logs.display());
}
