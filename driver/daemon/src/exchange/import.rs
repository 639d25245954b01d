//! From libvirt's directories into the store.
//!
//! What libvirt created for a snapshot, the overlays and memory files it recorded, becomes ours to
//! remove as it was libvirt's: deleting a snapshot would else leave its files for ever. But never
//! what is a link, what is no overlay, or what another definition on this host uses. Where a file is
//! not ours, deleting keeps it. A snapshot's record that cannot be read is taken over as it is, and
//! while it is there nothing of the domain is removed or merged.
//!
//! An order that is safe to break off: snapshots, files, and last the definition. Done again with
//! `--replace`, it ends well.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::moment::MomentList;
use virtsnap_engine::plan::MomentChange;
use virtsnap_engine::ports::Records;
use virtsnap_store::{Store, StoredDomain};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Location, Memory};

use super::{Exchange, Libvirt, Moved, Report, check_off, failed, read, xml_files};
use crate::config::{Config, Hypervisor};
use crate::domains::{definition, renamed};

/// True if everything that was asked for is in the store now. `complete` is the hypervisor's
/// check of a definition.
pub(crate) fn import(
    config: &Config,
    exchange: &Exchange,
    complete: impl Fn(Element) -> Result<Element>,
) -> std::result::Result<bool, Box<dyn std::error::Error>> {
    let libvirt = exchange.libvirt(config)?;
    let store = config.open_store()?;
    let known = store.load()?.domains;
    let files = xml_files(&libvirt.config)?;
    let mut report = Report::default();
    let mut seen = BTreeSet::new();
    for path in &files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !exchange.wants(&name) {
            continue;
        }
        let of_others = used_by_others(&files, path);
        let source = Source { libvirt: &libvirt, config, exchange, known: &known, of_others };
        report.tell(&name, source.import(&store, path, &complete))?;
        seen.insert(name);
    }
    for missing in exchange.domains.iter().filter(|wanted| !seen.contains(*wanted)) {
        let message = format!("libvirt has no '{}'", libvirt.definition(missing).display());
        report.tell(missing, Err(Error::new(Condition::NoDomain, message)))?;
    }
    Ok(report.end("imported")?)
}

/// libvirt's snapshots of one domain.
struct Found {
    moments: Vec<Definition>,
    current: Option<String>,
    /// Files that are no snapshots.
    unreadable: Vec<PathBuf>,
}

struct Source<'a> {
    libvirt: &'a Libvirt,
    config: &'a Config,
    exchange: &'a Exchange,
    known: &'a [StoredDomain],
    /// Images of libvirt's other definitions.
    of_others: BTreeSet<PathBuf>,
}

