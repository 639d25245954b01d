//! Snapshots, asked for and recorded, there and back.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const REVERTED: &str = include_str!("../../../fixtures/xml/snapshot-disk-only-reverted.xml");
const MEMORY: &str = include_str!("../../../fixtures/xml/snapshot-external-memory.xml");

fn element(text: &str) -> Element {
    Element::parse(text).unwrap()
}

fn request(inside: &str) -> Result<Request, SnapshotXmlError> {
    Request::parse(&element(&format!("<domainsnapshot>{inside}</domainsnapshot>")))
}

fn definition(inside: &str) -> Result<Definition, SnapshotXmlError> {
    Definition::parse(&element(&format!("<domainsnapshot>{inside}</domainsnapshot>")))
}

fn kind<T: std::fmt::Debug>(result: Result<T, SnapshotXmlError>) -> ErrorKind {
    result.unwrap_err().kind
}

#[test]
fn nothing_said_is_nothing_asked() {
    assert_eq!(request("").unwrap(), Request::default());
    assert_eq!(request("<name/><description></description>").unwrap(), Request::default());
}

#[test]
fn of_two_names_the_first_counts_and_space_is_kept() {
    let request = request("<name> a </name><name>b</name><description>\nx\n</description>");
    let request = request.unwrap();
    assert_eq!(request.name.as_deref(), Some(" a "));
    assert_eq!(request.description.as_deref(), Some("\nx\n"));
}

#[test]
fn names_that_would_leave_a_directory_are_refused() {
    for name in [".hidden", "..", "a/b", "/"] {
        assert_eq!(kind(request(&format!("<name>{name}</name>"))), ErrorKind::XmlDetail, "{name}");
    }
    assert!(request("<name>a.b ' % é</name>").is_ok());
}

#[test]
fn an_empty_source_is_none() {
    let disk = "<disks><disk name='vda' snapshot='external'><source/></disk></disks>";
    assert_eq!(request(disk).unwrap().disks[0].source, None);
}

#[test]
fn another_root_is_refused() {
    assert_eq!(kind(Request::parse(&element("<domain/>"))), ErrorKind::WrongRoot);
    assert_eq!(kind(Definition::parse(&element("<domain/>"))), ErrorKind::WrongRoot);
}

#[test]
fn memory_is_read_by_libvirts_rules() {
    let memory = |attributes: &str| request(&format!("<memory {attributes}/>")).map(|r| r.memory);
    let external =
        |file: Option<&str>| Some(MemoryRequest::External { file: file.map(str::to_owned) });
    assert_eq!(memory(""), Ok(None));
    assert_eq!(memory("snapshot='no'"), Ok(Some(MemoryRequest::No)));
    assert_eq!(memory("snapshot='internal'"), Ok(Some(MemoryRequest::Internal)));
    assert_eq!(memory("file='/m'"), Ok(external(Some("/m"))));
    assert_eq!(memory("snapshot='external' file='/m'"), Ok(external(Some("/m"))));
    // libvirt refuses: here a default name is given.
    assert_eq!(memory("snapshot='external'"), Ok(external(None)));
    for wrong in [
        "snapshot='manual'",
        "snapshot='manual' file='/m'",
        "snapshot='no' file='/m'",
        "snapshot='internal' file='/m'",
        "snapshot='external' file='m'",
        "file='m'",
        "file=''",
    ] {
        assert_eq!(kind(memory(wrong)), ErrorKind::Xml, "{wrong}");
    }
    for unknown in ["snapshot='default'", "snapshot=''", "snapshot='NO'"] {
        assert_eq!(kind(memory(unknown)), ErrorKind::XmlValue, "{unknown}");
    }
}

