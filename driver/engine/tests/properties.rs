//! Thousands of random sequences over the simulated world, each step held against a model that
//! knows neither images nor plans: what every snapshot held when it was taken, the tree by
//! libvirt's rules, and which files are whose.
//!
//! After every step
//!
//! - each snapshot that is left holds, on each disk that took part and in memory, what it held;
//! - the domain sees what the operation says it sees, and nothing else has changed;
//! - parents and the current snapshot are those that libvirt's rules give;
//! - every file is the user's, or ours and needed; none that is needed is gone.
//!
//! The same where images hold no memory, of random machines: then no plan puts memory into an image
//! or looks for it there (the simulated journal refuses one that does), and none touches, while the
//! guest runs, a disk that the hypervisor does not serve, or snapshots in an image that it cannot
//! delete from.
//!
//! `PROPERTY_CASES=20000` runs more sequences.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use virtsnap_engine::book::Book;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::options::{
    Afterwards, Consolidate, DeleteOptions, DeleteScope, Meanwhile, Metadata, New, RevertOptions,
    RevertState, Scope,
};
use virtsnap_engine::plan::moment_image;
use virtsnap_engine::testing::scene::{Engine, engine, name, run};
use virtsnap_engine::testing::{Content, Shape, World};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::policy::NAMESPACE;
use virtsnap_xml::snapshot::{
    Definition, DiskRequest, Location, Memory, MemoryRequest, Request, State, Survivor,
};

const DISKS: [&str; 3] = ["vda", "vdb", "vdc"];
const NAMES: u8 = 6;
const CASES: u32 = 2000;
const CASES_OUTSIDE: u32 = 200;

/// What one disk is asked to be; `None` leaves it to the default.
type Kinds = [Option<Location>; DISKS.len()];

#[derive(Debug, Clone, Copy, PartialEq)]
enum AskedMemory {
    Default,
    No,
    Internal,
    External,
}

#[derive(Debug, Clone, PartialEq)]
enum Op {
    Create {
        name: u8,
        kinds: Kinds,
        memory: AskedMemory,
        scope: Scope,
        how: How,
    },
    Revert {
        name: u8,
        state: RevertState,
        discard: bool,
        delete_children: bool,
    },
    Delete {
        name: u8,
        scope: DeleteScope,
        metadata_only: bool,
        keep: Option<Survivor>,
    },
    /// What was last known of a snapshot is told again.
    Redefine {
        name: u8,
        current: bool,
    },
    Start,
    Pause,
    Stop,
    Write {
        disk: usize,
        cluster: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Plain,
    NoMetadata,
    Halt,
    NotCurrent,
    StandsStill,
}

impl Op {
    fn kind(&self) -> String {
        match self {
            Op::Create { kinds, memory, scope, .. } => {
                let asked: BTreeSet<_> = kinds.iter().flatten().map(|k| format!("{k:?}")).collect();
                let asked: Vec<_> = asked.into_iter().collect();
                format!("create {} {memory:?} {scope:?}", asked.join("+"))
            }
            Op::Revert { state, discard, delete_children, .. } => {
                format!("revert {state:?} {discard} {delete_children}")
            }
            Op::Delete { scope, metadata_only, keep, .. } => {
                format!("delete {scope:?} {metadata_only} {keep:?}")
            }
            Op::Redefine { .. } => "redefine".to_owned(),
            Op::Start | Op::Pause | Op::Stop | Op::Write { .. } => "guest".to_owned(),
        }
    }
}

fn any_kind() -> impl Strategy<Value = Option<Location>> {
    prop_oneof![
        6 => Just(None),
        3 => Just(Some(Location::External)),
        3 => Just(Some(Location::Internal)),
        1 => Just(Some(Location::No)),
        1 => Just(Some(Location::Manual)),
    ]
}

fn any_create() -> impl Strategy<Value = Op> {
    let mixed = [any_kind(), any_kind(), any_kind()];
    let kinds = prop_oneof![2 => Just(Kinds::default()), 3 => mixed];
    let memory = prop_oneof![
        4 => Just(AskedMemory::Default),
        1 => Just(AskedMemory::No),
        1 => Just(AskedMemory::Internal),
        2 => Just(AskedMemory::External),
    ];
    let scope = prop_oneof![
        3 => Just(Scope::DiskOnly { quiesce: false }),
        3 => Just(Scope::FullSystem { live: false }),
        1 => Just(Scope::FullSystem { live: true }),
    ];
    let how = prop_oneof![
        12 => Just(How::Plain),
        1 => Just(How::NoMetadata),
        1 => Just(How::Halt),
        1 => Just(How::NotCurrent),
        2 => Just(How::StandsStill),
    ];
    (0..NAMES, kinds, memory, scope, how).prop_map(|(name, kinds, memory, scope, how)| Op::Create {
        name,
        kinds,
        memory,
        scope,
        how,
    })
}

/// What a disk of a machine is at first.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Image {
    Qcow2,
    Raw,
    /// Not the hypervisor's to serve.
    Bypassed,
}

