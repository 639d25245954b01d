//! What ecosystem measurements found quick-xml to accept, and libvirt's form of printing.

use proptest::prelude::*;

use super::*;

fn refused(text: &str) -> XmlError {
    match Element::parse(text) {
        Err(err) => err,
        Ok(tree) => panic!("accepted {text:?} as {tree:?}"),
    }
}

fn print(text: &str) -> String {
    Element::parse(text).unwrap().to_string()
}

#[test]
fn documents_that_are_not_well_formed_are_refused() {
    for text in [
        "",
        " ",
        "text",
        "<a>",
        "<a",
        "<a><b></a></b>",
        "<a/><b/>",
        "<a></a><b></b>",
        "<a/>text",
        "text<a/>",
        "<a/>&#32;",
        "<a/><![CDATA[ ]]>",
        "</a>",
        "<a></a></a>",
        "< a/>",
        "<1a/>",
        "<a:/>",
        "<:a/>",
        "<a:b:c xmlns:a='u'/>",
        "<a 1b='c'/>",
        "<a b/>",
        "<a b=c/>",
        "<a b='c'd='e'/>",
        "<a b=\"c\"d='e'/>",
        "<a b='c' b='d'/>",
        "<a b='<'/>",
        "<a b='&'/>",
        "<a b='&x;'/>",
        "<a b='&#1;'/>",
        "<a b='&#0;'/>",
        "<a b='&#xD800;'/>",
        "<a b='&#xFFFE;'/>",
        "<a b='&#x110000;'/>",
        "<a b='&#99999999999;'/>",
        "<a b='&#+65;'/>",
        "<a b='&#X41;'/>",
        "<a b='&#;'/>",
        "<a b='&#x;'/>",
        "<a>&</a>",
        "<a>&amp</a>",
        "<a>&x;</a>",
        "<a>&#1;</a>",
        "<a>&#+65;</a>",
        "<a>]]></a>",
        "<a>\u{1}</a>",
        "<a>\u{0}</a>",
        "<a>\u{fffe}</a>",
        "<a b='\u{8}'/>",
        "<a><!-- a -- b --></a>",
        "<a><!-- a ---></a>",
        "<!-- a -- b --><a/>",
        "<a><!-- a </a>",
        "<a><![CDATA[ </a>",
        "<a><?xml version='1.0'?></a>",
        " <?xml version='1.0'?><a/>",
        "<!-- c --><?xml version='1.0'?><a/>",
        "<?XML version='1.0'?><a/>",
        "<a><?1 x?></a>",
        "<p:a/>",
        "<a p:b='c'/>",
        "<a><b xmlns:p='u'/><p:c/></a>",
        "<a xmlns:p=''/>",
        "<a xmlns:xmlns='u'/>",
        "<a xmlns:xml='u'/>",
    ] {
        let err = refused(text);
        assert!(matches!(err, XmlError::Malformed(_)), "{text:?}: {err}");
    }
}

#[test]
fn document_types_are_refused_so_nothing_is_expanded_or_loaded() {
    for text in [
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
        "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
        "<!DOCTYPE a [<!ENTITY b 'cccc'><!ENTITY x '&b;&b;&b;'>]><a>&x;</a>",
    ] {
        assert_eq!(refused(text), XmlError::Doctype, "{text}");
    }
}

#[test]
fn limits_hold_at_their_edges() {
    let deep = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    assert!(Element::parse(&deep(MAX_DEPTH)).is_ok());
    assert_eq!(refused(&deep(MAX_DEPTH + 1)), XmlError::Depth);
    assert_eq!(refused(&"<a>".repeat(1_000_000)), XmlError::Depth);
    let leaf = format!("{}<b/>{}", "<a>".repeat(MAX_DEPTH), "</a>".repeat(MAX_DEPTH));
    assert_eq!(refused(&leaf), XmlError::Depth);

    let attributes = |count: usize| {
        let attributes: String = (0..count).map(|n| format!(" a{n}=''")).collect();
        format!("<a{attributes}/>")
    };
    assert!(Element::parse(&attributes(MAX_ATTRIBUTES)).is_ok());
    assert_eq!(refused(&attributes(MAX_ATTRIBUTES + 1)), XmlError::Attributes);

    let nested = |count: usize| {
        let open: String =
            (0..count).map(|n| format!("<a xmlns:p{n}='u' xmlns:q{n}='u'>")).collect();
        format!("{open}{}", "</a>".repeat(count))
    };
    assert!(Element::parse(&nested(MAX_NAMESPACES / 2)).is_ok());
    assert_eq!(refused(&nested(MAX_NAMESPACES / 2 + 1)), XmlError::Namespaces);
    let beside = format!("<a>{}</a>", "<b xmlns='u' xmlns:p='u'/>".repeat(MAX_NAMESPACES));
    assert!(Element::parse(&beside).is_ok());

    let wide = |count: usize| format!("<a>{}</a>", "<b/>".repeat(count));
    assert!(Element::parse(&wide(MAX_NODES - 1)).is_ok());
    assert_eq!(refused(&wide(MAX_NODES)), XmlError::Nodes);

    let long = |bytes: usize| format!("<a>{}</a>", "x".repeat(bytes - 7));
    assert!(Element::parse(&long(MAX_BYTES)).is_ok());
    assert_eq!(refused(&long(MAX_BYTES + 1)), XmlError::Size);
}