#[test]
fn what_is_beside_the_disks_is_a_copy_or_nothing_or_inside_a_variable_store() {
    let head = "<name>n</name><state>shutoff</state><creationTime>1</creationTime>";
    let read = |inside: &str| definition(&format!("{head}{inside}"));
    let kept = read("<nvram file='/v.s1'/><tpm snapshot='no'/>").unwrap();
    assert_eq!(kept.nvram, Some(KeptState::External { file: "/v.s1".to_owned() }));
    assert_eq!(kept.tpm, Some(KeptState::No));
    assert!(!kept.is_external());
    assert_eq!(read("<nvram snapshot='internal'/>").unwrap().nvram, Some(KeptState::Internal));
    for wrong in [
        "<nvram/>",
        "<nvram file='v'/>",
        "<nvram snapshot='manual' file='/v'/>",
        "<nvram snapshot='no' file='/v'/>",
        "<tpm snapshot='internal'/>",
    ] {
        assert_eq!(kind(read(wrong)), ErrorKind::Xml, "{wrong}");
    }
}

#[test]
fn memory_of_which_nothing_was_said_is_read_as_none() {
    let text = "<domainsnapshot><name>s</name><state>shutoff</state><creationTime>1</creationTime>\
                </domainsnapshot>";
    let mut definition = Definition::parse(&element(text)).unwrap();
    assert_eq!(definition.memory, Memory::No);
    assert!(definition.to_element().child("memory").is_some());
    definition.memory = Memory::Unsaid;
    assert!(definition.to_element().child("memory").is_none());
}

#[test]
fn disks_are_read_by_libvirts_rules() {
    let disks = request(
        "<disks><disk name='vda'/><disk name='/srv/b' snapshot='manual'/>\
         <disk name='vdc' type='block'><source dev='/dev/x'/></disk>\
         <anything name='vdd'><driver type='qed'/></anything>\
         <disk name='vde' snapshot='external' type='network'>\
         <source protocol='rbd' name='p/i'/></disk></disks>\
         <disks><disk name='vdf' snapshot='no'><on_monday/></disk></disks>",
    )
    .unwrap()
    .disks;
    let said: Vec<_> = disks.iter().map(|disk| (disk.name.as_str(), disk.snapshot)).collect();
    assert_eq!(
        said,
        [
            ("vda", None),
            ("/srv/b", Some(Location::Manual)),
            ("vdc", Some(Location::External)),
            ("vdd", Some(Location::External)),
            ("vde", Some(Location::External)),
            ("vdf", Some(Location::No)),
        ]
    );
    assert_eq!(disks[2].path(), Some("/dev/x"));
    assert_eq!(disks[3].format.as_deref(), Some("qed"));
    assert_eq!(disks[4].path(), None);
    assert_eq!(disks[5].extra, [Element::new("on_monday")]);
}

#[test]
fn disks_that_libvirt_refuses_are_refused_with_its_class() {
    for (disk, expected) in [
        ("<disk/>", ErrorKind::Internal),
        ("<disk name='a' snapshot='default'/>", ErrorKind::XmlValue),
        ("<disk name='a' snapshot='yes'/>", ErrorKind::XmlValue),
        ("<disk name='a' type='none'/>", ErrorKind::XmlValue),
        ("<disk name='a' type='floppy'/>", ErrorKind::XmlValue),
        ("<disk name='a' type='volume'/>", ErrorKind::Xml),
        ("<disk name='a' type='dir'/>", ErrorKind::Xml),
        ("<disk name='a' type='network'><source name='x'/></disk>", ErrorKind::Xml),
        ("<disk name='a'><source file='b.qcow2'/></disk>", ErrorKind::Xml),
        ("<disk name='a' type='block'><source dev='sdb'/></disk>", ErrorKind::Xml),
        ("<disk name='a'><driver type='none'/></disk>", ErrorKind::ConfigUnsupported),
        ("<disk name='a'><driver type='vhdx2'/></disk>", ErrorKind::ConfigUnsupported),
        (
            "<disk name='a' snapshot='internal'><source file='/b'/></disk>",
            ErrorKind::ConfigUnsupported,
        ),
        ("<disk name='a'/><disk name='a'/>", ErrorKind::ConfigUnsupported),
        (
            "<disk name='a'><driver><metadata_cache><max_size>x</max_size></metadata_cache></driver></disk>",
            ErrorKind::Xml,
        ),
    ] {
        assert_eq!(kind(request(&format!("<disks>{disk}</disks>"))), expected, "{disk}");
    }
}

