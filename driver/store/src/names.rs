//! From a snapshot's name to the name of its file.
//!
//! A name may hold any character; a file name may not be longer than 255 bytes. What is not plain
//! is written as `%` and two hexadecimal digits for each byte; where that becomes too long, the
//! file is named by the beginning and, after `%~`, a hash of the whole. Nothing reads the way
//! back: the name inside the file decides.

use crate::checksum;

/// With this a file's name, the extension and all, stays below 255 bytes.
const LONGEST: usize = 200;
/// How much of a long name is kept for people.
const BEGINNING: usize = 150;

pub(crate) fn file_name(name: &str) -> String {
    let escaped = escape(name);
    if escaped.len() <= LONGEST {
        return format!("{escaped}.xml");
    }
    let mut kept = String::new();
    for c in name.chars() {
        let next = escape_char(c, kept.is_empty());
        if kept.len() + next.len() > BEGINNING {
            break;
        }
        kept.push_str(&next);
    }
    format!("{kept}%~{:016x}.xml", checksum(name.as_bytes()))
}

fn escape(name: &str) -> String {
    name.char_indices().map(|(at, c)| escape_char(c, at == 0)).collect()
}

fn escape_char(c: char, first: bool) -> String {
    let plain = c.is_alphanumeric() || matches!(c, '-' | '_' | ' ' | '+' | '=' | '@' | ',' | ':');
    if plain || (c == '.' && !first) {
        return c.to_string();
    }
    let mut bytes = [0; 4];
    c.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_are_the_files_names() {
        assert_eq!(file_name("before update 2.1"), "before update 2.1.xml");
        assert_eq!(file_name("caf\u{e9}"), "caf\u{e9}.xml");
    }

    #[test]
    fn what_is_not_plain_is_escaped() {
        assert_eq!(file_name(".hidden"), "%2Ehidden.xml");
        assert_eq!(file_name("../a"), "%2E.%2Fa.xml");
        assert_eq!(file_name("50%"), "50%25.xml");
        assert_eq!(file_name("a\nb"), "a%0Ab.xml");
        assert_eq!(file_name("\u{2603}"), "%E2%98%83.xml");
        assert_eq!(file_name(""), ".xml");
    }

    #[test]
    fn long_names_are_told_apart_by_their_hash() {
        let long = "x".repeat(255);
        let names = [long.clone(), format!("{long}y"), "\u{2603}".repeat(255), "/".repeat(4096)];
        let files: BTreeSet<_> = names.iter().map(|name| file_name(name)).collect();
        assert_eq!(files.len(), names.len());
        assert!(files.iter().all(|file| file.len() < 240 && file.contains("%~")), "{files:?}");
    }

    proptest! {
        #[test]
        fn every_name_is_one_component_of_its_own(a in "\\PC{1,90}", b in "\\PC{1,90}") {
            let file = file_name(&a);
            prop_assert!(file.len() <= 250 && !file.contains('/') && !file.starts_with('.'));
            prop_assert_eq!(a == b, file == file_name(&b));
        }
    }
}
