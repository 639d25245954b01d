//! What a running world asks of the kernel's files, seen by strace, and what of it a loss of power
//! would take back.
//!
//! strace is attached to the daemon and its guests, and follows what they start: QEMU, qemu-img,
//! swtpm. Its lines are replayed against the strictest reading of POSIX: the content of a file is
//! durable only after an fsync or fdatasync that began when the last write had ended, a name only
//! after an fsync of its directory that began when it had been given or taken.
//!
//! What QEMU keeps in its own memory (tables of qcow2) is not seen here: for that, kill it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::host;
use crate::world::World;

const CALLS: &str = "openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,\
    symlinkat,unlink,unlinkat,rmdir,truncate,ftruncate,fallocate,write,writev,pwrite64,pwritev,\
    pwritev2,splice,sendfile,copy_file_range,fsync,fdatasync,sendto,sendmsg,sync_file_range";

/// A strace that watches a world.
#[derive(Debug)]
pub struct Tracing {
    strace: Child,
    output: PathBuf,
    disk: Disk,
}

impl Tracing {
    /// None where one process may not trace another.
    pub fn attach(world: &World) -> Option<Self> {
        let output = world.path("strace.log");
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-s", "32", "-e", "signal=none", "-e"]);
        command.arg(format!("trace={CALLS}")).arg("-o").arg(&output);
        let running = [world.processes("virtsnapd"), world.processes("qemu-system")].concat();
        for process in &running {
            command.arg("-p").arg(process.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut strace = command.spawn().ok()?;
        let is_traced = |process: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{process}/status"));
            status.unwrap_or_default().lines().any(|line| {
                line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0")
            })
        };
        let attached = host::wait("strace to attach", 20, || {
            if strace.try_wait().expect("it is ours").is_some() {
                return Some(false);
            }
            running.iter().all(is_traced).then_some(true)
        });
        attached.then(|| Self { strace, output, disk: Disk::of(world.dir()) })
    }

    /// What was seen up to now; the traced go on.
    pub fn finish(mut self) -> Replay {
        let id = self.strace.id().to_string();
        Command::new("kill").args(["-INT", &id]).status().expect("kill is there");
        self.strace.wait().expect("it is ours");
        let text = std::fs::read(&self.output).expect("strace has written");
        Replay { calls: calls(&String::from_utf8_lossy(&text)), disk: self.disk }
    }
}

/// A trace, to be replayed.
#[derive(Debug)]
pub struct Replay {
    calls: Vec<(bool, Call)>,
    disk: Disk,
}

/// What is about to happen, where a test has something to say.
#[derive(Debug, PartialEq, Eq)]
pub enum Moment<'a> {
    /// A file gets this name, or is written under it.
    Written(&'a Path),
    Removed(&'a Path),
    /// A successful reply of this procedure goes to a client.
    Reply(u32),
}

impl Replay {
    /// Calls `look` before each moment, with the disk as it is then.
    pub fn each(mut self, mut look: impl FnMut(&Moment, &Disk)) {
        for (at, (begins, call)) in self.calls.iter().enumerate() {
            if *begins {
                for moment in call.moments() {
                    look(&moment, &self.disk);
                }
                self.disk.begin(at, call);
            } else {
                self.disk.end(at, call);
            }
        }
    }
}

/// Names, and what of them and of their files is not durable.
#[derive(Debug, Default)]
pub struct Disk {
    /// Name → file.
    names: BTreeMap<PathBuf, usize>,
    files: usize,
    /// File → when its last write ended.
    written: BTreeMap<usize, usize>,
    /// Directory → name → when it was last given or taken.
    renamed: BTreeMap<PathBuf, BTreeMap<PathBuf, usize>>,
    /// When each sync that goes on began.
    syncs: BTreeMap<String, usize>,
}

const GOES_ON: usize = usize::MAX;

impl Disk {
    /// All that is there now counts as durable.
    fn of(root: &Path) -> Self {
        let mut disk = Self::default();
        let mut left = vec![root.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                disk.insert(&entry.path());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.push(entry.path());
                }
            }
        }
        disk
    }

