//! Flag words: libvirt's bits, and from 16 upwards virtsnapd's own (docs/extensions.md).

use virtsnap_xml::snapshot::Survivor;

use crate::options::{Create, Delete, Revert};

pub(crate) const LIST_TOPOLOGICAL: u32 = 1 << 10;
pub(crate) const XML_IMAGES: u32 = 1 << 16;

fn word(set: &[(bool, u32)]) -> u32 {
    set.iter().filter(|(is_set, _)| *is_set).fold(0, |word, (_, bit)| word | 1 << bit)
}

pub(crate) fn create(asked: &Create) -> u32 {
    word(&[
        (asked.no_metadata, 2),
        (asked.halt, 3),
        (asked.disk_only, 4),
        (asked.reuse_external, 5),
        (asked.quiesce, 6),
        (asked.atomic, 7),
        (asked.live, 8),
        (asked.validate, 9),
        (asked.no_current, 16),
    ])
}

pub(crate) fn revert(asked: &Revert) -> u32 {
    word(&[
        (asked.running, 0),
        (asked.paused, 1),
        (asked.force, 2),
        (asked.reset_nvram, 3),
        (asked.stop, 16),
        (asked.discard, 17),
        (asked.delete_children, 18),
    ])
}

pub(crate) fn delete(asked: &Delete) -> u32 {
    word(&[
        (asked.children, 0),
        (asked.metadata, 1),
        (asked.children_only, 2),
        (asked.consolidate, 16),
        (asked.keep == Some(Survivor::Base), 17),
        (asked.keep == Some(Survivor::Overlay), 18),
    ])
}
