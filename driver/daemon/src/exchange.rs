//! Moving a host's domains from libvirt to virtsnap and back: explicit acts on files, while no
//! daemon runs.
//!
//! libvirt keeps a definition in `CONFIG/NAME.xml` and a snapshot in `STATE/snapshot/NAME/*.xml`
//! (its Xen driver knows no snapshots, and has definitions alone);
//! our store has the same documents elsewhere, and knows besides which files it may remove. Images,
//! memory files and NVRAM stay where they are. Why it is done here and not by a client:
//! docs/decisions/0007-import-and-export.md.
//!
//! - [`mod@import`]: from libvirt's directories into the store;
//! - [`mod@export`]: the other way.
//!
//! One domain that cannot be moved does not hold up the others, and what cannot be moved with all
//! that belongs to it is left alone, with a word on why.

mod export;
mod import;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::{Element, MAX_BYTES};

use crate::config::{Config, Hypervisor, Mode};

pub(crate) use export::export;
pub(crate) use import::import;

/// What is moved, and where libvirt has it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Exchange {
    /// Only these domains; without, all
    #[arg(value_name = "DOMAIN")]
    domains: Vec<String>,
    /// Also those that are on the other side already: what is there is replaced
    #[arg(long)]
    replace: bool,
    /// libvirt's definitions (/etc/libvirt/qemu, on Xen /etc/libvirt/libxl; in session mode
    /// ~/.config/libvirt/qemu)
    #[arg(long, value_name = "DIR")]
    libvirt_config: Option<PathBuf>,
    /// The parent of its `snapshot` and `save` (/var/lib/libvirt/qemu, …/libxl)
    #[arg(long, value_name = "DIR")]
    libvirt_state: Option<PathBuf>,
    /// What it notes of running domains (/run/libvirt/qemu, …/libxl)
    #[arg(long, value_name = "DIR")]
    libvirt_run: Option<PathBuf>,
}

impl Exchange {
    fn wants(&self, name: &str) -> bool {
        self.domains.is_empty() || self.domains.iter().any(|wanted| wanted == name)
    }

    fn libvirt(&self, ours: &Config) -> Result<Libvirt> {
        let [config, state, run] = match ours.mode {
            Mode::System => {
                let driver = ours.hypervisor.libvirt_name();
                ["/etc/libvirt", "/var/lib/libvirt", "/run/libvirt"]
                    .map(|dir| Path::new(dir).join(driver))
            }
            Mode::Session => session_directories()?,
        };
        Ok(Libvirt {
            config: self.libvirt_config.clone().unwrap_or(config),
            state: self.libvirt_state.clone().unwrap_or(state),
            run: self.libvirt_run.clone().unwrap_or(run),
        })
    }
}

/// As libvirt's driver finds them for an ordinary user.
fn session_directories() -> Result<[PathBuf; 3]> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = variable("HOME").ok_or_else(|| {
        let message = "HOME is not set: say where libvirt's files are with --libvirt-config";
        Error::new(Condition::InvalidArgument, message)
    })?;
    let config = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    let config = config.join("libvirt/qemu");
    let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| home.join(".cache"));
    Ok([config.clone(), config, runtime.join("libvirt/qemu/run")])
}

/// libvirt's directories.
struct Libvirt {
    config: PathBuf,
    state: PathBuf,
    run: PathBuf,
}

impl Libvirt {
    fn definition(&self, name: &str) -> PathBuf {
        self.config.join(format!("{name}.xml"))
    }

    fn autostart(&self, name: &str) -> PathBuf {
        self.config.join("autostart").join(format!("{name}.xml"))
    }

    fn snapshots(&self, name: &str) -> PathBuf {
        self.state.join("snapshot").join(name)
    }

