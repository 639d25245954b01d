//! Deletions that stop: before each merge of each deletion, with a guest and without, and with
//! trouble or the daemon's death at each call of what follows. What stays is whole, says so, can be
//! used, and is deleted in the end.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use virtsnap_engine::book::Book;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::merging::Progress;
use virtsnap_engine::options::{
    Consolidate, DeleteOptions, DeleteScope, New, RevertOptions, RevertState, Scope,
};
use virtsnap_engine::ports::Journals;
use virtsnap_engine::testing::scene::{Engine, assert_tidy, engine, needed, run};
use virtsnap_engine::testing::{Content, Shape, Trouble, World};
use virtsnap_xml::snapshot::{Location, Memory, Request, Survivor};

const DISKS: [&str; 3] = ["vda", "vdb", "vdc"];

struct Scene {
    world: World,
    book: Mutex<Book>,
}

impl Scene {
    fn of(world: World) -> Self {
        let book = world.book();
        Self { world, book }
    }

    /// A chain a - b - c, and below a another branch d, with the guest on c or d.
    fn new(running: bool, on_d: bool) -> Self {
        // Where the guest's memory can be changes nothing of a deletion; so one of them is the other.
        let shape = if running && on_d { Shape::Outside } else { Shape::Inside };
        let scene = Self::of(World::new(&DISKS).shaped(shape));
        let take = |name: &str, value: u64| {
            scene.write_all(value);
            scene.create(name).unwrap();
            scene.world.tick();
        };
        take("a", 1);
        take("b", 2);
        take("c", 3);
        if on_d {
            let options =
                RevertOptions { state: RevertState::AsSnapshot, ..RevertOptions::default() };
            run(scene.engine().revert(&scene.book, "a", &options)).unwrap();
            take("d", 4);
        }
        scene.write_all(9);
        if running {
            scene.world.start();
        }
        scene
    }

    fn engine(&self) -> Engine {
        engine(&self.world)
    }

    fn write_all(&self, value: u64) {
        for (at, disk) in (0..).zip(DISKS) {
            self.world.write(disk, u8::try_from(value).unwrap() % 4, value * 10 + at);
        }
    }

    fn create(&self, name: &str) -> Result<()> {
        let request = Request { name: Some(name.to_owned()), ..Request::default() };
        let options = New::plain(Scope::DiskOnly { quiesce: false });
        run(self.engine().create(&self.book, &request, &options)).map(drop)
    }

    fn delete(&self, deletion: &Deletion) -> Result<()> {
        let consolidate = Consolidate { required: false, keep: deletion.keep };
        let options = DeleteOptions { scope: deletion.scope, metadata_only: false, consolidate };
        run(self.engine().delete(&self.book, deletion.name, &options))
    }

    fn seen(&self) -> BTreeMap<&'static str, Content> {
        DISKS.iter().map(|disk| (*disk, self.world.content(disk))).collect()
    }

    /// What each moment that can be reverted to holds.
    fn held(&self) -> BTreeMap<String, Vec<Option<Content>>> {
        let book = self.book.lock().unwrap();
        let whole = book.moments.iter().filter(|def| !def.delete_in_progress);
        whole
            .map(|def| {
                let of = |disk: &&str| self.world.content_of(&def.name, disk);
                (def.name.clone(), DISKS.iter().map(of).collect())
            })
            .collect()
    }

    fn marked(&self) -> BTreeSet<String> {
        let book = self.book.lock().unwrap();
        let marked = book.moments.iter().filter(|def| def.delete_in_progress);
        marked.map(|def| def.name.clone()).collect()
    }

    /// The daemon comes back and recovers.
    fn restart(&mut self) {
        self.world.revive();
        self.book = self.world.book();
        for unfinished in Journals::unfinished(&self.world).unwrap() {
            drop(run(self.engine().recover(&self.book, &unfinished)));
        }
        assert!(!self.world.has_journal());
    }

    /// Nothing of ours lies about that nothing needs.
    fn assert_tidy(&self, context: &str) {
        assert_tidy(&self.world, context);
        let needed = needed(&self.world);
        assert!(self.world.owned().iter().all(|path| needed.contains(path)), "{context}");
    }
}

#[derive(Debug, Clone, Copy)]
struct Deletion {
    name: &'static str,
    scope: DeleteScope,
    keep: Option<Survivor>,
}

