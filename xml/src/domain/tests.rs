//! The typed views over domains as libvirt writes them.

use super::*;
use crate::snapshot::Location;

const LIVE: &str = include_str!("../../../fixtures/xml/domain-live.xml");
const INACTIVE: &str = include_str!("../../../fixtures/xml/domain-inactive.xml");
const WITHOUT_SECRETS: &str = include_str!("../../../fixtures/xml/domain-live-no-secrets.xml");
const OVERLAY: &str = include_str!("../../../fixtures/xml/domain-live-overlay.xml");

fn element(text: &str) -> Element {
    Element::parse(text).unwrap()
}

#[test]
fn sizes_are_read_with_libvirts_units() {
    let bytes = |text: &str| scaled_bytes(&element(text), 1024);
    assert_eq!(bytes("<m>2</m>"), Some(2048));
    assert_eq!(bytes("<m unit='b'>2</m>"), Some(2));
    assert_eq!(bytes("<m unit='KB'>2</m>"), Some(2000));
    assert_eq!(bytes("<m unit='k'>2</m>"), Some(2048));
    assert_eq!(bytes("<m unit='GiB'>1</m>"), Some(1 << 30));
    assert_eq!(bytes("<m unit='e'>15</m>"), Some(15 << 60));
    assert_eq!(bytes("<m unit='e'>16</m>"), None);
    assert_eq!(bytes("<m unit='kk'>1</m>"), None);
    assert_eq!(bytes("<m>-1</m>"), None);
    assert_eq!(bytes("<m/>"), None);
}

#[test]
fn a_live_domain_is_seen_with_its_values() {
    let domain = element(LIVE);
    assert_eq!(name(&domain).as_deref(), Some("shop & co"));
    assert_eq!(uuid(&domain).unwrap().to_string(), "5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11");
    assert_eq!(id(&domain), Some(1));
    assert_eq!(virt_type(&domain), Some("qemu"));
    assert_eq!(title(&domain).as_deref(), Some("a title"));
    assert!(description(&domain).unwrap().ends_with("\nand lines"));
    assert_eq!(memory_kib(&domain), Some(24576));
    assert_eq!(current_memory_kib(&domain), Some(24576));
    assert_eq!(vcpus(&domain), Some(Vcpus { current: 1, max: 2 }));
    assert_eq!(os_type(&domain).as_deref(), Some("hvm"));
    assert_eq!(arch(&domain), Some("x86_64"));
    assert_eq!(machine(&domain), Some("pc-i440fx-10.0"));
    assert_eq!(emulator(&domain).as_deref(), Some("/usr/bin/qemu-system-x86_64"));
}

#[test]
fn what_is_missing_or_senseless_is_none() {
    let domain = element(
        "<domain><name/><uuid>x</uuid><memory>x</memory><vcpu current='3'>2</vcpu></domain>",
    );
    assert_eq!(name(&domain), None);
    assert_eq!(uuid(&domain), None);
    assert_eq!(memory_kib(&domain), None);
    assert_eq!(vcpus(&domain), None);
    assert_eq!(vcpus(&element("<domain/>")), Some(Vcpus { current: 1, max: 1 }));
    assert_eq!(disks(&domain).count(), 0);
    let memory = element("<d><memory unit='b'>1025</memory><currentMemory>0</currentMemory></d>");
    assert_eq!((memory_kib(&memory), current_memory_kib(&memory)), (Some(2), Some(2)));
}

#[test]
fn disks_are_seen_with_their_values() {
    let domain = element(OVERLAY);
    let targets: Vec<_> = disks(&domain).map(|disk| disk.target()).collect();
    assert_eq!(targets, ["vda", "sdb", "hdc"]);
    let vda = disk(&domain, "vda").unwrap();
    assert_eq!((vda.device(), vda.bus(), vda.source_type()), ("disk", Some("virtio"), "file"));
    assert_eq!((vda.path(), vda.format()), (Some("/srv/images/a.s1"), Some("qcow2")));
    assert_eq!((vda.serial().as_deref(), vda.alias()), (Some("S1"), Some("virtio-disk0")));
    assert_eq!(vda.backing_paths(), ["/srv/images/a.qcow2", "/srv/images/base.qcow2"]);
    assert_eq!((vda.snapshot(), vda.boot_order()), (None, None));
    assert!(!vda.is_readonly() && !vda.is_shareable() && !vda.is_transient() && !vda.is_empty());
    assert_eq!(disk(&domain, "sdb").unwrap().snapshot(), Some(Location::No));
    let cdrom = disk(&domain, "hdc").unwrap();
    assert!(cdrom.is_readonly() && cdrom.is_empty());
    assert_eq!(disk(&domain, "vdz"), None);
    let other = element(
        "<d><devices><disk type='block' device='lun'><source dev='/dev/x'/><target dev='sda'/>\
         <shareable/><transient/><boot order='2'/></disk><disk/></devices></d>",
    );
    let lun = disks(&other).next().unwrap();
    assert_eq!((lun.path(), lun.device(), lun.boot_order()), (Some("/dev/x"), "lun", Some(2)));
    assert!(lun.is_shareable() && lun.is_transient());
    assert_eq!(disks(&other).count(), 1);
}

