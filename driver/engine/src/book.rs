//! What is known of one domain between operations: its definition, its moments, its files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_xml::domain::{self, DiskView};
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Location};

use crate::error::Result;
use crate::facts::Format;
use crate::moment::MomentList;
use crate::plan::Finish;
use crate::ports::Needed;
use crate::unfinished::Left;

#[derive(Debug, Clone, PartialEq)]
pub struct Book {
    pub uuid: Uuid,
    pub name: String,
    /// The persistent definition; none for a transient domain.
    pub config: Option<Element>,
    pub moments: MomentList,
    /// Files that virtsnap created for the domain: the only ones it may remove.
    pub owned: BTreeSet<PathBuf>,
    pub has_managed_save: bool,
    /// There are moments beside these, whose records cannot be read.
    pub has_unreadable_moments: bool,
    /// An operation that could not be finished.
    pub left: Option<Left>,
}

impl Book {
    /// The moments as a client is shown them: with one whose disks have switched and that could not
    /// be recorded. Nothing is planned on these; it is settled before.
    pub fn listed(&self) -> Cow<'_, MomentList> {
        match self.left.as_ref().and_then(Left::unrecorded) {
            None => Cow::Borrowed(&self.moments),
            Some(change) => {
                let mut moments = self.moments.clone();
                moments.apply(change);
                Cow::Owned(moments)
            }
        }
    }

    /// A moment as a client is shown it: with what is unfinished.
    ///
    /// # Errors
    /// `NoSnapshot` when there is none of that name.
    pub fn shown(&self, name: &str) -> Result<Definition> {
        let mut moment = self.listed().expect(name)?.clone();
        if let Some(left) = &self.left {
            left.mark(&mut moment);
        }
        Ok(moment)
    }

    /// Something of the domain or of its moments names the file, whatever for.
    pub fn refers_to(&self, file: &Path) -> bool {
        let Some(text) = file.to_str() else { return true };
        let in_moments = self.moments.iter().any(|moment| moment.to_element().mentions(text));
        let in_config = self.config.as_ref().is_some_and(|config| config.mentions(text));
        in_config || in_moments || self.owned.contains(file)
    }

    /// Images of the definition, and those that moments have frozen: what others must not write to.
    pub fn images(&self) -> BTreeMap<PathBuf, Needed> {
        let mut images: BTreeMap<_, _> =
            self.config.iter().flat_map(|config| images_in(config, &self.name)).collect();
        for moment in self.moments.iter() {
            let Some(machine) = &moment.domain else { continue };
            let frozen = |target: &str| {
                let disk = moment.disks.iter().find(|disk| disk.name == target);
                disk.is_some_and(|disk| disk.snapshot == Location::External)
            };
            let disks = domain::disks(machine).filter(|disk| frozen(disk.target()));
            images.extend(disks.filter_map(|disk| needed(disk, &self.name)));
        }
        images
    }

    /// Follows a finish step that was done.
    pub(crate) fn follow(&mut self, finish: &Finish) {
        match finish {
            Finish::SetConfig(config) => self.config = Some(config.clone()),
            Finish::Record(change) => self.moments.apply(change),
            Finish::KeepImage(path) => {
                self.owned.insert(path.clone());
            }
            Finish::RemoveImage(path) => {
                self.owned.remove(path);
            }
            Finish::ForgetSave(_) => self.has_managed_save = false,
            Finish::ThawFilesystems
            | Finish::Resume(_)
            | Finish::Stop(_)
            | Finish::ApplySnapshot { .. }
            | Finish::DeleteSnapshot { .. }
            | Finish::Commit { .. }
            | Finish::Stream { .. }
            | Finish::Repoint { .. }
            | Finish::Overwrite { .. }
            | Finish::PutBack { .. }
            | Finish::HandOver(_)
            | Finish::SetSaved { .. }
            | Finish::SetLive(_) => {}
        }
    }
}

/// The images of a definition's disks, needed by the domain of that name.
pub(crate) fn images_in(definition: &Element, name: &str) -> Vec<(PathBuf, Needed)> {
    domain::disks(definition).filter_map(|disk| needed(disk, name)).collect()
}

fn needed(disk: DiskView<'_>, name: &str) -> Option<(PathBuf, Needed)> {
    // What is not said is raw, never probed.
    let format = Format::from(disk.format().unwrap_or("raw"));
    Some((PathBuf::from(disk.image()?), Needed { format, by: name.to_owned() }))
}
