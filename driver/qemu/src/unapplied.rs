//! What a definition asks of the host and we do not do, so that every start can say it.
//!
//! The guest is the same without any of it. `docs/domain-xml.md` has the table for people.

use virtsnap_xml::element::Element;

use crate::setup::devices;

const LIMITS: &[&str] = &["cputune", "memtune", "blkiotune", "resource"];

/// One sentence each, with the element's path.
pub(crate) fn unapplied(live: &Element) -> Vec<String> {
    let mut found = Vec::new();
    for name in LIMITS.iter().filter(|name| live.child(name).is_some()) {
        found.push(format!("<{name}> is not applied: we make no control groups"));
    }
    if live.child("vcpu").is_some_and(|vcpu| vcpu.attr("cpuset").is_some()) {
        found.push("<vcpu cpuset=> is not applied: QEMU's threads run on every CPU".to_owned());
    }
    if live.child("numatune").is_some() && live.at(&["cpu", "numa"]).is_none() {
        found.push("<numatune> binds only memory of huge pages and of NUMA cells".to_owned());
    }
    let is_label = |label: &&Element| matches!(label.attr("model"), Some("selinux" | "apparmor"));
    for label in live.children("seclabel").filter(is_label) {
        let model = label.attr("model").unwrap_or_default();
        found.push(format!("<seclabel model='{model}'> is not applied: QEMU gets no such label"));
    }
    for interface in devices(live, "interface") {
        let Some(filter) = interface.child("filterref") else { continue };
        let mac = interface.child("mac").and_then(|mac| mac.attr("address")).unwrap_or("?");
        let filter = filter.attr("filter").unwrap_or("?");
        found.push(format!(
            "the network filter '{filter}' of interface {mac} is NOT ENFORCED: the guest may send \
             what it forbids"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_applied_is_said() {
        let live = "<domain><vcpu cpuset='0-1'>2</vcpu><cputune><shares>1</shares></cputune>\
            <numatune><memory mode='strict' nodeset='0'/></numatune>\
            <resource><partition>/m</partition></resource><devices><interface type='bridge'>\
            <mac address='52:54:00:00:00:01'/><filterref filter='vdsm-no-mac-spoofing'/>\
            </interface></devices><seclabel type='dynamic' model='selinux'/>\
            <seclabel type='dynamic' model='dac'/></domain>";
        let said = unapplied(&Element::parse(live).unwrap());
        let parts =
            ["<cputune>", "<resource>", "cpuset", "<numatune>", "'selinux'", "52:54:00:00:00:01"];
        assert_eq!(said.len(), parts.len(), "{said:#?}");
        for (said, part) in said.iter().zip(parts) {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(unapplied(&Element::parse("<domain><vcpu>1</vcpu></domain>").unwrap()).len(), 0);
    }
}
