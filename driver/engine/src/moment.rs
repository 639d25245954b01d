//! The tree of snapshots of one domain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use virtsnap_xml::snapshot::{Definition, State};

use crate::error::{Condition, Error, Result};
use crate::options::{ListFilter, ListRoot};
use crate::plan::MomentChange;

/// All moments of one domain, and which of them is current.
///
/// Invariants, kept by every method:
///
/// 1. every `parent` names a moment in the list (roots have none);
/// 2. following parents always ends: there are no cycles;
/// 3. `current`, if any, is in the list.
///
/// Children are computed, not stored, so there is no second copy of the relation to fall out of
/// step with the first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MomentList {
    /// Shared, since each call has a copy of the list and changes few of them.
    moments: BTreeMap<String, Arc<Definition>>,
    current: Option<String>,
}

impl MomentList {
    /// Takes what a store read. A parent that is not there makes its children roots, and so does
    /// a cycle: what is left of a damaged tree stays reachable.
    pub fn load(definitions: Vec<Definition>, current: Option<String>) -> Self {
        let moments =
            definitions.into_iter().map(|def| (def.name.clone(), Arc::new(def))).collect();
        let mut list = Self { moments, current };
        list.repair();
        list
    }

    pub fn get(&self, name: &str) -> Option<&Definition> {
        self.moments.get(name).map(Arc::as_ref)
    }

    /// # Errors
    /// `NoSnapshot` when there is none of that name.
    pub fn expect(&self, name: &str) -> Result<&Definition> {
        self.get(name).ok_or_else(|| {
            Error::new(
                Condition::NoSnapshot,
                format!("no domain snapshot with matching name '{name}'"),
            )
        })
    }

    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    pub fn len(&self) -> usize {
        self.moments.len()
    }