/// A domain on a hypervisor whose images hold no memory.
#[derive(Debug, Clone)]
struct Machine {
    images: [Image; DISKS.len()],
    /// `<disk snapshot=>`.
    said: [Option<Location>; DISKS.len()],
    /// No internal snapshot can be deleted in the first image while the guest runs.
    sealed: [bool; DISKS.len()],
    /// `<create disks= memory=>` of its policy.
    disks: Option<Location>,
    memory: Option<Location>,
}

impl Machine {
    fn world(&self) -> World {
        let world = World::new(&DISKS).shaped(Shape::Outside);
        for (disk, image) in DISKS.iter().zip(self.images) {
            match image {
                Image::Qcow2 => {}
                Image::Raw => world.make_raw(disk),
                Image::Bypassed => world.make_bypassed(disk),
            }
        }
        for (disk, _) in DISKS.iter().zip(self.sealed).filter(|(_, sealed)| *sealed) {
            world.seal(&format!("/img/{disk}.qcow2"));
        }
        world.edit(|domain| {
            for (disk, said) in DISKS.iter().zip(self.said) {
                if let Some(said) = said {
                    domain::disk_mut(domain, disk).unwrap().set_attr("snapshot", said.as_str());
                }
            }
            let mut create = Element::new("create");
            for (word, place) in [("disks", self.disks), ("memory", self.memory)] {
                if let Some(place) = place {
                    create.set_attr(word, place.as_str());
                }
            }
            let policy = Element::new("policy").with_child(create).to_string();
            domain::set_metadata(domain, Some(&policy), "virtsnap", NAMESPACE).unwrap();
        });
        world
    }
}

fn any_machine() -> impl Strategy<Value = Machine> {
    let image =
        || prop_oneof![3 => Just(Image::Qcow2), 1 => Just(Image::Raw), 1 => Just(Image::Bypassed)];
    let said = || prop_oneof![5 => Just(None), 1 => any_kind()];
    let place = || {
        prop_oneof![
            6 => Just(None),
            1 => Just(Some(Location::Internal)),
            1 => Just(Some(Location::External)),
        ]
    };
    let images = [image(), image(), image()];
    let sealed = prop::array::uniform3(prop::bool::weighted(0.2));
    (images, [said(), said(), said()], sealed, place(), place()).prop_map(
        |(images, said, sealed, disks, memory)| Machine { images, said, sealed, disks, memory },
    )
}

fn any_op() -> impl Strategy<Value = Op> {
    let state = prop_oneof![
        4 => Just(RevertState::AsSnapshot),
        1 => Just(RevertState::Running),
        1 => Just(RevertState::Paused),
        1 => Just(RevertState::ShutOff),
    ];
    let scope = prop_oneof![
        4 => Just(DeleteScope::Single),
        1 => Just(DeleteScope::WithDescendants),
        1 => Just(DeleteScope::DescendantsOnly),
    ];
    let keep = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Survivor::Overlay)),
        1 => Just(Some(Survivor::Base)),
    ];
    let rarely = || prop::bool::weighted(0.1);
    let revert = (0..NAMES, state, rarely(), rarely()).prop_map(
        |(name, state, discard, delete_children)| Op::Revert {
            name,
            state,
            discard,
            delete_children,
        },
    );
    let delete =
        (0..NAMES, scope, rarely(), keep).prop_map(|(name, scope, metadata_only, keep)| {
            Op::Delete { name, scope, metadata_only, keep }
        });
    let redefine =
        (0..NAMES, any::<bool>()).prop_map(|(name, current)| Op::Redefine { name, current });
    let write = (0..DISKS.len(), 0u8..5).prop_map(|(disk, cluster)| Op::Write { disk, cluster });
    prop_oneof![
        8 => any_create(),
        5 => revert,
        5 => delete,
        1 => redefine,
        3 => Just(Op::Start),
        1 => Just(Op::Pause),
        1 => Just(Op::Stop),
        8 => write,
    ]
}

