//! A simulated hypervisor, store and journal in one: images are maps from cluster to value, the
//! guest's memory is one number, and any call can be made to fail, before or after its effect, or
//! to be the last one before the daemon dies.
//!
//! It keeps what a real world keeps across a crash of the daemon, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::book::Book;
use crate::domain::{Active, PausedReason, RunningReason, ShutOffReason, Start, StartFrom, State};
use crate::error::{Condition, Error, Result};
use crate::facts::{
    AgentState, DiskDevice, DiskFacts, DiskSource, DomainFacts, Format, ImageFacts,
    InternalSnapshot, PathKind,
};
use crate::moment::MomentList;
use crate::plan::{Conclude, Finish, MomentChange, Pivot, Plan, Step};
use crate::ports::{
    Entry, Hypervisor, Journal, Journals, PivotError, Records, Subject, Unfinished,
};

/// Cluster → value. A cluster that is not there is read from the backing file, and 0 at the end.
pub type Content = BTreeMap<u8, u64>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    pub backing: Option<PathBuf>,
    pub data: Content,
    pub snapshots: Vec<Saved>,
    /// Made by a step whose plan has not ended.
    pub claimed: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    pub tag: String,
    pub data: Content,
    pub memory: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    pub running: bool,
    pub frozen: bool,
    pub memory: u64,
    pub live: Element,
    /// Active layer of each disk.
    pub active: BTreeMap<String, PathBuf>,
    attached: BTreeMap<String, PathBuf>,
    loaded: Option<String>,
}

/// How the call that was chosen goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It fails, with no effect.
    Fails,
    /// It has its effect, and fails: the hardest case for undo.
    FailsAfterEffect,
    /// The daemon dies before it.
    DiesBefore,
    /// The daemon dies after it.
    DiesAfter,
}

/// What survives the daemon.
#[derive(Debug, Default)]
struct Inner {
    images: BTreeMap<PathBuf, Image>,
    guest: Option<Guest>,
    config: Option<Element>,
    moments: MomentList,
    owned: BTreeSet<PathBuf>,
    journal: Option<(Plan, Vec<Entry>)>,
    plans: Vec<String>,
    now: i64,
    calls: usize,
    trouble: Option<(usize, Trouble)>,
    dead: bool,
}

/// The simulated world. Clones share it.
#[derive(Debug, Clone)]
pub struct World {
    pub uuid: Uuid,
    inner: Arc<Mutex<Inner>>,
}

pub const NAME: &str = "vm";

impl World {
    /// A shut-off domain with these disks, each on an empty qcow2 image `/img/<target>.qcow2`.
    pub fn new(targets: &[&str]) -> Self {
        let uuid = Uuid::from_u128(0x1234);
        let mut devices = Element::new("devices");
        let mut images = BTreeMap::new();
        for target in targets {
            let path = format!("/img/{target}.qcow2");
            images.insert(PathBuf::from(&path), Image::default());
            devices.push(
                Element::new("disk")
                    .with_attr("type", "file")
                    .with_attr("device", "disk")
                    .with_child(
                        Element::new("driver").with_attr("name", "qemu").with_attr("type", "qcow2"),
                    )
                    .with_child(Element::new("source").with_attr("file", path))
                    .with_child(Element::new("target").with_attr("dev", *target)),
            );
        }
        let config = Element::new("domain")
            .with_child(Element::new("name").with_text(NAME))
            .with_child(Element::new("uuid").with_text(uuid.to_string()))
            .with_child(devices);
        let inner = Inner { images, config: Some(config), now: 1000, ..Inner::default() };
        Self { uuid, inner: Arc::new(Mutex::new(inner)) }
    }

    /// What a daemon that has just started knows of the domain.
    pub fn book(&self) -> Mutex<Book> {
        let inner = self.lock();
        Mutex::new(Book {
            uuid: self.uuid,
            name: NAME.to_owned(),
            config: inner.config.clone(),
            moments: inner.moments.clone(),
            owned: inner.owned.clone(),
            has_managed_save: false,
        })
    }