    /// Refused while libvirt has more of the domain than definitions: a process, or saved memory
    /// that fits only the disks as they are now.
    fn check_at_rest(&self, name: &str) -> Result<()> {
        let refused = |why: String| Err(Error::new(Condition::OperationInvalid, why));
        if self.run.join(format!("{name}.xml")).exists() {
            return refused("it runs under libvirt: shut it down there first".to_owned());
        }
        let save = self.state.join("save").join(format!("{name}.save"));
        if save.exists() {
            return refused(format!(
                "libvirt holds its saved memory ('{}'), which fits its disks only as they are now: \
                 start it there, or remove the managed save",
                save.display()
            ));
        }
        Ok(())
    }
}

/// Refused while it runs: guests outlive the daemon, and on Xen somebody else may run it.
fn check_off(config: &Config, domain: Uuid) -> Result<()> {
    match config.hypervisor {
        Hypervisor::Qemu => {
            let status = config.run_dir.join("qemu").join(domain.to_string()).join("status.json");
            if !status.exists() {
                return Ok(());
            }
            let why = "it runs under virtsnap: start virtsnapd and shut it down first";
            Err(Error::new(Condition::OperationInvalid, why))
        }
        Hypervisor::Xen => check_not_on_xen(domain, Path::new("/var/lib/xen")),
    }
}

/// libxl keeps the configuration of each domain there while it runs, whoever started it.
fn check_not_on_xen(domain: Uuid, libxl: &Path) -> Result<()> {
    let entries = match fs::read_dir(libxl) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(failed("read the directory", libxl, &err)),
    };
    let end = format!(".{domain}.libxl-json");
    for entry in entries {
        let entry = entry.map_err(|err| failed("read the directory", libxl, &err))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("userdata-d.") && name.ends_with(&end) {
            let path = entry.path();
            let path = path.display();
            return Err(Error::new(
                Condition::OperationInvalid,
                format!("it runs on Xen ('{path}' is its configuration): shut it down first"),
            ));
        }
    }
    Ok(())
}

/// What became of one domain.
#[derive(Debug, Default)]
struct Moved {
    snapshots: usize,
    /// What the administrator must know.
    warnings: Vec<String>,
}

/// Says what became of each domain; true if all went over whole.
#[derive(Debug, Default)]
struct Report {
    moved: usize,
    left: usize,
    warnings: usize,
}

impl Report {
    fn tell(&mut self, name: &str, outcome: Result<Moved>) -> io::Result<()> {
        use io::Write as _;
        let mut out = io::stdout().lock();
        match outcome {
            Ok(Moved { snapshots, warnings }) => {
                self.moved += 1;
                self.warnings += warnings.len();
                writeln!(out, "{name}: {snapshots} snapshots")?;
                for warning in warnings {
                    writeln!(out, "  {warning}")?;
                }
            }
            Err(err) => {
                self.left += 1;
                writeln!(out, "{name}: left alone: {}", err.chain())?;
            }
        }
        Ok(())
    }

    fn end(&self, what: &str) -> io::Result<bool> {
        use io::Write as _;
        let Self { moved, left, warnings } = self;
        let mut out = io::stdout().lock();
        writeln!(out, "{what}: {moved} domains, {left} left alone, {warnings} warnings")?;
        Ok(*left == 0)
    }
}

/// The XML files of a directory that need not exist, in the order of their names.
fn xml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(failed("read the directory", directory, &err)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|err| failed("read the directory", directory, &err))?.path();
        if path.extension().is_some_and(|extension| extension == "xml") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Element> {
    let size = fs::metadata(path).map_err(|err| failed("read", path, &err))?.len();
    if size > MAX_BYTES as u64 {
        let message = format!("'{}' has {size} bytes: no definition is that long", path.display());
        return Err(Error::new(Condition::XmlError, message));
    }
    let text = fs::read_to_string(path).map_err(|err| failed("read", path, &err))?;
    Element::parse(&text).map_err(|err| {
        let message = format!("'{}' cannot be read", path.display());
        Error::new(Condition::XmlError, message).caused_by(err)
    })
}

fn failed(what: &str, path: &Path, err: &io::Error) -> Error {
    let condition = err.raw_os_error().map_or(Condition::Internal, Condition::System);
    Error::new(condition, format!("cannot {what} '{}': {err}", path.display()))
}

#[cfg(test)]
mod tests;
