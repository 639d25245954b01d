//! Each cell of the matrix (`tests/src/matrix.rs`) on a real daemon and QEMU: a snapshot is taken,
//! the disks are written to, it is reverted to and deleted, and what the disks hold is read with
//! qemu-io each time. The guests have no operating system, so that a cell takes about a second.
//!
//! An ordinary run takes a sample. `make matrix` (`VIRTSNAP_MATRIX=all`) takes all of it, and a
//! word in `VIRTSNAP_MATRIX` the cells whose names contain it (`'memory External'`).

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;
use virtsnap_tests::matrix::{self, Cell, Flag, Kind, Memory, OPERATION_INVALID, State, Storage};
use virtsnap_tests::{Daemon, GuestSpec, World, host, images, skip};

/// A cell in this many is part of an ordinary run; no divisor of what the matrix is made of.
const SAMPLE: usize = 29;
const WORKERS: usize = 2;

#[test]
fn every_cell_is_as_the_rules_say() {
    if !host::is_root() {
        skip!("block devices are loop devices, which need root");
    }
    let wanted = std::env::var("VIRTSNAP_MATRIX").ok();
    let all = matrix::cells();
    let cells: Vec<(usize, Cell)> = all
        .iter()
        .copied()
        .enumerate()
        .filter(|(n, cell)| match wanted.as_deref() {
            None => n % SAMPLE == 0,
            Some("all") => true,
            Some(word) => cell.to_string().contains(word),
        })
        .collect();
    virt::error::clear_error_callback();
    let world = Arc::new(World::with(Daemon::Virtsnapd));
    let next = Arc::new(AtomicUsize::new(0));
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let cells = Arc::new(cells);
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (world, next) = (Arc::clone(&world), Arc::clone(&next));
            let (wrong, cells) = (Arc::clone(&wrong), Arc::clone(&cells));
            std::thread::spawn(move || {
                let connection = Connect::open(Some(&world.virsh.uri)).unwrap();
                while let Some((n, cell)) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut bed = Bed::new(&world, &connection, *n, *cell);
                    if let Err(why) = bed.play() {
                        eprintln!("WRONG {cell}: {why}");
                        wrong.lock().unwrap().push(format!("{cell}: {why}"));
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let wrong = wrong.lock().unwrap();
    eprintln!("matrix: {} of {} cells, {} wrong", cells.len(), all.len(), wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// One cell's domain and images.
struct Bed<'w> {
    world: &'w World,
    connection: &'w Connect,
    cell: Cell,
    name: String,
    device: Option<String>,
}

type Verdict<T = ()> = Result<T, String>;

fn number(err: &Error) -> u32 {
    err.code().to_raw()
}

fn done<T>(what: &str, result: Result<T, Error>) -> Verdict<T> {
    result.map_err(|err| format!("{what}: [{}] {}", number(&err), err.message()))
}

fn check(what: &str, holds: bool) -> Verdict {
    holds.then_some(()).ok_or_else(|| format!("{what} does not hold"))
}

impl<'w> Bed<'w> {
    fn new(world: &'w World, connection: &'w Connect, n: usize, cell: Cell) -> Self {
        Self { world, connection, cell, name: format!("c{n}"), device: None }
    }

    fn play(&mut self) -> Verdict {
        let domain = self.define()?;
        self.write(&domain, 1)?;
        let snapshot = domain.create_snapshot_xml(&self.xml(), self.flags());
        let expected = self.cell.expected();
        let taken = match (&snapshot, expected) {
            (Ok(_), Ok(taken)) => taken,
            (Err(err), Err(code)) if number(err) == code => {
                check("the disks after a refusal", self.content(&domain)? == [1, 1])?;
                check("the state after a refusal", self.state(&domain)? == self.first_state())?;
                return check("no snapshot after a refusal", self.count(&domain)? == 0);
            }
            (Ok(_), Err(code)) => return Err(format!("taken, not refused with {code}")),
            (Err(err), _) => {
                let (code, message) = (number(err), err.message());
                return Err(format!("[{code}] {message}, not {expected:?}"));
            }
        };
        check("a snapshot changes no disk", self.content(&domain)? == [1, 1])?;
        let manual = self.cell.kinds.contains(&Kind::Manual);
        let after = match self.first_state() {
            sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_PAUSED if self.cell.flag == Flag::Halt => {
                sys::VIR_DOMAIN_SHUTOFF
            }
            sys::VIR_DOMAIN_RUNNING if manual => sys::VIR_DOMAIN_PAUSED,
            same => same,
        };
        let state = self.state(&domain)?;
        if state != after {
            return Err(format!("state {state} after the snapshot, not {after}"));
        }
        self.write(&domain, 2)?;
        if self.cell.flag == Flag::NoMetadata {
            return check("no metadata", self.count(&domain)? == 0);
        }
        let snapshot = snapshot.map_err(|err| err.message().to_owned())?;
        let held = taken.disks.map(|taken| if taken { 1 } else { 2 });
        let mut result = snapshot.revert(0);
        if self.cell.state == State::Transient && !taken.memory {
            let refused = result.as_ref().is_err_and(|err| number(err) == OPERATION_INVALID);
            check("a transient domain cannot be shut off", refused)?;
            check("the disks after it", self.content(&domain)? == [2, 2])?;
            result = snapshot.revert(sys::VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED);
        }
        done("revert", result)?;
        let content = self.content(&domain)?;
        if content != held {
            return Err(format!("after the revert {content:?}, not {held:?}"));
        }
        let goal = match self.cell.state {
            State::Transient if !taken.memory => sys::VIR_DOMAIN_PAUSED,
            _ if taken.memory => self.first_state(),
            _ => sys::VIR_DOMAIN_SHUTOFF,
        };
        let state = self.state(&domain)?;
        if state != goal {
            return Err(format!("state {state} after the revert, not {goal}"));
        }
        self.write(&domain, 3)?;
        done("delete", snapshot.delete(0))?;
        check("the disks after the deletion", self.content(&domain)? == [3, 3])?;
        check("no snapshot is left", self.count(&domain)? == 0)
    }

    fn define(&mut self) -> Verdict<Domain> {
        let format = if self.cell.storage == Storage::Qcow2File { "qcow2" } else { "raw" };
        let spec = GuestSpec::idle(&self.name).disks(&[format, "qcow2"]);
        let mut xml = spec.xml(self.world);
        let first = self.world.path(&format!("{}-vda.{format}", self.name));
        images::create(&first, format, "4M");
        images::create(&self.world.path(&format!("{}-vdb.qcow2", self.name)), "qcow2", "4M");
        if self.cell.storage == Storage::BlockDevice {
            let out = Command::new("losetup").args(["-f", "--show"]).arg(&first).output();
            let device = String::from_utf8(out.unwrap().stdout).unwrap().trim().to_owned();
            check("a loop device", device.starts_with("/dev/"))?;
            let file = format!("<source file='{}'/>", first.display());
            xml = xml.replace(
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/>",
                "<disk type='block' device='disk'><driver name='qemu' type='raw'/>",
            );
            xml = xml.replace(&file, &format!("<source dev='{device}'/>"));
            self.device = Some(device);
        }
        let flags = sys::VIR_DOMAIN_START_PAUSED;
        if self.cell.state == State::Transient {
            return done("create", self.connection.create_domain_xml(&xml, flags));
        }
        let domain = done("define", self.connection.define_domain_xml(&xml))?;
        if self.cell.is_active() {
            done("start", domain.create_with_flags(flags))?;
        }
        if self.cell.state == State::Running {
            done("resume", domain.resume())?;
        }
        Ok(domain)
    }

    fn first_state(&self) -> u32 {
        match self.cell.state {
            State::Off => sys::VIR_DOMAIN_SHUTOFF,
            State::Running => sys::VIR_DOMAIN_RUNNING,
            State::Paused | State::Transient => sys::VIR_DOMAIN_PAUSED,
        }
    }

    fn flags(&self) -> u32 {
        match self.cell.flag {
            Flag::None => 0,
            Flag::DiskOnly => sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
            Flag::Live => sys::VIR_DOMAIN_SNAPSHOT_CREATE_LIVE,
            Flag::Halt => sys::VIR_DOMAIN_SNAPSHOT_CREATE_HALT,
            Flag::NoMetadata => sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
        }
    }

    fn xml(&self) -> String {
        let memory = match self.cell.memory {
            Memory::Unsaid => "",
            Memory::No => "<memory snapshot='no'/>",
            Memory::Internal => "<memory snapshot='internal'/>",
            Memory::External => "<memory snapshot='external'/>",
        };
        let mut disks = String::new();
        for (kind, target) in self.cell.kinds.iter().zip(["vda", "vdb"]) {
            let how = match kind {
                Kind::Unsaid => continue,
                Kind::Internal => "internal",
                Kind::External => "external",
                Kind::No => "no",
                Kind::Manual => "manual",
            };
            // Beside a device nothing can be made.
            let named = self.device.is_some() && target == "vda" && *kind == Kind::External;
            let file = self.world.path(&format!("{}-vda.s", self.name));
            let source = match named {
                true => format!("<source file='{}'/>", file.display()),
                false => String::new(),
            };
            disks += &format!("<disk name='{target}' snapshot='{how}'>{source}</disk>");
        }
        format!("<domainsnapshot><name>s</name>{memory}<disks>{disks}</disks></domainsnapshot>")
    }

    fn state(&self, domain: &Domain) -> Verdict<u32> {
        done("state", domain.state()).map(|(state, _)| state.to_raw())
    }

    fn count(&self, domain: &Domain) -> Verdict<u32> {
        done("number of snapshots", domain.num_snapshots(0))
    }

    /// The image that each disk uses, and its format.
    fn sources(&self, domain: &Domain) -> Verdict<Vec<(PathBuf, String)>> {
        let xml = done("description", domain.xml_desc(0))?;
        let disks = xml.split("<disk type='").skip(1);
        let found = disks.map(|disk| {
            let attribute = |from: &str, name: &str| {
                let at = disk.split_once(from)?.1.split_once(&format!(" {name}='"))?.1;
                Some(at.split_once('\'')?.0.to_owned())
            };
            let source = attribute("<source", "file").filter(|_| disk.starts_with("file"));
            let source = source.or_else(|| attribute("<source", "dev"));
            let format = attribute("<driver", "type");
            Some((PathBuf::from(source?), format?))
        });
        found.collect::<Option<_>>().ok_or_else(|| format!("no sources in {xml}"))
    }

    /// All of each disk's first 64 KiB.
    fn write(&self, domain: &Domain, pattern: u8) -> Verdict {
        let active = done("is active", domain.is_active())?;
        for (n, (image, format)) in self.sources(domain)?.iter().enumerate() {
            let command = format!("write -P {pattern} 0 64k");
            if active {
                let device = format!("/machine/peripheral/virtio-disk{n}/virtio-backend");
                for command in [command.as_str(), "flush"] {
                    let line = format!(
                        "qemu-monitor-command {} --hmp 'qemu-io -d {device} \"{command}\"'",
                        self.name
                    );
                    let said = self.world.virsh.run(&line);
                    check(&format!("{command}: {said:?}"), said.success)?;
                }
            } else {
                images::io(image, format, &command);
            }
        }
        check("what was written is read", self.content(domain)? == [pattern; 2])
    }

    /// Which pattern each disk holds; 0 for none of ours.
    fn content(&self, domain: &Domain) -> Verdict<Vec<u8>> {
        let sources = self.sources(domain)?;
        let holds = |(image, format): &(PathBuf, String)| {
            (1..=3).find(|pattern| images::reads(image, format, *pattern, 0, 65536)).unwrap_or(0)
        };
        Ok(sources.iter().map(holds).collect())
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        let _ = self.world.virsh.run(&format!("destroy {}", self.name));
        let _ = self.world.virsh.run(&format!("undefine {} --snapshots-metadata", self.name));
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
        let entries = std::fs::read_dir(self.world.dir()).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let ours = [format!("{}-", self.name), format!("{}.", self.name)];
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if ours.iter().any(|prefix| name.starts_with(prefix)) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}