    /// What power loss could take back: files whose content is not durable, under all their names,
    /// and names that are not.
    pub fn unsafe_paths(&self) -> BTreeSet<&Path> {
        let is_written = |file: &usize| self.written.contains_key(file);
        let files = self.names.iter().filter(|(_, file)| is_written(file)).map(|(path, _)| path);
        let names = self.renamed.values().flat_map(BTreeMap::keys);
        files.chain(names).map(PathBuf::as_path).collect()
    }

    fn insert(&mut self, path: &Path) -> usize {
        self.files += 1;
        self.names.insert(path.to_owned(), self.files);
        self.files
    }

    fn touch(&mut self, path: &Path, at: usize) {
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        self.renamed.entry(directory).or_default().insert(path.to_owned(), at);
    }

    fn write(&mut self, path: &Path, at: usize) {
        if let Some(file) = self.names.get(path) {
            self.written.insert(*file, at);
        }
    }

    fn begin(&mut self, at: usize, call: &Call) {
        match &*call.act {
            Act::Write(path) => self.write(path, GOES_ON),
            Act::Sync(_) => drop(self.syncs.insert(call.process.clone(), at)),
            _ => {}
        }
    }

    fn end(&mut self, at: usize, call: &Call) {
        if let Act::Sync(path) = &*call.act {
            let began = self.syncs.remove(&call.process).unwrap_or(at);
            if call.succeeded {
                self.sync(path, began);
            }
            return;
        }
        // Also a write that failed may have changed something.
        if let Act::Write(path) = &*call.act {
            return self.write(path, at);
        }
        if !call.succeeded {
            return;
        }
        match &*call.act {
            Act::Make { path, truncates } => {
                if !self.names.contains_key(path) {
                    self.insert(path);
                    self.touch(path, at);
                } else if *truncates {
                    self.write(path, at);
                }
            }
            Act::Link(from, to) => {
                let file = self.names.get(from).copied();
                let file = file.unwrap_or_else(|| self.insert(from));
                self.names.insert(to.clone(), file);
                self.touch(to, at);
            }
            Act::Rename(from, to) => self.rename(from, to, at),
            Act::Remove(path) => {
                let file = self.names.remove(path);
                if let Some(file) = file.filter(|file| self.names.values().all(|f| f != file)) {
                    self.written.remove(&file);
                }
                self.renamed.remove(path);
                self.touch(path, at);
            }
            Act::Write(_) | Act::Sync(_) | Act::Reply(_) => {}
        }
    }

    fn sync(&mut self, path: &Path, began: usize) {
        if let Some(file) = self.names.get(path)
            && self.written.get(file).is_some_and(|at| *at < began)
        {
            self.written.remove(file);
        }
        if let Some(names) = self.renamed.get_mut(path) {
            names.retain(|_, at| *at >= began);
            if names.is_empty() {
                self.renamed.remove(path);
            }
        }
    }