    pub fn start(&self) {
        let mut inner = self.lock();
        let config = inner.config.clone().expect("the domain is persistent");
        inner.guest = Some(Guest::boot(config, 0));
    }

    pub fn stop(&self) {
        self.lock().guest = None;
    }

    pub fn pause(&self) {
        self.lock().guest.as_mut().expect("the guest is up").running = false;
    }

    /// The guest, or an offline tool, writes to a disk; the guest's memory changes with it.
    pub fn write(&self, target: &str, cluster: u8, value: u64) {
        let mut inner = self.lock();
        let image = match &mut inner.guest {
            Some(guest) => {
                guest.memory = value;
                guest.active.get(target).cloned()
            }
            None => {
                let config = inner.config.as_ref().expect("the domain is persistent");
                domain::disk(config, target).and_then(|disk| disk.path()).map(PathBuf::from)
            }
        };
        let image = image.expect("the disk is there");
        let image = inner.images.get_mut(&image).expect("the image is there");
        image.data.insert(cluster, value);
    }

    /// What the domain reads from a disk now.
    pub fn content(&self, target: &str) -> Content {
        let inner = self.lock();
        let image = match &inner.guest {
            Some(guest) => guest.active.get(target).cloned().expect("the disk is there"),
            None => {
                let config = inner.config.as_ref().expect("the domain is persistent");
                let disk = domain::disk(config, target).expect("the disk is there");
                PathBuf::from(disk.path().expect("the disk has a path"))
            }
        };
        inner.read(&image)
    }

    /// What a disk of a moment holds, as the moment's record says where it is.
    pub fn content_of(&self, moment: &str, target: &str) -> Content {
        let inner = self.lock();
        let def = inner.moments.get(moment).expect("the moment is recorded");
        let image = crate::plan::moment_image(def, target).expect("the disk took part");
        let found = inner.images.get(&image);
        let found = found.unwrap_or_else(|| panic!("{moment} is gone: {}", image.display()));
        match found.snapshots.iter().find(|saved| saved.tag == moment) {
            Some(saved) if !def.is_external() => {
                let mut content =
                    found.backing.as_ref().map(|below| inner.read(below)).unwrap_or_default();
                content.extend(saved.data.clone());
                content
            }
            _ => inner.read(&image),
        }
    }

    pub fn guest(&self) -> Option<Guest> {
        self.lock().guest.clone()
    }

    pub fn images(&self) -> BTreeMap<PathBuf, Image> {
        self.lock().images.clone()
    }

    /// Every plan that was begun, as a person reads it.
    pub fn plans(&self) -> Vec<String> {
        self.lock().plans.clone()
    }

    pub fn has_journal(&self) -> bool {
        self.lock().journal.is_some()
    }

    pub fn calls(&self) -> usize {
        self.lock().calls
    }

    /// The `n`th call from now goes wrong.
    pub fn arm(&self, n: usize, trouble: Trouble) {
        let mut inner = self.lock();
        inner.calls = 0;
        inner.trouble = Some((n, trouble));
    }

    /// The daemon is started again, and nothing goes wrong any more.
    pub fn revive(&self) {
        let mut inner = self.lock();
        inner.dead = false;
        inner.trouble = None;
    }

    /// Was the trouble that was armed met?
    pub fn was_struck(&self) -> bool {
        let inner = self.lock();
        inner.trouble.is_some_and(|(at, _)| inner.calls > at)
    }

    /// A second passes.
    pub fn tick(&self) {
        self.lock().now += 1;
    }