#[test]
fn only_utf8_may_be_declared() {
    for encoding in ["UTF-8", "utf-8", "US-ASCII"] {
        let text = format!("<?xml version='1.0' encoding='{encoding}'?><a/>");
        assert!(Element::parse(&text).is_ok(), "{encoding}");
    }
    let err = refused("<?xml version='1.0' encoding='ISO-8859-1'?><a/>");
    assert_eq!(err, XmlError::Encoding("ISO-8859-1".to_owned()));
}

#[test]
fn references_and_cdata_are_text() {
    let e = Element::parse("<a b='&lt;&#x41;&quot;'>x &amp; <![CDATA[<y>]]>&#98;</a>").unwrap();
    assert_eq!(e.text(), "x & <y>b");
    assert_eq!(e.attr("b"), Some("<A\""));
    assert_eq!(e.nodes().len(), 1);
}

#[test]
fn line_ends_and_attribute_space_are_normalised_but_references_are_not() {
    let e = Element::parse("<a b='1\r\n2\t3&#10;&#9;'>x\r\ny\rz&#13;</a>").unwrap();
    assert_eq!(e.attr("b"), Some("1 2 3\n\t"));
    assert_eq!(e.text(), "x\ny\nz\r");
    assert_eq!(Element::parse(&e.to_string()).unwrap(), e);
}

#[test]
fn prints_as_libvirt_prints() {
    assert_eq!(print("<a b=\"1\"><c/><d>t</d></a>"), "<a b='1'>\n  <c/>\n  <d>t</d>\n</a>\n");
    assert_eq!(
        print("<a b=\"&lt;&gt;&amp;'&quot;\">&lt;&gt;&amp;'\"</a>"),
        "<a b='&lt;&gt;&amp;&apos;&quot;'>&lt;&gt;&amp;&apos;&quot;</a>\n"
    );
}

#[test]
fn control_characters_are_dropped_when_printed() {
    let e = Element::new("a").with_attr("b", "x\u{1}y").with_text("\u{7}z\u{1a}");
    assert_eq!(e.to_string(), "<a b='xy'>z</a>\n");
}

#[test]
fn order_of_attributes_and_namespaces_is_kept() {
    let text = "<a type='x' xmlns:q='u' id='1' q:z='2'/>\n";
    assert_eq!(print(text), text);
}

#[test]
fn comments_survive() {
    let text = "<a>\n  <!-- one -->\n  <b/>\n  <c>\n    <!-- two -->\n  </c>\n</a>\n";
    assert_eq!(print(text), text);
    let beside_text = "<a>x<!-- one -->y</a>\n";
    assert_eq!(print(beside_text), beside_text);
}

#[test]
fn white_space_is_kept_where_it_is_the_only_content() {
    let text = "<a>\n  <hyperv mode='passthrough'>\n  </hyperv>\n</a>\n";
    assert_eq!(print(text), text);
    assert_eq!(print("<a>\n\n<b/>  \n</a>"), "<a>\n  <b/>\n</a>\n");
}

#[test]
fn beside_text_no_layout_is_added() {
    let text = "<a>one <b>two</b> <c/> three</a>\n";
    assert_eq!(print(text), text);
}

#[test]
fn metadata_is_printed_as_libxml2_does() {
    let text = "<domain>\n  <metadata>\n    <x:y xmlns:x=\"u\" z=\"'&quot;\">it's \"&amp;\"</x:y>\n  \
                </metadata>\n  <b c='d'/>\n</domain>\n";
    assert_eq!(print(text), text);
}

#[test]
fn text_is_what_stands_directly_inside() {
    let e = Element::parse("<a>one<b>two</b>three</a>").unwrap();
    assert_eq!(e.text(), "onethree");
    assert_eq!(e.deep_text(), "onetwothree");
}

#[test]
fn namespaces_are_found_by_uri_whatever_the_prefix() {
    let e = Element::parse(
        "<domain xmlns:q='urn:q'><q:commandline><q:arg/></q:commandline>\
         <metadata><m xmlns='urn:m'><inner/></m><o xmlns:q='urn:other'><q:arg/></o></metadata>\
         <commandline/></domain>",
    )
    .unwrap();
    assert_eq!(e.find_ns("urn:q", "commandline").unwrap().name(), "q:commandline");
    assert_eq!(e.find_ns("urn:m", "inner").unwrap().name(), "inner");
    assert_eq!(e.find_ns("urn:other", "arg").unwrap().name(), "q:arg");
    assert_eq!(e.find_ns("urn:other", "commandline"), None);
    assert_eq!(e.find_ns("", "domain"), None);
}

