//! The simulated world behind the engine's ports: each call may be the one that goes wrong.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use virtsnap_xml::element::Element;

use super::inner::{Guest, MANAGED_SAVE, image_facts};
use super::{Image, NAME, World};
use crate::domain::{Active, PausedReason, RunningReason, ShutOffReason, Start, StartFrom, State};
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, PathKind, Place, Room, StateFile};
use crate::merging::Merging;
use crate::plan::access::{Access, By};
use crate::plan::{Conclude, Finish, MomentChange, Pivot, Plan, ResumeReason, Step};
use crate::ports::{
    Entry, Hypervisor, Journal, Journals, MergeError, PivotError, Records, Subject, Unfinished,
};

impl Hypervisor for World {
    fn complete(&self, domain: Element) -> Result<Element> {
        Ok(domain)
    }

    async fn capabilities(&self) -> Result<Element> {
        Ok(Element::new("capabilities"))
    }

    async fn reconnect(&self) -> Result<Vec<Active>> {
        Ok(self.all_active())
    }

    async fn start(&self, domain: Element, start: Start) -> Result<Active> {
        self.call(
            || "start".to_owned(),
            false,
            |inner| {
                inner.make_state(&domain);
                let mut guest = Guest::boot(Arc::new(domain), 0);
                guest.running = !start.paused;
                for image in guest.active.values() {
                    inner.images.check_open(image)?;
                }
                inner.guest = Some(guest);
                let loaded = match &start.from {
                    StartFrom::Boot | StartFrom::BootSnapshot => Ok(()),
                    StartFrom::VmState { tag, vmstate, disks } => inner.load(tag, vmstate, disks),
                    StartFrom::Memory { file } => inner.load_file(file),
                };
                if loaded.is_err() {
                    inner.guest = None;
                }
                loaded
            },
        )?;
        self.active(self.uuid).ok_or_else(|| Error::new(Condition::Internal, "it is gone again"))
    }

    fn active(&self, _domain: Uuid) -> Option<Active> {
        let inner = self.lock();
        let guest = inner.guest.as_ref()?;
        let state = if guest.running {
            State::Running(RunningReason::Booted)
        } else {
            State::Paused(PausedReason::User)
        };
        Some(Active {
            uuid: self.uuid,
            name: NAME.to_owned(),
            id: 1,
            state,
            live: Element::clone(&guest.live),
        })
    }

    fn all_active(&self) -> Vec<Active> {
        self.active(self.uuid).into_iter().collect()
    }

    fn set_live(&self, _domain: Uuid, live: Element) -> Result<()> {
        self.call(|| "set-live".to_owned(), false, |inner| inner.finish(&Finish::SetLive(live)))
    }

    async fn suspend(&self, _domain: Uuid) -> Result<()> {
        self.call(|| "suspend".to_owned(), false, |inner| inner.act(&Step::Pause))
    }

    async fn resume(&self, _domain: Uuid) -> Result<()> {
        let resume = Finish::Resume(ResumeReason::Unpaused);
        self.call(|| "resume".to_owned(), false, |inner| inner.finish(&resume))
    }

    async fn shutdown(&self, domain: Uuid) -> Result<()> {
        self.destroy(domain, ShutOffReason::Shutdown).await
    }

    async fn reboot(&self, _domain: Uuid) -> Result<()> {
        self.call(|| "reboot".to_owned(), false, |inner| inner.guest().map(|_| ()))
    }

    async fn reset(&self, _domain: Uuid) -> Result<()> {
        self.call(|| "reset".to_owned(), false, |inner| inner.guest().map(|_| ()))
    }

    async fn destroy(&self, _domain: Uuid, reason: ShutOffReason) -> Result<()> {
        self.call(|| "destroy".to_owned(), false, |inner| inner.finish(&Finish::Stop(reason)))
    }

    async fn facts(&self, subject: &Subject) -> Result<DomainFacts> {
        let mut inner = self.lock();
        // No operation is under way: nobody needs the notes any more.
        inner.committed.clear();
        Ok(inner.facts(subject))
    }

