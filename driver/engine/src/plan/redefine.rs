//! REDEFINE: metadata is put back or edited; no image and no guest is touched.

use std::path::Path;

use uuid::Uuid;
use virtsnap_xml::domain::{self, DiskView};
use virtsnap_xml::snapshot::{Definition, Disk, Location, State};

use super::MomentChange;
use super::align::sibling;
use crate::error::{Condition, Error, Origin, Result};
use crate::moment::MomentList;

/// # Errors
/// libvirt's rules for what may change: `InvalidArgument` for a parent that is not there or that
/// would close a circle, another domain's uuid, another kind of snapshot.
pub fn redefine(
    asked: Definition,
    make_current: bool,
    domain_name: &str,
    domain: Uuid,
    moments: &MomentList,
) -> Result<(Definition, MomentChange)> {
    check_parent(&asked, moments)?;
    check_domain(&asked, domain_name, domain)?;
    let mut moment = asked;
    let old = moments.get(&moment.name);
    forget_marks(&mut moment, old);
    if let Some(old) = old {
        check_kind(old, &moment)?;
        if moment.domain.is_none() {
            moment.domain.clone_from(&old.domain);
            if moment.inactive_domain.is_none() {
                moment.inactive_domain.clone_from(&old.inactive_domain);
            }
        }
        if moment.disks.is_empty() {
            moment.disks.clone_from(&old.disks);
        }
        if moment.revert_disks.is_empty() {
            moment.revert_disks.clone_from(&old.revert_disks);
        }
        // A client that does not know of them leaves them out.
        moment.nvram = moment.nvram.or_else(|| old.nvram.clone());
        moment.tpm = moment.tpm.or_else(|| old.tpm.clone());
        moment.delete_in_progress |= old.delete_in_progress;
    }
    moment.disks = all_disks(&moment)?;
    let current =
        if make_current { Some(moment.name.clone()) } else { moments.current().map(str::to_owned) };
    let change = MomentChange { write: vec![moment.clone()], forget: Vec::new(), current };
    Ok((moment, change))
}

/// What is unfinished is shown, never recorded. A mark of libvirt's own stays as it is.
fn forget_marks(moment: &mut Definition, old: Option<&Definition>) {
    moment.extra.retain(|element| element.name() != crate::unfinished::ELEMENT);
    let Some(old) = old else { return };
    for disk in &mut moment.disks {
        disk.delete_in_progress =
            old.disks.iter().any(|known| known.name == disk.name && known.delete_in_progress);
    }
}

fn check_parent(asked: &Definition, moments: &MomentList) -> Result<()> {
    let Some(parent) = &asked.parent else { return Ok(()) };
    if *parent == asked.name {
        return no_parent(format!("snapshot '{parent}' cannot be its own parent"));
    }
    if moments.get(parent).is_none() {
        return no_parent(format!("parent '{parent}' of snapshot '{}' is not there", asked.name));
    }
    if moments.would_cycle(&asked.name, parent) {
        return no_parent(format!(
            "'{parent}' cannot be the parent of '{}', whose descendant it is",
            asked.name
        ));
    }
    Ok(())
}

fn check_domain(asked: &Definition, name: &str, uuid: Uuid) -> Result<()> {
    let Some(domain) = &asked.domain else { return Ok(()) };
    let theirs = domain.child_text("uuid").and_then(|text| Uuid::parse_str(text.trim()).ok());
    if theirs.is_some_and(|theirs| theirs != uuid) {
        return invalid(format!(
            "snapshot '{}' is of another domain; domain '{name}' has uuid {uuid}",
            asked.name
        ));
    }
    Ok(())
}

/// Every disk of the definition that the snapshot holds, in its order: as listed, and the others as
/// a snapshot of that kind has them by default.
fn all_disks(moment: &Definition) -> Result<Vec<Disk>> {
    let Some(domain) = &moment.domain else {
        return Err(Error::snapshot(
            Condition::Internal,
            format!("snapshot '{}' holds no <domain> whose disks it could be of", moment.name),
        ));
    };
    let is = |disk: &DiskView<'_>, name: &str| disk.target() == name || disk.path() == Some(name);
    let listed = |name: &str| domain::disks(domain).any(|disk| is(&disk, name));
    if let Some(disk) = moment.disks.iter().find(|disk| !listed(&disk.name)) {
        return Err(Error::snapshot(
            Condition::ConfigUnsupported,
            format!("the <domain> of snapshot '{}' has no disk '{}'", moment.name, disk.name),
        ));
    }
    let external = moment.state == State::DiskSnapshot || moment.is_external();
    let default = if external { Location::External } else { Location::Internal };
    domain::disks(domain)
        .map(|disk| match moment.disks.iter().find(|listed| is(&disk, &listed.name)) {
            Some(listed) => Ok(Disk { name: disk.target().to_owned(), ..listed.clone() }),
            None => default_disk(&disk, default, &moment.name),
        })
        .collect()
}

