use super::*;

fn element(text: &str) -> Element {
    Element::parse(text).unwrap()
}

#[test]
fn a_definition_is_read_as_it_was_printed() {
    let text = "<domainsnapshot>\n  <name>s1</name>\n  <state>running</state>\n  \
        <creationTime>7</creationTime>\n  <memory snapshot='internal'/>\n  <disks>\n    \
        <disk name='vda' snapshot='internal'/>\n  </disks>\n</domainsnapshot>\n";
    let definition = Definition::parse(&element(text)).unwrap();
    assert_eq!(definition.disks, [Disk::new("vda", Location::Internal)]);
    assert_eq!(definition.to_element().to_string(), text);
}
