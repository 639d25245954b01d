//! What a domain must be like, and what an operation makes of it: the two worlds of which one has
//! to hold after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use crate::sight::{Depth, Reading, Seen};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Off,
    Running,
}

/// What a disk holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// All of it, by its hash.
    Exact(Reading),
    /// A guest counts on it, about once a second, or did when the snapshot was taken.
    Counting { from: u64, since: Instant },
}

/// A guest writes the next number after it has said the last, and a second is not exact.
const SLACK: u64 = 3;

impl Content {
    pub(crate) fn counting(from: u64) -> Self {
        Self::Counting { from, since: Instant::now() }
    }

    pub(crate) fn counter(&self) -> u64 {
        match self {
            Self::Exact(reading) => reading.counter,
            Self::Counting { from, .. } => *from,
        }
    }

    fn complaint(&self, seen: &Reading) -> Option<String> {
        match self {
            Self::Exact(known) if known.hash == seen.hash => None,
            Self::Exact(known) => Some(format!("holds {seen}, not {known}")),
            Self::Counting { from, since } => {
                let to = from + since.elapsed().as_secs() + SLACK;
                let fits = (*from..=to).contains(&seen.counter);
                (!fits).then(|| format!("holds {seen}, not a count from {from} to {to}"))
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) parent: Option<String>,
    pub(crate) description: String,
    /// Of the domain, which comes back with it.
    pub(crate) title: String,
    /// What a revert without a wish leads to.
    pub(crate) state: State,
    /// None: a disk that is not in it.
    pub(crate) disks: Vec<Option<Content>>,
    /// The hash of its memory file, once that was seen.
    pub(crate) memory: Option<Reading>,
}

#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) state: State,
    pub(crate) title: String,
    pub(crate) current: Option<String>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    pub(crate) disks: Vec<Content>,
}

/// How a domain differs from a world.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    /// Data that is not there, or other data.
    pub(crate) lost: Vec<String>,
    /// Another promise that was not kept: a file left behind, a guest that does not run.
    pub(crate) wrong: Vec<String>,
}

impl Complaints {
    fn differ(&mut self, what: &str, is: &impl fmt::Debug, must: &impl fmt::Debug) {
        let (is, must) = (format!("{is:?}"), format!("{must:?}"));
        if is != must {
            self.wrong.push(format!("{what}: {is}, not {must}"));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.wrong.is_empty()
    }
}

/// Why a round cannot go on.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) is_loss: bool,
    pub(crate) why: String,
}

impl Trouble {
    pub(crate) fn lost(why: String) -> Self {
        Self { is_loss: true, why }
    }

    pub(crate) fn within(self, what: &str) -> Self {
        Self { why: format!("{what}: {}", self.why), ..self }
    }
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self { is_loss: false, why }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Internal,
    External,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    One,
    Children,
    ChildrenOnly,
}

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Create { name: String, memory: How, disks: Vec<How> },
    Revert { to: String, running: bool },
    Delete { name: String, scope: Scope },
    Redefine { name: String, description: String },
    Define { title: String },
    Start,
    Destroy,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { name, memory, disks } => {
                write!(f, "create {name} (memory {memory:?}, disks {disks:?})")
            }
            Self::Revert { to, running } => {
                write!(f, "revert to {to}{}", if *running { " --running" } else { "" })
            }
            Self::Delete { name, scope } => write!(f, "delete {name} ({scope:?})"),
            Self::Redefine { name, .. } => write!(f, "redefine {name}"),
            Self::Define { .. } => write!(f, "define"),
            Self::Start => write!(f, "start"),
            Self::Destroy => write!(f, "destroy"),
        }
    }
}

impl Operation {
    /// The world after it.
    pub(crate) fn on(&self, old: &Model) -> Model {
        let mut new = old.clone();
        match self {
            Self::Create { name, memory, disks } => {
                let held = disks.iter().zip(&old.disks);
                let held = held.map(|(how, disk)| (*how != How::No).then(|| disk.clone()));
                let snapshot = Snapshot {
                    parent: old.current.clone(),
                    description: String::new(),
                    title: old.title.clone(),
                    state: if *memory == How::No { State::Off } else { old.state },
                    disks: held.collect(),
                    memory: None,
                };
                new.snapshots.insert(name.clone(), snapshot);
                new.current = Some(name.clone());
            }
            Self::Revert { to, running } => {
                let Some(snapshot) = old.snapshots.get(to) else { return new };
                new.state = if *running { State::Running } else { snapshot.state };
                new.title.clone_from(&snapshot.title);
                new.current = Some(to.clone());
                for (disk, held) in new.disks.iter_mut().zip(&snapshot.disks) {
                    match (&disk, held) {
                        (_, None) => {}
                        (Content::Counting { .. }, Some(held)) => {
                            *disk = Content::counting(held.counter());
                        }
                        (Content::Exact(_), Some(held)) => *disk = held.clone(),
                    }
                }
            }
            Self::Delete { name, scope } => new.delete(name, *scope),
            Self::Redefine { name, description } => {
                if let Some(snapshot) = new.snapshots.get_mut(name) {
                    snapshot.description.clone_from(description);
                }
            }
            Self::Define { title } => new.title.clone_from(title),
            Self::Start => new.state = State::Running,
            Self::Destroy => new.state = State::Off,
        }
        new
    }
}

impl Model {
    pub(crate) fn new(disks: Vec<Content>) -> Self {
        let (title, snapshots) = (String::new(), BTreeMap::new());
        Self { state: State::Off, title, current: None, snapshots, disks }
    }

