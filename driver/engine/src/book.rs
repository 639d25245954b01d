//! What is known of one domain between operations: its definition, its moments, its files.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::Definition;

use crate::error::Result;
use crate::moment::MomentList;
use crate::plan::Finish;
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