    /// A second world that is as this one is now.
    pub fn fork(&self) -> World {
        let inner = self.lock();
        let copy = Inner {
            images: inner.images.clone(),
            guest: inner.guest.clone(),
            config: inner.config.clone(),
            moments: inner.moments.clone(),
            owned: inner.owned.clone(),
            journal: inner.journal.clone(),
            plans: Vec::new(),
            now: inner.now,
            calls: 0,
            trouble: None,
            dead: false,
        };
        World { uuid: self.uuid, inner: Arc::new(Mutex::new(copy)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call from the daemon into the world.
    fn call<T>(&self, effect: impl FnOnce(&mut Inner) -> Result<T>) -> Result<T> {
        let mut inner = self.lock();
        let gone = || Err(Error::new(Condition::Internal, "the daemon is dead"));
        if inner.dead {
            return gone();
        }
        let now = inner.calls;
        inner.calls += 1;
        let trouble = inner.trouble.filter(|(at, _)| *at == now).map(|(_, trouble)| trouble);
        let injected = || Err(Error::new(Condition::OperationFailed, "injected failure"));
        match trouble {
            None => effect(&mut inner),
            Some(Trouble::Fails) => injected(),
            Some(Trouble::FailsAfterEffect) => {
                effect(&mut inner)?;
                injected()
            }
            Some(Trouble::DiesBefore) => {
                inner.dead = true;
                gone()
            }
            Some(Trouble::DiesAfter) => {
                let result = effect(&mut inner);
                inner.dead = true;
                result.and_then(|_| gone())
            }
        }
    }
}

impl Guest {
    fn boot(live: Element, memory: u64) -> Self {
        let active = domain::disks(&live)
            .filter_map(|disk| Some((disk.target().to_owned(), PathBuf::from(disk.path()?))))
            .collect();
        Self {
            running: true,
            frozen: false,
            memory,
            live,
            active,
            attached: BTreeMap::new(),
            loaded: None,
        }
    }
}

impl Inner {
    fn read(&self, image: &Path) -> Content {
        let Some(found) = self.images.get(image) else { return Content::new() };
        let mut content = found.backing.as_ref().map(|b| self.read(b)).unwrap_or_default();
        content.extend(found.data.clone());
        content
    }

    fn guest(&mut self) -> Result<&mut Guest> {
        self.guest
            .as_mut()
            .ok_or_else(|| Error::new(Condition::OperationInvalid, "the domain is not running"))
    }

    fn image(&mut self, path: &Path) -> Result<&mut Image> {
        self.images.get_mut(path).ok_or_else(|| {
            Error::new(Condition::OperationFailed, format!("no image {}", path.display()))
        })
    }

    fn new_image(&mut self, path: &Path, image: Image) -> Result<()> {
        if self.images.contains_key(path) {
            return Err(Error::new(Condition::OperationFailed, "the file exists"));
        }
        self.images.insert(path.to_owned(), Image { claimed: true, ..image });
        Ok(())
    }

    fn act(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Pause => self.guest()?.running = false,
            Step::FreezeFilesystems => self.guest()?.frozen = true,
            Step::CreateOverlay { overlay, backing, .. } => {
                self.image(backing)?;
                let image = Image { backing: Some(backing.clone()), ..Image::default() };
                self.new_image(overlay, image)?;
            }
            Step::CopyImage { from, to } => {
                let image = self.image(from)?.clone();
                self.new_image(to, image)?;
            }
            Step::AttachOverlay { disk, overlay, .. } => {
                self.guest()?.attached.insert(disk.clone(), overlay.clone());
            }
            Step::SnapshotImage { image, tag } => {
                let image = self.image(image)?;
                let (tag, data) = (tag.clone(), image.data.clone());
                image.snapshots.push(Saved { tag, data, memory: None });
            }
        }
        Ok(())
    }

    fn undo(&mut self, step: &Step) {
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
            Step::CreateOverlay { overlay: path, .. } | Step::CopyImage { to: path, .. } => {
                if self.images.get(path).is_some_and(|image| image.claimed) {
                    self.images.remove(path);
                }
            }
            Step::AttachOverlay { disk, .. } => {
                if let Some(guest) = &mut self.guest {
                    guest.attached.remove(disk);
                }
            }
            Step::SnapshotImage { image, tag } => {
                if let Some(image) = self.images.get_mut(image) {
                    image.snapshots.retain(|saved| saved.tag != *tag);
                }
            }
        }
    }

    fn pivot(&mut self, pivot: &Pivot) -> Result<()> {
        match pivot {
            Pivot::Record => {}
            Pivot::SwitchToOverlays { disks } => {
                for (disk, overlay) in disks {
                    let guest = self.guest()?;
                    assert_eq!(guest.attached.remove(disk).as_ref(), Some(overlay));
                    guest.active.insert(disk.clone(), overlay.clone());
                }
            }
            Pivot::SaveVmState { tag, vmstate, disks } => {
                let memory = self.guest()?.memory;
                for disk in disks {
                    let active = self.active(disk)?;
                    let memory = (disk == vmstate).then_some(memory);
                    let image = self.image(&active)?;
                    let (tag, data) = (tag.clone(), image.data.clone());
                    image.snapshots.push(Saved { tag, data, memory });
                }
            }
            Pivot::LoadVmState { tag, disks, .. } => {
                assert!(!self.guest()?.running, "the vCPUs are stopped before memory is loaded");
                self.load(tag, disks)?;
                self.guest()?.loaded = Some(tag.clone());
            }
        }
        Ok(())
    }

    fn load(&mut self, tag: &str, disks: &[String]) -> Result<()> {
        for disk in disks {
            let active = self.active(disk)?;
            let image = self.image(&active)?;
            let saved = image.snapshots.iter().find(|saved| saved.tag == *tag).cloned();
            let saved = saved
                .ok_or_else(|| Error::new(Condition::OperationFailed, format!("no tag {tag}")))?;
            image.data = saved.data;
            if let Some(memory) = saved.memory {
                self.guest()?.memory = memory;
            }
        }
        Ok(())
    }

    fn active(&mut self, disk: &str) -> Result<PathBuf> {
        let active = self.guest()?.active.get(disk).cloned();
        active.ok_or_else(|| Error::new(Condition::OperationFailed, format!("no disk {disk}")))
    }

    fn pivoted(&self, pivot: &Pivot) -> bool {
        match pivot {
            Pivot::Record => false,
            Pivot::SwitchToOverlays { disks } => self.guest.as_ref().is_some_and(|guest| {
                disks.iter().all(|(disk, overlay)| guest.active.get(disk) == Some(overlay))
            }),
            Pivot::SaveVmState { tag, .. } => {
                self.images.values().any(|image| image.snapshots.iter().any(|s| s.tag == *tag))
            }
            Pivot::LoadVmState { tag, .. } => {
                self.guest.as_ref().is_some_and(|guest| guest.loaded.as_ref() == Some(tag))
            }
        }
    }

    fn finish(&mut self, finish: &Finish) -> Result<()> {
        match finish {
            Finish::ThawFilesystems => self.undo(&Step::FreezeFilesystems),
            Finish::Resume(_) => self.guest()?.running = true,
            Finish::Stop(_) => self.guest = None,
            Finish::ApplySnapshot { image, tag } => {
                let image = self.image(image)?;
                let saved = image.snapshots.iter().find(|saved| saved.tag == *tag).cloned();
                let saved = saved.ok_or_else(|| {
                    Error::new(Condition::OperationFailed, format!("no tag {tag}"))
                })?;
                image.data = saved.data;
            }
            Finish::DeleteSnapshot { image, tag } => {
                self.image(image)?.snapshots.retain(|saved| saved.tag != *tag);
            }
            Finish::Commit { disk, top, base } => self.commit(disk, top, base)?,
            Finish::Stream { top, base, .. } => self.stream(top, base.as_deref())?,
            Finish::Repoint { image, backing, .. } => {
                self.image(image)?.backing = Some(backing.clone());
            }
            Finish::SetLive(live) => {
                if let Some(guest) = &mut self.guest {
                    guest.live = live.clone();
                }
            }
            Finish::RemoveImage(path) => {
                self.images.remove(path);
            }
            Finish::KeepImage(path) | Finish::HandOver(path) => {
                self.image(path)?.claimed = false;
            }
            Finish::SetConfig(_) | Finish::Record(_) => unreachable!("goes to the records"),
        }
        Ok(())
    }

    fn commit(&mut self, disk: &str, top: &Path, base: &Path) -> Result<()> {
        let mut merged = Vec::new();
        let mut at = top.to_owned();
        while at != base {
            let image = self.image(&at)?;
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
        }
        Ok(())
    }

    fn stream(&mut self, top: &Path, base: Option<&Path>) -> Result<()> {
        let data = match base {
            None => self.read(top),
            Some(base) => {
                let below = self.read(base);
                self.read(top).into_iter().filter(|(k, v)| below.get(k) != Some(v)).collect()
            }
        };
        let image = self.image(top)?;
        image.data = data;
        image.backing = base.map(Path::to_owned);
        Ok(())
    }

    fn facts(&self, subject: &Subject) -> DomainFacts {
        let state = match &self.guest {
            Some(guest) if guest.running => State::Running(RunningReason::Booted),
            Some(_) => State::Paused(PausedReason::User),
            None => State::ShutOff(ShutOffReason::Unknown),
        };
        let live = self.guest.as_ref().map(|guest| guest.live.clone());
        let definition = live.as_ref().or(subject.config.as_ref());
        let disks: Vec<DiskFacts> = definition
            .into_iter()
            .flat_map(domain::disks)
            .map(|disk| DiskFacts {
                target: disk.target().to_owned(),
                device: DiskDevice::Disk,
                source: disk.path().map(|path| DiskSource::File(path.into())),
                format: Format::Qcow2,
                readonly: disk.is_readonly(),
                shareable: disk.is_shareable(),
                transient: false,
                snapshot: disk.snapshot(),
                block_job: false,
            })
            .collect();
        let mut open: Vec<PathBuf> = disks.iter().filter_map(|d| d.image().cloned()).collect();
        open.extend(subject.images.iter().chain(&subject.owned).cloned());
        let mut images = BTreeMap::new();
        while let Some(path) = open.pop() {
            let Some(image) = self.images.get(&path) else { continue };
            open.extend(image.backing.clone());
            images.insert(path, image_facts(image));
        }
        DomainFacts {
            uuid: subject.uuid,
            name: subject.name.clone(),
            state,
            config: subject.config.clone(),
            live,
            disks,
            images,
            owned: subject.owned.clone(),
            foreign_readers: BTreeMap::new(),
            agent: AgentState::Connected,
            has_managed_save: false,
            now: self.now,
        }
    }
}

fn image_facts(image: &Image) -> ImageFacts {
    ImageFacts {
        format: Format::Qcow2,
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
        self.call(|inner| {
            let mut guest = Guest::boot(domain.clone(), 0);
            guest.running = !start.paused;
            inner.guest = Some(guest);
            if let StartFrom::VmState { tag, disks, .. } = &start.from {
                let loaded = inner.load(tag, disks);
                if loaded.is_err() {
                    inner.guest = None;
                }
                loaded?;
            }
            Ok(())
        })?;
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
            live: guest.live.clone(),
        })
    }

    fn all_active(&self) -> Vec<Active> {
        self.active(self.uuid).into_iter().collect()
    }

    fn set_live(&self, _domain: Uuid, live: Element) -> Result<()> {
        self.call(|inner| inner.finish(&Finish::SetLive(live)))
    }

    async fn suspend(&self, _domain: Uuid) -> Result<()> {
        self.call(|inner| inner.act(&Step::Pause))
    }

    async fn resume(&self, _domain: Uuid) -> Result<()> {
        self.call(|inner| {
            inner.guest()?.running = true;
            Ok(())
        })
    }

    async fn shutdown(&self, domain: Uuid) -> Result<()> {
        self.destroy(domain, ShutOffReason::Shutdown).await
    }

    async fn reboot(&self, _domain: Uuid) -> Result<()> {
        self.call(|inner| inner.guest().map(|_| ()))
    }

    async fn reset(&self, _domain: Uuid) -> Result<()> {
        self.call(|inner| inner.guest().map(|_| ()))
    }

    async fn destroy(&self, _domain: Uuid, reason: ShutOffReason) -> Result<()> {
        self.call(|inner| inner.finish(&Finish::Stop(reason)))
    }

    async fn facts(&self, subject: &Subject) -> Result<DomainFacts> {
        Ok(self.lock().facts(subject))
    }

    async fn probe(&self, path: &Path) -> Result<PathKind> {
        let exists = self.lock().images.contains_key(path);
        Ok(if exists { PathKind::Regular(1) } else { PathKind::Missing })
    }

    async fn act(&self, _domain: Uuid, step: &Step) -> Result<()> {
        self.call(|inner| inner.act(step))
    }

    async fn undo(&self, _domain: Uuid, step: &Step) -> Result<()> {
        self.call(|inner| {
            inner.undo(step);
            Ok(())
        })
    }

    async fn pivot(&self, _domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        // A pivot that had its effect and failed is one whose answer was lost.
        let before = self.lock().pivoted(pivot);
        self.call(|inner| inner.pivot(pivot)).map_err(|err| {
            if self.lock().pivoted(pivot) && !before {
                PivotError::InDoubt(err)
            } else {
                PivotError::Refused(err)
            }
        })
    }

    async fn pivoted(&self, _domain: Uuid, pivot: &Pivot) -> Result<bool> {
        self.call(|inner| Ok(inner.pivoted(pivot)))
    }

    async fn finish(&self, _domain: Uuid, finish: &Finish) -> Result<()> {
        self.call(|inner| inner.finish(finish))
    }

    async fn conclude(&self, _domain: Uuid, conclude: &Conclude) -> Result<()> {
        let Conclude::Start { definition, start } = conclude;
        if self.lock().guest.is_some() {
            return Ok(());
        }
        Hypervisor::start(self, definition.clone(), start.clone()).await.map(|_| ())
    }
}

