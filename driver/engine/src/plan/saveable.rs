//! Whether a guest's memory can be saved: what is decided here is refused before anything stops.
//!
//! The hypervisor's own word decides on devices (QEMU: `blocked-reasons` of `query-migrate`), since
//! it depends on the device, its backend and the kernel: passthrough of which the host saves the
//! state (VFIO's migration, version 2) is allowed, and all other is not. What it lets through and
//! does not fit what is left when the guest has ended, we refuse ourselves.

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::domain::State;
use crate::error::{Condition, Error, Result};
use crate::facts::DomainFacts;

/// Of a guest whose memory goes into a snapshot.
pub(super) fn check_facts(facts: &DomainFacts) -> Result<()> {
    let Some(live) = &facts.live else { return Ok(()) };
    let advice = "take a snapshot of the disks alone (DISK_ONLY), or one while it is shut off";
    check(live, &facts.memory_blockers).map_err(|mut err| {
        err.message = format!("{}; {advice}", err.message);
        err
    })?;
    if facts.saved_by_guest && !matches!(facts.state, State::Running(_)) {
        return Err(Error::new(
            Condition::OperationInvalid,
            format!(
                "the guest takes part when its memory is saved, and so has to run: resume it, or \
                 {advice}"
            ),
        ));
    }
    // As libvirt: also where the disk takes no part.
    match facts.disks.iter().find(|disk| disk.block_job) {
        None => Ok(()),
        Some(disk) => Err(busy(&disk.target)),
    }
}

/// `blockers` is what the hypervisor says against it.
///
/// # Errors
/// `OperationInvalid`, with every reason.
pub fn check(live: &Element, blockers: &[String]) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Condition::OperationInvalid, what));
    if let Some(disk) = domain::disks(live).find(|disk| disk.is_transient()) {
        return refuse(format!(
            "disk '{}' is transient: what the guest wrote to it goes with the guest, and its \
             memory cannot come back without it",
            disk.target()
        ));
    }
    let devices = live.child("devices").into_iter();
    let mut shared = devices.flat_map(|devices| devices.children("shmem"));
    if let Some(peer) = shared.find(|shmem| shmem.attr("role") != Some("master")) {
        return refuse(format!(
            "the shared memory '{}' belongs to its other users too, and a guest that is one peer \
             among them is not saved; make it role='master'",
            peer.attr("name").unwrap_or_default()
        ));
    }
    if !blockers.is_empty() {
        return refuse(format!("the guest's memory cannot be saved: {}", blockers.join("; ")));
    }
    Ok(())
}

/// A block job runs on the disk: its end would not find the guest that it began with.
pub fn busy(target: &str) -> Error {
    let what = format!("disk '{target}' is busy with a block job; the memory waits for its end");
    Error::new(Condition::OperationInvalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(devices: &str, blockers: &[&str]) -> Option<String> {
        let live = format!("<domain><devices>{devices}</devices></domain>");
        let blockers: Vec<String> = blockers.iter().map(|&reason| reason.to_owned()).collect();
        let refused = check(&Element::parse(&live).unwrap(), &blockers).err()?;
        assert_eq!(refused.condition, Condition::OperationInvalid);
        Some(refused.message)
    }

    #[test]
    fn memory_is_saved_where_nothing_is_in_the_way() {
        let transient = "<disk device='disk'><target dev='vdb'/><transient/></disk>";
        let vfio = "0000:01:00.0: VFIO migration is not supported in kernel";
        let hostdev = "<hostdev mode='subsystem' type='pci'><alias name='hostdev0'/></hostdev>";
        for (devices, blockers, word) in [
            ("", &[][..], None),
            ("<shmem name='s' role='master'/>", &[], None),
            ("<shmem name='mine'/>", &[], Some("'mine'")),
            (transient, &[], Some("'vdb'")),
            // The hypervisor decides: state of this device can be saved, of that it cannot.
            (hostdev, &[], None),
            (hostdev, &[vfio], Some(vfio)),
            ("", &["one", "two"], Some("one; two")),
        ] {
            let said = refusal(devices, blockers);
            assert_eq!(said.is_some(), word.is_some(), "{devices}: {said:?}");
            assert!(said.unwrap_or_default().contains(word.unwrap_or_default()), "{devices}");
        }
    }
}
