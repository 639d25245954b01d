//! The journal of one running operation: a file of lines, each with its checksum.
//!
//! The first line holds the version and the whole plan, and stands whole or not at all (the file
//! is made by [`Disk::replace`]); the others are appended, each durable before the call
//! returns. A crash can tear the last line only: then it was not promised to anyone, and it is
//! ignored. Anything else wrong makes the journal unreadable, and its operation unknown.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::plan::Plan;
use virtsnap_engine::ports::{Entry, Journal, Unfinished};

use crate::atomic::Disk;
use crate::v1::{self, EntryV1, HeadV1, PlanV1, Versioned};
use crate::{checksum, failed};

/// Larger than any plan; what is larger is not a journal.
const MAX_BYTES: u64 = 64 << 20;

/// An open journal. `end` is where the next line goes; beyond it stands nothing that counts.
#[derive(Debug)]
pub(crate) struct JournalFile {
    disk: Disk,
    path: PathBuf,
    file: File,
    end: u64,
}

impl JournalFile {
    /// A new journal with the plan in it.
    pub(crate) fn begin(disk: &Disk, path: &Path, domain: Uuid, plan: &Plan) -> Result<Self> {
        if path.exists() {
            return Err(Error::new(
                Condition::OperationInvalid,
                format!(
                    "an operation of this domain was left unfinished in '{}': it must be \
                     recovered, or the file moved away, first",
                    path.display()
                ),
            ));
        }
        let head = HeadV1 { domain, plan: PlanV1::from(plan) };
        // What cannot be read back could not be recovered: refused before anything is touched.
        Plan::try_from(head.plan.clone()).map_err(|err| {
            let message = "the operation cannot be journalled";
            Error::new(Condition::Internal, message).caused_by(err)
        })?;
        let text = line(&Versioned::new(head))?;
        disk.replace(path, text.as_bytes()).map_err(failed("write the journal", path))?;
        Self::open(disk, path, text.len())
    }

    /// The journal that a crash left, to append to it.
    ///
    /// Written anew without its torn line: what is read now may be in the host's memory only, after
    /// a sync that failed, and recovery acts on it.
    pub(crate) fn resume(disk: &Disk, path: &Path) -> Result<Self> {
        let (_, end) = read(path)?;
        let bytes = fs::read(path).map_err(failed("read the journal", path))?;
        let whole = bytes.get(..end).unwrap_or_default();
        disk.replace(path, whole).map_err(failed("write the journal", path))?;
        Self::open(disk, path, end)
    }

    fn open(disk: &Disk, path: &Path, end: usize) -> Result<Self> {
        let open = OpenOptions::new().write(true).open(path);
        let file = open.map_err(failed("open the journal", path))?;
        Ok(Self { disk: disk.clone(), path: path.to_owned(), file, end: end as u64 })
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        if self.file.metadata()?.len() != self.end {
            // An earlier append failed halfway.
            self.disk.cut(&self.path, &self.file, self.end)?;
        }
        self.disk.append(&self.path, &self.file, self.end, text.as_bytes())?;
        self.end += text.len() as u64;
        Ok(())
    }
}

impl Journal for JournalFile {
    fn record(&mut self, entry: Entry) -> Result<()> {
        let text = line(&EntryV1::from(entry))?;
        self.append(&text).map_err(failed("append to the journal", &self.path))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.disk.remove(&self.path).map_err(failed("remove the journal", &self.path))
    }
}

/// Reads a journal; with it, where its last whole line ends.
pub(crate) fn read(path: &Path) -> Result<(Unfinished, usize)> {
    let unreadable = |what: String| {
        Error::new(
            Condition::OperationFailed,
            format!("journal '{}' cannot be read: {what}", path.display()),
        )
    };
    let meta = fs::metadata(path).map_err(failed("read the journal", path))?;
    if !meta.is_file() {
        // A pipe would never end.
        return Err(unreadable("it is no ordinary file".to_owned()));
    }
    let size = meta.len();
    if size > MAX_BYTES {
        return Err(unreadable(format!("it has {size} bytes")));
    }
    parse(&fs::read(path).map_err(failed("read the journal", path))?).map_err(unreadable)
}

/// The content of a journal, or what is wrong with it.
fn parse(bytes: &[u8]) -> std::result::Result<(Unfinished, usize), String> {
    let mut lines = Lines { rest: bytes, at: 0 };
    let head = lines.next().unwrap_or_else(|| Err("it has no first line".to_owned()))?;
    let head: HeadV1 = v1::from_json(head)?;
    let plan = Plan::try_from(head.plan).map_err(|err| err.to_string())?;
    let mut entries = Vec::new();
    while let Some(next) = lines.next() {
        let entry: EntryV1 = serde_json::from_slice(next?).map_err(|err| err.to_string())?;
        entries.push(Entry::from(entry));
    }
    Ok((Unfinished { domain: head.domain, plan, entries }, lines.at))
}

/// Whole lines with the right checksum.
struct Lines<'a> {
    rest: &'a [u8],
    /// Where the last good line ends.
    at: usize,
}

impl<'a> Lines<'a> {
    /// None at the end, and at a torn line that is the last one.
    fn next(&mut self) -> Option<std::result::Result<&'a [u8], String>> {
        let length = self.rest.iter().position(|byte| *byte == b'\n')?;
        let (text, after) = self.rest.split_at(length);
        let after = after.get(1..).unwrap_or_default();
        match checked(text) {
            Some(json) => {
                self.rest = after;
                self.at += length + 1;
                Some(Ok(json))
            }
            // Blocks of one write may reach the disk in any order: also a line with its end can
            // be torn, but none comes after it.
            None if after.is_empty() => None,
            None => Some(Err(format!("the line at byte {} is damaged", self.at))),
        }
    }
}

fn checked(text: &[u8]) -> Option<&[u8]> {
    let (sum, json) = text.split_at_checked(16)?;
    let json = json.strip_prefix(b" ")?;
    (sum == format!("{:016x}", checksum(json)).as_bytes()).then_some(json)
}

fn line(content: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(content).map_err(|err| {
        Error::new(Condition::Internal, "the journal cannot hold a plan").caused_by(err)
    })?;
    Ok(format!("{:016x} {json}\n", checksum(json.as_bytes())))
}

/// What the fuzz targets drive: the reader of journals, and the writer it has to agree with.
#[doc(hidden)]
pub mod fuzzing {
    use super::*;

    /// The operation in a journal, and where its last whole line ends.
    pub fn parse(bytes: &[u8]) -> Option<(Unfinished, usize)> {
        super::parse(bytes).ok()
    }

    /// A line with its checksum.
    pub fn seal(json: &[u8]) -> Vec<u8> {
        let mut line = format!("{:016x} ", checksum(json)).into_bytes();
        line.extend_from_slice(json);
        line.push(b'\n');
        line
    }

    /// The journal that this operation would leave.
    pub fn write(unfinished: &Unfinished) -> Result<Vec<u8>> {
        let plan = PlanV1::from(&unfinished.plan);
        let mut text = line(&Versioned::new(HeadV1 { domain: unfinished.domain, plan }))?;
        for entry in &unfinished.entries {
            text.push_str(&line(&EntryV1::from(*entry))?);
        }
        Ok(text.into_bytes())
    }
}

#[cfg(test)]
mod tests;