impl Deletion {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for name in ["a", "b", "c"] {
            for scope in
                [DeleteScope::Single, DeleteScope::WithDescendants, DeleteScope::DescendantsOnly]
            {
                for keep in [None, Some(Survivor::Overlay)] {
                    all.push(Self { name, scope, keep });
                }
            }
        }
        all
    }

    fn dooms(&self, scene: &Scene) -> BTreeSet<String> {
        let book = scene.book.lock().unwrap();
        let below = book.moments.descendants(self.name).into_iter().map(|def| def.name.clone());
        let own = [self.name.to_owned()];
        match self.scope {
            DeleteScope::Single => own.into(),
            DeleteScope::WithDescendants => own.into_iter().chain(below).collect(),
            DeleteScope::DescendantsOnly => below.collect(),
        }
    }
}

/// Every deletion in every scene, stopped before its merges one after the other.
fn each_stop(mut check: impl FnMut(Scene, &Deletion, &str)) -> usize {
    let mut stops = 0;
    for (running, on_d) in [(false, false), (true, false), (false, true), (true, true)] {
        for deletion in Deletion::all() {
            for merges in 0.. {
                let context = format!("{deletion:?}, running {running}, on d {on_d}, {merges}");
                let scene = Scene::new(running, on_d);
                let (seen, mut held) = (scene.seen(), scene.held());
                let doomed = deletion.dooms(&scene);
                scene.world.stop_merges_after(Some(merges));
                let deleted = scene.delete(&deletion);
                scene.world.stop_merges_after(None);
                assert!(!scene.world.has_journal(), "{context}");
                assert_eq!(scene.seen(), seen, "{context}");
                if deleted.is_ok() {
                    held.retain(|name, _| !doomed.contains(name));
                    assert_eq!(scene.held(), held, "{context}");
                    break;
                }
                assert_eq!(deleted.unwrap_err().condition, Condition::Aborted, "{context}");
                assert_eq!(scene.marked(), doomed, "{context}");
                held.retain(|name, _| !doomed.contains(name));
                assert_eq!(scene.held(), held, "{context}");
                stops += 1;
                check(scene, &deletion, &context);
            }
        }
    }
    stops
}

#[test]
fn what_stopped_is_whole_is_used_and_is_deleted_in_the_end() {
    let stops = each_stop(|scene, deletion, context| {
        let doomed = deletion.dooms(&scene);
        for name in &doomed {
            let options = RevertOptions { force: true, ..RevertOptions::default() };
            let err = run(scene.engine().revert(&scene.book, name, &options)).unwrap_err();
            assert_eq!(err.condition, Condition::OperationInvalid, "{context}");
            assert!(err.message.contains("delete it again"), "{}", err.message);
        }
        // The guest goes on, and off and on again.
        scene.write_all(12);
        match scene.world.guest() {
            Some(_) => scene.world.stop(),
            None => scene.world.start(),
        }
        scene.write_all(13);
        scene.create("e").unwrap();
        scene.write_all(14);
        let (seen, held) = (scene.seen(), scene.held());
        assert_eq!(scene.marked(), doomed, "{context}");
        let again = match deletion.scope {
            // One that was taken since hangs below.
            DeleteScope::WithDescendants | DeleteScope::DescendantsOnly => {
                doomed.iter().map(|name| (name.clone(), DeleteScope::Single)).collect()
            }
            DeleteScope::Single => vec![(deletion.name.to_owned(), DeleteScope::Single)],
        };
        for (name, scope) in again {
            let consolidate = Consolidate { required: false, keep: deletion.keep };
            let options = DeleteOptions { scope, metadata_only: false, consolidate };
            run(scene.engine().delete(&scene.book, &name, &options)).unwrap();
        }
        assert_eq!(scene.seen(), seen, "{context}");
        assert_eq!(scene.held(), held, "{context}");
        assert!(scene.marked().is_empty(), "{context}");
        scene.assert_tidy(context);
    });
    assert!(stops > 50, "only {stops} merges were stopped");
}

/// Again and again: every attempt is stopped one merge later than the one before.
#[test]
fn each_attempt_goes_on_where_the_last_one_ended() {
    let mut resumed = 0;
    each_stop(|scene, deletion, context| {
        let (seen, held) = (scene.seen(), scene.held());
        let mut attempts = 0;
        loop {
            attempts += 1;
            assert!(attempts < 20, "{context}");
            scene.world.stop_merges_after(Some(1));
            match scene.delete(deletion) {
                Ok(()) => break,
                Err(err) => assert_eq!(err.condition, Condition::Aborted, "{context}"),
            }
            assert_eq!(scene.seen(), seen, "{context}");
            assert_eq!(scene.held(), held, "{context}");
        }
        resumed += attempts;
        assert_eq!(scene.seen(), seen, "{context}");
        assert_eq!(scene.held(), held, "{context}");
        scene.assert_tidy(context);
    });
    assert!(resumed > 50, "{resumed}");
}

