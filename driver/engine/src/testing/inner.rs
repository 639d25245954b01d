//! What survives the daemon: images, the guest, records and the journal; and what each act of a
//! plan does to them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::images::{Content, Damage, Image, Images, Saved, SavedMemory};
use super::{FIRST_TICK, Shape, Spoil, TICK, Trouble};
use crate::domain::{PausedReason, RunningReason, ShutOffReason, StartFrom, State, VmStateIn};
use crate::error::{Condition, Error, Result};
use crate::facts::{
    AgentState, DiskDevice, DiskFacts, DiskSource, DomainFacts, Format, ImageFacts,
    InternalSnapshot, MemoryFile, StateFile, StateKind,
};
use crate::moment::MomentList;
use crate::plan::state_files::{NVRAM as NVRAM_DISK, qcow2_store};
use crate::plan::{Conclude, Finish, Pivot, Plan, Step};
use crate::ports::{Entry, Subject};

/// A `<driver name=>` that serves disks past the hypervisor.
pub(super) const BYPASS: &str = "phy";
/// Where files go that stand beside no image.
const FILES: &str = "/files/vm";
pub(super) const TEMPLATE: &str = "/fw/template.fd";
pub(super) const NVRAM: &str = "/fw/vm.fd";
pub(super) const MANAGED_SAVE: &str = "/store/managed.save";
const TPM: &str = "/fw/tpm2/permall";

pub(super) fn state_path(kind: StateKind) -> &'static str {
    match kind {
        StateKind::Nvram => NVRAM,
        StateKind::Tpm => TPM,
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    pub running: bool,
    pub frozen: bool,
    pub memory: u64,
    pub live: Arc<Element>,
    /// Active layer of each disk.
    pub active: BTreeMap<String, PathBuf>,
    attached: BTreeMap<String, PathBuf>,
    loaded: Option<String>,
    /// Its memory was saved, and until the pivot it must not run.
    saved: bool,
    /// It is shutting down.
    pub dying: bool,
}

/// What survives the daemon, and what a test has in mind for it.
#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) shape: Shape,
    pub(super) images: Images,
    pub(super) guest: Option<Guest>,
    pub(super) config: Option<Arc<Element>>,
    pub(super) moments: MomentList,
    pub(super) owned: BTreeSet<PathBuf>,
    pub(super) journal: Option<(Arc<Plan>, Vec<Entry>)>,
    pub(super) plans: Vec<Arc<Plan>>,
    pub(super) now: i64,
    /// Bytes that can still be written; none: without end.
    pub(super) room: Option<u64>,
    /// The hypervisor's processes may open nothing that they have not open.
    pub(super) confined: bool,
    pub(super) memory_blockers: Vec<String>,
    pub(super) sealed: BTreeSet<PathBuf>,
    pub(super) is_old: bool,
    pub(super) calls: usize,
    pub(super) trouble: Option<(usize, Trouble)>,
    pub(super) dead: bool,
    /// Merges until one stops half way; none: all go on.
    pub(super) merges_left: Option<usize>,
    /// Active layers that were committed under a guest, with their bases: noted beside them.
    pub(super) committed: BTreeMap<PathBuf, PathBuf>,
    /// The images that a pivot puts memory or a snapshot into: noted before it, for when the
    /// guest's process is gone.
    pub(super) noted: Option<(String, Vec<PathBuf>)>,
    /// What a guest that lives wrote last.
    pub(super) ticks: Option<u64>,
    /// The disks that all snapshots take along.
    pub(super) minded: Vec<String>,
    pub(super) is_full: bool,
    /// The call that the trouble met.
    pub(super) struck: Option<String>,
    /// The call from which on something is wrong with a file.
    pub(super) spoils: Option<(usize, PathBuf, Spoil)>,
}

/// Two worlds that are the same in this have the same future. What differs most comes first.
#[derive(Debug, PartialEq)]
pub struct Same {
    entries: Option<Vec<Entry>>,
    owned: BTreeSet<PathBuf>,
    guest: Option<Guest>,
    ticks: Option<u64>,
    committed: BTreeMap<PathBuf, PathBuf>,
    noted: Option<(String, Vec<PathBuf>)>,
    images: Images,
    moments: MomentList,
    config: Option<Arc<Element>>,
    plan: Option<Arc<Plan>>,
    others: (i64, Option<u64>, bool),
}