    async fn probe(&self, path: &Path) -> Result<PathKind> {
        Ok(match self.lock().images.get(path) {
            Some(image) if image.is_empty => PathKind::Regular(0),
            Some(_) => PathKind::Regular(1),
            None => PathKind::Missing,
        })
    }

    async fn place(&self, at: &Path, _below: &Path, facts: &DomainFacts) -> Result<Place> {
        let kind = self.probe(at).await?;
        let inner = self.lock();
        let is_image = |image: &&Image| !image.is_empty && image.damage.is_none();
        let image = inner.images.get(at).filter(is_image);
        Ok(Place {
            used_by: facts.images.contains_key(at).then(|| "this domain".to_owned()),
            is_blank: image.is_some_and(|image| image.data.is_empty()),
            image: image.map(image_facts),
            kind,
        })
    }

    async fn is_whole_copy(&self, _file: &StateFile, copy: &Path) -> Result<bool> {
        Ok(self.lock().images.get(copy).is_some_and(|image| image.damage.is_none()))
    }

    async fn room(&self, _directory: &Path) -> Option<Room> {
        self.lock().room.map(|free| Room { file_system: 1, free })
    }

    async fn check_access(&self, _domain: Uuid, needs: &[Access]) -> Result<()> {
        if needs.is_empty() || !self.lock().confined {
            return Ok(());
        }
        let denied = needs.iter().map(|need| {
            let by = match need.by {
                By::Running => "",
                By::Started(_) => " when started",
            };
            format!("{:?} {} ({}){by}", need.how, need.image.display(), need.role)
        });
        Err(Error::new(Condition::System(13), denied.collect::<Vec<_>>().join(", ")))
    }

    fn state_files(&self, _domain: Uuid, definition: &Element) -> Result<Vec<StateFile>> {
        Ok(self.lock().state_files(definition))
    }

    async fn act(&self, _domain: Uuid, step: &Step) -> Result<()> {
        let writes =
            !matches!(step, Step::Pause | Step::FreezeFilesystems | Step::AttachOverlay { .. });
        self.call(|| word("act", step), writes, |inner| inner.act(step))
    }

    async fn undo(&self, _domain: Uuid, step: &Step) -> Result<()> {
        self.call(|| word("undo", step), false, |inner| inner.undo(step))
    }

    async fn pivot(&self, _domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        // A pivot that had its effect and failed is one whose answer was lost.
        let (before, had_guest) = {
            let inner = self.lock();
            (inner.pivoted(pivot), inner.guest.is_some())
        };
        let writes = match pivot {
            Pivot::Record | Pivot::SwitchToOverlays { .. } => false,
            Pivot::SnapshotDisks { internal, .. } => !internal.is_empty(),
            Pivot::SaveVmState { .. } | Pivot::LoadVmState { .. } => true,
        };
        self.call(|| word("pivot", pivot), writes, |inner| inner.pivot(pivot)).map_err(|err| {
            let inner = self.lock();
            // The connection went with the process: it may have acted.
            let is_lost = had_guest && inner.guest.is_none();
            if is_lost || (inner.pivoted(pivot) && !before) {
                PivotError::InDoubt(err)
            } else {
                PivotError::Refused(err)
            }
        })
    }

    async fn pivoted(&self, _domain: Uuid, pivot: &Pivot) -> Result<bool> {
        self.call(|| word("ask", pivot), false, |inner| Ok(inner.has_pivoted(pivot)))
    }

    async fn finish(&self, _domain: Uuid, finish: &Finish) -> Result<()> {
        let writes = !matches!(
            finish,
            Finish::ThawFilesystems
                | Finish::Resume(_)
                | Finish::Stop(_)
                | Finish::SetLive(_)
                | Finish::PutBack { .. }
                | Finish::RemoveImage(_)
                | Finish::KeepImage(_)
                | Finish::HandOver(_)
                | Finish::ForgetSave(_)
        );
        self.call(|| word("finish", finish), writes, |inner| inner.finish(finish))
    }