    fn rename(&mut self, from: &Path, to: &Path, at: usize) {
        let moved = |path: &Path| path.strip_prefix(from).ok().map(|rest| to.join(rest));
        let below: Vec<_> =
            self.names.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for old in below {
            // An empty rest would leave a slash at the end.
            let new = if old == from { Some(to.to_owned()) } else { moved(&old) };
            if let (Some(file), Some(new)) = (self.names.remove(&old), new) {
                self.names.insert(new, file);
            }
        }
        let inside: Vec<_> =
            self.renamed.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for directory in inside {
            self.renamed.remove(&directory);
        }
        self.touch(from, at);
        self.touch(to, at);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Act {
    Make { path: PathBuf, truncates: bool },
    Write(PathBuf),
    Sync(PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Reply(u32),
}

#[derive(Debug, Clone)]
struct Call {
    process: String,
    act: std::rc::Rc<Act>,
    succeeded: bool,
}

impl Call {
    fn moments(&self) -> Vec<Moment<'_>> {
        match &*self.act {
            Act::Write(path) | Act::Link(_, path) => vec![Moment::Written(path)],
            Act::Rename(from, to) => vec![Moment::Removed(from), Moment::Written(to)],
            Act::Remove(path) => vec![Moment::Removed(path)],
            Act::Reply(procedure) => vec![Moment::Reply(*procedure)],
            Act::Make { .. } | Act::Sync(_) => Vec::new(),
        }
    }
}

/// The beginnings and ends of calls in the order in which they were seen.
fn calls(text: &str) -> Vec<(bool, Call)> {
    let mut begun: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    let mut found: Vec<(usize, bool, Call)> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let Some((process, line)) = line.split_once(char::is_whitespace) else { continue };
        let line = line.trim_start();
        if let Some(start) = line.strip_suffix("<unfinished ...>") {
            begun.insert(process, (n, start.trim_end()));
            continue;
        }
        let (start, whole) =
            match line.strip_prefix("<... ").and_then(|l| l.split_once(" resumed>")) {
                Some((_, rest)) => match begun.remove(process) {
                    Some((start, head)) => (start, format!("{head}{rest}")),
                    None => continue,
                },
                None => (n, line.to_owned()),
            };
        if let Some((act, succeeded)) = parse(&whole) {
            let call = Call { process: process.to_owned(), act: act.into(), succeeded };
            found.push((start, true, call.clone()));
            found.push((n, false, call));
        }
    }
    found.sort_by_key(|(at, begins, _)| (*at, !*begins));
    found.into_iter().map(|(_, begins, call)| (begins, call)).collect()
}

fn parse(line: &str) -> Option<(Act, bool)> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") ").or_else(|| rest.rsplit_once(')'))?;
    let result = result.trim_start().strip_prefix('=')?.trim();
    let succeeded = !result.starts_with('-') && !result.starts_with('?');
    let act = match name {
        "openat" if arguments.contains("O_CREAT") => {
            let path = descriptor(result)?;
            Act::Make { path, truncates: arguments.contains("O_TRUNC") }
        }
        "openat" if arguments.contains("O_TRUNC") => Act::Write(descriptor(result)?),
        "mkdir" | "creat" | "mkdirat" | "symlink" | "symlinkat" => {
            Act::Make { path: paths(arguments).pop()?, truncates: true }
        }
        "rename" | "renameat" | "renameat2" | "link" | "linkat" => {
            let [from, to] = paths(arguments).try_into().ok()?;
            if name.starts_with("link") { Act::Link(from, to) } else { Act::Rename(from, to) }
        }
        "unlink" | "unlinkat" | "rmdir" => Act::Remove(paths(arguments).pop()?),
        "truncate" => Act::Write(paths(arguments).pop()?),
        "ftruncate" | "fallocate" | "pwrite64" | "pwritev" | "pwritev2" | "sendfile" => {
            Act::Write(descriptor(arguments)?)
        }
        "splice" | "copy_file_range" => Act::Write(descriptor(arguments.splitn(3, ", ").nth(2)?)?),
        "fsync" | "fdatasync" => Act::Sync(descriptor(arguments)?),
        "write" | "writev" | "sendto" | "sendmsg" => match descriptor(arguments) {
            Some(path) if path.is_absolute() => Act::Write(path),
            _ => Act::Reply(reply(arguments)?),
        },
        _ => return None,
    };
    Some((act, succeeded))
}

/// `7</a/file>` is the file. One that has no name any more is nothing.
fn descriptor(text: &str) -> Option<PathBuf> {
    let (number, rest) = text.split_once('<')?;
    number.trim().parse::<u32>().ok()?;
    let end = ["> ", ">,", ">)", ">("].iter().filter_map(|end| rest.find(end)).min();
    let path = rest.get(..end.unwrap_or_else(|| rest.rfind('>').unwrap_or(rest.len())))?;
    let is_gone = rest.contains(">(deleted)");
    (!is_gone).then(|| PathBuf::from(path))
}

/// The names among the arguments, each in the directory that stands before it.
fn paths(arguments: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directory = PathBuf::new();
    for argument in arguments.split(", ") {
        if let Some(name) = argument.strip_prefix('"').and_then(|a| a.strip_suffix('"')) {
            found.push(directory.join(name));
        } else if let Some((_, rest)) = argument.split_once('<') {
            directory = rest.trim_end_matches('>').into();
        }
    }
    found
}

/// The procedure of a successful reply, where the bytes are one.
fn reply(arguments: &str) -> Option<u32> {
    let text = arguments.split_once('"')?.1;
    let bytes = unescape(text.get(..text.rfind('"')?)?);
    let word = |n: usize| Some(u32::from_be_bytes(bytes.get(n * 4..n * 4 + 4)?.try_into().ok()?));
    // Length, program, version, procedure, type, serial, status.
    const PROGRAM: u32 = 0x2000_8086;
    let is_reply = word(1)? == PROGRAM && word(4)? == 1 && word(6)? == 0;
    is_reply.then(|| word(3)).flatten()
}

