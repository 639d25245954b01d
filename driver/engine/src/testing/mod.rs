//! A simulated hypervisor, store and journal in one: images are maps from cluster to value, the
//! guest's memory is one number, and any call can be made to fail, before or after its effect, or
//! to be the last one before the daemon dies.
//!
//! It keeps what a real world keeps across a crash of the daemon, and nothing else.
//!
//! - [`World`]: what a test does with it;
//! - [`scene`]: what a user does with it, for tests that try every fault;
//! - `images`: what files there are;
//! - `inner`: what survives the daemon, and what each act does to it;
//! - `ports`: the engine's ports.

mod images;
mod inner;
mod ports;
pub mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Location, Memory};

use self::images::Images;
pub use self::images::{Content, Damage, Image, Saved, SavedMemory};
use self::inner::Inner;
pub use self::inner::{Guest, Same};
use crate::book::Book;
use crate::error::{Condition, Error, Result};
use crate::facts::{Format, StateKind};
use crate::moment::MomentList;

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
    /// The hypervisor's process is gone before it.
    GuestDies,
    /// It has its effect, then the process ends, and the answer is lost.
    GuestDiesAfter,
    /// From it on nothing more can be written, until [`World::free`].
    DiskFull,
}

impl Trouble {
    pub const ALL: [Trouble; 7] = [
        Trouble::Fails,
        Trouble::FailsAfterEffect,
        Trouble::DiesBefore,
        Trouble::DiesAfter,
        Trouble::GuestDies,
        Trouble::GuestDiesAfter,
        Trouble::DiskFull,
    ];
}

/// Which hypervisor is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// As QEMU: internal snapshots of images can hold memory.
    #[default]
    Inside,
    /// As Xen: memory is in files of its own, and the guest takes part in its save; a disk need not
    /// be the hypervisor's to serve.
    Outside,
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoil {
    /// Nothing can be written to it any more.
    ReadOnly,
    Damaged(Damage),
}

/// The cluster that a living guest counts in.
pub const TICK: u8 = 250;

