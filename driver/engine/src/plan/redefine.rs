//! REDEFINE: metadata is put back or edited; no image and no guest is touched.

use std::collections::BTreeSet;

use uuid::Uuid;
use virtsnap_xml::snapshot::{Definition, State};

use super::MomentChange;
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
    if let Some(old) = moments.get(&moment.name) {
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
    }
    check_disks(&moment)?;
    let current =
        if make_current { Some(moment.name.clone()) } else { moments.current().map(str::to_owned) };
    let change = MomentChange { write: vec![moment.clone()], forget: Vec::new(), current };
    Ok((moment, change))
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

/// A disk of a snapshot is one of the definition that the snapshot holds.
fn check_disks(moment: &Definition) -> Result<()> {
    if moment.disks.is_empty() {
        return Ok(());
    }
    let Some(domain) = &moment.domain else {
        return Err(Error::snapshot(
            Condition::Internal,
            format!("snapshot '{}' names disks, and has no <domain> that has them", moment.name),
        ));
    };
    let targets: BTreeSet<&str> = domain
        .children("devices")
        .flat_map(|devices| devices.children("disk"))
        .filter_map(|disk| disk.child("target")?.attr("dev"))
        .collect();
    match moment.disks.iter().find(|disk| !targets.contains(disk.name.as_str())) {
        None => Ok(()),
        Some(disk) => Err(Error::snapshot(
            Condition::ConfigUnsupported,
            format!("the <domain> of snapshot '{}' has no disk '{}'", moment.name, disk.name),
        )),
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
