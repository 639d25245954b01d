//! What a guest says on its console, and waiting for it.
//!
//! The test guest (`tests/guest`) prints `MATCH n` once a second while memory and disks belong to
//! the same moment, `MISMATCH …` when they do not, and `START n` after a boot, n being what it
//! found on its disk. The guest with an agent (`tests/agent-guest`) prints `WROTE n` instead, for
//! the lines of a log on a mounted file system. It all is in a file, which is where we read it.

use std::path::{Path, PathBuf};

use crate::host;

/// A place on the console: what comes after it is new.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl Mark {
    /// The beginning of the console.
    pub fn start() -> Self {
        Self(0)
    }
}

/// One guest's, under whatever hypervisor.
#[derive(Debug, Clone)]
pub struct Console {
    guest: String,
    file: PathBuf,
    /// How many seconds a boot may take on a machine that does many things at once.
    pub boot: u64,
    /// How many until the guest says something again.
    pub patience: u64,
}

impl Console {
    pub fn new(guest: &str, file: PathBuf) -> Self {
        Self { guest: guest.to_owned(), file, boot: 180, patience: 60 }
    }

    pub fn path(&self) -> &Path {
        &self.file
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.file).unwrap_or_default()).into_owned()
    }

    /// The end of the console now.
    pub fn mark(&self) -> Mark {
        Mark(self.text().len())
    }

    /// Complete lines after a mark.
    pub fn lines(&self, mark: Mark) -> Vec<String> {
        let text = self.text();
        let new = text.get(mark.0..).unwrap_or_default();
        let complete = new.rfind('\n').map_or("", |end| &new[..end]);
        complete.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Waits for a line that starts with `word`, and gives the number after it.
    #[track_caller]
    pub fn number_after(&self, mark: Mark, word: &str, seconds: u64) -> u64 {
        host::wait(&format!("'{word}' of guest {}", self.guest), seconds, || {
            let lines = self.lines(mark);
            let rest = lines.iter().find_map(|line| line.strip_prefix(word))?.trim().to_owned();
            rest.split(' ').next()?.parse().ok()
        })
    }

    /// Waits for a boot after the mark; gives what the guest found on its disk.
    #[track_caller]
    pub fn booted(&self, mark: Mark) -> u64 {
        let found = self.number_after(mark, "START ", self.boot);
        self.number_after(mark, "MATCH ", self.patience);
        found
    }

    /// Waits for the next count after the mark.
    #[track_caller]
    pub fn next_match(&self, mark: Mark) -> u64 {
        self.number_after(mark, "MATCH ", self.patience)
    }

    /// Waits until the guest has counted to `n`.
    #[track_caller]
    pub fn reach(&self, n: u64) {
        host::wait(&format!("MATCH {n} of guest {}", self.guest), self.patience, || {
            self.last_match().filter(|&last| last >= n)
        });
    }

    /// The same, of what it said after the mark.
    #[track_caller]
    pub fn reach_after(&self, mark: Mark, n: u64) {
        host::wait(&format!("MATCH {n} of guest {}", self.guest), self.patience, || {
            let lines = self.lines(mark);
            let counts = lines.iter().filter_map(|line| line.strip_prefix("MATCH ")?.parse().ok());
            counts.max().filter(|&last: &u64| last >= n)
        });
    }

    /// What the guest counted last.
    pub fn last_match(&self) -> Option<u64> {
        let lines = self.lines(Mark(0));
        lines.iter().rev().find_map(|line| line.strip_prefix("MATCH ")?.parse().ok())
    }

    /// Lets the guest count on by `steps` from where it is; gives where it arrived.
    #[track_caller]
    pub fn count_on(&self, steps: u64) -> u64 {
        let goal = self.last_match().unwrap_or(0) + steps;
        self.reach(goal);
        goal
    }

    /// What it had counted last at the mark.
    pub fn last_match_before(&self, mark: Mark) -> Option<u64> {
        let text = self.text();
        let old = text.get(..mark.0).unwrap_or_default();
        let complete = old.rfind('\n').map_or("", |end| &old[..end]);
        complete.lines().rev().find_map(|line| line.strip_prefix("MATCH ")?.trim_end().parse().ok())
    }

    /// Waits until the guest, which counted on after the mark for as long as that took, counts from
    /// further back: its memory was reverted. Gives where it goes on.
    #[track_caller]
    pub fn back_at(&self, mark: Mark) -> u64 {
        host::wait(
            &format!("guest {} to count from further back", self.guest),
            self.patience,
            || {
                let mut last = self.last_match_before(mark)?;
                let lines = self.lines(mark);
                let counts =
                    lines.iter().filter_map(|line| line.strip_prefix("MATCH ")?.parse().ok());
                for count in counts {
                    if count <= last {
                        return Some(count);
                    }
                    last = count;
                }
                None
            },
        )
    }

    /// Memory and disks never disagreed.
    #[track_caller]
    pub fn never_mismatched(&self) {
        let lines = self.lines(Mark(0));
        let bad: Vec<_> = lines.iter().filter(|line| line.contains("MISMATCH")).collect();
        assert!(bad.is_empty(), "memory and disk were not of one moment: {bad:?}");
    }

    /// Waits for a line after the mark that starts like this.
    #[track_caller]
    pub fn said(&self, mark: Mark, start: &str) -> String {
        host::wait(&format!("'{start}' of guest {}", self.guest), self.patience, || {
            self.lines(mark).into_iter().find(|line| line.starts_with(start))
        })
    }
}
