//! What was done before, and the operation that meets a fault.

use virtsnap_engine::facts::Format;
use virtsnap_engine::options::Scope;
use virtsnap_engine::testing::scene::words::*;
use virtsnap_engine::testing::scene::{DISKS, MEMORIES, Memory, Op};
use virtsnap_engine::testing::{Shape, World};
use virtsnap_xml::snapshot::Location;

use Op::{
    Alone, Bypassed, Delete, Discard, DiscardAlone, External, Forget, Halting, Internal, Mix,
    Pause, Quiesced, Raw, Redefine, Reset, Revert, Save, Start, Stop, Stream, Unrecorded, Write,
};

/// Kevin Wolf's table, and what is left out of it or left to the user.
const MIXES: [[Location; 2]; 7] =
    [[IN, IN], [EX, EX], [IN, EX], [EX, IN], [EX, NO], [NO, IN], [IN, BY_HAND]];

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) shape: Shape,
    pub(crate) nvram: Format,
    pub(crate) before: Vec<Op>,
    pub(crate) op: Op,
}

impl Case {
    /// With firmware and a TPM, where the hypervisor has state files.
    pub(crate) fn world(&self) -> World {
        match self.shape {
            Shape::Inside => World::with_firmware(&DISKS, &self.nvram),
            Shape::Outside => World::new(&DISKS).shaped(Shape::Outside),
        }
    }

    /// Something of it is refused where images hold no memory and a guest takes part in its save:
    /// memory inside, memory of a guest that is paused; and new variables, where there are none.
    fn is_for_inside_only(&self) -> bool {
        let mut is_paused = false;
        self.before.iter().chain([&self.op]).any(|op| {
            let is_refused = match op {
                Mix(_, Memory::Inside, ..) | Reset(_) => true,
                Mix(_, memory, ..) => is_paused && *memory != Memory::None,
                Internal(_) | Halting(_, Scope::FullSystem { .. }) => is_paused,
                _ => false,
            };
            match op {
                Pause | Revert(_, STILL) | Mix(_, _, _, BY_HAND) | Mix(_, _, BY_HAND, _) => {
                    is_paused = true;
                }
                Start | Stop | Save | Revert(..) => is_paused = false,
                _ => {}
            }
            is_refused
        })
    }

    /// The disks that all snapshots of the case take along.
    pub(crate) fn minded(&self) -> Vec<&'static str> {
        let leaves_out = |op: &Op, nth: usize| match op {
            Mix(_, _, vda, vdb) => ![IN, EX].contains([vda, vdb][nth]),
            _ => false,
        };
        let ops = || self.before.iter().chain([&self.op]);
        let all = DISKS.iter().enumerate();
        all.filter(|(nth, _)| !ops().any(|op| leaves_out(op, *nth)))
            .map(|(_, disk)| *disk)
            .collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Cases(pub(crate) Vec<Case>);

impl Cases {
    fn add(&mut self, before: &[Op], op: Op) {
        self.0.push(Case { shape: Shape::Inside, nvram: Format::Raw, before: before.to_vec(), op });
    }

    /// The same where memory is outside of images, as far as they are possible there.
    pub(crate) fn outside(self) -> Self {
        let cases = self.0.into_iter().filter(|case| !case.is_for_inside_only());
        Self(cases.map(|case| Case { shape: Shape::Outside, ..case }).collect())
    }

