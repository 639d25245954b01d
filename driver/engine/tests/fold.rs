//! Recovery is a pure fold over the journal: what it says of any beginning of any journal.
//!
//! A journal that an executor wrote is made here by a model of it: which steps there are, where it
//! failed, which entries it could not write (those after an act may be lost: a full disk, a torn
//! tail), where it died, and what further recoveries added. The model knows what really happened;
//! the fold must never undo what took effect, never complete what did not, and forget no step.

use std::collections::BTreeSet;

use proptest::prelude::*;
use virtsnap_engine::ports::Entry;
use virtsnap_engine::recover::{Verdict, verdict};

/// One life of an operation.
#[derive(Debug, Clone)]
struct Life {
    prepare: usize,
    finish: usize,
    conclude: usize,
    /// The pivot is an act of the hypervisor; if not, its entry is the act.
    acts: bool,
    /// The step of `prepare` that fails.
    fails: Option<usize>,
    /// The pivot is refused.
    refused: bool,
    /// Whether each entry that may be lost is, and each undo that may fail does, in turn.
    luck: Vec<bool>,
}

/// What really happened, beside the journal as far as it was written.
#[derive(Debug, Clone, Default)]
struct Truth {
    journal: Vec<Entry>,
    /// Steps of `prepare` that may have an effect.
    acted: BTreeSet<usize>,
    took_effect: bool,
    finished: BTreeSet<usize>,
    up: BTreeSet<usize>,
}

/// The truth after each single thing that happens, from the first on.
fn history(life: &Life) -> Vec<Truth> {
    let mut luck = life.luck.iter().copied().cycle();
    let mut is_lucky = move || luck.next().unwrap_or(true);
    let mut now = Truth::default();
    let mut all = vec![now.clone()];
    let mut step = |now: &mut Truth, change: &dyn Fn(&mut Truth)| {
        change(now);
        all.push(now.clone());
    };
    let mut goes_back = false;
    for n in 0..life.prepare {
        step(&mut now, &|now| now.journal.push(Entry::Acting(n)));
        // Also one that fails may have left something.
        step(&mut now, &|now| _ = now.acted.insert(n));
        if life.fails == Some(n) {
            goes_back = true;
            break;
        }
    }
    if !goes_back && life.acts {
        step(&mut now, &|now| now.journal.push(Entry::Pivoting));
        if life.refused {
            goes_back = true;
        } else {
            step(&mut now, &|now| now.took_effect = true);
        }
    }
    if goes_back {
        for n in (0..life.prepare).rev() {
            if !is_lucky() {
                continue;
            }
            step(&mut now, &|now| _ = now.acted.remove(&n));
            if is_lucky() {
                step(&mut now, &|now| now.journal.push(Entry::Undone(n)));
            }
        }
        return all;
    }
    if !life.acts {
        step(&mut now, &|now| {
            now.journal.push(Entry::Pivoted);
            now.took_effect = true;
        });
    } else if is_lucky() {
        step(&mut now, &|now| now.journal.push(Entry::Pivoted));
    }
    for n in 0..life.finish {
        step(&mut now, &|now| _ = now.finished.insert(n));
        if is_lucky() {
            step(&mut now, &|now| now.journal.push(Entry::Finished(n)));
        }
    }
    for n in 0..life.conclude {
        step(&mut now, &|now| _ = now.up.insert(n));
        if is_lucky() {
            step(&mut now, &|now| now.journal.push(Entry::Up(n)));
        }
    }
    all
}

fn lives() -> impl Strategy<Value = Life> {
    let shape = (0usize..6, 0usize..6, 0usize..2, any::<bool>());
    let fate = (proptest::option::of(0usize..6), any::<bool>());
    (shape, fate, prop::collection::vec(prop::bool::weighted(0.8), 1..24)).prop_map(
        |((prepare, finish, conclude, acts), (fails, refused), luck)| Life {
            prepare,
            finish,
            conclude,
            acts,
            fails,
            refused,
            luck,
        },
    )
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let n = 0usize..1000;
    prop_oneof![
        n.clone().prop_map(Entry::Acting),
        n.clone().prop_map(Entry::Undone),
        Just(Entry::Pivoting),
        Just(Entry::Pivoted),
        n.clone().prop_map(Entry::Finished),
        n.prop_map(Entry::Up),
    ]
}