impl Source<'_> {
    fn import(
        &self,
        store: &Store,
        path: &Path,
        complete: &impl Fn(Element) -> Result<Element>,
    ) -> Result<Moved> {
        let mut asked = read(path)?;
        if asked.name() != "domain" || asked.child("uuid").is_none() {
            let message = format!("'{}' is not a <domain> with a uuid", path.display());
            return Err(Error::new(Condition::XmlError, message));
        }
        let (uuid, name) = definition::identify(&mut asked)?;
        self.libvirt.check_at_rest(&name)?;
        check_off(self.config, uuid)?;
        let old = self.admit(uuid, &name)?;

        let mut moved = Moved::default();
        let Found { moments, current, unreadable } = self.snapshots(&name, &mut moved)?;
        let owned = self.files_of(&moments);
        // What cannot be run can be looked at: it is refused when it is to start.
        let definition = complete(asked.clone()).unwrap_or_else(|err| {
            let why = err.chain();
            moved.warnings.push(format!("it is listed, but will not start: {why}"));
            asked
        });
        self.warn_of_the_rest(&name, uuid, &definition, &mut moved);

        let list = MomentList::load(moments, current);
        let change = MomentChange {
            write: list.topological().into_iter().cloned().collect(),
            forget: Vec::new(),
            current: list.current().map(str::to_owned),
        };
        moved.snapshots = list.len();
        match old.filter(|_| self.keeps_snapshots()) {
            Some(old) => {
                moved.snapshots = old.book.moments.len();
                store.set_name(uuid, &name)?;
                store.record(uuid, &renamed(&old.book.moments, &name))?;
            }
            None => {
                if old.is_some() {
                    store.forget(uuid)?;
                }
                store.set_name(uuid, &name)?;
                for path in &unreadable {
                    let bytes = fs::read(path).map_err(|err| failed("read", path, &err))?;
                    store.keep_unreadable(uuid, path.file_name().unwrap_or_default(), &bytes)?;
                }
                store.record(uuid, &change)?;
                store.set_owned(uuid, &owned)?;
            }
        }
        store.set_config(uuid, &definition)?;
        store.set_autostart(uuid, self.libvirt.autostart(&name).exists())?;
        Ok(moved)
    }

    /// libvirt's Xen driver knows none, so it cannot have others.
    fn keeps_snapshots(&self) -> bool {
        self.config.hypervisor == Hypervisor::Xen
    }

    /// Nothing is left of it but snapshots, which are for whoever brings its uuid back.
    fn waits(&self, known: &StoredDomain) -> bool {
        self.keeps_snapshots() && known.book.config.is_none()
    }

    /// The domain of that uuid in the store, which is to be replaced.
    fn admit(&self, uuid: Uuid, name: &str) -> Result<Option<&StoredDomain>> {
        let refused = |why: String| Err(Error::new(Condition::OperationFailed, why));
        let is_taken = |known: &StoredDomain| {
            known.book.name == name && known.book.uuid != uuid && !self.waits(known)
        };
        if self.known.iter().any(is_taken) {
            return refused("virtsnap has another domain of that name".to_owned());
        }
        let old = self.known.iter().find(|known| known.book.uuid == uuid);
        let Some(old) = old else { return Ok(None) };
        if !self.exchange.replace && !self.waits(old) {
            return refused(
                "virtsnap has it already: say --replace to forget what it knows of it".to_owned(),
            );
        }
        if old.book.has_managed_save {
            return refused("virtsnap holds its saved memory: start it there first".to_owned());
        }
        let directory = self.config.state_dir.join("domains").join(uuid.to_string());
        if directory.join("journal.jsonl").exists() {
            return refused("an operation of virtsnap's is unfinished: start virtsnapd".to_owned());
        }
        Ok(Some(old))
    }

    fn snapshots(&self, name: &str, moved: &mut Moved) -> Result<Found> {
        let mut found: Vec<Definition> = Vec::new();
        let (mut current, mut unreadable) = (None, Vec::new());
        for path in xml_files(&self.libvirt.snapshots(name))? {
            let parsed = read(&path).and_then(|root| {
                Definition::parse_stored(&root).map_err(|err| {
                    let message = format!("'{}' is no snapshot", path.display());
                    Error::new(Condition::XmlError, message).caused_by(err)
                })
            });
            let (moment, is_current) = match parsed {
                Ok(parsed) => parsed,
                Err(err) => {
                    moved.warnings.push(format!(
                        "a snapshot is not listed, and while its file is there ('moments' of the \
                         domain in virtsnap's store), no image is removed: {}",
                        err.chain()
                    ));
                    unreadable.push(path);
                    continue;
                }
            };
            if found.iter().any(|other| other.name == moment.name) {
                let path = path.display();
                moved.warnings.push(format!("'{path}' is '{}' once more: ignored", moment.name));
                continue;
            }
            if moment.disks.iter().any(|disk| disk.delete_in_progress) {
                moved.warnings.push(format!(
                    "libvirt began to delete a child of '{}' and did not end: that child cannot be \
                     reverted to, only deleted",
                    moment.name
                ));
            }
            if is_current && current.is_none() {
                current = Some(moment.name.clone());
            }
            found.push(moment);
        }
        Ok(Found { moments: found, current, unreadable })
    }

    /// What libvirt made for these snapshots, and would remove with them.
    fn files_of(&self, moments: &[Definition]) -> BTreeSet<PathBuf> {
        let overlays = moments
            .iter()
            .flat_map(|moment| moment.disks.iter().chain(&moment.revert_disks))
            .filter(|disk| disk.snapshot == Location::External)
            .filter(|disk| disk.source_type.as_deref().unwrap_or("file") == "file")
            .filter_map(|disk| disk.path().map(PathBuf::from))
            .filter(|path| begins(path, is_overlay));
        let memory = moments.iter().filter_map(|moment| match &moment.memory {
            Memory::External { file } => Some(PathBuf::from(file)),
            Memory::No | Memory::Unsaid | Memory::Internal { .. } => None,
        });
        let memory = memory.filter(|path| begins(path, |start| start.starts_with(b"LibvirtQemud")));
        overlays.chain(memory).filter(|path| !self.of_others.contains(path)).collect()
    }

    fn warn_of_the_rest(&self, name: &str, uuid: Uuid, definition: &Element, moved: &mut Moved) {
        let checkpoints = self.libvirt.state.join("checkpoint").join(name);
        if xml_files(&checkpoints).is_ok_and(|files| !files.is_empty()) {
            moved.warnings.push("its checkpoints are not imported".to_owned());
        }
        let has_tpm = definition
            .at(&["devices", "tpm", "backend"])
            .is_some_and(|backend| backend.attr("type") == Some("emulator"));
        if has_tpm {
            let ours = self.config.state_dir.join("qemu/tpm").join(uuid.to_string());
            moved.warnings.push(format!(
                "the state of its TPM is libvirt's (swtpm/{uuid}): copy it to '{}', or the guest \
                 finds a new TPM",
                ours.display()
            ));
        }
    }
}

/// Images that the definitions in other files name.
fn used_by_others(files: &[PathBuf], mine: &Path) -> BTreeSet<PathBuf> {
    let others = files.iter().filter(|path| *path != mine).filter_map(|path| read(path).ok());
    others
        .flat_map(|other| {
            let disks = domain::disks(&other);
            disks.filter_map(|disk| disk.path().map(PathBuf::from)).collect::<Vec<_>>()
        })
        .collect()
}

/// An ordinary file, no link, that begins as it should.
fn begins(path: &Path, is_right: impl Fn(&[u8; 16]) -> bool) -> bool {
    let mut start = [0; 16];
    let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    is_file
        && File::open(path)
            .and_then(|mut file| file.read_exact(&mut start))
            .inspect_err(|err| tracing::debug!("{}", failed("read", path, err)))
            .is_ok_and(|()| is_right(&start))
}

/// A qcow2 with a backing file, or a qed.
fn is_overlay(start: &[u8; 16]) -> bool {
    let has_backing = start.get(8..).is_some_and(|offset| offset.iter().any(|&byte| byte != 0));
    start.starts_with(b"QED\0") || (start.starts_with(b"QFI\xfb") && has_backing)
}
