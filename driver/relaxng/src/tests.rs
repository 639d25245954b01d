//! Our grammar beside libvirt's.

use std::path::Path;

use super::*;

const LIBVIRTS: &str = "/usr/share/libvirt/schemas/domainsnapshot.rng";

/// What goes inside `<domainsnapshot>`, and is right by both grammars.
const VALID: &[&str] = &[
    "",
    "<creationTime>5</creationTime><description> a </description><name>a b/ü</name>",
    "<name/><description/>",
    "<state>running</state>",
    "<state>blocked</state>",
    "<state>paused</state>",
    "<state>shutdown</state>",
    "<state>shutoff</state>",
    "<state>crashed</state>",
    "<state>disk-snapshot</state>",
    "<parent><name>p</name></parent>",
    "<memory snapshot='no'/>",
    "<memory snapshot='internal'/>",
    "<memory snapshot='external' file='/m'/>",
    "<memory file='/m'/>",
    "<active>0</active>",
    "<cookie/>",
    "<cookie><cpu mode='x'><y/>z</cpu><slirpHelper/></cookie>",
    "<domain><uuid>5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11</uuid></domain>",
    "<!-- nothing -->",
    "<disks/><revertDisks/>",
    "<disks><disk name='vda'/><disk name='/a b.qcow2'/><disk name='xvda1'/></disks>",
    "<disks><disk name='vda' snapshot='no'/><disk name='sda' snapshot='manual'/></disks>",
    "<disks><disk name='hda' snapshot='internal'/><disk name='fda' snapshot='external'/></disks>",
    "<disks><disk name='vda' type='file'><driver type='qcow2'/><source/></disk></disks>",
    "<disks><disk name='vda'><source file='/a' index='3'/>\
     <driver type='qed'><metadata_cache><max_size unit='KiB'>1</max_size></metadata_cache>\
     </driver></disk></disks>",
    "<disks><disk name='vda' type='file'><snapshotDeleteInProgress/><driver type='qcow2'/>\
     <source file='/a'><seclabel relabel='no'/><slices><slice type='storage' offset='0' size='1'/>\
     </slices></source></disk></disks>",
    "<disks><disk name='vda' type='block'><source dev='/dev/x'/></disk></disks>",
    "<disks><disk name='vda' snapshot='external' type='network'><source protocol='nbd' name='x'>\
     <host name='h' port='1'/></source></disk></disks>",
    "<disks><disk name='vda' type='network'><source protocol='rbd' name='p/i'><host name='h'/>\
     <auth username='u'><secret type='ceph' usage='k'/></auth></source></disk></disks>",
    "<revertDisks><disk name='vda' type='file'><source file='/a'/></disk></revertDisks>",
];

/// Wrong by both.
const INVALID: &[&str] = &[
    "<bogus/>",
    "text",
    "<name>a</name><name>b</name>",
    "<name><b/></name>",
    "<name lang='x'>a</name>",
    "<state>no-such</state>",
    "<state/>",
    "<parent/>",
    "<parent><name>a</name><uuid/></parent>",
    "<memory/>",
    "<memory snapshot='manual'/>",
    "<memory snapshot='no' file='/m'/>",
    "<memory file='m'/>",
    "<memory snapshot='external' file='/m'><x/></memory>",
    "<active>2</active>",
    "<cookie>text</cookie>",
    "<cookie a=''/>",
    "<x:name xmlns:x='urn:x'>a</x:name>",
    "<disks><foo name='vda'/></disks>",
    "<disks all='yes'/>",
    "<disks><disk/></disks>",
    "<disks><disk name='foo'/></disks>",
    "<disks><disk name=''/></disks>",
    "<disks><disk name='vda' snapshot='maybe'/></disks>",
    "<disks><disk name='vda' colour='red'/></disks>",
    "<disks><disk name='vda' type='volume'/></disks>",
    "<disks><disk name='vda' type='nvme'/></disks>",
    "<disks><disk name='vda' type='network'/></disks>",
    "<disks><disk name='vda' type='network'><source name='x'/></disk></disks>",
    "<disks><disk name='vda' type='network'><source protocol='smoke'/></disk></disks>",
    "<disks><disk name='vda' type='block'><source/></disk></disks>",
    "<disks><disk name='vda' type='block'><source file='/a'/></disk></disks>",
    "<disks><disk name='vda'><source file='a'/></disk></disks>",
    "<disks><disk name='vda'><source dev='/a'/></disk></disks>",
    "<disks><disk name='vda'><source file='/a' index='0'/></disk></disks>",
    "<disks><disk name='vda'><source file='/a' startupPolicy='optional'/></disk></disks>",
    "<disks><disk name='vda'><source file='/a'/><source file='/b'/></disk></disks>",
    "<disks><disk name='vda'><source file='/a'><host/></source></disk></disks>",
    "<disks><disk name='vda' snapshot='internal'><source file='/a'/></disk></disks>",
    "<disks><disk name='vda' snapshot='no'><driver type='qcow2'/></disk></disks>",
    "<disks><disk name='vda' snapshot='manual'><source file='/a'/></disk></disks>",
    "<disks><disk name='vda'><driver type='raw'/></disk></disks>",
    "<disks><disk name='vda'><driver name='qemu' type='qcow2'/></disk></disks>",
    "<disks><disk name='vda'><driver type='qcow2'><metadata_cache><max_size>-1</max_size>\
     </metadata_cache></driver></disk></disks>",
    "<disks><disk name='vda'><driver><metadata_cache><max_size unit='ells'>1</max_size>\
     </metadata_cache></driver></disk></disks>",
    "<disks><disk name='vda'><snapshotDeleteInProgress>1</snapshotDeleteInProgress></disk></disks>",
    "<disks><disk name='vda'><target dev='vda'/></disk></disks>",
];