#[test]
fn trouble_with_what_stopped_loses_nothing() {
    let troubles =
        [Trouble::Fails, Trouble::FailsAfterEffect, Trouble::DiesBefore, Trouble::DiesAfter];
    each_stop(|scene, deletion, context| {
        // The others plan nothing else.
        if deletion.scope == DeleteScope::DescendantsOnly || deletion.name == "c" {
            return;
        }
        let (seen, held) = (scene.seen(), scene.held());
        for trouble in troubles {
            for at in 0.. {
                let context = format!("{context}, {trouble:?} at {at}");
                let mut scene = Scene::of(scene.world.fork());
                scene.world.arm(at, trouble);
                drop(scene.delete(deletion));
                if !scene.world.was_struck() {
                    break;
                }
                scene.restart();
                assert_eq!(scene.seen(), seen, "{context}");
                assert_eq!(scene.held(), held, "{context}");
                if !scene.marked().is_empty() {
                    scene.delete(deletion).unwrap_or_else(|err| panic!("{context}: {err}"));
                }
                assert_eq!((scene.seen(), scene.held()), (seen.clone(), held.clone()), "{context}");
                scene.assert_tidy(&context);
            }
        }
    });
}

/// A deletion in doubt is settled by whoever comes next, and the guest keeps what it wrote.
#[test]
fn an_answer_that_was_lost_is_settled_without_waiting_for_merges() {
    for running in [false, true] {
        for at in 0.. {
            let context = format!("running {running}, answer {at} lost");
            let scene = Scene::new(running, false);
            let (deletion, held) = (Deletion::all()[0], scene.held());
            scene.world.arm(at, Trouble::FailsAfterEffect);
            drop(scene.delete(&deletion));
            if !scene.world.was_struck() {
                break;
            }
            scene.world.revive();
            scene.write_all(12);
            // The guest's end must not bring the old top back.
            scene.world.stop();
            run(scene.engine().settle(&scene.book)).unwrap();
            assert!(!scene.world.has_journal(), "{context}");
            let seen = scene.seen();
            assert!(seen["vda"].values().any(|value| *value == 120), "{context}: {seen:?}");
            scene.world.start();
            scene.write_all(13);
            let seen = scene.seen();
            if scene.book.lock().unwrap().moments.get("a").is_some() {
                scene.delete(&deletion).unwrap();
            }
            assert_eq!(scene.seen(), seen, "{context}");
            let left = scene.held();
            assert!(left.iter().all(|(name, content)| held[name] == *content), "{context}");
            scene.assert_tidy(&context);
        }
    }
}

#[test]
fn progress_is_of_all_merges_and_an_abort_comes_before_the_next() {
    let scene = Scene::new(true, false);
    let engine = scene.engine();
    let options = DeleteOptions {
        scope: DeleteScope::Single,
        metadata_only: false,
        consolidate: Consolidate::default(),
    };
    scene.world.stop_merges_after(Some(2));
    run(engine.delete(&scene.book, "b", &options)).unwrap_err();
    let merging = engine.merging(scene.world.uuid).unwrap();
    assert_eq!(merging.progress().total, 300);
    scene.world.stop_merges_after(None);
    run(engine.delete(&scene.book, "b", &options)).unwrap();
    let merging = engine.merging(scene.world.uuid).unwrap();
    assert_eq!(merging.progress(), Progress { done: 100, total: 100 }, "one was left");
}

/// What libvirt's own mark says of a single disk is another thing.
#[test]
fn a_mark_is_told_and_read_again() {
    let scene = Scene::new(false, false);
    scene.world.stop_merges_after(Some(0));
    let deletion = Deletion { name: "b", scope: DeleteScope::Single, keep: None };
    scene.delete(&deletion).unwrap_err();
    let book = scene.book.lock().unwrap();
    let marked = book.moments.get("b").unwrap();
    assert!(marked.to_element().child("snapshotDeleteInProgress").is_some());
    assert!(marked.disks.iter().all(|disk| !disk.delete_in_progress));
    assert_eq!((&marked.memory, marked.disks[0].snapshot), (&Memory::No, Location::External));
}
