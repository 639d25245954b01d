//! `docs/feature-table.md` is what `fixtures/features.txt` says, and of Xen `features-xen.txt`; every
//! feature that was asked for is in it, and every test that it names is in the tree.
//! `UPDATE_EXPECT=1` writes the document anew.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use regex::Regex;
use virtsnap_tests::host::root;
use virtsnap_tests::matrix;

/// The prefix of an id, from which number to which, and what the group is.
type Group = (&'static str, &'static [(u32, u32)], &'static str);
const GROUPS: [Group; 16] = [
    ("S2", &[(1, 78)], "RFC v2 of the snapshot API (2011)"),
    ("S0", &[(1, 17)], "xl domain snapshots, overview (2014)"),
    ("S1", &[(1, 20)], "Xen VM snapshots, RFC v2 (2014)"),
    ("S3", &[(1, 8)], "snapshot API, v3 (2010)"),
    ("S4", &[(1, 13)], "snapshot API (2010)"),
    ("L1", &[(1, 10)], "calls"),
    ("L2", &[(1, 10)], "flags of create"),
    ("L3", &[(1, 11)], "flags of revert, delete, list and XML"),
    ("L4", &[(1, 14)], "XML elements"),
    ("L5", &[(1, 13)], "behaviour around snapshots"),
    ("R", &[(1, 35), (40, 47), (50, 62)], "what libvirt 11.3's QEMU driver refuses"),
    ("H", &[(1, 15)], "hazards in libvirt 11.3"),
    ("U", &[(1, 46)], "what users ask for"),
    ("C", &[(1, 26)], "what comparable systems have"),
    ("K", &[(1, 19)], "consumers"),
    ("A", &[(1, 11)], "acceptance matrix"),
];

/// Where tests run a real QEMU, or the daemon with real clients.
const REAL: [&str; 5] =
    ["tests/tests/", "driver/qemu/", "driver/daemon/", "driver/store/", "driver/rpc/"];

/// Where tests run a real Xen, or no hypervisor has a part in what is tested.
const REAL_XEN: [&str; 4] = ["tests/tests/xen/", "driver/xen/", "driver/daemon/", "driver/store/"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Yes,
    Simulated,
    Differs,
    No,
    Other,
    /// On Xen: nobody has tried.
    Unshown,
}

impl State {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "yes" => Self::Yes,
            "simulated" => Self::Simulated,
            "differs" => Self::Differs,
            "no" => Self::No,
            "other" | "n.a." => Self::Other,
            _ => return None,
        })
    }

    fn shown(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Simulated => "yes, *simulated*",
            Self::Differs => "differs",
            Self::No => "no",
            Self::Other => "does not concern QEMU",
            Self::Unshown => "not shown",
        }
    }

    fn shown_of_xen(self) -> &'static str {
        if self == Self::Other { "n.a." } else { self.shown() }
    }
}

/// How a feature stands on Xen.
#[derive(Debug, Clone)]
struct OnXen {
    state: State,
    tests: Vec<String>,
    note: String,
}

#[derive(Debug)]
struct Row {
    id: String,
    state: State,
    what: String,
    tests: Vec<String>,
    note: String,
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("fixtures/features.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let row = |line: &str| {
        let mut parts = line.split(" |").map(|part| part.trim().to_owned());
        let mut next = || parts.next().unwrap_or_default();
        let (id, state, what, tests, note) = (next(), next(), next(), next(), next());
        let state = State::parse(&state).unwrap_or_else(|| panic!("{line}: what is '{state}'?"));
        assert!(!what.is_empty(), "{line}: what is it?");
        let tests = tests.split_whitespace().map(str::to_owned).collect();
        Row { id, state, what, tests, note }
    };
    lines.map(row).collect()
}

/// Of each id that is listed.
fn listed_on_xen() -> BTreeMap<String, OnXen> {
    let text = std::fs::read_to_string(root().join("fixtures/features-xen.txt")).unwrap();
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut parts = line.split(" |").map(str::trim);
        let mut next = || parts.next().unwrap_or_default();
        let (ids, state, tests, note) = (next(), next(), next(), next());
        let state = State::parse(state).unwrap_or_else(|| panic!("{line}: what is '{state}'?"));
        let tests = tests.split_whitespace().map(str::to_owned).collect();
        let stands = OnXen { state, tests, note: note.to_owned() };
        for id in ids.split_whitespace() {
            let twice = found.insert(id.to_owned(), stands.clone());
            assert!(twice.is_none(), "{id} is there twice");
        }
    }
    found
}

