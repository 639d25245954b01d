//! Planning the overlay of one disk: where it goes, and what must hold of that place.
//!
//! | asked for | at the place | what is done |
//! |---|---|---|
//! | a new overlay in a file | nothing | the file is made |
//! | a new overlay in a file | an empty file | it is filled |
//! | a new overlay on a block device | a device that nobody uses | it is overwritten |
//! | the user's overlay | a blank image on the disk's own image | it is used as it is |
//!
//! libvirt takes the user's overlay unseen (defect 10 of 11.3): one that stands on another image,
//! or holds data, would change the guest's disk under it without a word.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use virtsnap_xml::snapshot::Disk;

use super::align::overlay_path;
use super::create::image_facts;
use super::layers::Layers;
use super::{Plan, Step};
use crate::error::{Condition, Error, Result};
use crate::facts::{DiskDevice, DiskFacts, DomainFacts, Format, ImageFacts, PathKind, Place};
use crate::options::{New, Overlays};

/// As many images as libvirt lets stand on each other; a deeper chain does not start there.
pub(super) const MAX_LAYERS: usize = 200;

/// Adds the steps that make the overlay, or find it, and give it to a running hypervisor.
pub(super) fn plan_overlay(
    disk: &Disk,
    facts_of: &DiskFacts,
    facts: &DomainFacts,
    options: &New,
    places: &BTreeMap<PathBuf, Place>,
    plan: &mut Plan,
) -> Result<PathBuf> {
    let target = &disk.name;
    let active = facts.state.is_active();
    let format = Format::from(disk.format.as_deref().unwrap_or("qcow2"));
    if !matches!(format, Format::Qcow2 | Format::Qed) {
        return unsupported(format!(
            "disk '{target}': an overlay cannot be of format {}; use qcow2",
            format.as_str()
        ));
    }
    if disk.driver.is_some() && format != Format::Qcow2 {
        return unsupported(format!(
            "disk '{target}': <metadata_cache> is for overlays of format qcow2, and this one is of \
             format {}",
            format.as_str()
        ));
    }
    let image = image_facts(facts_of, facts)?;
    check_tellable(target, &format, image)?;
    let Some(backing) = facts_of.image().cloned() else {
        return unsupported(format!("disk '{target}' has no image to lay an overlay on"));
    };
    if facts_of.device == DiskDevice::Lun && active {
        return unsupported(format!(
            "disk '{target}' is a SCSI device passed through, which a running guest cannot have \
             an overlay on"
        ));
    }
    if facts_of.transient && active {
        return Err(Error::new(
            Condition::OperationUnsupported,
            format!("disk '{target}' is transient: its layers go when the domain stops"),
        ));
    }
    if facts_of.shareable && image.format == Format::Raw {
        return unsupported(format!("disk '{target}' is shared, and an overlay cannot be"));
    }
    check_depth(target, &backing, facts)?;
    let kind = disk.source_type.as_deref().unwrap_or("file");
    let Some(overlay) = overlay_path(disk).filter(|_| matches!(kind, "file" | "block")) else {
        // libvirt's code for it, whether the domain runs or not.
        return Err(Error::new(
            Condition::Internal,
            format!(
                "disk '{target}': an overlay is made in a file or on a block device, not on \
                 '{kind}' storage; give a <source file='…'/> or <source dev='…'/>"
            ),
        ));
    };
    let place = places.get(&overlay).cloned().unwrap_or_else(|| PathKind::Other.into());
    let wanted = Wanted { target, kind, overlay: &overlay, format: &format, backing: &backing };
    match options.overlays {
        Overlays::Create => plan.prepare.push(wanted.made(&place, image)?),
        Overlays::Reuse => wanted.check_reused(&place, image)?,
    }
    if active {
        let (disk, overlay) = (target.clone(), overlay.clone());
        plan.prepare.push(Step::AttachOverlay { disk, overlay, format });
    }
    Ok(overlay)
}

/// A header of qed tells no format of the image below it but raw, and to guess it from that image
/// is safe only where it leads nowhere else.
fn check_tellable(target: &str, format: &Format, below: &ImageFacts) -> Result<()> {
    let is_plain = match below.format {
        Format::Raw => true,
        Format::Qcow2 => below.backing.is_none(),
        _ => false,
    };
    if *format != Format::Qed || is_plain {
        return Ok(());
    }
    unsupported(format!(
        "disk '{target}': an overlay of format qed cannot tell the format of the image below it, \
         unless that is raw or a qcow2 image that stands on no other; use qcow2"
    ))
}