#[test]
fn a_child_can_be_put_in_libvirts_order() {
    let mut e = Element::parse("<a><name/><memory/></a>").unwrap();
    e.insert_before(&["metadata", "memory"], Element::new("title"));
    e.replace_child(Element::new("name").with_text("n"));
    e.replace_child(Element::new("os"));
    let names: Vec<_> = e.elements().map(Element::name).collect();
    assert_eq!(names, ["name", "title", "memory", "os"]);
    assert_eq!(e.child_text("name").as_deref(), Some("n"));
    assert_eq!(e.take_child("os"), Some(Element::new("os")));
    assert_eq!(e.take_child("os"), None);
}

#[test]
fn what_libvirt_printed_is_printed_the_same() {
    for (name, text) in [
        ("live", include_str!("../../../fixtures/xml/domain-live.xml")),
        ("overlay", include_str!("../../../fixtures/xml/domain-live-overlay.xml")),
        ("reverted", include_str!("../../../fixtures/xml/snapshot-disk-only-reverted.xml")),
        ("memory", include_str!("../../../fixtures/xml/snapshot-external-memory.xml")),
    ] {
        assert_eq!(print(text), text, "{name}");
    }
}

/// Takes any document whose root has no text of its own.
#[derive(serde::Deserialize)]
struct Anything {}

#[test]
fn the_second_parser_reads_to_the_end() {
    for text in ["<a><b></c></a>", "<a><b/>&x;</a>", "<a><b c='<'/></a>", "<a><b/>", "<a>\u{1}</a>"]
    {
        assert!(serde_xml_rs::from_str::<Anything>(text).is_err(), "{text}");
    }
}

/// Any text an XML document can hold.
fn content() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![
            4 => proptest::char::range('a', 'z'),
            2 => proptest::sample::select(vec!['<', '>', '&', '\'', '"', ']', '\t', '\n', '\r', ' ']),
            1 => any::<char>().prop_filter("a character of XML", |c| print::is_char(*c)),
        ],
        1..12,
    )
    .prop_map(|chars| chars.into_iter().collect())
}

fn element() -> impl Strategy<Value = Element> {
    let name = || prop_oneof![9 => "[a-w][a-z0-9_.-]{0,5}", 1 => Just("metadata".to_owned())];
    let attributes = proptest::collection::btree_map("[a-w][a-z0-9_.-]{0,5}", content(), 0..4);
    let start = (name(), attributes).prop_map(|(name, attributes)| {
        attributes.into_iter().fold(Element::new(name), |e, (key, value)| e.with_attr(&key, value))
    });
    let leaf = (start, proptest::option::of(content()))
        .prop_map(|(e, text)| text.into_iter().fold(e, Element::with_text));
    leaf.prop_recursive(5, 40, 5, |inner| {
        let node = prop_oneof![
            3 => inner.clone().prop_map(Node::Element),
            1 => content().prop_map(Node::Text),
            1 => "[a-z <&]{0,6}".prop_map(Node::Comment),
        ];
        (inner, proptest::collection::vec(node, 0..5)).prop_map(|(mut e, nodes)| {
            e.nodes_mut().clear();
            for node in nodes {
                match (e.nodes_mut().last_mut(), node) {
                    // The parser joins texts that touch.
                    (Some(Node::Text(last)), Node::Text(text)) => last.push_str(&text),
                    (_, node) => e.nodes_mut().push(node),
                }
            }
            parse::drop_layout(&mut e);
            e
        })
    })
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(tree in element()) {
        let text = tree.to_string();
        prop_assert_eq!(Element::parse(&text).unwrap(), tree, "{}", text);
    }

    /// A second, unrelated parser, which checks well-formedness on its own.
    #[test]
    fn what_is_printed_is_well_formed_to_others(tree in element()) {
        let text = tree.to_string();
        let read: Result<Anything, _> = serde_xml_rs::from_str(&text);
        prop_assert!(read.is_ok(), "{}: {:?}", text, read.err());
    }

    #[test]
    fn no_input_makes_the_reader_panic(text in "(<|>|/|!|--|\\[CDATA\\[|\\]\\]>|&|;|#|x|a|=|'|\"|:|xmlns|\\?|xml|DOCTYPE| |\n|é){0,40}") {
        if let Ok(tree) = Element::parse(&text) {
            prop_assert_eq!(Element::parse(&tree.to_string()).unwrap(), tree);
        }
    }
}