impl Guest {
    /// Nothing of an operation is left in it.
    pub fn is_settled(&self) -> bool {
        self.attached.is_empty() && !self.frozen
    }

    pub(super) fn boot(live: Arc<Element>, memory: u64) -> Self {
        let store = qcow2_store(&live).map(|path| (NVRAM_DISK.to_owned(), path));
        let active = domain::disks(&live)
            .filter_map(|disk| Some((disk.target().to_owned(), PathBuf::from(disk.path()?))))
            .chain(store)
            .collect();
        Self {
            running: true,
            frozen: false,
            memory,
            live,
            active,
            attached: BTreeMap::new(),
            loaded: None,
            saved: false,
            dying: false,
        }
    }
}

impl Inner {
    /// What survives, but for how often its guest has written: counts are told by their order.
    pub(super) fn same(&self) -> Same {
        let mut images = self.images.clone();
        let mut counts: BTreeSet<u64> = images.counts().collect();
        counts.extend(self.ticks.into_iter().chain(self.guest.as_ref().map(|guest| guest.memory)));
        let order: Vec<u64> = counts.into_iter().filter(|count| *count > FIRST_TICK).collect();
        let told = |count: u64| match order.binary_search(&count) {
            Ok(nth) => FIRST_TICK + 1 + nth as u64,
            Err(_) => count,
        };
        images.count_as(told);
        let guest = self.guest.clone();
        Same {
            entries: self.journal.as_ref().map(|(_, entries)| entries.clone()),
            owned: self.owned.clone(),
            guest: guest.map(|guest| Guest { memory: told(guest.memory), ..guest }),
            ticks: self.ticks.map(told),
            committed: self.committed.clone(),
            noted: self.noted.clone(),
            images,
            moments: self.moments.clone(),
            config: self.config.clone(),
            plan: self.journal.as_ref().map(|(plan, _)| Arc::clone(plan)),
            others: (self.now, self.room, self.is_full),
        }
    }

    /// A running guest writes. Its memory is of one mind with its disks, unless it has just booted.
    pub(super) fn live(&mut self) {
        let Some(ticks) = self.ticks else { return };
        let Some(guest) = self.guest.as_ref().filter(|guest| guest.running && !guest.frozen) else {
            return;
        };
        let disks = guest.active.iter().filter(|(disk, _)| *disk != NVRAM_DISK);
        let images: Vec<PathBuf> = disks.clone().map(|(_, image)| image.clone()).collect();
        let of_one_mind = disks.clone().filter(|(disk, _)| self.minded.contains(*disk));
        for (_, image) in of_one_mind.filter(|_| guest.memory != 0) {
            let seen = self.images.read_cluster(image, TICK);
            assert_eq!(seen, guest.memory, "memory met another disk's {}", image.display());
        }
        for image in images {
            if let Some(image) = self.images.get_mut(&image) {
                image.data.insert(TICK, ticks + 1);
            }
        }
        if let Some(guest) = &mut self.guest {
            guest.memory = ticks + 1;
        }
        self.ticks = Some(ticks + 1);
    }

    fn check_writable(&self, path: &Path) -> Result<()> {
        const EROFS: i32 = 30;
        match self.images.get(path) {
            Some(image) if image.is_read_only => {
                let message = format!("cannot write '{}': it is read-only", path.display());
                Err(Error::new(Condition::System(EROFS), message))
            }
            Some(image) => image.check_whole(path),
            None => Ok(()),
        }
    }

    /// What a start makes where it is missing.
    pub(super) fn make_state(&mut self, definition: &Element) {
        for file in self.state_files(definition) {
            if !file.exists {
                let made = file.template.and_then(|path| self.images.get(&path)).cloned();
                self.images.insert(&file.path, made.unwrap_or_default());
            }
        }
    }

    pub(super) fn state_files(&self, definition: &Element) -> Vec<StateFile> {
        let has = |path: &[&str]| definition.at(path).is_some();
        let store = qcow2_store(definition);
        let file = |kind, template: Option<&str>, copies: &str| StateFile {
            kind,
            path: PathBuf::from(state_path(kind)),
            format: match kind {
                StateKind::Nvram if store.is_some() => Format::Qcow2,
                StateKind::Nvram | StateKind::Tpm => Format::Raw,
            },
            exists: self.images.contains_key(Path::new(state_path(kind))),
            template: template.map(PathBuf::from),
            copies: PathBuf::from(copies),
        };
        let nvram = has(&["os", "nvram"]).then(|| file(StateKind::Nvram, Some(TEMPLATE), NVRAM));
        let tpm = has(&["devices", "tpm"]).then(|| file(StateKind::Tpm, None, "/fw/tpm2"));
        nvram.into_iter().chain(tpm).collect()
    }

