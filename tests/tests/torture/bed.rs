//! A domain that is tortured: what it is, what it must be like, and what can be done to it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use virtsnap_tests::guest::Mark;
use virtsnap_tests::virsh::Outcome;
use virtsnap_tests::{Guest, GuestSpec, World, host, images};

use crate::dice::Dice;
use crate::model::{Complaints, Content, How, Model, Operation, Scope, State, Trouble};
use crate::sight::{self, Care, Depth, Seen};

/// What kind of domain it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The guest of `tests/guest`: it counts in memory and on both of its disks.
    Counts,
    /// Runs, with nothing to boot: its disks change only when the test writes to them.
    Idles,
    /// Is never started; one of its disks is raw.
    Off,
}

/// What a round needs, so that the entry is written at which it kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Any,
    Create,
    /// A snapshot of several steps.
    Overlays,
    /// To a snapshot whose guest is started.
    Revert,
    /// Of layers with data into each other.
    Merge,
}

/// How long a guest that runs may be silent; a boot is meant as well.
const SILENCE: Duration = Duration::from_secs(120);
/// Beyond so many snapshots, some are deleted.
const MANY: usize = 6;

#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) role: Role,
    pub(crate) spec: GuestSpec,
    pub(crate) model: Model,
    made: usize,
    pattern: u8,
    /// QEMU was killed, so that images may have clusters that nobody needs.
    pub(crate) may_leak: bool,
    /// What was wrong with it and has been told; it is not told again.
    wrong: Vec<String>,
}