    pub fn is_empty(&self) -> bool {
        self.moments.is_empty()
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = &Definition> {
        self.moments.values().map(Arc::as_ref)
    }

    pub fn children<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Definition> {
        self.iter().filter(move |def| def.parent.as_deref() == Some(name))
    }

    pub fn roots(&self) -> impl Iterator<Item = &Definition> {
        self.iter().filter(|def| def.parent.is_none())
    }

    /// Below `name`, parents before children.
    pub fn descendants(&self, name: &str) -> Vec<&Definition> {
        self.below(self.children(name).collect())
    }

    /// Every moment, parents before children.
    pub fn topological(&self) -> Vec<&Definition> {
        self.below(self.roots().collect())
    }

    /// virDomainListAllSnapshots and virDomainSnapshotListAllChildren. Always topological, which
    /// is one of the orders a client must expect.
    ///
    /// # Errors
    /// `NoSnapshot` when the root of the list is not there.
    pub fn list(&self, root: ListRoot<'_>, filter: ListFilter) -> Result<Vec<&Definition>> {
        let mut found = match root {
            ListRoot::All => self.topological(),
            ListRoot::Roots => self.roots().collect(),
            ListRoot::ChildrenOf(name) => {
                self.expect(name)?;
                self.children(name).collect()
            }
            ListRoot::DescendantsOf(name) => {
                self.expect(name)?;
                self.descendants(name)
            }
        };
        found.retain(|def| self.matches(def, filter));
        Ok(found)
    }

    /// Applies a change that is durable already.
    pub fn apply(&mut self, change: &MomentChange) {
        for name in &change.forget {
            self.moments.remove(name);
        }
        for def in &change.write {
            self.moments.insert(def.name.clone(), Arc::new(def.clone()));
        }
        self.current.clone_from(&change.current);
        self.repair();
    }

    /// Would making `parent` the parent of `name` close a circle?
    pub fn would_cycle(&self, name: &str, parent: &str) -> bool {
        let mut at = Some(parent);
        while let Some(moment) = at {
            if moment == name {
                return true;
            }
            at = self.get(moment).and_then(|def| def.parent.as_deref());
        }
        false
    }

    fn below<'a>(&'a self, start: Vec<&'a Definition>) -> Vec<&'a Definition> {
        let mut children: BTreeMap<&str, Vec<&Definition>> = BTreeMap::new();
        for def in self.iter() {
            if let Some(parent) = &def.parent {
                children.entry(parent).or_default().push(def);
            }
        }
        let mut found = Vec::new();
        let mut open: Vec<&Definition> = start.into_iter().rev().collect();
        while let Some(def) = open.pop() {
            found.push(def);
            if let Some(below) = children.get(def.name.as_str()) {
                open.extend(below.iter().rev());
            }
        }
        found
    }

    fn matches(&self, def: &Definition, filter: ListFilter) -> bool {
        use ListFilter as F;
        let group = |group: F, bit: F| !filter.intersects(group) || filter.contains(bit);

        // As libvirt, where nothing is both a leaf and none.
        let is_leaf = self.children(&def.name).next().is_none();
        let leaf = !filter.contains(if is_leaf { F::NO_LEAVES } else { F::LEAVES });
        let kind = match def.state {
            State::ShutOff => F::INACTIVE,
            State::DiskSnapshot => F::DISK_ONLY,
            _ => F::ACTIVE,
        };
        let location = if def.is_external() { F::EXTERNAL } else { F::INTERNAL };

        leaf && group(F::METADATA | F::NO_METADATA, F::METADATA)
            && group(F::INACTIVE | F::ACTIVE | F::DISK_ONLY, kind)
            && group(F::INTERNAL | F::EXTERNAL, location)
    }

    fn repair(&mut self) {
        let names: BTreeSet<String> = self.moments.keys().cloned().collect();
        for def in self.moments.values_mut() {
            if def.parent.as_ref().is_some_and(|parent| !names.contains(parent)) {
                Arc::make_mut(def).parent = None;
            }
        }
        for name in &names {
            let looped = self
                .get(name)
                .and_then(|def| def.parent.as_deref())
                .is_some_and(|parent| self.reaches(parent, name));
            if looped && let Some(def) = self.moments.get_mut(name) {
                Arc::make_mut(def).parent = None;
            }
        }
        if self.current.as_ref().is_some_and(|current| !names.contains(current)) {
            self.current = None;
        }
    }

    /// Does following parents from `from` come to `to`? Ends even in a damaged tree.
    fn reaches(&self, from: &str, to: &str) -> bool {
        let mut at = Some(from);
        for _ in 0..=self.moments.len() {
            match at {
                Some(name) if name == to => return true,
                Some(name) => at = self.get(name).and_then(|def| def.parent.as_deref()),
                None => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(name: &str, parent: Option<&str>) -> Definition {
        let parent = parent.map(str::to_owned);
        Definition { parent, ..Definition::new(name, State::ShutOff, 0) }
    }

    fn names(found: &[&Definition]) -> Vec<String> {
        found.iter().map(|def| def.name.clone()).collect()
    }

    #[test]
    fn a_list_is_topological_and_filters_by_group() {
        let list = MomentList::load(
            vec![moment("z", None), moment("b", Some("z")), moment("a", Some("b"))],
            Some("a".to_owned()),
        );
        let all = list.list(ListRoot::All, ListFilter::empty()).unwrap();
        assert_eq!(names(&all), ["z", "b", "a"]);
        let leaves = list.list(ListRoot::All, ListFilter::LEAVES).unwrap();
        assert_eq!(names(&leaves), ["a"]);
        let both = ListFilter::LEAVES | ListFilter::NO_LEAVES;
        assert!(list.list(ListRoot::All, both).unwrap().is_empty());
        assert!(list.list(ListRoot::All, ListFilter::NO_METADATA).unwrap().is_empty());
        assert!(list.list(ListRoot::All, ListFilter::ACTIVE).unwrap().is_empty());
        assert_eq!(names(&list.list(ListRoot::Roots, ListFilter::empty()).unwrap()), ["z"]);
        let below = list.list(ListRoot::DescendantsOf("z"), ListFilter::empty()).unwrap();
        assert_eq!(names(&below), ["b", "a"]);
    }

    #[test]
    fn an_unknown_root_is_no_snapshot() {
        let err = MomentList::default()
            .list(ListRoot::ChildrenOf("nope"), ListFilter::empty())
            .unwrap_err();
        assert_eq!(err.condition, Condition::NoSnapshot);
    }

    proptest! {
        /// Whatever files a store holds, the list keeps its invariants and loses no moment.
        #[test]
        fn a_damaged_tree_stays_reachable(
            parents in prop::collection::vec(prop::option::of(0usize..12), 1..10),
            current in 0usize..12,
        ) {
            let definitions = parents
                .iter()
                .enumerate()
                .map(|(n, parent)| {
                    moment(&n.to_string(), parent.map(|p| p.to_string()).as_deref())
                })
                .collect();
            let list = MomentList::load(definitions, Some(current.to_string()));
            prop_assert_eq!(list.topological().len(), parents.len());
            if let Some(current) = list.current() {
                prop_assert!(list.get(current).is_some());
            }
        }
    }
}