#[test]
fn a_driver_is_kept_as_far_as_libvirt_keeps_it() {
    let disk = "<disk name='a'><driver name='qemu' type='qcow2' cache='none'><metadata_cache>\
                <max_size unit='KiB'>2</max_size></metadata_cache></driver></disk>";
    let disk = request(&format!("<disks>{disk}</disks>")).unwrap().disks.remove(0);
    assert_eq!(disk.format.as_deref(), Some("qcow2"));
    assert_eq!(
        disk.driver.unwrap().to_string(),
        "<driver>\n  <metadata_cache>\n    <max_size unit='bytes'>2048</max_size>\n  \
         </metadata_cache>\n</driver>\n"
    );
}

#[test]
fn what_libvirt_recorded_is_printed_as_libvirt_printed_it() {
    for text in [REVERTED, MEMORY] {
        let read = Definition::parse(&element(text)).unwrap();
        assert_eq!(read.to_element().to_string(), text);
    }
    let reverted = Definition::parse(&element(REVERTED)).unwrap();
    assert_eq!(reverted.state, State::DiskSnapshot);
    assert_eq!(reverted.revert_disks.len(), 3);
    assert!(reverted.is_external());
    let memory = Definition::parse(&element(MEMORY)).unwrap();
    assert_eq!(memory.parent.as_deref(), Some("s1"));
    assert_eq!(memory.description.as_deref(), Some(" two  spaces "));
    assert_eq!(memory.memory, Memory::External { file: "/srv/images/m1.mem".to_owned() });
    assert_eq!(memory.disks[0].path(), Some("/srv/images/a.m1"));
    assert!(memory.cookie.is_some());
}

#[test]
fn the_stored_form_marks_the_current_one() {
    let read = Definition::parse(&element(MEMORY)).unwrap();
    for current in [true, false] {
        let stored = read.to_stored_element(current);
        assert_eq!(Definition::parse_stored(&stored).unwrap(), (read.clone(), current));
    }
    assert_eq!(kind(Definition::parse_stored(&element(MEMORY))), ErrorKind::Internal);
}

#[test]
fn a_definition_without_its_parts_is_refused() {
    let name = "<name>n</name>";
    let time = "<creationTime>1</creationTime>";
    for (inside, expected) in [
        (format!("{time}<state>running</state>"), ErrorKind::Xml),
        (format!("{name}<state>running</state>"), ErrorKind::Internal),
        (
            format!("{name}<creationTime>x</creationTime><state>running</state>"),
            ErrorKind::Internal,
        ),
        (format!("{name}{time}"), ErrorKind::Xml),
        (format!("{name}{time}<state>nostate</state>"), ErrorKind::ConfigUnsupported),
        (format!("{name}{time}<state>asleep</state>"), ErrorKind::ConfigUnsupported),
        (
            format!("{name}{time}<state>shutoff</state><memory snapshot='internal'/>"),
            ErrorKind::Xml,
        ),
        (format!("{name}{time}<state>disk-snapshot</state><memory file='/m'/>"), ErrorKind::Xml),
        (
            format!("{name}{time}<state>running</state><memory snapshot='external'/>"),
            ErrorKind::Xml,
        ),
        (format!("<name>.n</name>{time}<state>running</state>"), ErrorKind::XmlDetail),
    ] {
        assert_eq!(kind(definition(&inside)), expected, "{inside}");
    }
}