/// What a snapshot held when it was taken.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    disks: BTreeMap<String, Content>,
    memory: Option<u64>,
}

/// All that must be true, told without images, layers or plans.
struct Model {
    world: World,
    book: Mutex<Book>,
    held: BTreeMap<String, Held>,
    parents: BTreeMap<String, Option<String>>,
    current: Option<String>,
    /// What was recorded of each name last.
    told: BTreeMap<String, Definition>,
    /// Files that virtsnap gave up, or never owned.
    users: BTreeSet<PathBuf>,
    serial: u64,
}

fn is_unknown<T>(result: &Result<T>) -> bool {
    matches!(result, Err(err) if err.condition == Condition::NoSnapshot)
}

impl Model {
    fn new(world: World) -> Self {
        Self {
            book: world.book(),
            users: world.images().into_keys().collect(),
            world,
            held: BTreeMap::new(),
            parents: BTreeMap::new(),
            current: None,
            told: BTreeMap::new(),
            serial: 0,
        }
    }

    fn engine(&self) -> Engine {
        engine(&self.world)
    }

    fn seen(&self) -> BTreeMap<String, Content> {
        DISKS.map(|disk| (disk.to_owned(), self.world.content(disk))).into()
    }

    fn memory(&self) -> Option<u64> {
        self.world.guest().map(|guest| guest.memory)
    }

    /// Does it, and holds the world against the model. Gives whether it was done, not refused.
    fn step(&mut self, op: &Op) -> bool {
        self.serial += 1;
        // Most operations are in the same second as the one before.
        if self.serial.is_multiple_of(4) {
            self.world.tick();
        }
        match op {
            Op::Create { name: n, kinds, memory, scope, how } => {
                self.create(&name(*n), kinds, *memory, *scope, *how)
            }
            Op::Revert { name: n, state, discard, delete_children } => {
                let options = RevertOptions {
                    state: *state,
                    discard: *discard,
                    delete_children: *delete_children,
                    ..RevertOptions::default()
                };
                self.revert(&self.existing(*n), &options)
            }
            Op::Delete { name: n, scope, metadata_only, keep } => {
                let consolidate = Consolidate { keep: *keep, required: false };
                let options =
                    DeleteOptions { scope: *scope, metadata_only: *metadata_only, consolidate };
                self.delete(&self.existing(*n), &options)
            }
            Op::Redefine { name: n, current } => self.redefine(&name(*n), *current),
            Op::Start | Op::Pause | Op::Stop | Op::Write { .. } => self.guest(op),
        }
    }

    /// One of those that are there, if any is.
    fn existing(&self, n: u8) -> String {
        let nth = self.held.keys().nth(usize::from(n) % self.held.len().max(1));
        nth.cloned().unwrap_or_else(|| name(n))
    }

    fn guest(&self, op: &Op) -> bool {
        let guest = self.world.guest();
        match op {
            Op::Start if guest.is_none() => self.world.start(),
            Op::Pause if guest.is_some() => self.world.pause(),
            Op::Stop => self.world.stop(),
            Op::Write { disk, cluster } if guest.is_none_or(|guest| guest.running) => {
                self.world.write(DISKS[*disk], *cluster, self.serial);
            }
            _ => return false,
        }
        true
    }