    fn add_with_store(&mut self, before: &[Op], op: Op) {
        self.0.push(Case {
            shape: Shape::Inside,
            nvram: Format::Qcow2,
            before: before.to_vec(),
            op,
        });
    }
}

/// The same cases where memory is outside of images, and what is only so there.
pub(crate) fn outside() -> [(&'static str, Cases); 9] {
    let all = [
        ("creations", creations()),
        ("mixes", mixes()),
        ("mixes given back", mixes_given_back()),
        ("reverts", reverts()),
        ("reverts that give up", reverts_that_give_up()),
        ("deletions", deletions()),
        ("saved guests", saved_guests()),
        ("records", records()),
        ("disks of others", bypassed()),
    ];
    all.map(|(group, cases)| (group, cases.outside()))
}

/// The second disk is not the hypervisor's to serve, until it has an overlay.
pub(crate) fn bypassed() -> Cases {
    let mut cases = Cases::default();
    let on = [Bypassed, Start, Write(1)];
    let then = |before: &[Op], more: &[Op]| [before, more].concat();
    for location in [IN, EX] {
        for memory in [Memory::None, Memory::Outside, Memory::Live] {
            cases.add(&on, Mix(1, memory, location, NO));
        }
        cases.add(&on, Mix(1, Memory::Live, location, BY_HAND));
        let taken = then(&on, &[Mix(0, Memory::Live, location, NO), Write(2)]);
        cases.add(&taken, Revert(0, AS));
        cases.add(&then(&taken, &[Stop]), Revert(0, STILL));
        cases.add(&taken, Delete(0, ONE));
    }
    cases.add(&on, Mix(1, Memory::Live, NO, NO));
    let off = [Bypassed, Write(1)];
    for taken in [Internal(0), External(0)] {
        cases.add(&off, taken);
        let taken = then(&off, &[taken, Write(2)]);
        cases.add(&taken, Revert(0, AS));
        cases.add(&then(&taken, &[Start, Write(3)]), Revert(0, AS));
        cases.add(&then(&taken, &[Start, Write(3)]), Internal(1));
        cases.add(&then(&taken, &[Start, Write(3)]), Delete(0, ONE));
        cases.add(&taken, Delete(0, ONE));
    }
    // On the raw file again, which the frozen one was.
    cases.add(&then(&off, &[External(0), Write(2)]), Discard(0));
    cases
}

fn chain() -> Vec<Op> {
    vec![Write(1), External(0), Write(2), External(1), Write(3), External(2), Write(4)]
}

fn chains() -> [Vec<Op>; 3] {
    let then = |more: &[Op]| [&chain()[..], more].concat();
    [chain(), then(&[Start]), then(&[Revert(1, AS), Write(5), External(3), Write(6)])]
}

pub(crate) fn creations() -> Cases {
    let mut cases = Cases::default();
    let disks = Scope::DiskOnly { quiesce: false };
    let full = Scope::FullSystem { live: false };
    cases.add(&[Start, Write(1)], Mix(1, Memory::Inside, EX, EX));
    for before in [&[Write(1)][..], &[Start, Write(1)], &[Write(1), External(0), Write(2), Start]] {
        cases.add(before, External(1));
        cases.add(before, Internal(1));
        cases.add(before, Unrecorded(1));
    }
    for before in [&[Start, Write(1)][..], &[Start, Write(1), External(0), Write(2), Pause]] {
        cases.add(before, Halting(1, disks));
        cases.add(before, Halting(1, full));
    }
    cases.add(&[Start, Write(1)], Quiesced(1));
    cases.add(&[Start, Write(1), External(0), Write(2)], Quiesced(1));
    for before in [&[Raw, Write(1)][..], &[Raw, Start, Write(1)]] {
        cases.add(before, External(1));
    }
    cases
}

pub(crate) fn mixes() -> Cases {
    let mut cases = Cases::default();
    for memory in MEMORIES {
        for [vda, vdb] in MIXES {
            let mix = Mix(1, memory, vda, vdb);
            cases.add(&[Start, Write(1), External(0), Write(2)], mix);
            if memory != Memory::Live {
                cases.add(&[Start, Write(1), Pause], mix);
            }
        }
    }
    for memory in &MEMORIES[1..] {
        cases.add(&[Start, Write(1)], Mix(1, *memory, NO, NO));
    }
    cases
}

pub(crate) fn mixes_given_back() -> Cases {
    let mut cases = Cases::default();
    for memory in MEMORIES {
        for [vda, vdb] in MIXES {
            let taken = [Start, Write(1), Mix(0, memory, vda, vdb), Write(2)];
            let then = |more: &[Op]| [&taken[..], more].concat();
            cases.add(&taken, Revert(0, AS));
            cases.add(&taken, Revert(0, STILL));
            cases.add(&then(&[External(1), Write(3)]), Revert(0, UP));
            cases.add(&then(&[Stop]), Revert(0, OFF));
            cases.add(&taken, Delete(0, ONE));
            cases.add(&then(&[Mix(1, memory, vdb, vda), Write(3), Stop]), Delete(0, FAMILY));
        }
    }
    cases
}

pub(crate) fn variable_stores() -> Cases {
    let mut cases = Cases::default();
    cases.add_with_store(&[Start, Write(1), External(0), Write(2), Stop, Write(3)], Reset(0));
    for memory in MEMORIES {
        cases.add_with_store(&[Start, Write(1)], Mix(1, memory, IN, EX));
        let taken = [Start, Write(1), Mix(0, memory, EX, EX), Write(2)];
        cases.add_with_store(&taken, Revert(0, AS));
        cases.add_with_store(&taken, Delete(0, ONE));
    }
    let whole = [Start, Write(1), Internal(0), Write(2)];
    let then = |more: &[Op]| [&whole[..], more].concat();
    cases.add_with_store(&[Start, Stop, Write(1)], Internal(1));
    cases.add_with_store(&[Start, Write(1)], Internal(1));
    cases.add_with_store(&whole, Revert(0, AS));
    cases.add_with_store(&then(&[Stop, Write(3)]), Revert(0, AS));
    cases.add_with_store(&[Start, Stop, Write(1), Internal(0), Start, Write(2)], Revert(0, UP));
    cases.add_with_store(&then(&[Internal(1)]), Delete(0, ONE));
    cases
}

pub(crate) fn reverts() -> Cases {
    let mut cases = Cases::default();
    for (before, state) in [
        (&[Write(1), Internal(0), Write(2)][..], AS),
        (&[Write(1), External(0), Write(2)], AS),
        (&[Write(1), External(0), Write(2)], STILL),
        (&[Write(1), External(0), Write(2), Start, Write(3)], AS),
        (&[Write(1), External(0), Write(2), Start, Write(3)], UP),
        (&[Start, Write(1), Internal(0), Write(2)], AS),
        (&[Start, Write(1), Internal(0), Write(2), Stop], AS),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Write(3)], AS),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Write(3)], STILL),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Stop, Write(3)], UP),
        (&[Raw, Start, Write(1), External(0), Write(2)], UP),
        (&[Raw, Write(1), External(0), Write(2)], AS),
    ] {
        cases.add(before, Revert(0, state));
    }
    cases.add(&[Start, Write(1), External(0), Write(2), Stop, Write(3)], Reset(0));
    cases
}

