//! What is seen of a domain from outside: through virsh, and in its images with QEMU's tools.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use virtsnap_tests::World;
use virtsnap_tests::virsh::{Outcome, finish};

use crate::model::State;

/// The content of a disk, or of a file: a hash of all of it, and the guest's own counter in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) hash: String,
    pub(crate) counter: u64,
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (count {})", self.hash.get(..12).unwrap_or(&self.hash), self.counter)
    }
}

#[derive(Debug, Default)]
pub(crate) struct SeenSnapshot {
    pub(crate) parent: Option<String>,
    pub(crate) description: String,
    pub(crate) disks: Vec<Option<Reading>>,
    pub(crate) memory: Option<Reading>,
}

/// How closely to look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// What virsh lists.
    #[default]
    Lists,
    /// And what the disks hold.
    Disks,
    /// And what all snapshots hold, and whether the images are whole.
    All,
}

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) depth: Depth,
    /// When looking began: what is counted goes on meanwhile.
    pub(crate) since: Instant,
    pub(crate) state: Option<State>,
    pub(crate) title: String,
    pub(crate) current: Option<String>,
    pub(crate) snapshots: BTreeMap<String, SeenSnapshot>,
    pub(crate) disks: Vec<Reading>,
    /// Images that cannot be read or are damaged, in any world.
    pub(crate) losses: Vec<String>,
    /// What else is wrong in any world.
    pub(crate) problems: Vec<String>,
    /// The active images, with their formats.
    pub(crate) active: Vec<(PathBuf, String)>,
}

impl Seen {
    pub(crate) fn new(depth: Depth) -> Self {
        Self {
            depth,
            since: Instant::now(),
            state: None,
            title: String::new(),
            current: None,
            snapshots: BTreeMap::new(),
            disks: Vec::new(),
            losses: Vec::new(),
            problems: Vec::new(),
            active: Vec::new(),
        }
    }
}

/// What may be expected of the images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Care {
    /// The guest writes by itself, so that its images' tables change while they are looked at.
    pub(crate) writes: bool,
    /// QEMU was killed, which costs clusters, though no data.
    pub(crate) may_leak: bool,
}

/// Where to read a disk: image, format, internal snapshot.
type Source = (PathBuf, String, Option<String>);

const PART: &str = "=";

pub(crate) fn look(world: &World, name: &str, depth: Depth, care: Care) -> Seen {
    let mut seen = Seen::new(depth);
    let questions =
        ["domstate {}", "dumpxml {}", "dumpxml {} --inactive", "snapshot-list {} --name"]
            .join(&format!("; echo {PART}; "));
    let line = format!("{questions}; echo {PART}; snapshot-current {{}} --name");
    let answer = world.virsh.run(&line.replace("{}", name));
    let parts: Vec<&str> = answer.stdout.split(&format!("\n{PART}\n")).collect();
    let &[state, live, config, names, current] = parts.as_slice() else {
        seen.problems.push(format!("virsh {line}: {}{}", answer.stdout, answer.stderr));
        return seen;
    };
    seen.state = match state.trim() {
        "running" => Some(State::Running),
        "shut off" => Some(State::Off),
        other => {
            seen.problems.push(format!("the guest is {other}"));
            None
        }
    };
    seen.current = Some(current.trim().to_owned()).filter(|name| !name.is_empty());
    seen.title = element(config, "title").unwrap_or_default().to_owned();
    let active = disks(live);
    if disks(config) != active {
        seen.problems.push(format!("live {active:?}, persistent {:?}", disks(config)));
    }
    let names: Vec<&str> = names.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    let found = snapshots(world, name, &names, &mut seen);
    seen.active = active.into_iter().map(|disk| (disk.file, disk.format)).collect();
    if depth == Depth::Lists {
        return seen;
    }
    let is_running = seen.state == Some(State::Running);
    if is_running {
        flush(world, name, &mut seen);
    }
    read_contents(world, &mut seen, &found);
    if depth == Depth::All {
        let files = chains(&mut seen, &found);
        check(&files, &mut seen, Care { writes: care.writes && is_running, ..care });
        strays(world, name, &files, &found, &mut seen);
    }
    seen
}

/// QEMU keeps some of qcow2's tables in memory until then.
fn flush(world: &World, name: &str, seen: &mut Seen) {
    for disk in 0..seen.active.len() {
        let line = through_qemu(name, disk, "flush");
        let Outcome { success, stdout, stderr } = world.virsh.run(&line);
        // qemu-io tells of an error in the text of a command that succeeded.
        if !success || !stdout.trim().is_empty() {
            seen.problems.push(format!("{line}: {}{}", stdout.trim(), stderr.trim()));
        }
    }
}

/// The virsh line for one command of qemu-io inside the running QEMU.
pub(crate) fn through_qemu(name: &str, disk: usize, command: &str) -> String {
    let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
    format!("qemu-monitor-command {name} --hmp 'qemu-io -d {device} \"{command}\"'")
}

#[derive(Debug, PartialEq, Eq)]
struct Disk {
    target: String,
    file: PathBuf,
    format: String,
}