/// Refuses one more layer where as many as can be stand on each other already.
pub(super) fn check_depth(target: &str, below: &Path, facts: &DomainFacts) -> Result<()> {
    let depth = Layers::of(facts).depth(below);
    if depth < MAX_LAYERS {
        return Ok(());
    }
    Err(Error::new(
        Condition::OperationUnsupported,
        format!(
            "disk '{target}' stands on {depth} images, and a chain has at most {MAX_LAYERS}; \
             delete snapshots first, which merges their layers"
        ),
    ))
}

struct Wanted<'a> {
    target: &'a str,
    /// `file` or `block`.
    kind: &'a str,
    overlay: &'a Path,
    format: &'a Format,
    backing: &'a Path,
}

impl Wanted<'_> {
    /// The step that makes a new overlay.
    fn made(&self, place: &Place, below: &ImageFacts) -> Result<Step> {
        let (overlay, format) = (self.overlay.to_owned(), self.format.clone());
        let (backing, backing_format) = (self.backing.to_owned(), below.format.clone());
        let virtual_size = below.virtual_size;
        match (self.kind, place.kind) {
            ("file", PathKind::Missing) => {
                Ok(Step::CreateOverlay { overlay, format, backing, backing_format, virtual_size })
            }
            ("file", PathKind::Regular(0)) | ("block", PathKind::BlockDevice) => {
                self.check_unused(place)?;
                let step =
                    Step::FillOverlay { overlay, format, backing, backing_format, virtual_size };
                Ok(step)
            }
            ("file", PathKind::Regular(_)) => {
                // Such as the disk's own: a merge leaves the name of an overlay to its layer.
                self.check_unused(place)?;
                unsupported(self.about(
                    "the overlay's file exists already; remove it, name another one, or, if it \
                     was made for this, ask for it to be reused",
                ))
            }
            ("block", PathKind::Missing) => {
                let message = self.about("there is no such block device; make the device first");
                Err(Error::new(Condition::OperationUnsupported, message))
            }
            _ => self.another_kind(),
        }
    }

    /// The user's own overlay must show the guest the very disk it has now.
    fn check_reused(&self, place: &Place, below: &ImageFacts) -> Result<()> {
        match (self.kind, place.kind) {
            ("file", PathKind::Regular(_)) | ("block", PathKind::BlockDevice) => {}
            (_, PathKind::Missing) => {
                let message = self.about("is to be reused, and is not there; make it first");
                return Err(Error::new(Condition::System(ENOENT), message));
            }
            _ => return self.another_kind(),
        }
        self.check_unused(place)?;
        let Some(image) = place.image.as_ref().filter(|image| image.format == *self.format) else {
            return unsupported(
                self.about(&format!("is not an image of format {}", self.format.as_str())),
            );
        };
        if image.backing.as_deref() != Some(self.backing) {
            let now = image.backing.as_ref().map_or_else(
                || "on no image".to_owned(),
                |backing| format!("on '{}'", backing.display()),
            );
            return unsupported(self.about(&format!(
                "stands {now}, not on the disk's image '{}': the guest's disk would change under \
                 it; make it with qemu-img create -b",
                self.backing.display()
            )));
        }
        if image.backing_format.as_ref() != Some(&below.format) {
            return unsupported(self.about(&format!(
                "does not say that the image below is {}; make it with qemu-img create -F",
                below.format.as_str()
            )));
        }
        if image.virtual_size < below.virtual_size {
            return unsupported(self.about(&format!(
                "is of {} bytes, and the disk of {}: its end would be cut off",
                image.virtual_size, below.virtual_size
            )));
        }
        if !place.is_blank {
            return unsupported(self.about(
                "holds data already, which would change the guest's disk under it; make it anew",
            ));
        }
        Ok(())
    }

    fn check_unused(&self, place: &Place) -> Result<()> {
        match &place.used_by {
            None => Ok(()),
            Some(who) => unsupported(self.about(&format!(
                "is in use by {who}, so leave it alone and name another file for the overlay"
            ))),
        }
    }

    fn another_kind<T>(&self) -> Result<T> {
        let message = match self.kind {
            "block" => "is not a block device, as type='block' says",
            _ => "is not a regular file, as type='file' says",
        };
        unsupported(self.about(message))
    }

    fn about(&self, what: &str) -> String {
        format!("disk '{}': overlay '{}': {what}", self.target, self.overlay.display())
    }
}

/// As libvirt: the error of a system call that did not find a file.
const ENOENT: i32 = 2;

fn unsupported<T>(message: String) -> Result<T> {
    Err(Error::new(Condition::ConfigUnsupported, message))
}