/// The same but for block node numbers, which the hypervisor gives.
#[test]
fn an_overlay_is_shown_as_libvirt_shows_it() {
    let mut domain = element(LIVE);
    assert!(push_overlay(&mut domain, "vda", "file", "/srv/images/a.s1", "qcow2"));
    let without_numbers = |mut domain: Element| {
        fn strip(element: &mut Element) {
            if element.name() != "controller" {
                element.remove_attr("index");
            }
            element.elements_mut().for_each(strip);
        }
        strip(&mut domain);
        domain.to_string()
    };
    assert_eq!(without_numbers(domain.clone()), without_numbers(element(OVERLAY)));
    assert!(!push_overlay(&mut domain, "vdz", "file", "/x", "qcow2"));
}

#[test]
fn an_image_is_replaced_where_it_stands() {
    let mut domain = element(
        "<d><devices><disk type='file'><driver name='qemu' type='raw' cache='none'/>\
         <source file='/a' index='1'><seclabel relabel='no'/><slices/></source>\
         <backingStore/><target dev='vda'/></disk><disk type='file'><target dev='vdb'/></disk>\
         </devices></d>",
    );
    assert!(set_image(&mut domain, "vda", "block", "/dev/b", "qcow2"));
    assert!(set_image(&mut domain, "vdb", "file", "/c", "raw"));
    assert!(!set_image(&mut domain, "vdz", "file", "/c", "raw"));
    assert!(set_backing(&mut domain, "vdb", Some(Element::new("backingStore"))));
    let expected = element(
        "<d><devices><disk type='block'><driver name='qemu' type='qcow2' cache='none'/>\
         <source dev='/dev/b'><seclabel relabel='no'/></source>\
         <target dev='vda'/></disk><disk type='file'><driver name='qemu' type='raw'/>\
         <source file='/c'/><backingStore/><target dev='vdb'/></disk></devices></d>",
    );
    assert_eq!(domain, expected);
    assert!(set_backing(&mut domain, "vdb", None));
    assert_eq!(disk(&domain, "vdb").unwrap().backing_store(), None);
}

#[test]
fn a_disk_that_the_kernel_served_gets_one_who_knows_the_format() {
    for (driver, format, serves) in [
        ("<driver name='phy' type='raw'/>", "qcow2", Some("qemu")),
        ("<driver type='raw'/>", "qcow2", Some("qemu")),
        ("<driver name='tap' type='raw'/>", "qcow2", Some("tap")),
        ("<driver name='phy' type='raw'/>", "raw", Some("phy")),
        ("<driver type='raw'/>", "raw", None),
    ] {
        let disk_of = format!("<disk type='block'>{driver}<target dev='xvda'/></disk>");
        let mut domain = element(&format!("<d><devices>{disk_of}</devices></d>"));
        assert!(set_image(&mut domain, "xvda", "file", "/a", format));
        let found = disk(&domain, "xvda").unwrap().driver().unwrap();
        assert_eq!(found.attr("name"), serves, "{driver} {format}");
        assert_eq!(found.attr("type"), Some(format));
    }
}

/// The pair is libvirt's own, of one domain, but for what only the driver that completed it
/// knows: CPU, default image format, order of controllers, and the default listen address.
#[test]
fn a_live_definition_loses_what_was_assigned_for_the_run() {
    let inactive = to_inactive(element(LIVE));
    assert_eq!(inactive.to_string(), INACTIVE);
    assert_eq!(to_inactive(inactive.clone()), inactive);
}

#[test]
fn assigned_ports_names_and_labels_are_dropped_and_users_own_stay() {
    let live = element(
        "<domain id='3'><devices>\
         <disk><source file='/a' index='1'/><backingStore type='file' index='2'/><mirror/>\
         <target dev='vda'/></disk>\
         <disk><source file='/b'/><backingStore type='file'><source file='/c'/></backingStore>\
         <target dev='vdb'/></disk>\
         <interface type='network'><mac address='a' currentAddress='b'/>\
         <source network='n' portid='p' bridge='virbr0'/><target dev='vnet3'/></interface>\
         <interface type='ethernet'><target dev='vnet7' managed='no'/></interface>\
         <interface type='ethernet'><target dev='mine0'/></interface>\
         <graphics type='spice' port='5901' tlsPort='5902' autoport='yes' listen='127.0.0.1'>\
         <listen type='network' address='127.0.0.1' network='n'/></graphics>\
         <graphics type='vnc' port='5999' autoport='no'/>\
         <channel type='unix'><source mode='bind' path='/srv/own/socket'/>\
         <target type='virtio' name='c' state='connected'/></channel>\
         <memory model='virtio-mem'><target><size>1</size><current>1</current></target></memory>\
         </devices><seclabel type='static' model='dac'><label>1:1</label></seclabel>\
         <seclabel type='dynamic' model='dac'><baselabel>b</baselabel><label>1:1</label>\
         <imagelabel>1:1</imagelabel></seclabel></domain>",
    );
    let inactive = element(
        "<domain><devices>\
         <disk><source file='/a'/><target dev='vda'/></disk>\
         <disk><source file='/b'/><backingStore type='file'><source file='/c'/></backingStore>\
         <target dev='vdb'/></disk>\
         <interface type='network'><mac address='a'/><source network='n'/></interface>\
         <interface type='ethernet'><target dev='vnet7' managed='no'/></interface>\
         <interface type='ethernet'><target dev='mine0'/></interface>\
         <graphics type='spice' autoport='yes'><listen type='network' network='n'/></graphics>\
         <graphics type='vnc' port='5999' autoport='no'/>\
         <channel type='unix'><source mode='bind' path='/srv/own/socket'/>\
         <target type='virtio' name='c'/></channel>\
         <memory model='virtio-mem'><target><size>1</size></target></memory>\
         </devices><seclabel type='static' model='dac'><label>1:1</label></seclabel>\
         <seclabel type='dynamic' model='dac'><baselabel>b</baselabel></seclabel></domain>",
    );
    assert_eq!(to_inactive(live), inactive);
}