    pub(super) fn guest(&mut self) -> Result<&mut Guest> {
        self.guest
            .as_mut()
            .ok_or_else(|| Error::new(Condition::OperationInvalid, "the domain is not running"))
    }

    /// Something is wrong with a file from now on.
    pub(super) fn spoil(&mut self, path: &Path, spoil: Spoil) {
        if let Some(image) = self.images.get_mut(path) {
            match spoil {
                Spoil::ReadOnly => image.is_read_only = true,
                Spoil::Damaged(damage) => image.damage = Some(damage),
            }
        }
    }

    pub(super) fn image(&mut self, path: &Path) -> Result<&mut Image> {
        self.images.get_mut(path).ok_or_else(|| {
            Error::new(Condition::OperationFailed, format!("no image {}", path.display()))
        })
    }

    pub(super) fn new_image(&mut self, path: &Path, image: Image) -> Result<()> {
        if self.images.contains_key(path) {
            return Err(Error::new(Condition::OperationFailed, "the file exists"));
        }
        self.images.insert(path, Image { claimed: true, ..image });
        Ok(())
    }

    /// Not the hypervisor's own process serves the disk of the guest.
    fn bypass(&self, disk: &str) -> Option<String> {
        let live = self.guest.as_ref().map(|guest| &guest.live)?;
        let driver = domain::disk(live, disk)?.driver()?.attr("name")?;
        (driver == BYPASS).then(|| BYPASS.to_owned())
    }

    fn check_inside(&self) {
        assert!(self.shape == Shape::Inside, "images hold no memory");
    }

    /// No plan has a word for what its hypervisor cannot do.
    pub(super) fn check_plan(&self, plan: &Plan) {
        let is_inside = |step: &Step| {
            matches!(step, Step::CreateVmStateImage { .. } | Step::SaveVmState { .. })
        };
        let starts_inside = |conclude: &Conclude| {
            let Conclude::Start { start, .. } = conclude;
            matches!(start.from, StartFrom::VmState { .. })
        };
        let has_inside = plan.prepare.iter().any(is_inside)
            || matches!(plan.pivot, Pivot::SaveVmState { .. } | Pivot::LoadVmState { .. })
            || plan.conclude.iter().any(starts_inside);
        if has_inside {
            self.check_inside();
        }
        let pauses = || plan.prepare.contains(&Step::Pause);
        let saves = |step: &Step| matches!(step, Step::SaveMemory { .. });
        if self.shape == Shape::Outside && plan.prepare.iter().any(saves) {
            assert!(!pauses(), "a guest that is paused cannot take part in its save: {plan}");
        }
    }

    /// Only the hypervisor may write to it.
    fn check_closed(&self, image: &Path) {
        let is_open = |guest: &Guest| guest.active.values().any(|active| active == image);
        assert!(
            !self.guest.as_ref().is_some_and(is_open),
            "the guest has {} open",
            image.display()
        );
    }

