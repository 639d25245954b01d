//! The log of one domain: what QEMU was started with and what it says. Also where its last words
//! are found when it ends too early.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use uuid::Uuid;
use virtsnap_engine::error::Result;

use crate::argv::CommandLine;
use crate::confine::failed;
use crate::hypervisor::QemuConfig;
use crate::launch::private_file;

/// Of QEMU's words more than that is not told.
const LAST_WORDS: u64 = 4096;

#[derive(Debug)]
pub(crate) struct DomainLog {
    path: PathBuf,
    /// Where QEMU's own words of this run begin.
    begin: u64,
}

impl DomainLog {
    pub(crate) fn open(config: &QemuConfig, name: &str, uuid: Uuid) -> Result<Self> {
        let dir = &config.log_dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|err| failed("make the directory", dir, err))?;
        let is_plain = !name.contains('/') && !name.starts_with('.') && name.len() < 200;
        let path = match is_plain {
            true => dir.join(format!("{name}.log")),
            false => dir.join(format!("{uuid}.log")),
        };
        Ok(Self { path, begin: 0 })
    }

    pub(crate) fn beside(&self, what: &str) -> PathBuf {
        self.path.with_extension(format!("{what}.log"))
    }

    /// Writes what is about to be run.
    pub(crate) fn begin(&mut self, command: &CommandLine) -> Result<()> {
        let write = || -> io::Result<u64> {
            let mut file = private_file(&self.path)?;
            let now = chrono::Utc::now().format("%Y-%m-%d %H:%M:%S%.3f+0000");
            write!(file, "{now}: starting up\n{}", command.program)?;
            for argument in &command.args {
                write!(file, " \\\n  {}", quoted(argument))?;
            }
            writeln!(file)?;
            Ok(file.metadata()?.len())
        };
        self.begin = write().map_err(|err| failed("write", &self.path, err))?;
        Ok(())
    }

    pub(crate) fn writer(&self) -> Result<Stdio> {
        let file = private_file(&self.path).map_err(|err| failed("open", &self.path, err))?;
        Ok(Stdio::from(file))
    }

    /// What QEMU said in this run, in one line.
    pub(crate) fn last_words(&self) -> String {
        let text = read_from(&self.path, self.begin).unwrap_or_default();
        let said: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match said.is_empty() {
            true => format!("it said nothing; see '{}'", self.path.display()),
            false => said.join("; "),
        }
    }
}

fn read_from(path: &Path, begin: u64) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
    if argument.is_empty() || !argument.chars().all(is_plain) {
        format!("'{}'", argument.replace('\'', "'\\''"))
    } else {
        argument.to_owned()
    }
}