/// What is not listed is as for QEMU where that is not done or not meant, and else not shown.
fn on_xen(row: &Row, listed: &BTreeMap<String, OnXen>) -> OnXen {
    listed.get(&row.id).cloned().unwrap_or_else(|| {
        let state = match row.state {
            State::No | State::Other => row.state,
            _ => State::Unshown,
        };
        OnXen { state, tests: Vec::new(), note: String::new() }
    })
}

/// Name of each test → files that have one of that name.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let test = Regex::new(r"#\[(?:tokio::)?test[^\n]*\n(?:\s*#\[[^\n]*\n)*\s*(?:async )?fn (\w+)");
    let test = test.unwrap();
    let listed_test = Regex::new(r#"(?m)^    (\w+): ""#).unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in listed.lines().filter(|file| Path::new(&root().join(file)).is_file()) {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        // A macro that makes tests of a list of names.
        let made = if text.contains("fn $test()") { &listed_test } else { &test };
        for name in test.captures_iter(&text).chain(made.captures_iter(&text)) {
            found.entry(name[1].to_owned()).or_default().insert(file.to_owned());
        }
    }
    found
}

#[test]
fn every_feature_is_in_the_table_once() {
    let mut expected = BTreeSet::new();
    for (prefix, ranges, _) in GROUPS {
        for (from, to) in ranges {
            expected.extend((*from..=*to).map(|n| format!("{prefix}-{n:02}")));
        }
    }
    let rows = rows();
    let found: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    assert_eq!(found.len(), rows.len(), "an id is there twice");
    let missing: Vec<_> = expected.symmetric_difference(&found).collect();
    assert!(missing.is_empty(), "missing, or not asked for: {missing:?}");
}