/// As C would read it.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(digit @ b'0'..=b'7') => {
                let mut value = u32::from(digit - b'0');
                for _ in 0..2 {
                    let Some(digit) = rest.next_if(|d| (b'0'..=b'7').contains(d)) else { break };
                    value = value * 8 + u32::from(digit - b'0');
                }
                bytes.push(value as u8);
            }
            Some(letter) => bytes.push(match letter {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'v' => 11,
                b'f' => 12,
                other => other,
            }),
            None => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is unsafe at each successful reply.
    fn at_replies(trace: &str) -> Vec<Vec<String>> {
        let mut seen = Vec::new();
        let replay = Replay { calls: calls(trace), disk: Disk::default() };
        replay.each(|moment, disk| {
            if matches!(moment, Moment::Reply(_)) {
                let paths = disk.unsafe_paths();
                seen.push(paths.iter().map(|path| path.display().to_string()).collect());
            }
        });
        seen
    }

    const REPLY: &str = "7 sendto(9<socket:[12]>, \"\\0\\0\\0\\34 \\0\\200\\206\\0\\0\\0\\1\\0\\0\\0\\271\
        \\0\\0\\0\\1\\0\\0\\0\\5\\0\\0\\0\\0\", 28, 0, NULL, 0) = 28\n";

    #[test]
    fn a_file_is_safe_when_it_and_its_directory_were_synced() {
        let steps = [
            "7  openat(AT_FDCWD</>, \"/d/.new\", O_RDWR|O_CREAT|O_EXCL, 0600) = 3</d/.new>\n",
            "7  write(3</d/.new>, \"x = (1) \"..., 40) = 40\n",
            "7  fsync(3</d/.new>) = 0\n",
            "7  rename(\"/d/.new\", \"/d/a\") = 0\n",
            "7  fsync(4</d>)           = 0\n",
        ];
        let all: String = steps.concat();
        assert_eq!(at_replies(&(all + REPLY)), [Vec::<String>::new()]);
        for (left_out, unsafe_then) in [(2, &["/d/a"][..]), (4, &["/d/.new", "/d/a"])] {
            let mut some = steps.to_vec();
            some.remove(left_out);
            assert_eq!(at_replies(&(some.concat() + REPLY)), [unsafe_then]);
        }
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        let trace = "\
            5  openat(AT_FDCWD</>, \"/d/a\", O_RDWR|O_CREAT, 0600) = 3</d/a>\n\
            5  fsync(4</d>) = 0\n\
            5  fsync(3</d/a> <unfinished ...>\n\
            6  pwrite64(3</d/a>, \"x\", 1, 0) = 1\n\
            5  <... fsync resumed>) = 0\n";
        assert_eq!(at_replies(&format!("{trace}{REPLY}")), [["/d/a"]]);
        let again = "5 fdatasync(3</d/a>) = 0\n";
        assert!(at_replies(&format!("{trace}{again}{REPLY}"))[0].is_empty());
        let failed = "5 fdatasync(3</d/a>) = -1 EIO (Input/output error)\n";
        assert_eq!(at_replies(&format!("{trace}{failed}{REPLY}")), [["/d/a"]]);
    }

    #[test]
    fn a_link_is_the_same_file() {
        let trace = "\
            5  openat(AT_FDCWD</>, \"/d/.a\", O_WRONLY|O_CREAT, 0600) = 3</d/.a>\n\
            5  pwrite64(3</d/.a>, \"x\", 1, 0) = 1\n\
            5  linkat(AT_FDCWD</>, \"/d/.a\", AT_FDCWD</>, \"/d/a\", 0) = 0\n\
            5  unlink(\"/d/.a\") = 0\n\
            5  fsync(4</d>) = 0\n";
        assert_eq!(at_replies(&format!("{trace}{REPLY}")), [["/d/a"]]);
        let synced = "5 fsync(3</d/a>) = 0\n";
        assert!(at_replies(&format!("{trace}{synced}{REPLY}"))[0].is_empty());
    }
}
