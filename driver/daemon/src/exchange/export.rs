//! From the store into libvirt's directories.
//!
//! Everything is written as libvirt writes it; what libvirt's driver has no notion of stays in the
//! files, where it does not look at it. Snapshots that it lists but cannot handle are named.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_store::{StoredDomain, write_durably};
use virtsnap_xml::domain;
use virtsnap_xml::snapshot::{Definition, KeptState, Location, Memory, State};

use super::{Exchange, Libvirt, Moved, Report, check_off, failed, read, xml_files};
use crate::config::{Config, Hypervisor};

/// True if everything that was asked for is libvirt's now.
pub(crate) fn export(
    config: &Config,
    exchange: &Exchange,
) -> std::result::Result<bool, Box<dyn std::error::Error>> {
    let libvirt = exchange.libvirt(config)?;
    let store = config.open_store()?;
    let known = store.load()?.domains;
    let mut report = Report::default();
    for stored in known.iter().filter(|stored| exchange.wants(&stored.book.name)) {
        report.tell(&stored.book.name, move_one(config, exchange, &libvirt, stored))?;
    }
    for missing in &exchange.domains {
        if !known.iter().any(|stored| stored.book.name == *missing) {
            let err = Error::new(Condition::NoDomain, "virtsnap has no such domain");
            report.tell(missing, Err(err))?;
        }
    }
    Ok(report.end("exported")?)
}

fn move_one(
    config: &Config,
    exchange: &Exchange,
    libvirt: &Libvirt,
    stored: &StoredDomain,
) -> Result<Moved> {
    let refused = |why: &str| Err(Error::new(Condition::OperationInvalid, why));
    let book = &stored.book;
    let Some(definition) = &book.config else {
        return refused("it has no persistent definition");
    };
    check_off(config, book.uuid)?;
    libvirt.check_at_rest(&book.name)?;
    if book.has_managed_save {
        return refused("virtsnap holds its saved memory: start it, or remove the managed save");
    }
    let directory = config.state_dir.join("domains").join(book.uuid.to_string());
    if directory.join("journal.jsonl").exists() {
        return refused("an operation is unfinished: start virtsnapd, which settles it");
    }
    if let Some(moment) = book.moments.iter().find(|moment| moment.delete_in_progress) {
        // libvirt would go back to what is half overwritten.
        let name = &moment.name;
        let why = format!("the deletion of snapshot '{name}' has begun: delete it again to end it");
        return refused(&why);
    }
    let path = libvirt.definition(&book.name);
    check_free(&path, book.uuid, exchange.replace)?;

    let mut moved = Moved::default();
    match config.hypervisor {
        Hypervisor::Qemu => write_snapshots(libvirt, stored, &mut moved)?,
        Hypervisor::Xen if book.moments.is_empty() => {}
        Hypervisor::Xen => moved.warnings.push(format!(
            "libvirt's Xen driver knows no snapshots: its {} stay virtsnap's alone",
            book.moments.len()
        )),
    }
    make_directory(&libvirt.config)?;
    write(&path, &definition.to_string())?;
    if stored.autostart {
        let link = libvirt.autostart(&book.name);
        make_directory(&libvirt.config.join("autostart"))?;
        if fs::symlink_metadata(&link).is_err() {
            symlink(&path, &link).map_err(|err| failed("make the link", &link, &err))?;
        }
    }
    Ok(moved)
}

fn write_snapshots(libvirt: &Libvirt, stored: &StoredDomain, moved: &mut Moved) -> Result<()> {
    let book = &stored.book;
    moved.snapshots = book.moments.len();
    let snapshots = libvirt.snapshots(&book.name);
    make_directory(&snapshots)?;
    for old in xml_files(&snapshots)? {
        fs::remove_file(&old).map_err(|err| failed("remove", &old, &err))?;
    }
    for moment in book.moments.iter() {
        let is_current = book.moments.current() == Some(&moment.name);
        let text = moment.to_stored_element(is_current).to_string();
        write(&snapshots.join(format!("{}.xml", moment.name)), &text)?;
        if let Some(why) = beyond_libvirt(moment) {
            let name = &moment.name;
            moved
                .warnings
                .push(format!("libvirt cannot go back to '{name}', nor delete it: {why}"));
        }
    }
    Ok(())
}

/// Nothing of another domain's is overwritten, and nothing at all unless that was said.
fn check_free(path: &Path, uuid: Uuid, replace: bool) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let refused = |why: String| Err(Error::new(Condition::OperationFailed, why));
    if domain::uuid(&read(path)?) != Some(uuid) {
        return refused(format!("'{}' is another domain of that name", path.display()));
    }
    if !replace {
        return refused(format!(
            "libvirt has it already ('{}'): say --replace to overwrite what libvirt knows of it",
            path.display()
        ));
    }
    Ok(())
}

/// What libvirt's driver would not understand, or would do wrong.
fn beyond_libvirt(moment: &Definition) -> Option<&'static str> {
    let has = |location| moment.disks.iter().any(|disk| disk.snapshot == location);
    let (internal, external) = (has(Location::Internal), has(Location::External));
    if internal && external {
        return Some("some of its disks are internal, others external");
    }
    if moment.disks.iter().any(|disk| disk.tag.is_some()) {
        return Some("its internal snapshots have another name than it");
    }
    match &moment.memory {
        Memory::Internal { image: Some(_) } => return Some("its memory is in an image of its own"),
        Memory::Internal { image: None } if external => {
            return Some("its memory is internal, and its disks are external");
        }
        Memory::External { .. } if internal => {
            return Some("its memory is external, and its disks are internal");
        }
        Memory::No | Memory::Unsaid | Memory::Internal { .. } | Memory::External { .. } => {}
    }
    if internal && moment.state == State::DiskSnapshot {
        return Some("its disks alone were taken, internally, of a running guest");
    }
    let kept = [&moment.nvram, &moment.tpm].into_iter().flatten();
    let mut kept = kept.filter(|state| matches!(state, KeptState::External { .. }));
    kept.next().map(|_| "libvirt would not put back its NVRAM or TPM")
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|err| failed("make the directory", path, &err))
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_durably(path, text.as_bytes()).map_err(|err| failed("write", path, &err))
}