/// Where it begins to count. A test writes nothing larger.
const FIRST_TICK: u64 = 1_000_000;

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
        let mut images = Images::default();
        for target in targets {
            let path = format!("/img/{target}.qcow2");
            images.insert(Path::new(&path), Image::default());
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
        let inner = Inner { images, config: Some(Arc::new(config)), now: 1000, ..Inner::default() };
        Self { uuid, inner: Arc::new(Mutex::new(inner)) }
    }

    /// The same on another hypervisor.
    pub fn shaped(self, shape: Shape) -> Self {
        self.lock().shape = shape;
        self
    }

    /// The same with UEFI firmware and a TPM, whose files are there from the first start on.
    pub fn with_firmware(targets: &[&str], nvram_format: &Format) -> Self {
        let world = Self::new(targets);
        world.edit(|domain| {
            let nvram = Element::new("nvram")
                .with_attr("template", inner::TEMPLATE)
                .with_attr("format", nvram_format.as_str())
                .with_text(inner::NVRAM);
            domain.child_or_insert("os").push(nvram);
            domain.child_or_insert("devices").push(Element::new("tpm"));
        });
        world.lock().images.insert(Path::new(inner::TEMPLATE), Image::default());
        world
    }

    /// The firmware changes a variable, or the TPM its state, if they are there.
    pub fn write_state(&self, kind: StateKind, cluster: u8, value: u64) {
        let mut inner = self.lock();
        if let Some(file) = inner.images.get_mut(Path::new(inner::state_path(kind))) {
            file.data.insert(cluster, value);
        }
    }

    /// What is in a state file now; none where it is not there yet.
    pub fn state(&self, kind: StateKind) -> Option<Content> {
        let inner = self.lock();
        inner.images.get(Path::new(inner::state_path(kind))).map(|file| file.data.clone())
    }

    /// What a moment has of a state file.
    pub fn state_of(&self, moment: &str, kind: StateKind) -> Option<Content> {
        let inner = self.lock();
        let def = inner.moments.get(moment).expect("the moment is recorded");
        let Some(copy) = crate::plan::state_files::copy_of(def, kind) else {
            let file = inner.images.get(Path::new(inner::state_path(kind)))?;
            let saved = file.snapshots.iter().find(|saved| saved.tag == moment)?;
            return Some(saved.data.clone());
        };
        let file = inner.images.get(&copy);
        let file = file.unwrap_or_else(|| panic!("{moment} is gone: {}", copy.display()));
        Some(file.data.clone())
    }

    /// Somebody removes a file.
    pub fn lose(&self, path: &Path) {
        self.lock().images.remove(path).expect("the file is there");
    }

    /// What a daemon that has just started knows of the domain.
    pub fn book(&self) -> Mutex<Book> {
        let inner = self.lock();
        Mutex::new(Book {
            uuid: self.uuid,
            name: NAME.to_owned(),
            config: inner.config.as_deref().cloned(),
            moments: inner.moments.clone(),
            owned: inner.owned.clone(),
            has_managed_save: inner.images.contains_key(Path::new(inner::MANAGED_SAVE)),
            has_unreadable_moments: false,
            left: None,
        })
    }

    /// The moments that are recorded.
    pub fn moments(&self) -> MomentList {
        self.lock().moments.clone()
    }

    /// The files that are recorded as ours.
    pub fn owned(&self) -> BTreeSet<PathBuf> {
        self.lock().owned.clone()
    }

    /// Changes the persistent definition, as a user's edit does.
    pub fn edit(&self, change: impl FnOnce(&mut Element)) {
        let mut inner = self.lock();
        change(Arc::make_mut(inner.config.as_mut().expect("the domain is persistent")));
    }

    /// The disk's image is a raw one.
    pub fn make_raw(&self, target: &str) {
        self.make_raw_on(target, "file", &format!("/img/{target}.raw"), "qemu");
    }

    /// The disk is a block device.
    pub fn make_device(&self, target: &str) {
        self.make_raw_on(target, "block", &format!("/dev/{target}"), "qemu");
    }

    /// The same, and it is not the hypervisor that serves it.
    pub fn make_bypassed(&self, target: &str) {
        self.make_raw_on(target, "file", &format!("/img/{target}.raw"), inner::BYPASS);
    }

    /// A running guest's hypervisor cannot delete internal snapshots in it.
    pub fn seal(&self, image: &str) {
        self.lock().sealed.insert(image.into());
    }

    fn make_raw_on(&self, target: &str, kind: &str, path: &str, name: &str) {
        let mut inner = self.lock();
        let config = inner.config.as_mut().expect("the domain is persistent");
        let config = Arc::make_mut(config);
        domain::set_image(config, target, kind, path, "raw");
        let disk = domain::disk_mut(config, target).expect("the disk is there");
        disk.child_or_insert("driver").set_attr("name", name);
        inner.images.remove(Path::new(&format!("/img/{target}.qcow2")));
        inner.images.insert(Path::new(path), Image { raw: true, ..Image::default() });
    }

    /// An empty file, as one who is to have it filled makes it.
    pub fn touch(&self, path: &str) {
        self.lock().images.insert(Path::new(path), Image::default());
    }

    /// The guest ends, and its memory is where the next start goes on.
    pub fn save(&self) {
        let mut inner = self.lock();
        let guest = inner.guest.take().expect("the guest is up");
        let definition = guest.live.as_ref().clone();
        let saved = SavedMemory { memory: guest.memory, definition, running: guest.running };
        let image = Image { memory: Some(saved), ..Image::default() };
        inner.images.insert(Path::new(inner::MANAGED_SAVE), image);
    }

    /// The guest that a start would bring back.
    pub fn saved(&self) -> Option<SavedMemory> {
        let inner = self.lock();
        inner.images.get(Path::new(inner::MANAGED_SAVE))?.memory.clone()
    }

    pub fn start(&self) {
        let mut inner = self.lock();
        if let Some(saved) = inner.images.remove(Path::new(inner::MANAGED_SAVE)) {
            let saved = saved.memory.expect("it is a save image");
            let mut guest = Guest::boot(saved.definition.into(), saved.memory);
            guest.running = saved.running;
            inner.guest = Some(guest);
            return;
        }
        let config = inner.config.clone().expect("the domain is persistent");
        inner.make_state(&config);
        inner.guest = Some(Guest::boot(config, 0));
    }

    pub fn stop(&self) {
        self.lock().guest = None;
    }

    /// The guest has shut down, and its hypervisor is about to end.
    pub fn shut_down(&self) {
        self.lock().guest.as_mut().expect("the guest is up").dying = true;
    }

    pub fn pause(&self) {
        self.lock().guest.as_mut().expect("the guest is up").running = false;
    }

    /// All directories are on one file system with this much room.
    pub fn set_room(&self, bytes: u64) {
        self.lock().room = Some(bytes);
    }

    /// From now on what confines the hypervisor denies all that a plan needs.
    pub fn set_confined(&self, confined: bool) {
        self.lock().confined = confined;
    }

    /// A device is there whose state cannot be saved, and why.
    pub fn block_memory(&self, why: &str) {
        self.lock().memory_blockers.push(why.to_owned());
    }

    /// Its hypervisor cannot take internal snapshots of disks right after memory went to a file.
    pub fn grow_old(&self) {
        self.lock().is_old = true;
    }

    /// A user prepares a file: an overlay on `backing`, or an empty one.
    pub fn prepare(&self, path: &str, backing: Option<&str>) {
        let image = Image {
            backing: backing.map(PathBuf::from),
            is_empty: backing.is_none(),
            is_users: true,
            ..Image::default()
        };
        self.lock().images.insert(Path::new(path), image);
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
        inner.images.read(&image)
    }

    /// What a disk of a moment holds, as the moment's record says where it is.
    /// None if it did not take part.
    pub fn content_of(&self, moment: &str, target: &str) -> Option<Content> {
        let inner = self.lock();
        let def = inner.moments.get(moment).expect("the moment is recorded");
        let image = crate::plan::moment_image(def, target)?;
        let found = inner.images.get(&image);
        let found = found.unwrap_or_else(|| panic!("{moment} is gone: {}", image.display()));
        let is_internal =
            def.disks.iter().any(|d| d.name == target && d.snapshot == Location::Internal);
        match found.snapshots.iter().find(|saved| saved.tag == moment) {
            Some(saved) if is_internal => Some(inner.images.over(found, &saved.data)),
            _ => Some(inner.images.read(&image)),
        }
    }

    /// The memory of a moment, wherever its record says it is.
    pub fn memory_of(&self, moment: &str) -> Option<u64> {
        let inner = self.lock();
        let def = inner.moments.get(moment).expect("the moment is recorded");
        let found = |path: &Path| {
            let found = inner.images.get(path);
            found.unwrap_or_else(|| panic!("{moment} is gone: {}", path.display()))
        };
        let tagged = |image: &Image| {
            let saved = image.snapshots.iter().find(|saved| saved.tag == moment)?;
            saved.memory
        };
        match &def.memory {
            Memory::No | Memory::Unsaid => None,
            Memory::External { file } => {
                let saved = found(Path::new(file)).memory.as_ref();
                Some(saved.expect("it is a save image").memory)
            }
            Memory::Internal { image: Some(image) } => tagged(found(Path::new(image))),
            Memory::Internal { image: None } => def
                .disks
                .iter()
                // A frozen layer may have a tag of that name from a snapshot that was forgotten.
                .filter(|disk| disk.snapshot == Location::Internal)
                .filter_map(|disk| crate::plan::moment_image(def, &disk.name))
                .find_map(|image| tagged(found(&image))),
        }
    }

    pub fn guest(&self) -> Option<Guest> {
        self.lock().guest.clone()
    }

    pub fn images(&self) -> BTreeMap<PathBuf, Image> {
        let inner = self.lock();
        inner.images.iter().map(|(path, image)| (path.to_owned(), image.clone())).collect()
    }

    /// Somebody moves an image away; [`World::put_back`] brings it again.
    pub fn take_away(&self, path: &Path) -> Image {
        self.lock().images.remove(path).expect("the image is there")
    }

    pub fn put_back(&self, path: &Path, image: Image) {
        self.lock().images.insert(path, image);
    }

    /// Every plan that was begun, as a person reads it.
    pub fn plans(&self) -> Vec<String> {
        self.lock().plans.iter().map(ToString::to_string).collect()
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
        inner.struck = None;
        inner.trouble = Some((n, trouble));
    }

    /// The daemon is started again, and nothing goes wrong any more, but for a full disk.
    pub fn revive(&self) {
        let mut inner = self.lock();
        inner.live();
        inner.dead = false;
        inner.trouble = None;
    }

    /// From now on the guest writes while it runs: one number, to all disks and into its memory.
    /// On these disks, which all snapshots take along, the two must never part.
    pub fn live(&self, minded: &[&str]) {
        let mut inner = self.lock();
        inner.ticks = Some(FIRST_TICK);
        inner.minded = minded.iter().map(|disk| (*disk).to_owned()).collect();
    }

    /// What the guest wrote last, if it wrote since [`World::live`].
    pub fn last_tick(&self) -> Option<u64> {
        self.lock().ticks.filter(|ticks| *ticks > FIRST_TICK)
    }

    /// There is room again.
    pub fn free(&self) {
        self.lock().is_full = false;
    }

    /// The call that the trouble met.
    pub fn struck(&self) -> Option<String> {
        self.lock().struck.clone()
    }

    /// From the `n`th call from now on something is wrong with a file.
    pub fn spoil_at(&self, n: usize, path: &Path, spoil: Spoil) {
        let mut inner = self.lock();
        inner.calls = 0;
        inner.spoils = Some((n, path.to_owned(), spoil));
    }

    /// The same from now on.
    pub fn spoil(&self, path: &Path, spoil: Spoil) {
        self.lock().spoil(path, spoil);
    }

    /// Nothing is wrong with a file any more, if it is there.
    pub fn mend(&self, path: &Path) {
        if let Some(image) = self.lock().images.get_mut(path) {
            (image.is_read_only, image.damage) = (false, None);
        }
    }

    /// After so many more merges each one stops half way; none: all go on.
    pub fn stop_merges_after(&self, merges: Option<usize>) {
        self.lock().merges_left = merges;
    }

    /// Was the trouble that was armed met?
    pub fn was_struck(&self) -> bool {
        let inner = self.lock();
        inner.trouble.is_some_and(|(at, _)| inner.calls > at)
    }

    /// All that the future depends on.
    pub fn same(&self) -> Same {
        self.lock().same()
    }

    /// A second passes.
    pub fn tick(&self) {
        self.lock().now += 1;
    }

    /// A second world that is as this one is now.
    pub fn fork(&self) -> World {
        let inner = self.lock();
        let copy = Inner {
            shape: inner.shape,
            images: inner.images.clone(),
            guest: inner.guest.clone(),
            config: inner.config.clone(),
            moments: inner.moments.clone(),
            owned: inner.owned.clone(),
            journal: inner.journal.clone(),
            plans: Vec::new(),
            now: inner.now,
            room: inner.room,
            confined: inner.confined,
            memory_blockers: inner.memory_blockers.clone(),
            sealed: inner.sealed.clone(),
            is_old: inner.is_old,
            calls: 0,
            trouble: None,
            dead: false,
            merges_left: None,
            committed: inner.committed.clone(),
            noted: inner.noted.clone(),
            ticks: inner.ticks,
            minded: inner.minded.clone(),
            is_full: inner.is_full,
            struck: None,
            spoils: None,
        };
        World { uuid: self.uuid, inner: Arc::new(Mutex::new(copy)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call from the daemon into the world. A full disk refuses those that write.
    fn call<T>(
        &self,
        what: impl FnOnce() -> String,
        writes: bool,
        effect: impl FnOnce(&mut Inner) -> Result<T>,
    ) -> Result<T> {
        let mut inner = self.lock();
        let gone = || Err(Error::new(Condition::Internal, "the daemon is dead"));
        if inner.dead {
            return gone();
        }
        inner.live();
        let now = inner.calls;
        inner.calls += 1;
        let trouble = inner.trouble.filter(|(at, _)| *at == now).map(|(_, trouble)| trouble);
        inner.is_full |= trouble == Some(Trouble::DiskFull);
        if let Some((_, path, spoil)) = inner.spoils.take_if(|(at, ..)| *at == now) {
            inner.spoil(&path, spoil);
        }
        let is_refused = inner.is_full && writes;
        if (trouble.is_some() && trouble != Some(Trouble::DiskFull)) || is_refused {
            inner.struck.get_or_insert_with(what);
        }
        if is_refused {
            const ENOSPC: i32 = 28;
            return Err(Error::new(Condition::System(ENOSPC), "no space left on device"));
        }
        let injected = || Err(Error::new(Condition::OperationFailed, "injected failure"));
        match trouble {
            None | Some(Trouble::DiskFull) => effect(&mut inner),
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
            Some(Trouble::GuestDies) => {
                inner.guest = None;
                effect(&mut inner)
            }
            Some(Trouble::GuestDiesAfter) => {
                let had_guest = inner.guest.is_some();
                let result = effect(&mut inner);
                inner.live();
                let has_guest = inner.guest.take().is_some();
                if had_guest || has_guest { result.and_then(|_| injected()) } else { result }
            }
        }
    }
}