/// Where the contents of one snapshot are.
#[derive(Debug, Default)]
struct Held {
    name: String,
    disks: Vec<Option<Source>>,
    memory: Option<PathBuf>,
    /// A qcow2 for memory alone, which QEMU opens for writing when it loads it.
    vm_state: Option<PathBuf>,
}

fn attribute<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_once(&format!(" {name}='"))?.1.split_once('\'').map(|(value, _)| value)
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let inside = text.split_once(&format!("<{name}>"))?.1;
    inside.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
}

/// The disks of a `<domain>`.
fn disks(xml: &str) -> Vec<Disk> {
    let parts = xml.split("<disk type=").skip(1);
    let disks = parts.map(|part| {
        let part = part.split_once("</disk>")?.0;
        let after = |word: &str| part.split_once(word).map(|(_, after)| after);
        Some(Disk {
            target: attribute(after("<target")?, "dev")?.to_owned(),
            file: attribute(after("<source")?, "file")?.into(),
            format: attribute(after("<driver")?, "type")?.to_owned(),
        })
    });
    disks.flatten().collect()
}

fn snapshots(world: &World, domain: &str, names: &[&str], seen: &mut Seen) -> Vec<Held> {
    if names.is_empty() {
        return Vec::new();
    }
    let lines: Vec<_> =
        names.iter().map(|name| format!("snapshot-dumpxml {domain} {name}")).collect();
    let answer = world.virsh.run(&lines.join(&format!("; echo {PART}; ")));
    let between = format!("\n{PART}\n");
    let texts = answer.stdout.split(&between);
    let mut found = Vec::new();
    for (name, text) in names.iter().zip(texts) {
        let Some((head, domain)) = text.split_once("\n  <domain ") else {
            seen.problems.push(format!("snapshot {name}: no <domain>: {text}"));
            continue;
        };
        let domain = domain.split_once("\n  </domain>").map_or(domain, |(inside, _)| inside);
        let one = SeenSnapshot {
            parent: element(head, "parent").and_then(|parent| element(parent, "name")).map(own),
            description: element(head, "description").unwrap_or_default().to_owned(),
            ..SeenSnapshot::default()
        };
        seen.snapshots.insert((*name).to_owned(), one);
        let memory = head.split_once("<memory").and_then(|(_, after)| after.split_once('>'));
        let memory = memory.map_or("", |(tag, _)| tag);
        let file = attribute(memory, "file").map(PathBuf::from);
        let inside = attribute(memory, "snapshot") == Some("internal");
        let (vm_state, memory) = if inside { (file, None) } else { (None, file) };
        let disks = disks(domain).into_iter().map(|disk| held(head, name, disk)).collect();
        found.push(Held { name: (*name).to_owned(), disks, memory, vm_state });
    }
    found
}

fn own(text: &str) -> String {
    text.to_owned()
}

/// What a snapshot outside the image froze is the file that the domain used then; inside, it is
/// a snapshot in that file.
fn held(head: &str, snapshot: &str, disk: Disk) -> Option<Source> {
    let (_, after) = head.split_once(&format!("<disk name='{}'", disk.target))?;
    let tags = after.split_once('>')?.0;
    match attribute(tags, "snapshot")? {
        "external" => Some((disk.file, disk.format, None)),
        "internal" => {
            let tag = attribute(tags, "tag").unwrap_or(snapshot).to_owned();
            Some((disk.file, disk.format, Some(tag)))
        }
        _ => None,
    }
}

fn read_contents(world: &World, seen: &mut Seen, held: &[Held]) {
    let active = seen.active.iter().cloned().map(|(file, format)| (file, format, None));
    let active: Vec<Source> = active.collect();
    let held = if seen.depth == Depth::All { held } else { &[] };
    let frozen = held.iter().flat_map(|one| one.disks.iter().flatten());
    let memory = held.iter().filter_map(|one| one.memory.clone());
    let read = read(world, active.iter().chain(frozen).cloned().collect(), memory.collect());
    let disk = |source: &Source| read.disks.get(source).cloned().unwrap_or_else(unread);
    seen.disks = active.iter().map(disk).collect();
    for one in held {
        let Some(snapshot) = seen.snapshots.get_mut(&one.name) else { continue };
        snapshot.disks = one.disks.iter().map(|source| source.as_ref().map(disk)).collect();
        let memory = one.memory.as_ref();
        snapshot.memory = memory.map(|file| read.files.get(file).cloned().unwrap_or_else(unread));
    }
}

#[derive(Default)]
struct Readings {
    disks: BTreeMap<Source, Reading>,
    files: BTreeMap<PathBuf, Reading>,
}

fn unread() -> Reading {
    unreadable("it was not read")
}

fn unreadable(why: &str) -> Reading {
    Reading { hash: format!("unreadable: {}", why.trim()), counter: 0 }
}

