//! The journal of a running operation, read from outside while the daemon writes it.
//!
//! The kinds of its lines are those of `docs/format.md`: a new kind is asked for by itself.

use std::path::PathBuf;
use std::time::Duration;

use regex::Regex;
use virtsnap_tests::{World, host};

/// The first line, which stands whole or not at all.
pub(crate) const PLAN: &str = "plan";
/// No journal: no operation runs, or one that needs none.
pub(crate) const NONE: &str = "no journal";

/// Every kind of line that a journal can end with.
pub(crate) fn kinds() -> Vec<String> {
    let document = std::fs::read_to_string(host::root().join("docs/format.md")).expect("UTF-8");
    let entries = document.split_once("### Entries").expect("the section is there").1;
    let entries = entries.split_once("\n#").map_or(entries, |(section, _)| section);
    let row = Regex::new(r#"(?m)^\| `\{?"([a-z-]+)""#).expect("a constant");
    let words = row.captures_iter(entries).map(|found| found[1].to_owned());
    std::iter::once(PLAN.to_owned()).chain(words).collect()
}

#[derive(Debug)]
pub(crate) struct Journal(PathBuf);

impl Journal {
    pub(crate) fn of(world: &World, domain: &str) -> Self {
        Self(world.path(&format!("lib/domains/{domain}/journal.jsonl")))
    }

    /// What each whole line is; nothing where there is no journal.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Ok(text) = std::fs::read(&self.0) else { return Vec::new() };
        let text = String::from_utf8_lossy(&text);
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.enumerate().map(|(n, line)| kind(n, line)).collect()
    }

    pub(crate) fn last(&self) -> String {
        self.lines().pop().unwrap_or_else(|| NONE.to_owned())
    }

    /// Watches until there are so many lines of the kind more than in `before`, or it is over.
    pub(crate) fn wait(
        &self,
        kind: &str,
        more: usize,
        before: &[String],
        mut is_over: impl FnMut() -> bool,
    ) {
        let count = |lines: &[String]| lines.iter().filter(|line| *line == kind).count();
        let goal = count(before) + more;
        for turn in 0_u32.. {
            if count(&self.lines()) >= goal || (turn % 8 == 0 && is_over()) {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn kind(n: usize, line: &str) -> String {
    if n == 0 {
        return PLAN.to_owned();
    }
    // Checksum, a blank, and a string or an object of one key.
    line.split('"').nth(1).unwrap_or(line).to_owned()
}