    async fn merge(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        if self.lock().stops(merge, merging.is_stopped()) {
            let stopped = Error::new(Condition::Aborted, "the merge was stopped");
            return Err(MergeError::NotMerged(stopped));
        }
        // A job that QEMU tells of as failed did not happen; of anything else nobody knows.
        self.finish(domain, merge).await.map_err(|err| match err.condition {
            Condition::System(_) => MergeError::NotMerged(err),
            _ => MergeError::InDoubt(err),
        })
    }

    async fn weigh(&self, _domain: Uuid, _merge: &Finish) -> u64 {
        100
    }

    async fn conclude(&self, _domain: Uuid, conclude: &Conclude) -> Result<()> {
        let Conclude::Start { definition, start } = conclude;
        if self.lock().guest.is_some() {
            return Ok(());
        }
        let held = Start { paused: true, from: start.from.clone() };
        Hypervisor::start(self, definition.clone(), held).await.map(|_| ())
    }

    async fn release(&self, _domain: Uuid, conclude: &Conclude) -> Result<()> {
        let Conclude::Start { start, .. } = conclude;
        self.call(
            || "release".to_owned(),
            false,
            |inner| {
                inner.guest()?.running = !start.paused;
                Ok(())
            },
        )
    }
}

impl Records for World {
    fn set_config(&self, _domain: Uuid, config: &Element) -> Result<()> {
        self.call(
            || "records set-config".to_owned(),
            true,
            |inner| {
                inner.config = Some(Arc::new(config.clone()));
                Ok(())
            },
        )
    }

    fn record(&self, _domain: Uuid, change: &MomentChange) -> Result<()> {
        self.call(
            || "records record".to_owned(),
            true,
            |inner| {
                inner.moments.apply(change);
                Ok(())
            },
        )
    }

    fn set_owned(&self, _domain: Uuid, owned: &BTreeSet<PathBuf>) -> Result<()> {
        self.call(
            || "records set-owned".to_owned(),
            true,
            |inner| {
                inner.owned.clone_from(owned);
                Ok(())
            },
        )
    }

    fn managed_save(&self, _domain: Uuid) -> Result<PathBuf> {
        Ok(MANAGED_SAVE.into())
    }
}

impl Journals for World {
    fn begin(&self, _domain: Uuid, plan: &Plan) -> Result<Box<dyn Journal>> {
        self.call(
            || "journal begin".to_owned(),
            true,
            |inner| {
                assert!(inner.journal.is_none(), "one operation at a time");
                inner.check_plan(plan);
                let plan = Arc::new(plan.clone());
                inner.plans.push(Arc::clone(&plan));
                inner.journal = Some((plan, Vec::new()));
                Ok(())
            },
        )?;
        Ok(Box::new(self.clone()))
    }

    fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let journal = self.lock().journal.clone();
        let unfinished = journal.map(|(plan, entries)| Unfinished {
            domain: self.uuid,
            plan: Plan::clone(&plan),
            entries,
        });
        Ok(unfinished.into_iter().collect())
    }

    fn resume(&self, _domain: Uuid) -> Result<Box<dyn Journal>> {
        Ok(Box::new(self.clone()))
    }
}

impl Journal for World {
    fn record(&mut self, entry: Entry) -> Result<()> {
        self.call(
            || word("journal", &entry),
            true,
            |inner| {
                let (_, entries) = inner.journal.as_mut().expect("the journal is open");
                entries.push(entry);
                Ok(())
            },
        )
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.call(
            || "journal close".to_owned(),
            false,
            |inner| {
                inner.journal = None;
                Ok(())
            },
        )
    }
}

/// The call, as a person counts it: its kind and the word of the plan.
fn word(kind: &str, of: &impl std::fmt::Debug) -> String {
    /// Takes no more than the first word: what follows may be a whole definition.
    struct FirstWord(String);

    impl std::fmt::Write for FirstWord {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let word = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            self.0.push_str(word);
            if word.len() == text.len() { Ok(()) } else { Err(std::fmt::Error) }
        }
    }

    let mut told = FirstWord(format!("{kind} "));
    match write!(told, "{of:?}") {
        // It is one word, or ends after it on purpose.
        Ok(()) | Err(std::fmt::Error) => told.0,
    }
}