/// Each disk as a guest would see it, as a file, and then all files by one sha256sum.
fn read(world: &World, disks: BTreeSet<Source>, files: BTreeSet<PathBuf>) -> Readings {
    let mut read = Readings::default();
    let mut converted = BTreeMap::new();
    for (n, source) in disks.into_iter().enumerate() {
        let raw = world.path(&format!("reading-{n}.raw"));
        match convert(&source, &raw) {
            Ok(()) => drop(converted.insert(source, raw)),
            Err(why) => drop(read.disks.insert(source, unreadable(&why))),
        }
    }
    let hashes = hashes(converted.values().chain(&files));
    let reading = |file: &PathBuf| {
        let hash = hashes.get(file).cloned();
        hash.map_or_else(unread, |hash| Reading { hash, counter: counter(file) })
    };
    read.disks.extend(converted.iter().map(|(source, raw)| (source.clone(), reading(raw))));
    read.files = files.iter().map(|file| (file.clone(), reading(file))).collect();
    converted.values().for_each(|raw| drop(std::fs::remove_file(raw)));
    read
}

fn convert((image, format, tag): &Source, raw: &Path) -> Result<(), String> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-f", format, "-O", "raw"]);
    if let Some(tag) = tag {
        convert.arg("-l").arg(format!("snapshot.name={tag}"));
    }
    let outcome = finish(convert.arg(image).arg(raw), "qemu-img convert");
    outcome.success.then_some(()).ok_or(outcome.stderr)
}

fn hashes<'a>(files: impl Iterator<Item = &'a PathBuf>) -> BTreeMap<PathBuf, String> {
    let outcome = finish(Command::new("sha256sum").args(files), "sha256sum");
    let lines = outcome.stdout.lines().filter_map(|line| line.split_once("  "));
    lines.map(|(hash, file)| (PathBuf::from(file), hash.to_owned())).collect()
}

/// What the guest of `tests/guest` has written last.
fn counter(file: &Path) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 64];
    let read = std::fs::File::open(file).and_then(|file| file.read_at(&mut bytes, 1 << 20));
    let text = String::from_utf8_lossy(bytes.get(..read.unwrap_or(0)).unwrap_or_default());
    let number = text.strip_prefix("virtsnap counter ").and_then(|rest| rest.split('\n').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Every file that a disk or a snapshot stands on.
fn chains(seen: &mut Seen, held: &[Held]) -> BTreeSet<PathBuf> {
    let active = seen.active.iter().map(|(file, _)| file.clone());
    let frozen = held.iter().rev().flat_map(|one| one.disks.iter().flatten());
    let frozen = frozen.map(|(file, ..)| file.clone());
    let memory = held.iter().filter_map(|one| one.vm_state.clone());
    let tops: Vec<PathBuf> = active.chain(frozen).chain(memory).collect();
    let mut files = BTreeSet::new();
    for top in tops {
        if !files.insert(top.clone()) {
            continue;
        }
        let mut info = Command::new("qemu-img");
        info.args(["info", "-U", "--backing-chain"]).arg(&top);
        let outcome = finish(&mut info, "qemu-img info");
        if !outcome.success {
            seen.losses.push(format!("{}: {}", top.display(), outcome.stderr.trim()));
        }
        let images = outcome.stdout.lines().filter_map(|line| line.strip_prefix("image: "));
        files.extend(images.map(PathBuf::from));
    }
    files
}

fn check(files: &BTreeSet<PathBuf>, seen: &mut Seen, care: Care) {
    for file in files {
        if care.writes && seen.active.iter().any(|(active, _)| active == file) {
            continue;
        }
        let mut check = Command::new("qemu-img");
        check.args(["check", "-q", "-U"]).arg(file);
        let outcome = finish(&mut check, "qemu-img check");
        let said = outcome.stdout + &outcome.stderr;
        let is_raw = said.contains("does not support checks");
        // QEMU was killed: clusters that nobody uses, and ones that it takes for shared though
        // they no longer are. Neither is a byte that a reader would miss.
        let harmless = |line: &str| {
            line.starts_with("Leaked cluster")
                || (line.starts_with("ERROR OFLAG_COPIED") && line.ends_with("refcount=1"))
        };
        let harmless = is_raw || (care.may_leak && said.trim().lines().all(harmless));
        if !outcome.success && !harmless {
            seen.losses.push(format!("qemu-img check {}: {}", file.display(), said.trim()));
        }
    }
}

/// Nothing lies beside the images that no disk and no snapshot needs. The images that the test has
/// made stay: only what virtsnap made is its to remove.
fn strays(world: &World, name: &str, used: &BTreeSet<PathBuf>, held: &[Held], seen: &mut Seen) {
    let memory: BTreeSet<&PathBuf> = held.iter().filter_map(|one| one.memory.as_ref()).collect();
    let entries = std::fs::read_dir(world.dir()).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = file.trim_start_matches('.').starts_with(&format!("{name}-vd"))
            || file.trim_start_matches('.').starts_with(&format!("{name}."));
        let is_test = [".console", ".xml", "-vda.qcow2", "-vdb.qcow2", "-vdb.raw"];
        let is_test = is_test.iter().any(|end| file.ends_with(end)) && !file.starts_with('.');
        if is_ours && !is_test && !used.contains(&path) && !memory.contains(&path) {
            seen.problems.push(format!("nobody needs {file}"));
        }
    }
}