#[test]
fn what_a_definition_does_not_say_is_libvirts_default() {
    let said = |inside: &str| {
        definition(&format!("<name>n</name><creationTime>1</creationTime>{inside}")).unwrap()
    };
    let disk = "<disks><disk name='a'/></disks>";
    let running = said(&format!("<state>running</state>{disk}"));
    assert_eq!(
        (running.memory, running.disks[0].snapshot),
        (Memory::Internal { image: None }, Location::Internal)
    );
    let disks_only = said(&format!("<state>disk-snapshot</state>{disk}"));
    assert_eq!(disks_only.memory, Memory::No);
    assert_eq!(disks_only.disks[0].snapshot, Location::External);
    let off = said(&format!("<state>shutoff</state>{disk}"));
    assert_eq!((off.memory, off.disks[0].snapshot), (Memory::No, Location::Internal));
    let old = said("<state>shutoff</state><domain><uuid>u</uuid></domain><cookie/>");
    assert_eq!((old.domain, old.cookie), (None, None));
}

#[test]
fn what_we_do_not_know_is_kept() {
    let text = "<name>n</name><state>running</state><creationTime>1</creationTime>\
                <memory snapshot='no'/><disks><disk name='a' snapshot='internal' tag='t'>\
                <snapshotDeleteInProgress/><on_delete keep='overlay'/></disk></disks>\
                <snapshotDeleteInProgress/><novelty x='1'/>";
    let read = definition(text).unwrap();
    assert!(read.delete_in_progress);
    assert_eq!(read.extra, [Element::new("novelty").with_attr("x", "1")]);
    assert_eq!(read.disks[0].tag.as_deref(), Some("t"));
    assert!(read.disks[0].delete_in_progress);
    assert_eq!(Definition::parse(&read.to_element()).unwrap(), read);
}

#[test]
fn secrets_are_in_no_definition_shown_without_them() {
    let read = Definition::parse(&element(MEMORY)).unwrap();
    assert!(read.to_element().to_string().contains("passwd='hush'"));
    assert!(!read.without_secrets().to_element().to_string().contains("hush"));
}

fn text() -> impl Strategy<Value = String> {
    "[a-zé<>&'\"%]{1,3}[ a-zé<>&'\"%/.\n\t]{0,8}[a-z<>&]"
}

fn some_disk() -> impl Strategy<Value = Disk> {
    let plain = prop_oneof![
        Just(Location::No),
        Just(Location::Internal),
        Just(Location::Manual),
        Just(Location::External)
    ];
    prop_oneof![
        (plain, any::<bool>(), proptest::option::of(text())).prop_map(|(location, busy, tag)| {
            Disk { delete_in_progress: busy, tag, ..Disk::new("", location) }
        }),
        (text(), prop_oneof![Just("qcow2"), Just("raw")]).prop_map(|(path, format)| Disk::overlay(
            "",
            format!("/{path}"),
            format
        )),
    ]
}

fn some_disks() -> impl Strategy<Value = Vec<Disk>> {
    proptest::collection::vec(some_disk(), 0..4).prop_map(|mut disks| {
        for (n, disk) in disks.iter_mut().enumerate() {
            disk.name = format!("vd{n}");
        }
        disks
    })
}

fn some_definition() -> impl Strategy<Value = Definition> {
    let name = "[a-zé<>&'\"% ]{1,3}[ a-z.]{0,8}[a-z]";
    let states = proptest::sample::select(State::ALL.to_vec());
    let memory = prop_oneof![
        Just(Memory::No),
        Just(Memory::Internal { image: None }),
        text().prop_map(|file| Memory::Internal { image: Some(format!("/{file}")) }),
        text().prop_map(|file| Memory::External { file: format!("/{file}") })
    ];
    let who = (name, proptest::option::of(text()), proptest::option::of(text()));
    let kept = || {
        proptest::option::of(prop_oneof![
            Just(KeptState::No),
            text().prop_map(|file| KeptState::External { file: format!("/{file}") })
        ])
    };
    let beside = (prop_oneof![3 => kept(), 1 => Just(Some(KeptState::Internal))], kept());
    (who, states, any::<i64>(), memory, some_disks(), some_disks(), beside).prop_map(
        |(who, state, creation_time, memory, disks, revert_disks, (nvram, tpm))| {
            let (name, description, parent) = who;
            let memory = if state.is_offline() { Memory::No } else { memory };
            let domain = Element::new("domain").with_attr("type", "qemu");
            let inactive = Element::new("domain").with_attr("type", "qemu");
            Definition {
                name,
                description,
                state,
                parent,
                creation_time,
                memory,
                disks,
                domain: Some(domain),
                inactive_domain: state.is_offline().then_some(inactive),
                revert_disks,
                cookie: None,
                nvram,
                tpm,
                delete_in_progress: creation_time % 2 == 0,
                extra: Vec::new(),
            }
        },
    )
}