fn check(truth: &Truth) -> Result<(), TestCaseError> {
    match verdict(&truth.journal) {
        Verdict::Unwind(steps) => {
            prop_assert!(!truth.took_effect, "undoes what took effect");
            prop_assert!(steps.is_superset(&truth.acted), "forgets a step: {steps:?}");
        }
        // Whatever the answer is, it finds the steps to undo.
        Verdict::Ask(steps) => {
            prop_assert!(steps.is_superset(&truth.acted), "forgets a step: {steps:?}");
            prop_assert!(truth.finished.is_empty() || !truth.journal.contains(&Entry::Pivoted));
        }
        Verdict::Complete { finished, up } => {
            prop_assert!(truth.took_effect, "completes what did not take effect");
            prop_assert!(truth.finished.is_superset(&finished), "skips what was not done");
            prop_assert!(truth.up.is_superset(&up), "takes for up what was never started");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The daemon may die between any two things that happen.
    #[test]
    fn the_fold_is_right_at_every_point_of_every_life(life in lives()) {
        for truth in history(&life) {
            check(&truth)?;
        }
    }

    /// Torn off: what the last entry announced did not happen, what it reported is found out.
    #[test]
    fn without_its_last_entry_it_is_right_as_well(life in lives()) {
        for truth in history(&life) {
            let Some((last, before)) = truth.journal.split_last() else { continue };
            let acted = match last {
                // Not durable, not acted.
                Entry::Acting(n) => truth.acted.iter().copied().filter(|step| step != n).collect(),
                _ => truth.acted.clone(),
            };
            let is_act = *last == Entry::Pivoting || (!life.acts && *last == Entry::Pivoted);
            let took_effect = truth.took_effect && !is_act;
            let finished = if took_effect { truth.finished.clone() } else { BTreeSet::new() };
            let up = if took_effect { truth.up.clone() } else { BTreeSet::new() };
            check(&Truth { journal: before.to_vec(), acted, took_effect, finished, up })?;
        }
    }

    /// What recovery adds to the journal, it and the next one understand: it comes to an end.
    #[test]
    fn recoveries_that_die_come_to_an_end(life in lives(), cut in 0usize..60, answer in any::<bool>()) {
        let all = history(&life);
        let mut journal = all[cut.min(all.len() - 1)].journal.clone();
        for _ in 0..60 {
            let next = match verdict(&journal) {
                Verdict::Unwind(steps) => steps.last().map(|n| Entry::Undone(*n)),
                Verdict::Ask(_) if answer => Some(Entry::Pivoted),
                Verdict::Ask(steps) => match steps.last() {
                    Some(n) => Some(Entry::Undone(*n)),
                    None => break,
                },
                Verdict::Complete { finished, up } => {
                    let left = (0..life.finish).find(|n| !finished.contains(n)).map(Entry::Finished);
                    left.or((0..life.conclude).find(|n| !up.contains(n)).map(Entry::Up))
                }
            };
            // One entry, and it dies: each recovery goes on where the last one ended.
            match next {
                Some(entry) => journal.push(entry),
                None => return Ok(()),
            }
        }
        let ends = matches!(verdict(&journal), Verdict::Ask(steps) if steps.is_empty());
        prop_assert!(ends, "{journal:?}");
    }

    /// Of any entries at all: it never panics, and depends on nothing but them.
    #[test]
    fn anything_is_folded(entries in prop::collection::vec(any_entry(), 0..40)) {
        let first = verdict(&entries);
        prop_assert_eq!(&first, &verdict(&entries));
        let shows = entries.iter().any(|entry| {
            matches!(entry, Entry::Pivoted | Entry::Finished(_) | Entry::Up(_))
        });
        prop_assert_eq!(shows, matches!(first, Verdict::Complete { .. }));
    }
}
