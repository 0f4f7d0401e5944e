//! The only place of this crate that writes to the terminal.

use std::io::{IsTerminal as _, Write as _};

/// JSON lines, or lines on a terminal that are drawn again and again.
pub(super) struct Output {
    json: bool,
    drawn: usize,
}

impl Output {
    /// JSON if asked for, or if nobody looks.
    pub(super) fn new(json: bool) -> Self {
        Self { json: json || !std::io::stdout().is_terminal(), drawn: 0 }
    }

    /// One JSON line; nothing on a terminal.
    pub(super) fn line(&self, value: &serde_json::Value) {
        if self.json {
            // A reader that went away is no reason to stop recording.
            let _ = writeln!(std::io::stdout().lock(), "{value}");
        }
    }

    /// Draws the lines over those before; nothing as JSON.
    pub(super) fn draw(&mut self, lines: &[String]) {
        if self.json {
            return;
        }
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

/// Says why a command can't begin.
pub(super) fn complain(error: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "waystation-client: {error}");
}
