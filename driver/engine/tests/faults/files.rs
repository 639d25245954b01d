//! Files that are not as the facts said. When they are as they were, the old world holds or the new
//! one, and the same call succeeds; and no other file is lost by it.
//!
//! - away, from before the operation on; read-only, or cut short, from any of its calls on: its head
//!   is gone, so that it is no image, or its tail, so that it looks as ever and cannot be read;
//! - another image has its name. What tells by its header (it stands on another file than the one
//!   that its snapshot froze) is refused, and nothing is touched. One that looks the same is not
//!   noticed: what stands on it is what it makes of it, and everything else holds what it held.
//!
//! What a running hypervisor has open it goes on with; what happens to that is not simulated.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use virtsnap_engine::testing::scene::{DISKS, apply, assert_tidy, held, recover, restart};
use virtsnap_engine::testing::{Damage, Image, Shape, Spoil, World};

use crate::cases::{self, Case, Cases};
use crate::every;
use crate::ground::{Ground, Outcome, Struck, Told};

const SHAPES: [Shape; 2] = [Shape::Inside, Shape::Outside];

/// The cases that are tried, each with a number.
fn grounds(few: usize, shape: Shape) -> impl Iterator<Item = Case> {
    let groups = [
        cases::creations(),
        cases::mixes(),
        cases::reverts(),
        cases::reverts_that_give_up(),
        cases::deletions(),
    ];
    let groups: Vec<_> = match shape {
        Shape::Inside => groups.into(),
        Shape::Outside => {
            groups.into_iter().chain([cases::bypassed()]).map(Cases::outside).collect()
        }
    };
    let all = groups.into_iter().flat_map(|cases| cases.0).enumerate();
    all.filter(move |(n, _)| every(few, *n)).map(|(_, case)| case)
}

#[test]
fn files_that_are_away_or_read_only() {
    SHAPES.into_iter().for_each(away_or_read_only);
}

fn away_or_read_only(shape: Shape) {
    let (mut away, mut read_only, mut hindered) = (0, 0, 0);
    for case in grounds(9, shape) {
        let ground = Ground::of(&case);
        for path in ground.world.images().keys() {
            for at in (0..ground.calls).filter(|at| every(5, *at)) {
                let struck = ground.spoiled(at, path, Spoil::ReadOnly);
                read_only += 1;
                hindered += usize::from(struck.result.is_err());
            }
            // A running QEMU has open what is away; a state file comes back with its snapshot.
            let is_off = ground.old.guest.is_none() && ground.new.guest.is_none();
            if is_off && path.starts_with("/img") {
                let struck = ground.without(path);
                away += 1;
                hindered += usize::from(struck.result.is_err());
            }
        }
    }
    println!(
        "files, memory {shape:?}: {read_only} read-only, {away} away, {hindered} operations hindered"
    );
    assert!(read_only > 100 && away > 20 && hindered > 20);
}

#[test]
fn files_that_are_cut_short() {
    SHAPES.into_iter().for_each(cut_short);
}

fn cut_short(shape: Shape) {
    let (mut cut, mut hindered) = (0, 0);
    for case in grounds(9, shape) {
        let ground = Ground::of(&case);
        // Memory brings its own variables and state, and asks for no copies.
        let moments = ground.world.moments();
        let has_memory = moments.iter().any(|def| ground.world.memory_of(&def.name).is_some());
        let is_asked_for = |path: &PathBuf| !(has_memory && path.starts_with("/fw"));
        for path in ground.closed().into_iter().filter(is_asked_for) {
            // Copies of state files are looked at when the plan is made.
            let calls = if path.starts_with("/fw") { 1 } else { ground.calls };
            for damage in [Damage::NoImage, Damage::Torn] {
                for at in (0..calls).filter(|at| every(5, *at)) {
                    let struck = ground.spoiled(at, &path, Spoil::Damaged(damage));
                    cut += 1;
                    hindered += usize::from(struck.result.is_err());
                }
            }
        }
    }
    println!("files, memory {shape:?}: {cut} cut short, {hindered} operations hindered");
    assert!(cut > 100 && hindered > 20);
}

/// What is in the place of an image.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Other {
    /// It stands on nothing.
    Alone,
    /// It stands on somebody else's image.
    Elsewhere,
    /// Header, snapshots and all look the same; the content is another.
    Lookalike,
}

const STRANGER: &str = "/img/stranger.qcow2";

impl Other {
    const ALL: [Self; 3] = [Self::Alone, Self::Elsewhere, Self::Lookalike];

    fn image(self, was: &Image) -> Image {
        let strange = |data: &mut virtsnap_engine::testing::Content| {
            data.values_mut().for_each(|value| *value = 7);
            data.insert(9, 7);
        };
        let mut image = was.clone();
        strange(&mut image.data);
        match self {
            Self::Alone => (image.backing, image.snapshots) = (None, Vec::new()),
            Self::Elsewhere => {
                (image.backing, image.snapshots) = (Some(PathBuf::from(STRANGER)), Vec::new());
            }
            Self::Lookalike => {
                image.snapshots.iter_mut().for_each(|saved| strange(&mut saved.data));
            }
        }
        image
    }
}

#[test]
fn images_that_are_others_now() {
    SHAPES.into_iter().for_each(others_now);
}

