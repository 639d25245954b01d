//! The block graph as QEMU has it: who stands on whom, right now.
//!
//! Source: `x-debug-query-block-graph` (QEMU 3.1 and later), the only command that tells edges by
//! node name; file names in other answers are QEMU's rendering, and headers tell of the next start.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::qmp::{Qmp, QmpError};

/// More than any chain is deep, filters and all.
pub const MAX_STEPS: usize = 1000;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    nodes: BTreeMap<u64, Node>,
    /// Parent → name of the edge, child.
    edges: BTreeMap<u64, Vec<(String, u64)>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    name: String,
    /// The end that a guest's device holds; a job's own has no name.
    is_device: bool,
}

impl Graph {
    pub async fn query(qmp: &Qmp) -> Result<Self, QmpError> {
        let answer = qmp.execute("x-debug-query-block-graph", Value::Null).await?;
        Self::parse(&answer)
            .ok_or_else(|| QmpError::Protocol("an unknown form of block graph".to_owned()))
    }

    pub fn parse(answer: &Value) -> Option<Self> {
        let mut graph = Self::default();
        for node in answer.get("nodes")?.as_array()? {
            let name = node.get("name")?.as_str()?.to_owned();
            let is_device = node.get("type")?.as_str()? == "block-backend" && !name.is_empty();
            graph.nodes.insert(node.get("id")?.as_u64()?, Node { name, is_device });
        }
        for edge in answer.get("edges")?.as_array()? {
            let child = edge.get("child")?.as_u64()?;
            let name = edge.get("name")?.as_str()?.to_owned();
            graph.edges.entry(edge.get("parent")?.as_u64()?).or_default().push((name, child));
        }
        Some(graph)
    }

    pub fn names(&self) -> BTreeSet<String> {
        self.nodes.values().map(|node| node.name.clone()).collect()
    }

    /// Of the nodes in `known`, the chain that a device stands on, topmost first; filters between
    /// them are passed over. None where no device stands on any of them.
    pub fn chain(&self, known: &BTreeSet<String>) -> Option<Vec<String>> {
        self.chains(known).into_iter().next().map(|(_, chain)| chain)
    }

    /// The same of every device that stands on any of them, with the device's name.
    pub fn chains(&self, known: &BTreeSet<String>) -> Vec<(String, Vec<String>)> {
        let devices = self.nodes.iter().filter(|(_, node)| node.is_device);
        let chain = |(id, node): (&u64, &Node)| {
            let top = self.next(*id, known)?;
            Some((node.name.clone(), self.names_from(top, known)))
        };
        devices.filter_map(chain).collect()
    }

    /// What is under the node on that edge (`file`, `backing`).
    pub fn below(&self, node: &str, edge: &str) -> Option<&str> {
        let (id, _) = self.nodes.iter().find(|(_, found)| found.name == node)?;
        Some(self.nodes.get(&self.child(*id, &[edge])?)?.name.as_str())
    }

    fn names_from(&self, top: u64, known: &BTreeSet<String>) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some((at, node)) = next.and_then(|at| Some((at, self.nodes.get(&at)?)))
            && chain.len() < MAX_STEPS
        {
            chain.push(node.name.clone());
            next = self.child(at, &["backing"]).and_then(|below| self.down_to(below, known));
        }
        chain
    }

    fn next(&self, device: u64, known: &BTreeSet<String>) -> Option<u64> {
        self.down_to(self.child(device, &["root"])?, known)
    }

    /// `at`, or the first known node below it.
    fn down_to(&self, mut at: u64, known: &BTreeSet<String>) -> Option<u64> {
        for _ in 0..MAX_STEPS {
            if known.contains(&self.nodes.get(&at)?.name) {
                return Some(at);
            }
            at = self.child(at, &["backing", "file"])?;
        }
        None
    }

    fn child(&self, parent: u64, edges: &[&str]) -> Option<u64> {
        let all = self.edges.get(&parent)?;
        edges.iter().find_map(|edge| all.iter().find(|(name, _)| name == edge).map(|(_, id)| *id))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn graph(nodes: &[(u64, &str, &str)], edges: &[(u64, &str, u64)]) -> Graph {
        let nodes: Vec<_> =
            nodes.iter().map(|(id, t, n)| json!({"id": id, "type": t, "name": n})).collect();
        let edges: Vec<_> = edges
            .iter()
            .map(|(p, n, c)| json!({"parent": p, "name": n, "child": c, "perm": []}))
            .collect();
        Graph::parse(&json!({"nodes": nodes, "edges": edges})).unwrap()
    }

    fn chain(graph: &Graph, known: &[&str]) -> Option<Vec<String>> {
        graph.chain(&known.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn filters_and_the_ends_of_jobs_are_passed_over() {
        // A device on a filter on f2 on a filter on f1; a job holds f1 by an end without a name.
        let graph = graph(
            &[
                (1, "block-backend", "/machine/peripheral/d/virtio-backend"),
                (2, "block-driver", "#block1"),
                (3, "block-driver", "f2"),
                (4, "block-driver", "#block2"),
                (5, "block-driver", "f1"),
                (6, "block-backend", ""),
                (7, "block-driver", "s1"),
            ],
            &[
                (1, "root", 2),
                (2, "backing", 3),
                (3, "file", 7),
                (3, "backing", 4),
                (4, "file", 5),
                (6, "root", 5),
            ],
        );
        let both = Some(vec!["f2".to_owned(), "f1".to_owned()]);
        assert_eq!(chain(&graph, &["f1", "f2"]), both);
        assert_eq!(chain(&graph, &["f1"]), Some(vec!["f1".to_owned()]));
        assert_eq!(chain(&graph, &["f9"]), None);
    }

    #[test]
    fn what_no_device_stands_on_is_no_chain() {
        let graph = graph(
            &[(1, "block-driver", "f2"), (2, "block-driver", "f1"), (3, "block-backend", "d")],
            &[(1, "backing", 2), (3, "root", 2)],
        );
        assert_eq!(chain(&graph, &["f1", "f2"]), Some(vec!["f1".to_owned()]));
    }

    #[test]
    fn a_loop_ends() {
        let graph = graph(
            &[(1, "block-backend", "d"), (2, "block-driver", "a"), (3, "block-driver", "b")],
            &[(1, "root", 2), (2, "backing", 3), (3, "backing", 2)],
        );
        assert_eq!(chain(&graph, &["a"]).unwrap().len(), MAX_STEPS);
        assert_eq!(chain(&graph, &["c"]), None);
    }

    #[test]
    fn another_form_is_no_graph() {
        assert_eq!(Graph::parse(&json!({"nodes": [{"id": "1"}], "edges": []})), None);
        assert_eq!(Graph::parse(&json!([])), None);
    }
}