impl Bed {
    pub(crate) fn new(role: Role, number: usize) -> Self {
        let uuid = format!("5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e{number:02x}");
        let spec = match role {
            Role::Counts => GuestSpec::new("counts").disks(&["qcow2", "qcow2"]),
            Role::Idles => GuestSpec::idle("idles").disks(&["qcow2", "qcow2"]),
            Role::Off => GuestSpec::idle("off").disks(&["qcow2", "raw"]),
        };
        let spec = GuestSpec { uuid: Some(uuid), ..spec };
        let (model, wrong) = (Model::new(Vec::new()), Vec::new());
        Self { role, spec, model, made: 0, pattern: 0, may_leak: false, wrong }
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(crate) fn uuid(&self) -> &str {
        self.spec.uuid.as_deref().unwrap_or_default()
    }

    pub(crate) fn guest<'w>(&self, world: &'w World) -> Guest<'w> {
        world.guest(self.spec.clone())
    }

    pub(crate) fn look(&self, world: &World, depth: Depth) -> Seen {
        let care = Care { writes: self.role == Role::Counts, may_leak: self.may_leak };
        sight::look(world, self.name(), depth, care)
    }

    /// It is as the model says, and no operation is under way.
    pub(crate) fn verify(
        &mut self,
        world: &World,
        depth: Depth,
        wrong: &mut Vec<String>,
    ) -> Result<Seen, Trouble> {
        let seen = self.look(world, depth);
        let Complaints { lost, wrong: found } = self.model.complaints(&seen, false);
        self.tell(found, wrong);
        if !lost.is_empty() {
            return Err(Trouble::lost(format!("{lost:#?}")));
        }
        self.model.learn(&seen);
        Ok(seen)
    }

    /// Tells what has not been told yet.
    pub(crate) fn tell(&mut self, found: Vec<String>, wrong: &mut Vec<String>) {
        for what in found {
            if !self.wrong.contains(&what) {
                wrong.push(format!("{}: {what}", self.spec.name));
                self.wrong.push(what);
            }
        }
    }

    /// Fresh images, a fresh definition, and running if that is its role.
    pub(crate) fn define(&mut self, world: &World) {
        for (format, letter) in self.spec.disks.iter().zip('a'..) {
            let image = self.guest(world).disk(&format!("vd{letter}"));
            images::create(&image, format, "4M");
        }
        let file = world.path(&format!("{}.xml", self.name()));
        std::fs::write(&file, self.spec.xml(world)).expect("the directory is ours");
        world.virsh.ok(&format!("define {}", file.display()));
        self.may_leak = false;
        self.wrong.clear();
        let seen = self.look(world, Depth::Disks);
        let content = |reading: &sight::Reading| match self.role {
            Role::Counts => Content::counting(0),
            Role::Idles | Role::Off => Content::Exact(reading.clone()),
        };
        self.model = Model::new(seen.disks.iter().map(content).collect());
    }

    /// Whatever state it is in: as new. After something was lost the others go on.
    pub(crate) fn rebuild(&mut self, world: &mut World) {
        world.virsh.run(&format!("destroy {}", self.name()));
        world.kill();
        let _ = std::fs::remove_dir_all(world.path(&format!("lib/domains/{}", self.uuid())));
        let entries = std::fs::read_dir(world.dir()).into_iter().flatten().flatten();
        for entry in entries {
            let file = entry.file_name().to_string_lossy().into_owned();
            let rest = file.trim_start_matches('.').strip_prefix(self.name());
            if rest.is_some_and(|rest| rest.starts_with(['-', '.'])) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        world.start();
        self.define(world);
    }

    /// Starts it, if it is off; a guest that counts must find its last count on its disks.
    pub(crate) fn start(&mut self, world: &World) -> Result<(), Trouble> {
        if self.model.state == State::Running {
            return Ok(());
        }
        let guest = self.guest(world);
        let mark = guest.mark();
        done("start", &world.virsh.run(&format!("start {}", self.name())))?;
        self.model.state = State::Running;
        if self.role == Role::Counts {
            let known = self.model.disks.first().map_or(0, Content::counter);
            let found = self.hear(world, mark, "START ")?;
            self.hear(world, mark, "MATCH ")?;
            if found != known {
                let why = format!("the guest finds {found} on its disk after a boot, not {known}");
                return Err(Trouble::lost(why));
            }
            self.advance(world);
        }
        Ok(())
    }

    /// The number that the guest says after a word.
    fn hear(&self, world: &World, mark: Mark, word: &str) -> Result<u64, Trouble> {
        let guest = self.guest(world);
        let deadline = Instant::now() + SILENCE;
        loop {
            let lines = guest.lines(mark);
            let mut said = lines.iter().filter_map(|line| line.strip_prefix(word));
            let number = said.next().and_then(|rest| rest.split(' ').next()?.trim().parse().ok());
            if let Some(number) = number {
                return Ok(number);
            }
            if Instant::now() > deadline {
                return Err(Trouble::from(format!("the guest does not say {word}: {lines:?}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it has just said is the least that all of its disks must have from now on: at a boot,
    /// it writes what it finds on its first disk to the others.
    pub(crate) fn advance(&mut self, world: &World) {
        let count = self.guest(world).last_match().unwrap_or(0);
        for disk in &mut self.model.disks {
            *disk = Content::counting(count);
        }
    }

    /// The guest writes something new to every disk: it must be in the image that the definition
    /// names.
    pub(crate) fn scribble(&mut self, world: &World, dice: &mut Dice) -> Result<(), Trouble> {
        let is_running = self.model.state == State::Running;
        if self.role == Role::Counts && is_running {
            self.hear(world, self.guest(world).mark(), "MATCH ")?;
            self.advance(world);
        }
        let before = self.look(world, Depth::Disks);
        if self.role == Role::Counts {
            let lost = self.model.complaints(&before, true).lost;
            let trouble = || Trouble::lost(format!("what the guest writes is lost: {lost:#?}"));
            return if lost.is_empty() { Ok(()) } else { Err(trouble()) };
        }
        self.pattern = self.pattern % 250 + 1;
        let command = format!("write -P {} {}k 64k", self.pattern, dice.below(60) * 64);
        for (n, (image, format)) in before.active.iter().enumerate() {
            if is_running {
                let line = sight::through_qemu(self.name(), n, &command);
                done(&line, &world.virsh.run(&line))?;
            } else {
                images::io(image, format, &command);
            }
        }
        let after = self.look(world, Depth::Disks);
        for (n, (before, after)) in before.disks.iter().zip(&after.disks).enumerate() {
            if before == after {
                let why = format!("what is written to disk {n} is not in the image that it has");
                return Err(Trouble::lost(why));
            }
        }
        self.model.disks = after.disks.iter().cloned().map(Content::Exact).collect();
        Ok(())
    }

    /// Of the guest that counts: memory and disk agree, it goes on, and never goes back but by a
    /// revert, which may take it back once.
    pub(crate) fn listen(&self, world: &World, mark: Mark, reverts: bool) -> Result<(), Trouble> {
        if self.role != Role::Counts {
            return Ok(());
        }
        let guest = self.guest(world);
        if self.model.state == State::Running {
            self.hear(world, guest.mark(), "MATCH ")?;
        }
        let lines = guest.lines(mark);
        let bad = lines.iter().find(|line| line.contains("MISMATCH") || line.contains("ERROR"));
        if let Some(bad) = bad {
            return Err(Trouble::lost(format!("the guest says: {bad}")));
        }
        let number = |line: &String| line.strip_prefix("MATCH ")?.parse().ok();
        let counts: Vec<u64> = lines.iter().filter_map(number).collect();
        let backwards = counts.windows(2).filter(|pair| pair[1] < pair[0]).count();
        if backwards > usize::from(reverts) {
            return Err(Trouble::lost(format!("the guest's count went back: {counts:?}")));
        }
        Ok(())
    }

    /// Something to do to it in the state it is in.
    pub(crate) fn choose(&mut self, dice: &mut Dice, wish: Wish) -> Operation {
        let names: Vec<String> = self.model.snapshots.keys().cloned().collect();
        let picked = dice.pick(&names).cloned();
        let name = match (wish, picked) {
            (Wish::Any, Some(name)) => name,
            (Wish::Revert, Some(to)) => return Operation::Revert { to, running: true },
            (Wish::Merge, Some(_)) => return self.merge(),
            (Wish::Overlays, _) => return self.overlays(),
            (Wish::Create, _) | (_, None) => return self.create(dice),
        };
        let many = names.len() > MANY;
        match dice.below(100) {
            n if n < 35 || many => {
                let scope = match dice.below(10) {
                    0 => Scope::Children,
                    1 => Scope::ChildrenOnly,
                    _ => Scope::One,
                };
                Operation::Delete { name, scope }
            }
            35..70 => {
                let running = self.role != Role::Off && dice.percent(70);
                Operation::Revert { to: name, running }
            }
            70..80 => Operation::Redefine { name, description: format!("d{}", dice.below(1000)) },
            80..85 if self.model.state == State::Off => {
                Operation::Define { title: format!("t{}", dice.below(1000)) }
            }
            85..90 if self.role == Role::Idles => match self.model.state {
                State::Off => Operation::Start,
                State::Running => Operation::Destroy,
            },
            _ => self.create(dice),
        }
    }

    /// Of the last two overlays.
    fn merge(&self) -> Operation {
        let current = self.model.current.clone().unwrap_or_default();
        let parent = self.model.snapshots.get(&current).and_then(|one| one.parent.clone());
        Operation::Delete { name: parent.unwrap_or(current), scope: Scope::One }
    }

    /// A snapshot that takes several steps and leaves memory alone.
    pub(crate) fn overlays(&mut self) -> Operation {
        self.made += 1;
        let disks = vec![How::External; self.spec.disks.len()];
        Operation::Create { name: format!("s{}", self.made), memory: How::No, disks }
    }

    fn create(&mut self, dice: &mut Dice) -> Operation {
        self.made += 1;
        let name = format!("s{}", self.made);
        let memory = match (self.model.state, dice.below(4)) {
            (State::Off, _) | (_, 0 | 1) => How::No,
            (_, 2) => How::Internal,
            _ => How::External,
        };
        // A disk that does not go back with the other is a guest that disagrees with itself, and
        // one that boots writes the count of its first disk to both.
        let all = self.role == Role::Counts;
        let disks: Vec<How> = (0..2)
            .map(|n| match dice.below(5) {
                0 if n == 1 && !all => How::No,
                1 | 2 if self.spec.disks.get(n).is_some_and(|format| format == "qcow2") => {
                    How::Internal
                }
                _ => How::External,
            })
            .collect();
        Operation::Create { name, memory, disks }
    }

    /// As a client asks for it.
    pub(crate) fn line(&self, world: &World, operation: &Operation) -> String {
        let name = self.name();
        let file = |content: String| -> PathBuf {
            let file = world.path("asked.xml");
            std::fs::write(&file, content).expect("the directory is ours");
            file
        };
        match operation {
            Operation::Create { name: snapshot, memory, disks } => {
                let file = file(self.request(world, snapshot, *memory, disks));
                format!("snapshot-create {name} {}", file.display())
            }
            Operation::Revert { to, running } => {
                let running = if *running { " --running" } else { "" };
                format!("snapshot-revert {name} {to}{running}")
            }
            Operation::Delete { name: snapshot, scope } => {
                let scope = match scope {
                    Scope::One => "",
                    Scope::Children => " --children",
                    Scope::ChildrenOnly => " --children-only",
                };
                format!("snapshot-delete {name} {snapshot}{scope}")
            }
            Operation::Redefine { name: snapshot, description } => {
                let xml = world.virsh.ok(&format!("snapshot-dumpxml {name} {snapshot}"));
                let file = file(with(&xml, "domainsnapshot", "description", description));
                let current = self.model.current.as_ref() == Some(snapshot);
                let current = if current { " --current" } else { "" };
                format!("snapshot-create {name} {} --redefine{current}", file.display())
            }
            Operation::Define { title } => {
                let xml = world.virsh.ok(&format!("dumpxml {name} --inactive"));
                let start = xml.find("  <name>").unwrap_or(0);
                let (head, rest) = xml.split_at(start);
                let rest = without(rest, "title");
                let file = file(format!("{head}  <title>{title}</title>\n{rest}"));
                format!("define {}", file.display())
            }
            Operation::Start => format!("start {name}"),
            Operation::Destroy => format!("destroy {name}"),
        }
    }

    fn request(&self, world: &World, snapshot: &str, memory: How, disks: &[How]) -> String {
        let memory = match memory {
            How::No => "<memory snapshot='no'/>".to_owned(),
            How::Internal => "<memory snapshot='internal'/>".to_owned(),
            How::External => {
                let file = world.path(&format!("{}.{snapshot}.memory", self.name()));
                format!("<memory snapshot='external' file='{}'/>", file.display())
            }
        };
        let disks: String = disks
            .iter()
            .zip('a'..)
            .map(|(how, letter)| {
                let how = match how {
                    How::Internal => "internal",
                    How::External => "external",
                    How::No => "no",
                };
                format!("<disk name='vd{letter}' snapshot='{how}'/>")
            })
            .collect();
        format!(
            "<domainsnapshot><name>{snapshot}</name>{memory}<disks>{disks}</disks></domainsnapshot>"
        )
    }

    /// The processes that run it.
    fn qemus(&self, world: &World) -> Vec<u32> {
        let ours = format!("guest={},", self.name());
        world
            .processes("qemu-system")
            .into_iter()
            .filter(|id| {
                let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&ours)
            })
            .collect()
    }

    pub(crate) fn has_qemu(&self, world: &World) -> bool {
        !self.qemus(world).is_empty()
    }

    /// Whatever runs it.
    pub(crate) fn kill_qemu(&self, world: &World) -> bool {
        let found = self.qemus(world);
        let ids: Vec<String> = found.iter().map(u32::to_string).collect();
        if ids.is_empty() {
            return false;
        }
        let _ = std::process::Command::new("kill").arg("-KILL").args(&ids).status();
        host::wait("QEMU to be gone", 30, || {
            let alive = |id: &u32| {
                std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| !line.is_empty())
            };
            (!found.iter().any(alive)).then_some(())
        });
        true
    }
}

pub(crate) fn done(what: &str, outcome: &Outcome) -> Result<(), String> {
    let Outcome { success, stdout, stderr } = outcome;
    success.then_some(()).ok_or_else(|| format!("{what}: {}{}", stdout.trim(), stderr.trim()))
}

/// Without an element that has text only.
fn without(xml: &str, name: &str) -> String {
    let parts = xml.split_once(&format!("<{name}>"));
    let Some((before, rest)) = parts else { return xml.to_owned() };
    let after = rest.split_once(&format!("</{name}>")).map_or(rest, |(_, after)| after);
    format!("{}{}", before.trim_end_matches(' '), after.trim_start_matches('\n'))
}

/// With another text in an element right below the first one.
fn with(xml: &str, root: &str, name: &str, text: &str) -> String {
    let head = format!("<{root}>");
    let (head_end, rest) = match xml.find(&head) {
        Some(at) => (at + head.len(), without(&xml[at + head.len()..], name)),
        None => (0, xml.to_owned()),
    };
    format!("{}<{name}>{text}</{name}>{rest}", &xml[..head_end])
}
