//! Which disks take part, where, and with which file: the user's request laid over the domain's
//! disks. After this every disk of the domain is listed, and nothing is left to default.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Disk, DiskRequest, Location, Request};

use crate::error::{Condition, Error, Result};
use crate::facts::{DiskFacts, DiskSource, DomainFacts, Format};

/// # Errors
/// `ConfigUnsupported` for a disk that is not there or named twice, a file where none belongs,
/// and a name that cannot be made up.
pub(super) fn align(
    request: &Request,
    facts: &DomainFacts,
    name: &str,
    default: Location,
) -> Result<Vec<Disk>> {
    let disks = &facts.disks;
    let mut asked: Vec<Option<&DiskRequest>> = vec![None; disks.len()];
    for wanted in &request.disks {
        let at = find(disks, &wanted.name)?;
        if let Some(slot) = asked.get_mut(at)
            && slot.replace(wanted).is_some()
        {
            return Err(unsupported(format!("disk '{}' is named twice", wanted.name)));
        }
    }
    let homes = Homes { beside: files_directory(facts), devices: facts.files_dir.is_some() };
    let mut aligned = Vec::with_capacity(disks.len());
    let mut files = BTreeSet::new();
    for (disk, wanted) in disks.iter().zip(asked) {
        let entry = align_disk(disk, wanted, name, default, homes)?;
        if let Some(file) = overlay_path(&entry)
            && !files.insert(file.clone())
        {
            return Err(unsupported(format!(
                "disk '{}' would use the overlay '{}' of another disk; name a file of its own",
                disk.target,
                file.display()
            )));
        }
        aligned.push(entry);
    }
    Ok(aligned)
}

/// The file that an external snapshot of this disk creates.
pub(crate) fn overlay_path(disk: &Disk) -> Option<PathBuf> {
    if disk.snapshot != Location::External {
        return None;
    }
    disk.path().map(PathBuf::from)
}

/// `<dir>/<stem>.<suffix>`: the last extension of the file name is replaced, as libvirt does.
pub(super) fn sibling(image: &Path, suffix: &str) -> PathBuf {
    let file = image.file_name().map(|name| name.to_string_lossy().into_owned());
    let file = file.unwrap_or_default();
    let stem = match file.rfind('.') {
        Some(dot) => file.get(..dot).unwrap_or(&file),
        None => &file,
    };
    image.with_file_name(format!("{stem}.{suffix}"))
}

fn align_disk(
    disk: &DiskFacts,
    wanted: Option<&DiskRequest>,
    name: &str,
    default: Location,
    homes: Homes<'_>,
) -> Result<Disk> {
    // Where nobody said otherwise, a disk that can hold no snapshot inside gets an overlay.
    let yields = default == Location::Internal && disk.format != Format::Qcow2;
    let default = if yields { Location::External } else { default };
    let said = match wanted {
        Some(wanted) => wanted.snapshot.or(disk.snapshot),
        None if disk.source.is_none() => Some(Location::No),
        None => disk.snapshot.or(disk.readonly.then_some(Location::No)),
    };
    let yields = yields && said.is_none();
    let location = said.unwrap_or(default);
    check_reach(disk, location)?;
    let source = wanted.and_then(|wanted| wanted.source.clone());
    if source.is_some() && location != Location::External {
        return Err(unsupported(format!(
            "disk '{}' is given a file, which only an external snapshot has",
            disk.target
        )));
    }
    let external = location == Location::External;
    let on_delete = wanted.and_then(|wanted| wanted.on_delete);
    if on_delete.is_some() && !external {
        return Err(unsupported(format!(
            "disk '{}' has <on_delete>, which is about the two files of an external snapshot; take \
             it externally, or leave <on_delete> out",
            disk.target
        )));
    }
    let source_type = wanted.and_then(|wanted| wanted.source_type.as_deref());
    let source = match source {
        Some(source) => Some(source),
        None if external && source_type.is_some_and(|kind| kind != "file") => {
            return Err(unsupported(format!(
                "no name can be made up for the overlay of disk '{}', which is not to be a file; \
                 give a <source>",
                disk.target
            )));
        }
        None if yields => Some(overlay_elsewhere(disk, name, homes.beside)?),
        None if external => Some(default_overlay(disk, name, homes)?),
        None => None,
    };
    let wanted_or = |said: fn(&DiskRequest) -> Option<String>, default: &str| {
        external.then(|| wanted.and_then(said).unwrap_or_else(|| default.to_owned()))
    };
    Ok(Disk {
        source_type: wanted_or(|wanted| wanted.source_type.clone(), "file"),
        source,
        format: wanted_or(|wanted| wanted.format.clone(), Format::Qcow2.as_str()),
        driver: wanted.and_then(|wanted| wanted.driver.clone()),
        on_delete,
        extra: wanted.map(|wanted| wanted.extra.clone()).unwrap_or_default(),
        ..Disk::new(disk.target.clone(), location)
    })
}

