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
use virt::sys;
use virtsnap_tests::{Guest, GuestSpec, World, images};

const DISK_ONLY: u32 = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
const UNSUPPORTED: u32 = sys::VIR_ERR_CONFIG_UNSUPPORTED;

/// Shut off first, then running.
#[track_caller]
fn off_and_running(vm: Guest<'_>, check: impl Fn(&Bed<'_>)) {
    vm.write("vda", 1, 1);
    let bed = Bed::new(vm);
    check(&bed);
    bed.vm.virsh("start {}");
    check(&bed);
    assert!(bed.vm.holds("vda", 1, 1));
}

#[test]
fn names_that_cannot_be_are_refused() {
    let world = World::new();
    off_and_running(world.define(GuestSpec::idle("vm")), |bed| {
        for (name, flags) in [("a/b", 0), ("a/b", DISK_ONLY), (".x", 0), ("..", DISK_ONLY)] {
            let xml = format!("<domainsnapshot><name>{name}</name></domainsnapshot>");
            bed.refuses(&xml, sys::VIR_ERR_XML_DETAIL, |domain| {
                domain.create_snapshot_xml(&xml, flags)
            });
        }
    });
}

#[test]
fn overlays_that_cannot_be_are_refused() {
    let world = World::new();
    fs::write(world.path("plain"), "a file").expect("the directory is ours");
    let dir = world.dir().display();
    let cache = "<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>";
    let overlay = |attributes: &str, inner: &str| {
        format!("<disks><disk name='vda' snapshot='external'{attributes}>{inner}</disk></disks>")
    };
    let nbd = "<source protocol='nbd' name='x'><host name='localhost' port='1'/></source>";
    let cases = [
        (overlay("", "<driver type='vmdk'/>"), UNSUPPORTED),
        (overlay("", "<driver type='raw'/>"), UNSUPPORTED),
        (overlay("", &format!("<driver type='qed'>{cache}</driver>")), UNSUPPORTED),
        (overlay(" type='block'", &format!("<source dev='{dir}/plain'/>")), UNSUPPORTED),
        (overlay("", &format!("<source file='{dir}/lib'/>")), UNSUPPORTED),
        (overlay("", &format!("<source file='{dir}/plain'/>")), UNSUPPORTED),
        (overlay(" type='network'", nbd), sys::VIR_ERR_INTERNAL_ERROR),
        (overlay(" type='nvme'", ""), UNSUPPORTED),
        (overlay(" type='dir'", "<source dir='/tmp'/>"), sys::VIR_ERR_XML_ERROR),
        (overlay(" type='volume'", "<source pool='p' volume='v'/>"), sys::VIR_ERR_XML_ERROR),
    ];
    off_and_running(world.define(GuestSpec::idle("vm")), |bed| {
        for (parts, code) in &cases {
            bed.no_snapshot(parts, DISK_ONLY, *code);
        }
    });
}

#[test]
fn a_disk_that_is_not_there_or_named_twice_is_refused() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]));
    let disk = |name: &str| format!("<disk name='{name}' snapshot='external'/>");
    let path = vm.disk("vda").display().to_string();
    let cases = [
        (disk("vdz"), UNSUPPORTED),
        (disk(""), UNSUPPORTED),
        (format!("{}{}", disk("vda"), disk("vda")), UNSUPPORTED),
        (format!("{}{}", disk("vda"), disk(&path)), UNSUPPORTED),
        ("<disk snapshot='external'/>".to_owned(), sys::VIR_ERR_INTERNAL_ERROR),
    ];
    off_and_running(vm, |bed| {
        for (disks, code) in &cases {
            bed.no_snapshot(&format!("<disks>{disks}</disks>"), DISK_ONLY, *code);
        }
        // By its path it is found.
        let name = format!("s{}", bed.vm.snapshots().len());
        bed.vm.virsh(&format!(
            "snapshot-create-as {{}} {name} --disk-only --diskspec {path},snapshot=no"
        ));
        assert_eq!(bed.vm.source("vda"), path);
        assert!(bed.vm.source("vdb").ends_with(&format!("vm-vdb.{name}")));
    });
}

/// A raw disk of several guests, and one that forgets.
#[test]
fn disks_that_can_have_no_overlay_are_refused() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "raw", "qcow2"]));
    let (shared, transient) =
        ("<target dev='vdb' bus='virtio'/>", "<target dev='vdc' bus='virtio'/>");
    redefine(&vm, |xml| {
        xml.replace(shared, &format!("{shared}<shareable/>"))
            .replace(transient, &format!("{transient}<transient/>"))
    });
    let only = |target: &str| {
        let others = ["vda", "vdb", "vdc"].into_iter().filter(|other| *other != target);
        let others: String =
            others.map(|other| format!("<disk name='{other}' snapshot='no'/>")).collect();
        format!("<disks>{others}<disk name='{target}' snapshot='external'/></disks>")
    };
    vm.write("vda", 1, 1);
    let bed = Bed::new(vm);
    bed.no_snapshot(&only("vdb"), DISK_ONLY, UNSUPPORTED);
    bed.vm.virsh("start {}");
    bed.no_snapshot(&only("vdb"), DISK_ONLY, UNSUPPORTED);
    bed.no_snapshot(&only("vdc"), DISK_ONLY, sys::VIR_ERR_OPERATION_UNSUPPORTED);
    let others = "<disks><disk name='vdb' snapshot='no'/></disks>";
    bed.no_snapshot(others, 0, sys::VIR_ERR_OPERATION_INVALID);
    assert!(bed.vm.holds("vda", 1, 1));
}

/// With the code on which clients offer FORCE; and FORCE does what it is for, and no more.
#[test]
fn a_risky_revert_is_refused_and_can_be_forced() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} off");
    vm.write("vda", 1, 2);
    vm.virsh("start {}");
    vm.virsh("managedsave {}");

    let bed = Bed::new(vm);
    bed.refuses("a managed save is there", sys::VIR_ERR_SNAPSHOT_REVERT_RISKY, |domain| {
        Domain::lookup_snapshot_by_name(domain, "off", 0)?.revert(0)
    });
    assert!(bed.vm.holds("vda", 1, 2));
    bed.vm.virsh("snapshot-revert {} off --force");
    assert_eq!(bed.vm.state(), "shut off");
    assert!(bed.vm.holds("vda", 1, 1));
    assert!(!bed.domain().has_managed_save(0).expect("an answer"), "its memory is of other disks");
}

/// Defines the guest again, changed.
#[track_caller]
pub(crate) fn redefine(vm: &Guest<'_>, change: impl FnOnce(String) -> String) {
    let file = vm.world.path("changed.xml");
    let xml = change(vm.virsh("dumpxml {} --inactive --security-info"));
    fs::write(&file, xml).expect("the directory is ours");
    vm.world.virsh.ok(&format!("define {}", file.display()));
}

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