    fn create(
        &mut self,
        name: &str,
        kinds: &Kinds,
        memory: AskedMemory,
        scope: Scope,
        how: How,
    ) -> bool {
        let disks = DISKS.iter().zip(kinds).filter(|(_, kind)| kind.is_some());
        let disks = disks.map(|(disk, kind)| DiskRequest {
            name: (*disk).to_owned(),
            snapshot: *kind,
            source_type: None,
            source: None,
            format: None,
            driver: None,
            on_delete: None,
            extra: Vec::new(),
        });
        let request = Request {
            name: Some(name.to_owned()),
            disks: disks.collect(),
            memory: match memory {
                AskedMemory::Default => None,
                AskedMemory::No => Some(MemoryRequest::No),
                AskedMemory::Internal => Some(MemoryRequest::Internal),
                AskedMemory::External => Some(MemoryRequest::External { file: None }),
            },
            ..Request::default()
        };
        let mut options = New::plain(scope);
        match how {
            How::Plain => {}
            How::NoMetadata => options.metadata = Metadata::Forget,
            How::Halt => options.afterwards = Afterwards::Halt,
            How::NotCurrent => options.becomes_current = false,
            How::StandsStill => options.meanwhile = Meanwhile::StandsStill,
        }
        let (disks, memory, was) = (self.seen(), self.memory(), self.world.guest());
        let known = self.held.contains_key(name);
        let result = run(self.engine().create(&self.book, &request, &options));
        assert_eq!(self.seen(), disks, "a snapshot changes no disk");
        let Ok(moment) = result else {
            self.refused(&result);
            assert_eq!(self.memory(), memory);
            let running =
                |guest: Option<_>| guest.map(|g: virtsnap_engine::testing::Guest| g.running);
            assert_eq!(running(self.world.guest()), running(was), "a refusal stops no guest");
            return false;
        };
        if how == How::Halt {
            assert!(self.world.guest().is_none(), "halted");
        } else {
            assert_eq!(self.memory(), memory);
        }
        if how == How::NoMetadata {
            self.give_up_files();
            return true;
        }
        assert!(!known, "a name is given once");
        let took_part = |disk: &str| {
            let found = moment.disks.iter().find(|found| found.name == disk).unwrap();
            matches!(found.snapshot, Location::Internal | Location::External)
        };
        let disks = disks.into_iter().filter(|(disk, _)| took_part(disk)).collect();
        let memory = memory.filter(|_| moment.memory != Memory::No);
        self.held.insert(name.to_owned(), Held { disks, memory });
        self.parents.insert(name.to_owned(), self.current.clone());
        if options.becomes_current {
            self.current = Some(name.to_owned());
        }
        true
    }

    fn revert(&mut self, name: &str, options: &RevertOptions) -> bool {
        let (before, memory) = (self.seen(), self.memory());
        let result = run(self.engine().revert(&self.book, name, options));
        let known = self.held.contains_key(name);
        assert!(if known { !is_unknown(&result) } else { result.is_err() }, "{result:?}");
        if result.is_err() {
            assert_eq!((self.seen(), self.memory()), (before, memory), "{result:?}");
            self.refused(&result);
            return false;
        }
        let held = self.held.get(name).expect("only what is there is reverted to");
        for (disk, content) in self.seen() {
            let expected = held.disks.get(&disk).unwrap_or(&before[&disk]);
            assert_eq!(&content, expected, "{disk} after a revert to {name}");
        }
        let moment = self.told[name].clone();
        let is_up = match options.state {
            RevertState::Running | RevertState::Paused => true,
            RevertState::ShutOff => false,
            RevertState::AsSnapshot => matches!(moment.state, State::Running | State::Paused),
        };
        let guest = self.world.guest();
        assert_eq!(guest.is_some(), is_up, "{moment:?} {options:?}");
        if let Some(guest) = guest {
            if let Some(memory) = held.memory {
                assert_eq!(guest.memory, memory, "memory after a revert to {name}");
            }
            let runs = match options.state {
                RevertState::AsSnapshot => moment.state == State::Running,
                other => other == RevertState::Running,
            };
            assert_eq!(guest.running, runs);
        }
        self.current = Some(name.to_owned());
        if options.discard || options.delete_children {
            // Which snapshots are used up by it is the option's own rule.
            self.follow_the_book();
        }
        true
    }

    fn delete(&mut self, name: &str, options: &DeleteOptions) -> bool {
        let (before, memory) = (self.seen(), self.memory());
        let result = run(self.engine().delete(&self.book, name, options));
        let known = self.held.contains_key(name);
        assert!(if known { !is_unknown(&result) } else { result.is_err() }, "{result:?}");
        assert_eq!((self.seen(), self.memory()), (before, memory), "deleting changes no disk");
        if result.is_err() {
            self.refused(&result);
            return false;
        }
        let parent = self.parents[name].clone();
        let (gone, heir) = match options.scope {
            DeleteScope::Single => (BTreeSet::from([name.to_owned()]), parent),
            DeleteScope::WithDescendants => {
                let mut gone = self.descendants(name);
                gone.insert(name.to_owned());
                (gone, parent)
            }
            DeleteScope::DescendantsOnly => (self.descendants(name), Some(name.to_owned())),
        };
        for name in &gone {
            self.held.remove(name);
            self.parents.remove(name);
        }
        for parent in self.parents.values_mut() {
            if parent.as_ref().is_some_and(|parent| gone.contains(parent)) {
                parent.clone_from(&heir);
            }
        }
        if self.current.as_ref().is_some_and(|current| gone.contains(current)) {
            self.current = heir;
        }
        if options.metadata_only {
            self.give_up_files();
        }
        true
    }