/// What the guest writes past the hypervisor's block layer cannot be frozen by it.
fn check_reach(disk: &DiskFacts, location: Location) -> Result<()> {
    match &disk.bypass {
        Some(backend) if matches!(location, Location::Internal | Location::External) => {
            Err(Error::new(
                Condition::OperationUnsupported,
                format!(
                    "disk '{}' is served by {backend}, and no snapshot of it can be taken while the \
                     guest runs: shut the guest down first, or leave the disk out (snapshot='no'); \
                     live snapshots are of disks that <driver name='qemu'/> alone serves",
                    disk.target
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// Where files go that stand beside no image of their own.
#[derive(Clone, Copy)]
struct Homes<'a> {
    beside: Option<&'a Path>,
    /// Also those that were asked for, of disks on devices.
    devices: bool,
}

/// Where the first image of the domain is that is a file: there is room for guests. Where there is
/// none, the hypervisor's own place.
pub(super) fn files_directory(facts: &DomainFacts) -> Option<&Path> {
    let mut disks = facts.disks.iter().filter(|disk| !disk.readonly);
    let beside = disks.find_map(|disk| match &disk.source {
        Some(DiskSource::File(path)) => path.parent(),
        _ => None,
    });
    beside.or(facts.files_dir.as_deref())
}

/// The overlay of a disk that goes outside though nobody asked for it: one on a block device has
/// its overlay among the domain's other images.
fn overlay_elsewhere(disk: &DiskFacts, name: &str, directory: Option<&Path>) -> Result<Element> {
    let image = match (&disk.source, directory) {
        (Some(DiskSource::File(path)), _) => path.clone(),
        (Some(DiskSource::Block(path)), Some(directory)) => {
            directory.join(path.file_name().unwrap_or_default())
        }
        _ => {
            return Err(Error::new(
                Condition::ConfigUnsupported,
                format!(
                    "disk '{}' is of format {}, which has no internal snapshots, and no name can \
                     be made up for an overlay; give a <source file='…'/>",
                    disk.target,
                    disk.format.as_str()
                ),
            ));
        }
    };
    let overlay = sibling(&image, name);
    Ok(Element::new("source").with_attr("file", overlay.to_string_lossy()))
}

fn default_overlay(disk: &DiskFacts, name: &str, homes: Homes<'_>) -> Result<Element> {
    let target = &disk.target;
    match &disk.source {
        Some(DiskSource::Block(_)) if homes.devices => overlay_elsewhere(disk, name, homes.beside),
        Some(DiskSource::File(path)) => {
            let overlay = sibling(path, name);
            Ok(Element::new("source").with_attr("file", overlay.to_string_lossy()))
        }
        Some(_) => Err(unsupported(format!(
            "no name can be made up for the overlay of disk '{target}', whose source is not a \
             regular file; give a <source file='…'/>"
        ))),
        None => Err(unsupported(format!(
            "disk '{target}' is empty; there is nothing to take an external snapshot of"
        ))),
    }
}

/// By target, or by the path of a source that only one disk has.
fn find(disks: &[DiskFacts], name: &str) -> Result<usize> {
    if let Some(at) = disks.iter().position(|disk| disk.target == name) {
        return Ok(at);
    }
    let mut by_source = disks
        .iter()
        .enumerate()
        .filter(|(_, disk)| disk.image().is_some_and(|path| path.as_os_str() == name));
    match (by_source.next(), by_source.next()) {
        (Some((at, _)), None) => Ok(at),
        _ => Err(unsupported(format!("no disk named '{name}' in the domain"))),
    }
}

fn unsupported(message: String) -> Error {
    Error::snapshot(Condition::ConfigUnsupported, message)
}