/// The second opinion: what another reader makes of what we print.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Foreign {
    name: String,
    description: Option<String>,
    state: String,
    creation_time: i64,
    parent: Option<ForeignParent>,
    memory: ForeignMemory,
    #[serde(default)]
    disks: ForeignDisks,
    #[serde(default)]
    revert_disks: ForeignDisks,
    active: i32,
}

#[derive(Debug, Deserialize)]
struct ForeignParent {
    name: String,
}

#[derive(Debug, Deserialize)]
struct ForeignMemory {
    #[serde(rename = "@snapshot")]
    snapshot: String,
    #[serde(rename = "@file")]
    file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct ForeignDisks {
    #[serde(default)]
    disk: Vec<ForeignDisk>,
}

#[derive(Debug, Deserialize)]
struct ForeignDisk {
    #[serde(rename = "@name")]
    name: String,
    #[serde(rename = "@snapshot")]
    snapshot: String,
    source: Option<ForeignSource>,
    driver: Option<ForeignDriver>,
}

#[derive(Debug, Deserialize)]
struct ForeignSource {
    #[serde(rename = "@file")]
    file: String,
}

#[derive(Debug, Deserialize)]
struct ForeignDriver {
    #[serde(rename = "@type")]
    format: String,
}

fn same_disks(foreign: &ForeignDisks, ours: &[Disk]) -> bool {
    foreign.disk.len() == ours.len()
        && foreign.disk.iter().zip(ours).all(|(foreign, ours)| {
            foreign.name == ours.name
                && foreign.snapshot == ours.snapshot.as_str()
                && foreign.source.as_ref().map(|source| source.file.as_str()) == ours.path()
                && foreign.driver.as_ref().map(|driver| &driver.format) == ours.format.as_ref()
        })
}

proptest! {
    #[test]
    fn a_definition_is_read_as_it_was_printed(definition in some_definition()) {
        let text = definition.to_element().to_string();
        prop_assert_eq!(Definition::parse(&element(&text)).unwrap(), definition);
    }

    #[test]
    fn another_reader_reads_the_same_values(definition in some_definition()) {
        let text = definition.to_stored_element(true).to_string();
        let foreign: Foreign = serde_xml_rs::from_str(&text).unwrap();
        // That reader trims.
        prop_assert_eq!(foreign.name, definition.name.trim());
        prop_assert_eq!(foreign.description, definition.description);
        prop_assert_eq!(foreign.state, definition.state.as_str());
        prop_assert_eq!(foreign.creation_time, definition.creation_time);
        prop_assert_eq!(foreign.parent.map(|parent| parent.name), definition.parent);
        let (snapshot, file) = match definition.memory {
            Memory::No | Memory::Unsaid => ("no", None),
            Memory::Internal { image } => ("internal", image),
            Memory::External { file } => ("external", Some(file)),
        };
        prop_assert_eq!(foreign.memory.snapshot, snapshot);
        prop_assert_eq!(foreign.memory.file, file);
        prop_assert!(same_disks(&foreign.disks, &definition.disks));
        prop_assert!(same_disks(&foreign.revert_disks, &definition.revert_disks));
        prop_assert_eq!(foreign.active, 1);
    }
}