#[test]
fn every_test_that_is_named_is_there() {
    let tests = tests();
    let mut wrong = Vec::new();
    for row in rows() {
        let files = |name: &String| tests.get(name);
        let lost = row.tests.iter().filter(|name| files(name).is_none());
        wrong.extend(lost.map(|name| format!("{}: no test {name}", row.id)));
        let mut all = row.tests.iter().filter_map(files).flatten();
        let is_real = all.any(|file| REAL.iter().any(|place| file.starts_with(place)));
        match row.state {
            State::Yes if !is_real => wrong.push(format!("{}: yes, but simulated", row.id)),
            State::Simulated if row.tests.is_empty() => {
                wrong.push(format!("{}: who says?", row.id))
            }
            State::Differs if row.note.is_empty() && row.tests.is_empty() => {
                wrong.push(format!("{}: differs how?", row.id));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_test_that_is_named_of_xen_is_there() {
    let (tests, rows) = (tests(), rows());
    let mut wrong = Vec::new();
    for (id, stands) in listed_on_xen() {
        if !rows.iter().any(|row| row.id == id) {
            wrong.push(format!("{id}: nobody asked for it"));
        }
        let lost = stands.tests.iter().filter(|name| !tests.contains_key(*name));
        wrong.extend(lost.map(|name| format!("{id}: no test {name}")));
        let mut all = stands.tests.iter().filter_map(|name| tests.get(name)).flatten();
        let is_real = all.any(|file| REAL_XEN.iter().any(|place| file.starts_with(place)));
        match stands.state {
            State::Yes if !is_real => wrong.push(format!("{id}: yes, but not on Xen")),
            State::Simulated if stands.tests.is_empty() => wrong.push(format!("{id}: who says?")),
            State::Differs if stands.note.is_empty() => wrong.push(format!("{id}: differs how?")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Names of tests there have two underscores at least, and are in backquotes.
#[test]
fn every_test_that_the_security_page_names_is_there() {
    let page = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let name = Regex::new(r"`([a-z0-9]+(?:_[a-z0-9]+){2,})`").unwrap();
    let tests = tests();
    let names: BTreeSet<_> = name.captures_iter(&page).map(|found| found[1].to_owned()).collect();
    assert!(names.len() > 30, "only {} tests are named", names.len());
    let own = ["no_new_privs", "like_this_one"];
    let lost: Vec<_> = names
        .iter()
        .filter(|name| !own.contains(&name.as_str()) && !tests.contains_key(*name))
        .collect();
    assert!(lost.is_empty(), "docs/security.md names tests that are not there: {lost:?}");
}

#[test]
fn the_document_is_what_the_data_says() {
    let path = root().join("docs/feature-table.md");
    let expected = document();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "run UPDATE_EXPECT=1 cargo test -p virtsnap-tests --test table");
}

fn document() -> String {
    let (rows, tests, xen) = (rows(), tests(), listed_on_xen());
    let mut text = String::from(
        "# Feature table\n\n\
         Every feature that was asked for, and how it stands. Made from `fixtures/features.txt` and\n\
         `fixtures/features-xen.txt` by a test, which fails when a test named here is not in the tree.\n\n\
         *yes*: a test on real QEMU shows it, and reads content back where there is any; what only\n\
         the simulated hypervisor or the planner's tests show says *simulated*. *differs*: done in\n\
         another way, or in part. *no*: not done.\n\n\
         On Xen *yes* means a test on a real Xen host (`make test-xen-all`), or one of the daemon or the\n\
         store where only files have a part in it, and *not shown* that the code is the same as for\n\
         QEMU and nobody has tried it there.\n",
    );
    text += "\n| group | yes | simulated | differs | no | not QEMU | on Xen: yes | simulated | \
        differs | no | n.a. | not shown |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    let of = |prefix: &str| {
        let prefix = format!("{prefix}-");
        rows.iter().filter(move |row| row.id.starts_with(&prefix)).collect::<Vec<_>>()
    };
    let states = [State::Yes, State::Simulated, State::Differs, State::No, State::Other];
    for (prefix, _, title) in GROUPS {
        let of_qemu = |state| of(prefix).iter().filter(|row| row.state == state).count();
        let of_xen =
            |state| of(prefix).iter().filter(|row| on_xen(row, &xen).state == state).count();
        let counts = states.map(of_qemu).into_iter().chain(states.map(of_xen));
        let counts: Vec<_> =
            counts.chain([of_xen(State::Unshown)]).map(|count| count.to_string()).collect();
        writeln!(text, "| {prefix}: {title} | {} |", counts.join(" | ")).unwrap();
    }
    text += &of_the_matrix();
    for (prefix, _, title) in GROUPS {
        writeln!(
            text,
            "\n## {prefix}: {title}\n\n| id | feature | state | tests | on Xen |\n|---|---|---|---|---|"
        )
        .unwrap();
        for row in of(prefix) {
            let stands = on_xen(row, &xen);
            writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                row.id,
                row.what.replace('<', "&lt;"),
                told(row.state.shown(), &row.note),
                shown(&row.tests, &tests, &REAL),
                of_xen(&stands, &tests)
            )
            .unwrap();
        }
    }
    text
}

fn of_the_matrix() -> String {
    let mut text = String::from(
        "\n## The matrix\n\n\
        Domain state × memory × kinds of two disks × storage of the first × flags: in each cell a\n\
        snapshot is taken, the disks are written to, it is reverted to and deleted, on a real daemon\n\
        and QEMU, and patterns are read from the disks each time. `make matrix` runs all of it,\n\
        `make test` a sample. Each cell does what its rule (`tests/src/matrix.rs`) says:\n\n\
        | storage, state | cells | taken, reverted to, deleted | refused, with its code |\n\
        |---|---|---|---|\n",
    );
    for (group, taken, refused) in matrix::counts() {
        writeln!(text, "| {group} | {} | {taken} | {refused} |", taken + refused).unwrap();
    }
    text
}

fn told(state: &str, note: &str) -> String {
    let colon = if note.is_empty() { "" } else { ": " };
    format!("{state}{colon}{}", note.replace('<', "&lt;"))
}

fn of_xen(stands: &OnXen, tests: &BTreeMap<String, BTreeSet<String>>) -> String {
    let told = told(stands.state.shown_of_xen(), &stands.note);
    let named = shown(&stands.tests, tests, &REAL_XEN);
    if named.is_empty() { told } else { format!("{told}; {named}") }
}

/// Tests with the file of each; of several the one in such a place.
fn shown(names: &[String], tests: &BTreeMap<String, BTreeSet<String>>, places: &[&str]) -> String {
    let shown = names.iter().map(|name| {
        let files = tests.get(name);
        let is_there = |file: &&String| places.iter().any(|place| file.starts_with(place));
        let file = files.and_then(|files| {
            let there = files.iter().rfind(is_there);
            there.or_else(|| files.iter().next_back())
        });
        let file = file.map_or("?", |file| file.trim_end_matches(".rs"));
        format!("`{}` {name}", file.rsplit('/').next().unwrap_or(file))
    });
    shown.collect::<Vec<_>>().join(", ")
}