    fn redefine(&mut self, name: &str, current: bool) -> bool {
        let Some(told) = self.told.get(name).cloned() else { return false };
        let parent = told.parent.clone();
        let engine = self.engine();
        if !self.held.contains_key(name) {
            // Metadata was forgotten, and is told again: what the images hold is what counts.
            let Some(held) = self.found(&told) else { return false };
            let result = run(engine.redefine(&self.book, told, current));
            let known = parent.as_ref().is_none_or(|parent| self.held.contains_key(parent));
            assert_eq!(result.is_ok(), known, "{result:?}");
            if !known {
                return false;
            }
            self.held.insert(name.to_owned(), held);
        } else {
            let edited = Definition { description: Some("edited".to_owned()), ..told };
            run(engine.redefine(&self.book, edited, current)).unwrap();
        }
        self.parents.insert(name.to_owned(), parent);
        if current {
            self.current = Some(name.to_owned());
        }
        true
    }

    /// What the images hold of a snapshot that is not recorded; none if they do not.
    fn found(&self, moment: &Definition) -> Option<Held> {
        let images = self.world.images();
        let read = |path: &PathBuf, tag: Option<&str>| {
            let mut layers = Vec::new();
            let mut at = images.get(path)?;
            layers.push(match tag {
                Some(tag) => at.snapshots.iter().find(|saved| saved.tag == tag)?.data.clone(),
                None => at.data.clone(),
            });
            while let Some(below) = &at.backing {
                at = images.get(below)?;
                layers.push(at.data.clone());
            }
            Some(layers.into_iter().rev().flatten().collect::<Content>())
        };
        // A layer that is written to is no snapshot any more.
        let config = self.book.lock().unwrap().config.clone();
        let live = self.world.guest().map(|guest| Element::clone(&guest.live));
        let in_use: BTreeSet<PathBuf> = [config, live]
            .iter()
            .flatten()
            .flat_map(virtsnap_xml::domain::disks)
            .filter_map(|disk| disk.path().map(PathBuf::from))
            .collect();
        let mut disks = BTreeMap::new();
        for disk in &moment.disks {
            let Some(image) = moment_image(moment, &disk.name) else { continue };
            let internal = disk.snapshot == Location::Internal;
            if !internal && in_use.contains(&image) {
                return None;
            }
            let tag = disk.tag.as_deref().unwrap_or(&moment.name);
            disks.insert(disk.name.clone(), read(&image, internal.then_some(tag))?);
        }
        // Where its memory is, nothing need be left of it.
        (moment.memory == Memory::No).then_some(Held { disks, memory: None })
    }

    fn descendants(&self, name: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::from([name.to_owned()]);
        loop {
            let below = |parent: &Option<String>| {
                parent.as_ref().is_some_and(|parent| found.contains(parent))
            };
            let more = self.parents.iter().filter(|(name, p)| below(p) && !found.contains(*name));
            let more: Vec<_> = more.map(|(name, _)| name.clone()).collect();
            if more.is_empty() {
                found.remove(name);
                return found;
            }
            found.extend(more);
        }
    }

    /// A refusal says why, and leaves nothing.
    fn refused<T: std::fmt::Debug>(&self, result: &Result<T, Error>) {
        let err = result.as_ref().unwrap_err();
        assert_ne!(err.condition, Condition::Internal, "{}", err.chain());
        assert!(!err.message.is_empty());
    }

    /// Files that are not ours any more are the user's.
    fn give_up_files(&mut self) {
        let book = self.book.lock().unwrap();
        let all = self.world.images().into_keys();
        self.users.extend(all.filter(|path| !book.owned.contains(path)));
    }

    fn follow_the_book(&mut self) {
        let book = self.book.lock().unwrap();
        self.held.retain(|name, _| book.moments.get(name).is_some());
        self.parents =
            book.moments.iter().map(|def| (def.name.clone(), def.parent.clone())).collect();
        self.current = book.moments.current().map(str::to_owned);
    }