fn default_disk(disk: &DiskView<'_>, default: Location, moment: &str) -> Result<Disk> {
    let target = disk.target();
    let location = match disk.snapshot() {
        _ if disk.is_empty() => Location::No,
        Some(said) => said,
        None if disk.is_readonly() => Location::No,
        None => default,
    };
    match (location, disk.path()) {
        (Location::External, Some(path)) if disk.source_type() == "file" => {
            let overlay = sibling(Path::new(path), moment);
            Ok(Disk::overlay(target, overlay.to_string_lossy(), "qcow2"))
        }
        (Location::External, _) => Err(Error::snapshot(
            Condition::ConfigUnsupported,
            format!(
                "no name can be made up for the overlay of disk '{target}' of snapshot '{moment}', \
                 whose source is not a regular file; list the disk with its <source>"
            ),
        )),
        (location, _) => Ok(Disk::new(target, location)),
    }
}

fn check_kind(old: &Definition, new: &Definition) -> Result<()> {
    let online = |def: &Definition| matches!(def.state, State::Running | State::Paused);
    if online(old) != online(new) {
        return invalid(format!(
            "snapshot '{}' cannot change between online and offline",
            old.name
        ));
    }
    if (old.state == State::DiskSnapshot) != (new.state == State::DiskSnapshot) {
        return invalid(format!(
            "snapshot '{}' cannot change between disk-only and full system",
            old.name
        ));
    }
    Ok(())
}

/// As libvirt, whose tree of moments is its domain code's.
fn no_parent<T>(message: String) -> Result<T> {
    Err(Error::new(Condition::InvalidArgument, message).from_origin(Origin::Domain))
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::snapshot(Condition::InvalidArgument, message))
}

#[cfg(test)]
mod tests {
    use virtsnap_xml::element::Element;

    use super::*;

    const DOMAIN: &str = "<domain type='qemu'><name>vm</name>\
        <uuid>00000000-0000-0000-0000-000000000001</uuid><devices>\
        <disk type='file' device='disk'><source file='/i/a.img'/><target dev='vda'/></disk>\
        <disk type='file' device='cdrom'><source file='/i/cd.iso'/><target dev='sda'/></disk>\
        <disk type='file' device='disk' snapshot='no'><source file='/i/b'/><target dev='vdb'/></disk>\
        <disk type='file' device='floppy'><target dev='fda'/></disk></devices></domain>";

    fn disks(state: &str, listed: &str) -> Result<Vec<String>> {
        let text = format!(
            "<domainsnapshot><name>s</name><state>{state}</state><creationTime>1</creationTime>\
             {listed}{DOMAIN}</domainsnapshot>"
        );
        let asked = Definition::parse(&Element::parse(&text).unwrap()).unwrap();
        let list = MomentList::default();
        let (moment, _) = redefine(asked, false, "vm", Uuid::from_u128(1), &list)?;
        let told = |disk: &Disk| {
            format!("{} {} {}", disk.name, disk.snapshot.as_str(), disk.path().unwrap_or("-"))
        };
        Ok(moment.disks.iter().map(told).collect())
    }

    #[test]
    fn disks_that_are_not_listed_are_as_in_such_a_snapshot() {
        let full = ["vda internal -", "sda no -", "vdb no -", "fda no -"];
        assert_eq!(disks("shutoff", "").unwrap(), full);
        assert_eq!(disks("running", "").unwrap(), full);
        let only = disks("disk-snapshot", "").unwrap();
        assert_eq!(only[0], "vda external /i/a.s");
        let memory = disks("running", "<memory snapshot='external' file='/m'/>").unwrap();
        assert_eq!(memory[0], "vda external /i/a.s");
    }

    #[test]
    fn listed_disks_stay_and_a_path_is_a_name() {
        let listed = "<disks><disk name='/i/b' snapshot='internal'/></disks>";
        let found = disks("shutoff", listed).unwrap();
        assert_eq!(found, ["vda internal -", "sda no -", "vdb internal -", "fda no -"]);
        let err = disks("shutoff", "<disks><disk name='vdz'/></disks>").unwrap_err();
        assert_eq!(err.condition, Condition::ConfigUnsupported);
    }
}