    pub(super) fn act(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Pause => self.guest()?.running = false,
            Step::FreezeFilesystems => self.guest()?.frozen = true,
            Step::CreateOverlay { overlay, backing, .. } => {
                self.image(backing)?.check_header(backing)?;
                let image = Image { backing: Some(backing.clone()), ..Image::default() };
                self.new_image(overlay, image)?;
            }
            Step::FillOverlay { overlay, backing, .. } => {
                self.image(backing)?.check_header(backing)?;
                let image = self.image(overlay)?;
                assert!(image.is_empty, "only an empty file is filled");
                let backing = Some(backing.clone());
                *image = Image { backing, claimed: true, is_users: true, ..Image::default() };
            }
            Step::CopyImage { from, to } => {
                let image = self.image(from)?.clone();
                image.check_whole(from)?;
                self.new_image(to, Image { is_read_only: false, ..image })?;
            }
            Step::AttachOverlay { disk, overlay, .. } => {
                assert_eq!(self.bypass(disk), None, "{disk} is not the hypervisor's");
                self.guest()?.attached.insert(disk.clone(), overlay.clone());
            }
            Step::SnapshotImage { image, tag } => {
                self.check_closed(image);
                self.check_writable(image)?;
                let image = self.image(image)?;
                let (tag, data) = (tag.clone(), image.data.clone());
                image.snapshots.push(Saved { tag, data, memory: None });
            }
            Step::SaveMemory { file, live, overwrite, definition } => {
                self.save_memory(file, *live, *overwrite, definition)?;
            }
            Step::CreateVmStateImage { image } => {
                self.check_inside();
                self.new_image(image, Image::default())?;
            }
            Step::SaveVmState { tag, vmstate, disks } => self.save_vm_state(tag, vmstate, disks)?,
        }
        Ok(())
    }

    fn save_memory(
        &mut self,
        file: &Path,
        live: bool,
        overwrite: bool,
        definition: &Element,
    ) -> Result<()> {
        let stops_itself = self.shape == Shape::Outside;
        let guest = self.guest()?;
        if stops_itself {
            assert!(guest.running, "the guest takes part in its save");
        } else {
            assert_eq!(guest.running, live, "what runs is saved live, what is stopped is not");
        }
        match self.images.get_mut(file) {
            None => self.new_image(file, Image::default())?,
            Some(found) if overwrite || *found == Image::default() => {}
            Some(_) => return Err(Error::new(Condition::OperationFailed, "the file exists")),
        }
        if live {
            // Pass by pass: what is kept is of the moment at which it stops.
            (0..3).for_each(|_| self.live());
        }
        let (memory, definition) = (self.guest()?.memory, definition.clone());
        // It was stopped for it, or is by it.
        let running = true;
        self.image(file)?.memory = Some(SavedMemory { memory, definition, running });
        let guest = self.guest()?;
        (guest.running, guest.saved) = (false, true);
        Ok(())
    }

    fn save_vm_state(&mut self, tag: &str, vmstate: &VmStateIn, disks: &[String]) -> Result<()> {
        self.check_inside();
        let memory = self.guest()?.memory;
        let mut noted = Vec::new();
        for disk in disks {
            let active = self.active(disk)?;
            self.check_writable(&active)?;
            noted.push(active);
        }
        if let VmStateIn::Image(image) = vmstate {
            noted.push(image.clone());
        }
        self.noted = Some((tag.to_owned(), noted));
        for disk in disks {
            let memory = (*vmstate == VmStateIn::Disk(disk.clone())).then_some(memory);
            let active = self.active(disk)?;
            let image = self.image(&active)?;
            let (tag, data) = (tag.to_owned(), image.data.clone());
            image.snapshots.push(Saved { tag, data, memory });
        }
        if let VmStateIn::Image(image) = vmstate {
            let (tag, data) = (tag.to_owned(), Content::new());
            self.image(image)?.snapshots.push(Saved { tag, data, memory: Some(memory) });
        }
        self.guest()?.saved = true;
        Ok(())
    }

    pub(super) fn undo(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Pause => {
                if let Some(guest) = &mut self.guest {
                    guest.running = true;
                }
            }
            Step::FreezeFilesystems => {
                if let Some(guest) = &mut self.guest {
                    guest.frozen = false;
                }
            }
            Step::CreateOverlay { overlay: path, .. }
            | Step::CopyImage { to: path, .. }
            | Step::CreateVmStateImage { image: path } => {
                if self.images.get(path).is_some_and(|image| image.claimed) {
                    self.images.remove(path);
                }
            }
            Step::FillOverlay { overlay, .. } => {
                if let Some(image) = self.images.get_mut(overlay).filter(|image| image.claimed) {
                    *image = Image { is_empty: true, is_users: true, ..Image::default() };
                }
            }
            Step::AttachOverlay { disk, .. } => {
                if let Some(guest) = &mut self.guest {
                    guest.attached.remove(disk);
                }
            }
            Step::SnapshotImage { image, tag } => {
                if self.has_tag(image, tag) {
                    self.check_writable(image)?;
                }
                if let Some(image) = self.images.get_mut(image) {
                    image.snapshots.retain(|saved| saved.tag != *tag);
                }
            }
            Step::SaveMemory { file, live, .. } => {
                if let Some(guest) = &mut self.guest {
                    guest.saved = false;
                    guest.running |= *live || self.shape == Shape::Outside;
                }
                match self.images.get_mut(file) {
                    Some(image) if image.claimed => drop(self.images.remove(file)),
                    Some(image) => image.memory = None,
                    None => {}
                }
            }
            Step::SaveVmState { tag, vmstate, disks } => {
                let noted = self.noted.clone().filter(|(noted, _)| noted == tag);
                let mut images = noted.map(|(_, images)| images).unwrap_or_default();
                if let Some(guest) = &mut self.guest {
                    guest.saved = false;
                    images.extend(disks.iter().filter_map(|disk| guest.active.get(disk).cloned()));
                }
                if let VmStateIn::Image(image) = vmstate {
                    images.push(image.clone());
                }
                for path in images {
                    if self.has_tag(&path, tag) {
                        self.check_writable(&path)?;
                    }
                    if let Some(image) = self.images.get_mut(&path) {
                        image.snapshots.retain(|saved| saved.tag != *tag);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn pivot(&mut self, pivot: &Pivot) -> Result<()> {
        match pivot {
            Pivot::Record => {}
            Pivot::SwitchToOverlays { disks } => self.switch(disks)?,
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                let mut noted = Vec::new();
                for disk in internal {
                    assert_eq!(self.bypass(disk), None, "{disk} is not the hypervisor's");
                    let active = self.active(disk)?;
                    self.check_writable(&active)?;
                    noted.push(active);
                }
                self.noted = Some((tag.clone(), noted));
                self.switch(overlays)?;
                for disk in internal {
                    let active = self.active(disk)?;
                    let image = self.image(&active)?;
                    let (tag, data) = (tag.clone(), image.data.clone());
                    image.snapshots.push(Saved { tag, data, memory: None });
                }
                self.guest()?.saved = false;
            }
            Pivot::SaveVmState { tag, vmstate, disks } => {
                self.save_vm_state(tag, vmstate, disks)?;
                self.guest()?.saved = false;
            }
            Pivot::LoadVmState { tag, vmstate, disks } => {
                assert!(!self.guest()?.running, "the vCPUs are stopped before memory is loaded");
                let active: Result<_> = disks.iter().map(|disk| self.active(disk)).collect();
                self.noted = Some((tag.clone(), active?));
                self.load(tag, vmstate, disks)?;
                self.guest()?.loaded = Some(tag.clone());
            }
        }
        Ok(())
    }

    fn switch(&mut self, disks: &[(String, PathBuf)]) -> Result<()> {
        let guest = self.guest()?;
        assert!(!(guest.saved && guest.running), "disks and memory would not belong together");
        for (disk, overlay) in disks {
            assert_eq!(guest.attached.remove(disk).as_ref(), Some(overlay));
            guest.active.insert(disk.clone(), overlay.clone());
        }
        guest.saved = false;
        Ok(())
    }

    pub(super) fn load(&mut self, tag: &str, vmstate: &VmStateIn, disks: &[String]) -> Result<()> {
        self.check_inside();
        let no_tag = || Error::new(Condition::OperationFailed, format!("no tag {tag}"));
        for disk in disks {
            let active = self.active(disk)?;
            let image = self.image(&active)?;
            image.check_whole(&active)?;
            let saved = image.snapshots.iter().find(|saved| saved.tag == *tag);
            image.data = saved.ok_or_else(no_tag)?.data.clone();
        }
        let image = match vmstate {
            VmStateIn::Disk(disk) => self.active(disk)?,
            VmStateIn::Image(image) => image.clone(),
        };
        self.image(&image)?.check_whole(&image)?;
        let saved = self.image(&image)?.snapshots.iter().find(|saved| saved.tag == *tag);
        let memory = saved.and_then(|saved| saved.memory).ok_or_else(no_tag)?;
        self.guest()?.memory = memory;
        Ok(())
    }

    pub(super) fn load_file(&mut self, file: &Path) -> Result<()> {
        self.image(file)?.check_whole(file)?;
        let saved = self.image(file)?.memory.clone();
        let saved = saved.ok_or_else(|| Error::new(Condition::OperationFailed, "no save image"))?;
        self.guest()?.memory = saved.memory;
        Ok(())
    }

    pub(super) fn active(&mut self, disk: &str) -> Result<PathBuf> {
        let active = self.guest()?.active.get(disk).cloned();
        active.ok_or_else(|| Error::new(Condition::OperationFailed, format!("no disk {disk}")))
    }

    /// Where the guest's process is gone, its images tell: those that were written to, or have the
    /// snapshot. What a load left half done is done by that.
    pub(super) fn has_pivoted(&mut self, pivot: &Pivot) -> bool {
        if self.guest.is_some() {
            return self.pivoted(pivot);
        }
        let noted = |tag: &str| {
            let (noted, images) = self.noted.as_ref()?;
            (noted == tag).then(|| images.clone())
        };
        match pivot {
            Pivot::Record => false,
            Pivot::SwitchToOverlays { disks } => self.were_written(disks),
            Pivot::SnapshotDisks { overlays, internal, .. } if internal.is_empty() => {
                self.were_written(overlays)
            }
            Pivot::SnapshotDisks { tag, .. } | Pivot::SaveVmState { tag, .. } => {
                noted(tag).is_some_and(|images| images.iter().all(|image| self.has_tag(image, tag)))
            }
            Pivot::LoadVmState { tag, .. } => {
                let Some(images) = noted(tag) else { return false };
                for path in images {
                    if let Some(image) = self.images.get_mut(&path)
                        && let Some(saved) = image.snapshots.iter().find(|saved| saved.tag == *tag)
                    {
                        image.data = saved.data.clone();
                    }
                }
                true
            }
        }
    }

    fn were_written(&self, overlays: &[(String, PathBuf)]) -> bool {
        let is_written = |path| self.images.get(path).is_some_and(|image| !image.data.is_empty());
        overlays.iter().any(|(_, overlay)| is_written(overlay))
    }

    fn has_tag(&self, image: &Path, tag: &str) -> bool {
        self.images
            .get(image)
            .is_some_and(|image| image.snapshots.iter().any(|saved| saved.tag == tag))
    }

    pub(super) fn pivoted(&self, pivot: &Pivot) -> bool {
        match pivot {
            Pivot::Record => false,
            Pivot::SwitchToOverlays { disks } => self.guest.as_ref().is_some_and(|guest| {
                disks.iter().all(|(disk, overlay)| guest.active.get(disk) == Some(overlay))
            }),
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                self.guest.as_ref().is_some_and(|guest| {
                    let has_tag = |disk| {
                        let image = guest.active.get(disk).and_then(|path| self.images.get(path));
                        image.is_some_and(|image| image.snapshots.iter().any(|s| s.tag == *tag))
                    };
                    overlays.iter().all(|(disk, overlay)| guest.active.get(disk) == Some(overlay))
                        && internal.iter().all(has_tag)
                })
            }
            Pivot::SaveVmState { tag, .. } => {
                self.images.iter().any(|(_, image)| image.snapshots.iter().any(|s| s.tag == *tag))
            }
            Pivot::LoadVmState { tag, .. } => {
                self.guest.as_ref().is_some_and(|guest| guest.loaded.as_ref() == Some(tag))
            }
        }
    }

    pub(super) fn finish(&mut self, finish: &Finish) -> Result<()> {
        match finish {
            Finish::ThawFilesystems => self.undo(&Step::FreezeFilesystems)?,
            // Of a guest that is gone nothing stands still.
            Finish::Resume(_) => {
                if let Some(guest) = &mut self.guest {
                    (guest.running, guest.saved) = (true, false);
                }
            }
            Finish::Stop(_) => self.guest = None,
            Finish::ApplySnapshot { image, tag } => {
                self.check_closed(image);
                self.check_writable(image)?;
                let image = self.image(image)?;
                let saved = image.snapshots.iter().find(|saved| saved.tag == *tag).cloned();
                let saved = saved.ok_or_else(|| {
                    Error::new(Condition::OperationFailed, format!("no tag {tag}"))
                })?;
                image.data = saved.data;
            }
            Finish::DeleteSnapshot { image, tag } => {
                assert!(
                    self.guest.is_none() || !self.sealed.contains(image),
                    "{image:?} is sealed"
                );
                self.check_writable(image)?;
                self.image(image)?.snapshots.retain(|saved| saved.tag != *tag);
            }
            Finish::Commit { disk, top, base } => self.commit(disk, top, base)?,
            Finish::Stream { top, base, .. } => self.stream(top, base.as_deref())?,
            Finish::Repoint { image, backing, .. } => {
                self.check_writable(image)?;
                self.image(image)?.backing = Some(backing.clone());
            }
            Finish::Overwrite { image, from } => {
                assert!(self.guest.is_none(), "the guest has it open");
                self.check_writable(image)?;
                self.images.check_whole(from)?;
                let data = self.image(from)?.data.clone();
                self.image(image)?.data = data;
            }
            Finish::PutBack { file, to } => {
                assert!(
                    !self.images.contains_key(file)
                        || !self.guest.as_ref().is_some_and(|guest| guest.running),
                    "the guest would write over what is put back"
                );
                if let Some(image) = self.images.remove(file) {
                    self.images.insert(to, Image { claimed: false, ..image });
                }
            }
            Finish::SetLive(live) => {
                if let Some(guest) = &mut self.guest {
                    guest.live = Arc::new(live.clone());
                }
            }
            Finish::RemoveImage(path) => {
                self.committed.remove(path);
                self.images.remove(path);
            }
            Finish::KeepImage(path) | Finish::HandOver(path) => {
                self.image(path)?.claimed = false;
            }
            Finish::SetSaved { file, definition } => {
                if let Some(saved) = self.images.get_mut(file).and_then(|it| it.memory.as_mut()) {
                    saved.definition.clone_from(definition);
                }
            }
            Finish::ForgetSave(file) => {
                self.images.remove(file);
            }
            Finish::SetConfig(_) | Finish::Record(_) => unreachable!("goes to the records"),
        }
        Ok(())
    }

    fn commit(&mut self, disk: &str, top: &Path, base: &Path) -> Result<()> {
        if self.committed.get(top).map(PathBuf::as_path) == Some(base) {
            return Ok(());
        }
        self.check_writable(base)?;
        let mut merged = Vec::new();
        let mut at = top.to_owned();
        while at != base {
            let image = self.image(&at)?;
            image.check_whole(&at)?;
            assert!(image.snapshots.is_empty(), "a layer with snapshots must not be committed");
            merged.push(image.data.clone());
            at = image.backing.clone().ok_or_else(|| {
                Error::new(Condition::OperationFailed, "the base is not below the top")
            })?;
        }
        let base_image = self.image(base)?;
        assert!(base_image.snapshots.is_empty(), "snapshots in the base would be falsified");
        for data in merged.into_iter().rev() {
            base_image.data.extend(data);
        }
        if let Some(guest) = &mut self.guest
            && guest.active.get(disk).map(PathBuf::as_path) == Some(top)
        {
            guest.active.insert(disk.to_owned(), base.to_owned());
            self.committed.insert(top.to_owned(), base.to_owned());
        }
        Ok(())
    }

    fn stream(&mut self, top: &Path, base: Option<&Path>) -> Result<()> {
        self.check_writable(top)?;
        self.images.check_whole(top)?;
        let data = match base {
            None => self.images.read(top),
            Some(base) => {
                let below = self.images.read(base);
                self.images.read(top).into_iter().filter(|(k, v)| below.get(k) != Some(v)).collect()
            }
        };
        let image = self.image(top)?;
        image.data = data;
        image.backing = base.map(Path::to_owned);
        Ok(())
    }

    /// Whether the merge that is about to begin ends half way, without having happened. What it
    /// was to write into is half overwritten then.
    pub(super) fn stops(&mut self, merge: &Finish, is_stopped: bool) -> bool {
        let is_refused = match &mut self.merges_left {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        };
        if self.dead || self.is_merged(merge) || !(is_stopped || is_refused) {
            return false;
        }
        if let Finish::Commit { top, base, .. } = merge
            && let Some((cluster, value)) =
                self.images.get(top).and_then(|top| top.data.first_key_value())
        {
            let (cluster, value) = (*cluster, *value);
            if let Some(base) = self.images.get_mut(base) {
                base.data.insert(cluster, value);
            }
        }
        true
    }

    /// The guest writes to the base since, or what is merged has been removed.
    fn is_merged(&self, merge: &Finish) -> bool {
        match merge {
            Finish::Commit { top, base, .. } => {
                !self.images.contains_key(top) || self.committed.get(top) == Some(base)
            }
            _ => false,
        }
    }

    pub(super) fn facts(&self, subject: &Subject) -> DomainFacts {
        let state = match &self.guest {
            Some(guest) if guest.dying => State::Shutdown,
            Some(guest) if guest.running => State::Running(RunningReason::Booted),
            Some(_) => State::Paused(PausedReason::User),
            None => State::ShutOff(ShutOffReason::Unknown),
        };
        let live = self.guest.as_ref().map(|guest| Element::clone(&guest.live));
        let definition = live.as_ref().or(subject.config.as_ref());
        let disks: Vec<DiskFacts> = definition
            .into_iter()
            .flat_map(domain::disks)
            .map(|disk| DiskFacts {
                target: disk.target().to_owned(),
                device: DiskDevice::Disk,
                source: disk.path().map(|path| match disk.source_type() {
                    "block" => DiskSource::Block(path.into()),
                    _ => DiskSource::File(path.into()),
                }),
                format: Format::from(disk.format().unwrap_or("raw")),
                readonly: disk.is_readonly(),
                shareable: disk.is_shareable(),
                transient: false,
                snapshot: disk.snapshot(),
                block_job: false,
                bypass: self.bypass(disk.target()),
            })
            .collect();
        let mut open: Vec<PathBuf> = disks.iter().filter_map(|d| d.image().cloned()).collect();
        open.extend(subject.images.keys().chain(&subject.owned).cloned());
        let config = subject.config.iter().flat_map(domain::disks);
        open.extend(config.filter_map(|disk| disk.path().map(PathBuf::from)));
        let mut images = BTreeMap::new();
        while let Some(path) = open.pop() {
            let found = self.images.get(&path);
            let Some(image) = found.filter(|image| image.damage != Some(Damage::NoImage)) else {
                continue;
            };
            if subject.memory_files.contains(&path) {
                continue;
            }
            open.extend(image.backing.clone());
            let is_block_device = path.starts_with("/dev");
            images.insert(path, ImageFacts { is_block_device, ..image_facts(image) });
        }
        let strangers = self.images.iter().filter(|(path, _)| !images.contains_key(*path));
        let foreign_readers = strangers
            .filter_map(|(path, image)| Some((image.backing.clone()?, path)))
            .filter(|(backing, _)| images.contains_key(backing))
            .map(|(backing, path)| (backing, format!("the image '{}'", path.display())))
            .collect();
        DomainFacts {
            uuid: subject.uuid,
            name: subject.name.clone(),
            state,
            config: subject.config.clone(),
            live,
            disks,
            images,
            memory_files: subject
                .memory_files
                .iter()
                .filter_map(|path| Some((path.clone(), memory_file(self.images.get(path)?))))
                .collect(),
            owned: subject.owned.clone(),
            foreign_readers,
            sealed: if self.guest.is_some() { self.sealed.clone() } else { BTreeSet::new() },
            state_files: Vec::new(),
            agent: AgentState::Connected,
            memory_blockers: self.memory_blockers.clone(),
            memory_inside: self.shape == Shape::Inside,
            saved_by_guest: self.shape == Shape::Outside,
            internal_after_memory: !self.is_old,
            files_dir: (self.shape == Shape::Outside).then(|| FILES.into()),
            managed_save: None,
            has_unreadable_moments: false,
            now: self.now,
        }
    }
}

fn memory_file(image: &Image) -> MemoryFile {
    match &image.memory {
        _ if image.damage.is_some() => MemoryFile::Damaged("it is cut short".to_owned()),
        Some(saved) => {
            MemoryFile::Whole { definition: saved.definition.clone(), running: saved.running }
        }
        None => MemoryFile::Damaged("it is no save image".to_owned()),
    }
}

pub(super) fn image_facts(image: &Image) -> ImageFacts {
    ImageFacts {
        format: if image.raw { Format::Raw } else { Format::Qcow2 },
        virtual_size: 1 << 20,
        actual_size: image.data.len() as u64,
        backing: image.backing.clone(),
        backing_format: image.backing.as_ref().map(|_| Format::Qcow2),
        snapshots: image
            .snapshots
            .iter()
            .enumerate()
            .map(|(n, saved)| InternalSnapshot {
                id: n.to_string(),
                tag: saved.tag.clone(),
                vm_state_size: saved.memory.map_or(0, |_| 1),
                date: 0,
                vm_clock: 0,
            })
            .collect(),
        is_block_device: false,
    }
}
