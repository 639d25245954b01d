use super::*;

#[test]
fn entities_and_cdata_are_text() {
    let e = Element::parse("<a>x &amp; <![CDATA[<y>]]>&#98;</a>").unwrap();
    assert_eq!(e.text(), "x & <y>b");
}

#[test]
fn prints_as_libvirt_prints() {
    let e = Element::parse("<a b=\"1\"><c/><d>t</d></a>").unwrap();
    assert_eq!(e.to_string(), "<a b='1'>\n  <c/>\n  <d>t</d>\n</a>\n");
}