impl Records for World {
    fn set_config(&self, _domain: Uuid, config: &Element) -> Result<()> {
        self.call(|inner| {
            inner.config = Some(config.clone());
            Ok(())
        })
    }

    fn record(&self, _domain: Uuid, change: &MomentChange) -> Result<()> {
        self.call(|inner| {
            inner.moments.apply(change);
            Ok(())
        })
    }

    fn set_owned(&self, _domain: Uuid, owned: &BTreeSet<PathBuf>) -> Result<()> {
        self.call(|inner| {
            inner.owned.clone_from(owned);
            Ok(())
        })
    }
}

impl Journals for World {
    fn begin(&self, _domain: Uuid, plan: &Plan) -> Result<Box<dyn Journal>> {
        self.call(|inner| {
            assert!(inner.journal.is_none(), "one operation at a time");
            inner.plans.push(plan.to_string());
            inner.journal = Some((plan.clone(), Vec::new()));
            Ok(())
        })?;
        Ok(Box::new(self.clone()))
    }

    fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let journal = self.lock().journal.clone();
        let unfinished =
            journal.map(|(plan, entries)| Unfinished { domain: self.uuid, plan, entries });
        Ok(unfinished.into_iter().collect())
    }

    fn resume(&self, _domain: Uuid) -> Result<Box<dyn Journal>> {
        Ok(Box::new(self.clone()))
    }
}

impl Journal for World {
    fn record(&mut self, entry: Entry) -> Result<()> {
        self.call(|inner| {
            let (_, entries) = inner.journal.as_mut().expect("the journal is open");
            entries.push(entry);
            Ok(())
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.call(|inner| {
            inner.journal = None;
            Ok(())
        })
    }
}