fn others_now(shape: Shape) {
    let (mut noticed, mut unnoticed) = (0, 0);
    for case in grounds(3, shape) {
        let ground = Ground::of(&case);
        ground.world.put_back(Path::new(STRANGER), Image { is_users: true, ..Image::default() });
        let images = ground.world.images();
        for path in ground.closed().into_iter().filter(|path| path.starts_with("/img")) {
            let was = &images[&path];
            // Its header can be held against the record that names it. What a revert made is named
            // by none once a snapshot was taken on it.
            let is_ours = |image: &PathBuf| ground.world.owned().contains(image);
            let moments = ground.world.moments();
            let overlays = moments.iter().flat_map(|def| def.disks.iter().chain(&def.revert_disks));
            let is_layer = overlays.into_iter().any(|disk| disk.path() == path.to_str());
            for other in Other::ALL {
                let tells = match other {
                    Other::Alone => is_layer && was.backing.as_ref().is_some_and(is_ours),
                    Other::Elsewhere => is_layer,
                    Other::Lookalike => false,
                };
                if tells {
                    ground.with_another(&path, other);
                    noticed += 1;
                } else {
                    ground.with_a_lookalike(&path, other);
                    unnoticed += 1;
                }
            }
        }
    }
    println!("files, memory {shape:?}: {noticed} images that tell, {unnoticed} that do not");
    assert!(noticed > 20 && unnoticed > 20);
}

impl Ground<'_> {
    /// The files that no guest has open.
    fn closed(&self) -> Vec<PathBuf> {
        let images = self.world.images();
        let guest = self.world.guest();
        let mut open: Vec<PathBuf> =
            guest.into_iter().flat_map(|guest| guest.active.into_values()).collect();
        let is_up = !open.is_empty();
        let mut opened = BTreeSet::new();
        while let Some(path) = open.pop() {
            open.extend(images.get(&path).and_then(|image| image.backing.clone()));
            opened.insert(path);
        }
        let is_state =
            |path: &Path| ["/fw/vm.fd", "/fw/tpm2/permall"].map(Path::new).contains(&path);
        let closed = images.into_keys().filter(|path| !opened.contains(path));
        closed.filter(|path| !(is_up && is_state(path))).collect()
    }

    fn living(&self) -> World {
        let world = self.world.fork();
        world.live(&self.case.minded());
        world
    }

    /// Something is wrong with that file, from that call on.
    fn spoiled(&self, at: usize, path: &Path, spoil: Spoil) -> Struck<'_> {
        let world = self.living();
        if at == 0 {
            world.spoil(path, spoil);
        } else {
            world.spoil_at(at, path, spoil);
        }
        let context = format!("{:?}, {} {spoil:?} from call {at}", self.case, path.display());
        self.hindered(world, context, |world| world.mend(path))
    }

    /// That file is away.
    fn without(&self, path: &Path) -> Struck<'_> {
        let world = self.living();
        let image = world.take_away(path);
        let context = format!("{:?}, without {}", self.case, path.display());
        self.hindered(world, context, |world| {
            let is_free = !world.images().contains_key(path);
            assert!(is_free, "its name was taken: {}", path.display());
            self.put_back(world, path, image);
        })
    }

    /// Unless it was to be removed, and is.
    fn put_back(&self, world: &World, path: &Path, image: Image) {
        if world.owned().contains(path) || !self.world.owned().contains(path) {
            world.put_back(path, image);
        }
    }

    /// One that tells has the place of that image.
    fn with_another(&self, path: &Path, other: Other) {
        let world = self.living();
        let was = world.take_away(path);
        world.put_back(path, other.image(&was));
        let context = format!("{:?}, {} is {other:?}", self.case, path.display());
        self.hindered(world, context, |world| self.put_back(world, path, was));
    }

    /// One that does not tell has the place of that image, and is taken for it: no other file is
    /// gone, and what does not stand on it holds what it held.
    fn with_a_lookalike(&self, path: &Path, other: Other) {
        let world = self.world.fork();
        let was = &world.images()[path];
        let spared: Vec<&String> =
            self.held.keys().filter(|name| !self.stands_on(name, path)).collect();
        world.put_back(path, other.image(was));
        let context = format!("{:?}, {} is {other:?}", self.case, path.display());
        let _told = Told(&context, &world);
        drop(apply(&world, &world.book(), self.case.op, 999));
        drop(restart(&world));
        assert_tidy(&world, &context);
        let moments = world.moments();
        for name in spared.into_iter().filter(|name| moments.get(name).is_some()) {
            assert_eq!(held(&world, name), self.held[name], "{context}: {name} has changed");
        }
    }

    /// Is the image, or the file, one that the moment needs?
    fn stands_on(&self, name: &str, path: &Path) -> bool {
        let (images, moments) = (self.world.images(), self.world.moments());
        let Some(moment) = moments.get(name) else { return false };
        let of_disks =
            DISKS.iter().filter_map(|disk| virtsnap_engine::plan::moment_image(moment, disk));
        let memory = virtsnap_engine::plan::memory_path(moment).map(Path::to_path_buf);
        let mut open: Vec<PathBuf> = of_disks.chain(memory).collect();
        while let Some(at) = open.pop() {
            if at == path {
                return true;
            }
            open.extend(images.get(&at).and_then(|image| image.backing.clone()));
        }
        false
    }

    fn hindered(&self, world: World, context: String, mend: impl FnOnce(&World)) -> Struck<'_> {
        let book = world.book();
        let told = world.clone();
        let _told = Told(&context, &told);
        let result = apply(&world, &book, self.case.op, 999).map_err(|err| err.chain());
        let context = context.clone();
        let mut struck = Struck { ground: self, world, book, result, guest_died: false, context };
        drop(recover(&struck.world));
        mend(&struck.world);
        struck.book = restart(&struck.world);
        let outcome = struck.check();
        let is_true = struck.result.is_err() || outcome == Outcome::New || self.old == self.new;
        assert!(is_true, "{}: a false success", struck.context);
        struck.repeat(&struck.book, outcome);
        struck
    }
}