/// Right by ours alone: what virtsnap can and libvirt cannot, and what is checked elsewhere.
const OURS_ALONE: &[&str] = &[
    "<state>pmsuspended</state>",
    "<memory snapshot='external'/>",
    "<memory snapshot='internal' file='/m'/>",
    "<disks><disk name='vda' snapshot='internal' tag='1'/></disks>",
    "<disks><disk name='vda' snapshot='external'><on_delete keep='overlay'/></disk></disks>",
    "<disks><disk name='vda' type='network'><driver type='qcow2'/>\
     <source protocol='nbd'><host name='h'/></source></disk></disks>",
    "<disks><disk name='vda' type='network'><source protocol='gluster'/></disk></disks>",
    "<disks><disk name='vda'><source file='/a'><seclabel what='ever'/></source></disk></disks>",
    "<domain type='qemu' x='y'><z/>text</domain>",
    "<inactiveDomain/>",
    "<nvram snapshot='external' file='/v.fd.s1'/><tpm file='/t'/>",
    "<nvram snapshot='internal'/><tpm snapshot='no'/>",
];

fn document(inside: &str) -> String {
    format!("<domainsnapshot>{inside}</domainsnapshot>")
}

fn ours() -> &'static Schema {
    Schema::domain_snapshot().unwrap()
}

/// libvirt's grammar, where it is installed.
fn libvirts() -> Option<Schema> {
    if !Path::new(LIBVIRTS).exists() {
        assert!(std::env::var_os("CI").is_none(), "{LIBVIRTS} is missing");
        eprintln!("SKIPPED: {LIBVIRTS} is missing");
        return None;
    }
    let including = format!(
        "<grammar xmlns='http://relaxng.org/ns/structure/1.0'><include href='{LIBVIRTS}'/></grammar>"
    );
    Some(Schema::parse(&including).unwrap())
}

fn hold(schema: &Schema, documents: &[&str], valid: bool) {
    for inside in documents {
        let verdict = schema.validate(&document(inside));
        assert_eq!(verdict.is_ok(), valid, "{inside}: {verdict:?}");
    }
}

#[test]
fn every_element_and_attribute_has_its_place() {
    hold(ours(), VALID, true);
    hold(ours(), INVALID, false);
    hold(ours(), OURS_ALONE, true);
}

#[test]
fn libvirts_own_grammar_agrees_but_for_what_is_listed() {
    let Some(libvirts) = libvirts() else { return };
    hold(&libvirts, VALID, true);
    hold(&libvirts, INVALID, false);
    hold(&libvirts, OURS_ALONE, false);
}

/// The snapshots under `fixtures`, as libvirt and as virtsnap wrote them.
fn recorded() -> Vec<(String, String)> {
    fn collect(directory: &Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "xml") {
                let text = std::fs::read_to_string(&path).unwrap();
                if text.contains("<domainsnapshot") {
                    found.push((path.display().to_string(), text));
                }
            }
        }
    }
    let mut found = Vec::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    collect(&fixtures.join("xml"), &mut found);
    collect(&fixtures.join("store"), &mut found);
    found
}

#[test]
fn what_was_recorded_is_valid() {
    let recorded = recorded();
    assert!(recorded.len() >= 2, "no fixtures");
    let libvirts = libvirts();
    for (name, text) in &recorded {
        ours().validate(text).unwrap_or_else(|err| panic!("{name}: {err}"));
        // Records of the store's tests hold a <domain> that is less than one.
        if let Some(libvirts) = libvirts.as_ref().filter(|_| name.contains("fixtures/xml")) {
            libvirts.validate(text).unwrap_or_else(|err| panic!("{name}, libvirt's: {err}"));
        }
    }
}

#[test]
fn complaints_are_the_ones_libvirts_users_know() {
    let said = |text: &str| ours().validate(text).unwrap_err().message;
    assert_eq!(said(&document("<foo/>")), "Element domainsnapshot has extra content: foo");
    assert_eq!(
        said(&document("<name>a</name><name>b</name>")),
        "Extra element name in interleave; Element domainsnapshot failed to validate content"
    );
    assert_eq!(said("<domain/>"), "Expecting element domainsnapshot, got domain");
    assert!(said("<domainsnapshot").starts_with("libxml2 cannot read the document: "));
    assert!(said("").starts_with("libxml2 cannot read the document"));
}

#[test]
fn a_grammar_that_is_none_is_refused() {
    let empty = "<grammar xmlns='http://relaxng.org/ns/structure/1.0'/>";
    assert!(Schema::parse(empty).unwrap_err().message.contains("grammar"));
}

#[test]
fn nothing_is_read_from_beyond_the_document() {
    let entity = "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/hostname'>]>\
                  <domainsnapshot><state>&e;</state></domainsnapshot>";
    assert!(ours().validate(entity).is_err());
}

#[test]
fn threads_get_their_own_answers() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                hold(ours(), VALID, true);
                hold(ours(), INVALID, false);
            });
        }
    });
}

#[test]
fn the_deepest_document_fits_the_stack() {
    let deep = format!("<domain>{}{}</domain>", "<a>".repeat(250), "</a>".repeat(250));
    ours().validate(&document(&deep)).unwrap();
}