pub(crate) fn reverts_that_give_up() -> Cases {
    let mut cases = Cases::default();
    for before in &chains()[..2] {
        cases.add(before, Discard(2));
        cases.add(before, DiscardAlone(1));
        cases.add(before, Alone(0, AS));
        cases.add(before, Alone(1, UP));
    }
    for before in [
        &[Start, Write(1), Internal(0), Write(2), Internal(1), Write(3)][..],
        &[Start, Write(1), Internal(0), Write(2), External(1), Write(3), Internal(2), Write(4)],
        &[Write(1), Internal(0), Write(2), External(1), Write(3)],
    ] {
        cases.add(before, Alone(0, AS));
        cases.add(before, Alone(0, OFF));
    }
    cases
}

/// Of a guest that is off by a managed save; a start goes on from it.
pub(crate) fn saved_guests() -> Cases {
    let mut cases = Cases::default();
    let saved = [Start, Write(1), Save];
    for [vda, vdb] in [[EX, EX], [IN, IN], [IN, EX], [EX, NO], [NO, NO]] {
        cases.add(&saved, Mix(1, Memory::Outside, vda, vdb));
    }
    cases.add(
        &[Start, Write(1), External(0), Write(2), Pause, Save],
        Mix(1, Memory::Outside, EX, EX),
    );
    cases.add(&saved, External(1));
    cases.add(&saved, Internal(1));
    for mix in [Mix(0, Memory::Outside, EX, EX), Mix(0, Memory::Outside, IN, IN), External(0)] {
        let then = |more: &[Op]| [&saved[..], &[mix], more].concat();
        cases.add(&then(&[]), Delete(0, ONE));
        cases.add(&then(&[]), Stream(0, ONE));
        cases.add(&then(&[External(1)]), Delete(0, FAMILY));
        // What comes back writes to the overlays.
        cases.add(&then(&[Start, Write(2)]), External(1));
    }
    let taken = [&saved[..], &[Mix(0, Memory::Outside, EX, EX)]].concat();
    let then = |more: &[Op]| [&taken[..], more].concat();
    cases.add(&taken, Revert(0, AS));
    cases.add(&then(&[Start, Write(2)]), Revert(0, AS));
    cases.add(&then(&[Start, Write(2), Save]), Revert(0, AS));
    cases.add(&then(&[Start, Write(2), Stop]), Revert(0, OFF));
    cases
}

pub(crate) fn deletions() -> Cases {
    let mut cases = Cases::default();
    for before in &chains() {
        for n in 0..3 {
            cases.add(before, Delete(n, ONE));
            cases.add(before, Stream(n, ONE));
        }
        cases.add(before, Stream(0, FAMILY));
        cases.add(before, Delete(0, FAMILY));
        cases.add(before, Delete(0, BELOW));
    }
    for before in [
        &[Write(1), Internal(0), Write(2), Internal(1), Write(3)][..],
        &[Start, Write(1), Internal(0), Write(2), External(1), Write(3)],
        &[Start, Write(1), External(0), Write(2), Internal(1), Write(3)],
    ] {
        cases.add(before, Delete(0, ONE));
        cases.add(before, Delete(1, ONE));
        cases.add(before, Delete(0, FAMILY));
    }
    cases.add(&[Raw, Start, Write(1), External(0), Write(2)], Delete(0, ONE));
    cases
}

pub(crate) fn records() -> Cases {
    let mut cases = Cases::default();
    for before in &chains() {
        cases.add(before, Forget(2));
        cases.add(before, Redefine(1));
    }
    cases
}
