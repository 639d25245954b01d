//! What is refused: with libvirt's code, and with nothing touched.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virtsnap_tests::{Guest, images};

/// A guest, and a client that sees the numbers of errors.
pub(crate) struct Bed<'w> {
    pub(crate) vm: Guest<'w>,
    connection: Connect,
}

impl<'w> Bed<'w> {
    pub(crate) fn new(vm: Guest<'w>) -> Self {
        let connection = Connect::open(Some(&vm.world.virsh.uri)).expect("the daemon answers");
        Self { vm, connection }
    }

    pub(crate) fn domain(&self) -> Domain {
        self.connection.lookup_domain_by_name(self.vm.name()).expect("it is defined")
    }

    /// Gives what was said.
    #[track_caller]
    pub(crate) fn refuses<T>(
        &self,
        what: &str,
        code: u32,
        call: impl FnOnce(&Domain) -> Result<T, Error>,
    ) -> String {
        let before = self.all();
        let Err(err) = call(&self.domain()) else { panic!("{what} should have been refused") };
        assert_eq!(err.code().to_raw(), code, "{what}: {}", err.message());
        self.is_still(&before, what);
        err.message().to_owned()
    }

    /// A line of virsh, which tells words instead of numbers.
    #[track_caller]
    pub(crate) fn refuses_line(&self, line: &str, words: &str) -> String {
        let before = self.all();
        let said = self.vm.refused(line);
        assert!(said.contains(words), "{line}: {said}");
        self.is_still(&before, line);
        said
    }

    #[track_caller]
    fn is_still(&self, before: &BTreeMap<String, String>, what: &str) {
        let after = self.all();
        for (of, is) in &after {
            assert_eq!(before.get(of), Some(is), "{what}: {of} is not as it was");
        }
        assert_eq!(before.len(), after.len(), "{what}: {before:?}");
    }

    /// `parts` go into a `<domainsnapshot>` of the name `s`.
    #[track_caller]
    pub(crate) fn no_snapshot(&self, parts: &str, flags: u32, code: u32) -> String {
        let xml = format!("<domainsnapshot><name>s</name>{parts}</domainsnapshot>");
        self.refuses(&xml, code, |domain| domain.create_snapshot_xml(&xml, flags))
    }

    /// All there is to be touched: definitions, state, snapshots, files and what is in them.
    fn all(&self) -> BTreeMap<String, String> {
        let vm = &self.vm;
        let mut all = BTreeMap::new();
        let lines = [
            "dumpxml {}",
            "dumpxml {} --inactive",
            "domstate {} --reason",
            "snapshot-list {} --tree",
        ];
        all.extend(lines.map(|line| (line.to_owned(), vm.virsh(line))));
        let is_off = vm.state() == "shut off";
        let mut left = vec![vm.world.dir().to_owned(), vm.world.path("lib")];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() && directory != vm.world.dir() {
                    left.push(path);
                } else if let Some(told) = told(&path, is_off) {
                    all.insert(path.display().to_string(), told);
                }
            }
        }
        all
    }
}

fn told(path: &PathBuf, is_off: bool) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    let name = path.file_name()?.to_str()?;
    if !meta.is_file() || name.ends_with(".log") || name.ends_with(".console") {
        return None;
    }
    let mut told = format!("inode {}, mode {:o}", meta.ino(), meta.mode());
    let is_image = name.ends_with(".qcow2");
    if is_image {
        told += &format!(", {:?}", images::internal_snapshots(path));
    }
    if is_off || !is_image {
        told += &format!(", {:x}", hash(path));
    }
    Some(told)
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read(path).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}