#[test]
fn secrets_are_not_shown() {
    assert_eq!(without_secrets(element(LIVE)).to_string(), WITHOUT_SECRETS);
    let disk = element(
        "<d><devices><disk><source><cookies><cookie>c</cookie></cookies></source>\
         <backingStore><source><cookies/></source></backingStore></disk></devices></d>",
    );
    assert!(!without_secrets(disk).to_string().contains("cookie"));
}

#[test]
fn title_and_description_stand_where_libvirt_prints_them() {
    let mut domain = element("<domain><name>n</name><uuid>u</uuid><memory>1</memory></domain>");
    set_description(&mut domain, "d");
    set_title(&mut domain, "t");
    set_metadata(&mut domain, Some("<a/>"), "k", "urn:a").unwrap();
    set_name(&mut domain, "m");
    let names: Vec<_> = domain.elements().map(Element::name).collect();
    assert_eq!(names, ["name", "uuid", "title", "description", "metadata", "memory"]);
    assert_eq!(name(&domain).as_deref(), Some("m"));
    set_title(&mut domain, "");
    assert_eq!(title(&domain), None);
    assert!(domain.child("title").is_none());
}

#[test]
fn metadata_carries_the_clients_namespace_and_is_given_back_without() {
    let mut domain = element(LIVE);
    let text = "<app a='1'><part/><z:o xmlns:z='urn:z'><z:i/><j/></z:o></app>";
    set_metadata(&mut domain, Some(text), "my", "urn:my").unwrap();
    let stored = domain.find_ns("urn:my", "app").unwrap();
    assert_eq!(
        *stored,
        element(
            "<my:app a='1' xmlns:my='urn:my'><my:part/><z:o xmlns:z='urn:z'><z:i/><my:j/></z:o>\
             </my:app>"
        )
    );
    assert_eq!(metadata(&domain, "urn:my"), Some(element(text)));
    // libvirt's own: the element that was there before is untouched.
    let other = metadata(&domain, "urn:virtsnap:test").unwrap();
    assert_eq!(other.name(), "policy");
    assert!(Element::parse(&other.to_metadata_string()).is_ok(), "its attribute has a prefix");
    assert_eq!(metadata(&domain, "urn:none"), None);
    assert_eq!(element(&domain.to_string()), domain);
}

#[test]
fn one_element_for_each_namespace() {
    let mut domain = element("<domain><name>n</name></domain>");
    set_metadata(&mut domain, Some("<a/>"), "k", "urn:a").unwrap();
    set_metadata(&mut domain, Some("<b/>"), "k", "urn:b").unwrap();
    set_metadata(&mut domain, Some("<c/>"), "other", "urn:a").unwrap();
    assert_eq!(domain.child("metadata").unwrap().elements().count(), 2);
    assert_eq!(metadata(&domain, "urn:a"), Some(element("<c/>")));
    set_metadata(&mut domain, None, "", "urn:a").unwrap();
    set_metadata(&mut domain, None, "", "urn:a").unwrap();
    assert_eq!(metadata(&domain, "urn:a"), None);
    set_metadata(&mut domain, None, "", "urn:b").unwrap();
    assert!(domain.child("metadata").is_none());
}

#[test]
fn metadata_that_cannot_be_is_refused_and_changes_nothing() {
    let mut domain = element("<domain><name>n</name></domain>");
    let before = domain.clone();
    for (text, key) in [("<a>", "k"), ("<a/>", "1"), ("<a/>", ""), ("<a/>", "a:b"), ("<a/>", "xml")]
    {
        assert!(set_metadata(&mut domain, Some(text), key, "urn:a").is_err(), "{text} {key}");
    }
    let taken = set_metadata(&mut domain, Some("<a xmlns:k='urn:x'/>"), "k", "urn:a");
    assert_eq!(taken, Err(MetadataError::Taken("k".to_owned())));
    assert_eq!(domain, before);
}
