//! XML that clients send, and that stands in our files.

use std::collections::BTreeMap;

use virtsnap_qemu::argv::{LaunchContext, QemuFacts, command_line};
use virtsnap_qemu::complete::{self, Host};
use virtsnap_relaxng::Schema;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::policy::Policy;
use virtsnap_xml::snapshot::{Definition, Request};

fn parse(input: &[u8]) -> Option<Element> {
    Element::parse(std::str::from_utf8(input).ok()?).ok()
}

/// What was read is within the limits, and is written so that it reads the same.
pub(crate) fn xml(input: &[u8]) -> bool {
    let Some(tree) = parse(input) else { return false };
    assert!(depth(&tree) <= 256, "deeper than is accepted");
    let text = tree.to_string();
    assert_eq!(Element::parse(&text).as_ref(), Ok(&tree), "{text}");
    let metadata = tree.to_metadata_string();
    assert!(Element::parse(&metadata).is_ok(), "{metadata}");
    true
}

fn depth(tree: &Element) -> usize {
    1 + tree.elements().map(depth).max().unwrap_or(0)
}

/// `<domainsnapshot>` as a request, as a definition, and as a file of ours.
pub(crate) fn snapshot(input: &[u8]) -> bool {
    let Some(tree) = parse(input) else { return false };
    let request = Request::parse(&tree);
    if let Ok(definition) = Definition::parse(&tree) {
        assert_fixed(&definition);
    }
    let stored = Definition::parse_stored(&tree);
    if let Ok((definition, current)) = &stored {
        let text = definition.to_stored_element(*current).to_string();
        let again = Element::parse(&text).expect("what we wrote is XML");
        let again = Definition::parse_stored(&again);
        assert_eq!(again.as_ref(), Ok(&(definition.clone(), *current)), "{text}");
    }
    request.is_ok() || stored.is_ok()
}

/// What is shown to a client can be sent back, and is the same then. A name that is a number
/// `<domainsnapshot>` gives of itself does not matter here.
fn assert_fixed(definition: &Definition) {
    let text = definition.to_element().to_string();
    let again = Element::parse(&text).expect("what we wrote is XML");
    match Definition::parse(&again) {
        Ok(again) => assert_eq!(again.to_element().to_string(), text),
        Err(err) => panic!("{err}: {text}"),
    }
}

/// libxml2 holds what our reader accepted against our grammar. All that it accepts, we can read.
pub(crate) fn schema(input: &[u8]) -> bool {
    let Some(tree) = parse(input) else { return false };
    let schema = Schema::domain_snapshot().expect("our own grammar");
    schema.validate(&tree.to_string()).is_ok()
}

/// `<domain>` from a client: completed, which has to settle; then as a guest is started from it.
pub(crate) fn domain(input: &[u8]) -> bool {
    let Some(tree) = parse(input) else { return false };
    drop(Policy::of(&tree));
    drop(domain::to_inactive(tree.clone()));
    drop(domain::without_secrets(tree.clone()));
    let host = Host::for_test();
    let Ok(complete) = complete::complete(tree, &host) else { return false };
    // The order of disks can change once, when their buses have become explicit.
    let complete = again(&complete, &host);
    assert_eq!(again(&complete, &host).to_string(), complete.to_string(), "it settles");
    let written = Element::parse(&complete.to_string()).expect("what we wrote is XML");
    assert_eq!(written, complete);
    drop(command_line(&complete, &BTreeMap::new(), &context()));
    true
}

/// The same of one for Xen, and as libxl is asked for it.
pub(crate) fn xen_domain(input: &[u8]) -> bool {
    parse(input).is_some_and(|tree| virtsnap_xen::fuzzing::domain(&tree))
}

fn again(domain: &Element, host: &Host) -> Element {
    match complete::complete(domain.clone(), host) {
        Ok(complete) => complete,
        Err(err) => panic!("what we completed is refused: {}: {domain}", err.message),
    }
}

fn context() -> LaunchContext {
    LaunchContext {
        monitor: "/run/virtsnap/monitor.sock".into(),
        memory_dir: "/run/virtsnap/ram".into(),
        hugepages: vec![(2048, "/dev/hugepages/virtsnap".into())],
        tpm_sockets: BTreeMap::from([("tpm0".to_owned(), "/run/virtsnap/swtpm.sock".into())]),
        network_bridges: BTreeMap::from([("default".to_owned(), "virbr0".to_owned())]),
        incoming: false,
        sandbox: true,
        now: 1_795_308_894,
        local_offset: 0,
        first_fd: 30,
        qemu: QemuFacts { version: (10, 0, 2), ..QemuFacts::default() },
    }
}