    fn delete(&mut self, name: &str, scope: Scope) {
        let below = self.below(name);
        let doomed: BTreeSet<String> = match scope {
            Scope::One => BTreeSet::from([name.to_owned()]),
            Scope::ChildrenOnly => below,
            Scope::Children => below.into_iter().chain([name.to_owned()]).collect(),
        };
        let up = |mut at: Option<String>| {
            while let Some(gone) = at.as_ref().filter(|name| doomed.contains(*name)) {
                at = self.snapshots.get(gone).and_then(|snapshot| snapshot.parent.clone());
            }
            at
        };
        let current = up(self.current.clone());
        let parents: Vec<_> = self
            .snapshots
            .iter()
            .filter(|(name, _)| !doomed.contains(*name))
            .map(|(name, snapshot)| (name.clone(), up(snapshot.parent.clone())))
            .collect();
        self.snapshots.retain(|name, _| !doomed.contains(name));
        for (name, parent) in parents {
            if let Some(snapshot) = self.snapshots.get_mut(&name) {
                snapshot.parent = parent;
            }
        }
        self.current = current;
    }

    fn below(&self, name: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::from([name.to_owned()]);
        loop {
            let more: BTreeSet<String> = self
                .snapshots
                .iter()
                .filter(|(_, one)| one.parent.as_ref().is_some_and(|up| found.contains(up)))
                .map(|(name, _)| name.clone())
                .collect();
            let before = found.len();
            found.extend(more);
            if found.len() == before {
                found.remove(name);
                return found;
            }
        }
    }

    /// What is not as it must be. A guest whose QEMU was killed is off, whatever it should be.
    pub(crate) fn complaints(&self, seen: &Seen, may_be_off: bool) -> Complaints {
        let mut found = Complaints { lost: seen.losses.clone(), wrong: seen.problems.clone() };
        if seen.state != Some(State::Off) || !may_be_off {
            found.differ("state", &seen.state, &Some(self.state));
        }
        found.differ("title", &seen.title, &self.title);
        found.differ("current", &seen.current, &self.current);
        for name in seen.snapshots.keys().filter(|name| !self.snapshots.contains_key(*name)) {
            // Nobody knows what a revert to it gives.
            found.lost.push(format!("there is half a snapshot {name}"));
        }
        for (name, known) in &self.snapshots {
            let Some(seen) = seen.snapshots.get(name) else {
                found.lost.push(format!("there is no snapshot {name}"));
                continue;
            };
            found.differ(&format!("parent of {name}"), &seen.parent, &known.parent);
            found.differ(&format!("description of {name}"), &seen.description, &known.description);
        }
        if seen.depth >= Depth::Disks {
            self.lost_of_disks(seen, &mut found.lost);
        }
        if seen.depth == Depth::All {
            self.lost_of_snapshots(seen, &mut found.lost);
        }
        found
    }

    fn lost_of_disks(&self, seen: &Seen, lost: &mut Vec<String>) {
        for (n, (known, seen)) in self.disks.iter().zip(&seen.disks).enumerate() {
            lost.extend(known.complaint(seen).map(|what| format!("disk {n} {what}")));
        }
        if seen.disks.len() != self.disks.len() {
            lost.push(format!("{} disks, not {}", seen.disks.len(), self.disks.len()));
        }
    }

    fn lost_of_snapshots(&self, seen: &Seen, lost: &mut Vec<String>) {
        for (name, known) in &self.snapshots {
            let Some(seen) = seen.snapshots.get(name) else { continue };
            for (n, known) in known.disks.iter().enumerate() {
                let what = match (known, seen.disks.get(n).cloned().flatten()) {
                    (None, None) => None,
                    (Some(known), Some(seen)) => known.complaint(&seen),
                    (known, seen) => Some(format!("is {seen:?}, not {known:?}")),
                };
                lost.extend(what.map(|what| format!("snapshot {name}: disk {n} {what}")));
            }
            if let Some(memory) = &known.memory
                && seen.memory.as_ref().is_none_or(|seen| seen.hash != memory.hash)
            {
                lost.push(format!("memory of {name}: {:?}, not {memory}", seen.memory));
            }
        }
    }

    /// Takes over what was not known before it was seen: what exactly a snapshot of a guest that
    /// counts holds, and how far it is.
    pub(crate) fn learn(&mut self, seen: &Seen) {
        let since = seen.since;
        self.state = seen.state.unwrap_or(self.state);
        for (known, seen) in self.disks.iter_mut().zip(&seen.disks) {
            if matches!(known, Content::Counting { .. }) {
                *known = Content::Counting { from: seen.counter, since };
            }
        }
        if seen.depth != Depth::All {
            return;
        }
        for (name, known) in &mut self.snapshots {
            let Some(seen) = seen.snapshots.get(name) else { continue };
            for (known, seen) in known.disks.iter_mut().zip(&seen.disks) {
                if let (Some(known), Some(seen)) = (known, seen) {
                    *known = Content::Exact(seen.clone());
                }
            }
            known.memory.clone_from(&seen.memory);
        }
    }
}

#[test]
fn a_count_is_bound_from_when_looking_began() {
    let reading = |counter| Reading { hash: format!("{counter}"), counter };
    let ago = |seconds| Instant::now() - std::time::Duration::from_secs(seconds);
    let mut model = Model::new(vec![Content::counting(0)]);
    // A look that took ten seconds, while the guest counted on.
    let seen = Seen { since: ago(10), disks: vec![reading(100)], ..Seen::new(Depth::Disks) };
    model.learn(&seen);
    let disk = &model.disks[0];
    for (count, fits) in [(99, false), (100, true), (110, true), (100 + 10 + SLACK + 2, false)] {
        assert_eq!(disk.complaint(&reading(count)).is_none(), fits, "{count}");
    }
}