    fn check(&mut self, context: &str) {
        let book = self.book.lock().unwrap().clone();
        let parents: BTreeMap<_, _> =
            book.moments.iter().map(|def| (def.name.clone(), def.parent.clone())).collect();
        assert_eq!(parents, self.parents, "parents after {context}");
        assert_eq!(book.moments.current(), self.current.as_deref(), "current after {context}");
        for (name, held) in &self.held {
            let def = book.moments.get(name).unwrap();
            for (disk, content) in &held.disks {
                let image = moment_image(def, disk).expect("it took part");
                let found = self.world.images();
                let found = found.get(&image);
                assert!(
                    found.is_some(),
                    "{name} {disk}: {} is gone after {context}",
                    image.display()
                );
                let entry = def.disks.iter().find(|entry| entry.name == *disk).unwrap();
                if entry.snapshot == Location::Internal {
                    let tag = entry.tag.as_deref().unwrap_or(name);
                    let tags = &found.unwrap().snapshots;
                    assert!(
                        tags.iter().any(|s| s.tag == tag),
                        "{name} {disk}: no {tag}: {context}"
                    );
                }
                let seen = self.world.content_of(name, disk);
                assert_eq!(seen.as_ref(), Some(content), "{name} {disk}: {context}");
            }
            if held.memory.is_some() {
                assert_eq!(self.world.memory_of(name), held.memory, "{name}: {context}");
            }
        }
        assert!(!self.world.has_journal(), "the journal is left after {context}");
        let images = self.world.images();
        for (path, image) in &images {
            assert!(!image.claimed, "{} is still claimed after {context}", path.display());
            let has_owner = self.users.contains(path) || book.owned.contains(path);
            assert!(has_owner, "{} is nobody's after {context}", path.display());
            let below = image.backing.as_ref();
            assert!(
                below.is_none_or(|below| images.contains_key(below)),
                "{}: {context}",
                path.display()
            );
        }
        for path in &book.owned {
            assert!(images.contains_key(path), "{} is gone after {context}", path.display());
        }
        assert_eq!(
            self.world.book().into_inner().unwrap(),
            book,
            "what is durable is what is known"
        );
        for def in book.moments.iter() {
            self.told.insert(def.name.clone(), def.clone());
        }
    }
}

fn config(cases: u32) -> Config {
    let asked = std::env::var("PROPERTY_CASES").ok().and_then(|n| n.parse().ok());
    Config {
        cases: asked.unwrap_or(cases),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..Config::default()
    }
}

/// How often what kind of call was done, not refused.
type Done = RefCell<BTreeMap<String, usize>>;

fn play(world: World, ops: &[Op], done: &Done) {
    let mut model = Model::new(world);
    for (n, op) in ops.iter().enumerate() {
        if model.step(op) {
            *done.borrow_mut().entry(op.kind()).or_default() += 1;
        }
        model.check(&format!("{op:?}, number {n}"));
    }
}

/// A property that everything was refused under would prove nothing.
fn was_done(done: Done) {
    let done = done.into_inner();
    for (kind, least) in [("create", 5), ("revert", 4), ("delete", 4), ("redefine", 1)] {
        let kinds: Vec<_> = done.iter().filter(|(name, _)| name.starts_with(kind)).collect();
        eprintln!(
            "{kind}: {} kinds, {} done",
            kinds.len(),
            kinds.iter().map(|(_, n)| **n).sum::<usize>()
        );
        assert!(kinds.len() >= least, "{kinds:?}");
    }
    if std::env::var_os("PROPERTY_SHOW").is_some() {
        eprintln!("{done:#?}");
    }
}

#[test]
fn thousands_of_sequences_change_no_snapshot() {
    let done = Done::default();
    let any_sequence = prop::collection::vec(any_op(), 1..40);
    let result = TestRunner::new(config(CASES)).run(&any_sequence, |ops| {
        play(World::new(&DISKS), &ops, &done);
        Ok(())
    });
    // Its report of a failure has the sequence in it.
    if let Err(failure) = result {
        panic!("{failure}");
    }
    was_done(done);
}

#[test]
fn where_images_hold_no_memory_no_plan_puts_it_there() {
    let done = Done::default();
    let any_life = (any_machine(), prop::collection::vec(any_op(), 1..40));
    let result = TestRunner::new(config(CASES_OUTSIDE)).run(&any_life, |(machine, ops)| {
        play(machine.world(), &ops, &done);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    was_done(done);
}
