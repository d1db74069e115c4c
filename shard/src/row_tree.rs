//! Rows in memory, of a memory store or of a memtable: an ordered tree whose copies are snapshots.
//!
//! A copy costs one reference. Nodes that a copy still shares are never changed: a write copies those on its
//! way from the root, and whatever nobody else holds is changed in place. So who takes no copies pays for
//! none, and a copy costs the writer at most one path per later write, and never more than the tree. What
//! an old copy alone holds goes with the copy; there is nothing to collect.
//!
//! Invariants: keys ascend within a node and from child to child; every key of a child is at least the
//! child's `first` and below the next one's (the first child's has no say); leaves have the same depth; no
//! node is empty.

use crate::stored_key::StoredKey;
use bytes::Bytes;
use std::iter::Peekable;
use std::sync::Arc;

/// Rows of one leaf. Few, because all of them are copied when one is written that a snapshot shares.
const LEAF_MAX: usize = 16;
/// Children of one inner node.
const INNER_MAX: usize = 32;

/// What is stored under a key.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) version: u64,
    pub(crate) value: Bytes,
    /// The row's share of the store's hash.
    pub(crate) hash: u64,
}

/// An ordered map of keys to slots.
#[derive(Clone)]
pub struct RowTree<S> {
    /// `None` = there are no rows.
    root: Option<Arc<Node<S>>>,
    len: usize,
}

#[derive(Clone)]
enum Node<S> {
    Leaf(Vec<(StoredKey, S)>),
    Inner(Vec<Child<S>>),
}

#[derive(Clone)]
struct Child<S> {
    first: StoredKey,
    node: Arc<Node<S>>,
}

impl<S> Default for RowTree<S> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<S: Clone> RowTree<S> {
    /// Rows in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot of a key. O(log n).
    pub fn get(&self, key: &StoredKey) -> Option<&S> {
        let mut node = self.root.as_ref()?;
        loop {
            match &**node {
                Node::Leaf(rows) => return position(rows, key).ok().map(|at| &rows[at].1),
                Node::Inner(children) => node = &children[child_of(children, key)].node,
            }
        }
    }

    /// The row with the highest key.
    pub fn last(&self) -> Option<(&StoredKey, &S)> {
        let mut last = None;
        self.visit(&StoredKey::new(b""), None, true, &mut |key, slot| {
            last = Some((key, slot));
            false
        });
        last
    }

    /// Stores a slot and gives back the one that it replaces. O(log n), and a path's copy if it is shared.
    pub fn insert(&mut self, key: StoredKey, slot: S) -> Option<S> {
        let mut old = None;
        self.insert_run(std::iter::once((key, slot)), &mut |_, replaced| old = Some(replaced));
        old
    }

    /// Stores slots, of equal keys the last one, and shows each that is replaced. Rows that belong together share the way to
    /// their leaf, so many at once take a fraction of the time that they take one by one, least of all if they are sorted.
    pub fn insert_all(&mut self, mut rows: Vec<(StoredKey, S)>, replaced: &mut dyn FnMut(&StoredKey, S)) {
        if !rows.is_sorted_by(|(one, _), (other, _)| one <= other) {
            // Stable, so that the last of equal keys stays last.
            rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        self.insert_run(rows.into_iter(), replaced);
    }

    /// Keys ascend, or are equal.
    fn insert_run(
        &mut self,
        rows: impl Iterator<Item = (StoredKey, S)>,
        replaced: &mut dyn FnMut(&StoredKey, S),
    ) {
        let mut run = Run { rows: rows.peekable(), added: 0, replaced };
        while run.rows.peek().is_some() {
            let root = self.root.get_or_insert_with(|| Arc::new(Node::Leaf(Vec::new())));
            if let Some(right) = insert(root, &mut run, None) {
                // The first child's key has no say.
                let left = Child { first: right.first.clone(), node: root.clone() };
                *root = Arc::new(Node::Inner(vec![left, right]));
            }
        }
        self.len += run.added;
    }

    /// Removes a key. O(log n), and a path's copy if it is shared and the key is there.
    pub fn remove(&mut self, key: &StoredKey) -> Option<S> {
        self.get(key)?;
        let root = self.root.as_mut()?;
        let old = remove(root, key);
        self.len -= 1;
        while let Node::Inner(children) = &**root
            && let [only] = &children[..]
        {
            *root = only.node.clone();
        }
        self.root.take_if(|root| root.len() == 0);
        Some(old)
    }

    /// The rows of `low..high` (`None` = to the end), which it removes. O(removed rows * log n).
    pub fn remove_range(&mut self, low: &StoredKey, high: Option<&StoredKey>) -> Vec<(StoredKey, S)> {
        let mut keys = Vec::new();
        self.visit(low, high, false, &mut |key, _| {
            keys.push(key.clone());
            true
        });
        let remove = |key: StoredKey| self.remove(&key).map(|slot| (key, slot)).expect("it was just seen");
        keys.into_iter().map(remove).collect()
    }

    /// Shows the rows of `low..high` (`None` = to the end) in order, or in reverse, until `see` says false.
    pub fn visit<'a>(
        &'a self,
        low: &StoredKey,
        high: Option<&StoredKey>,
        reverse: bool,
        see: &mut dyn FnMut(&'a StoredKey, &'a S) -> bool,
    ) {
        if let Some(root) = &self.root {
            visit(root, low, high, reverse, see);
        }
    }
}

impl<S: Clone> Node<S> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(rows) => rows.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn max(&self) -> usize {
        match self {
            Self::Leaf(_) => LEAF_MAX,
            Self::Inner(_) => INNER_MAX,
        }
    }

    /// The upper part of a node that is too full. Behind a row that came last there may come more: then the
    /// lower part stays full.
    fn split(&mut self, came_last: bool) -> Option<Child<S>> {
        if self.len() <= self.max() {
            return None;
        }
        let at = if came_last { self.len() - 1 } else { self.len() / 2 };
        let (first, upper) = match self {
            Self::Leaf(rows) => {
                let upper = split_off(rows, at, LEAF_MAX);
                (upper[0].0.clone(), Self::Leaf(upper))
            }
            Self::Inner(children) => {
                let upper = split_off(children, at, INNER_MAX);
                (upper[0].first.clone(), Self::Inner(upper))
            }
        };
        Some(Child { first, node: Arc::new(upper) })
    }
}

/// Room for one more. A node has room for one above its maximum in the end, not for twice as many.
fn make_room<T>(of_node: &mut Vec<T>, max: usize) {
    if of_node.len() == of_node.capacity() {
        of_node.reserve_exact(of_node.len().max(4).min(max + 1 - of_node.len()));
    }
}

fn split_off<T>(of_node: &mut Vec<T>, at: usize, max: usize) -> Vec<T> {
    let mut upper = Vec::with_capacity(max + 1);
    upper.extend(of_node.drain(at..));
    upper
}

fn position<S>(rows: &[(StoredKey, S)], key: &StoredKey) -> Result<usize, usize> {
    rows.binary_search_by(|(held, _)| held.cmp(key))
}

/// The child in which `key` belongs.
fn child_of<S>(children: &[Child<S>], key: &StoredKey) -> usize {
    children[1..].partition_point(|child| child.first <= *key)
}

/// Rows on their way into the tree, in order.
struct Run<'a, S, I: Iterator<Item = (StoredKey, S)>> {
    rows: Peekable<I>,
    added: usize,
    replaced: &'a mut dyn FnMut(&StoredKey, S),
}

/// Stores the next rows of a run, at least one, below `node`, in which all keys are below `end`. Stops at a row that
/// isn't, and where the node has no more room: the caller takes what that split off, and finds the way anew.
fn insert<S: Clone, I: Iterator<Item = (StoredKey, S)>>(
    node: &mut Arc<Node<S>>,
    run: &mut Run<'_, S, I>,
    end: Option<&StoredKey>,
) -> Option<Child<S>> {
    let is_within = |key: &StoredKey| end.is_none_or(|end| key < end);
    let (node, mut at) = (Arc::make_mut(node), 0);
    let came_last = match node {
        Node::Leaf(rows) => {
            while rows.len() <= LEAF_MAX
                && let Some((key, slot)) = run.rows.next_if(|(key, _)| is_within(key))
            {
                let found = position(&rows[at..], &key);
                at += found.unwrap_or_else(|at| at);
                if found.is_ok() {
                    (run.replaced)(&key, std::mem::replace(&mut rows[at].1, slot));
                } else {
                    make_room(rows, LEAF_MAX);
                    rows.insert(at, (key, slot));
                    run.added += 1;
                }
            }
            at + 1 == rows.len()
        }
        Node::Inner(children) => {
            while children.len() <= INNER_MAX
                && let Some((key, _)) = run.rows.peek().filter(|(key, _)| is_within(key))
            {
                at += child_of(&children[at..], key);
                let (below, above) = children.split_at_mut(at + 1);
                let end = above.first().map(|next| &next.first).or(end);
                if let Some(upper) = insert(&mut below[at].node, run, end) {
                    make_room(children, INNER_MAX);
                    children.insert(at + 1, upper);
                }
            }
            at + 2 == children.len()
        }
    };
    node.split(came_last)
}

/// Removes a key that is below `node`.
fn remove<S: Clone>(node: &mut Arc<Node<S>>, key: &StoredKey) -> S {
    match Arc::make_mut(node) {
        Node::Leaf(rows) => {
            let at = position(rows, key).expect("only a key that is there is removed");
            rows.remove(at).1
        }
        Node::Inner(children) => {
            let at = child_of(children, key);
            let old = remove(&mut children[at].node, key);
            match children[at].node.len() {
                0 => drop(children.remove(at)),
                len if len < children[at].node.max() / 4 => maybe_merge(children, at),
                _ => {}
            }
            old
        }
    }
}

/// Joins a child that has become small with a neighbour, if both together fill half a node.
fn maybe_merge<S: Clone>(children: &mut Vec<Child<S>>, at: usize) {
    let left = at.saturating_sub(1);
    let Some([one, other]) = children.get(left..left + 2) else { return };
    if one.node.len() + other.node.len() > one.node.max() / 2 {
        return;
    }
    let Child { first, node } = children.remove(left + 1);
    match (Arc::make_mut(&mut children[left].node), Arc::unwrap_or_clone(node)) {
        (Node::Leaf(rows), Node::Leaf(mut more)) => rows.append(&mut more),
        (Node::Inner(inner), Node::Inner(mut more)) => {
            // From now on its key has a say.
            more[0].first = first;
            inner.append(&mut more);
        }
        _ => unreachable!("leaves have the same depth"),
    }
}

fn visit<'a, S: Clone>(
    node: &'a Node<S>,
    low: &StoredKey,
    high: Option<&StoredKey>,
    reverse: bool,
    see: &mut dyn FnMut(&'a StoredKey, &'a S) -> bool,
) -> bool {
    match node {
        Node::Leaf(rows) => {
            let from = rows.partition_point(|(key, _)| key < low);
            let to = high.map_or(rows.len(), |high| rows.partition_point(|(key, _)| key < high));
            let mut rows = rows[from..to.max(from)].iter();
            let mut next = || if reverse { rows.next_back() } else { rows.next() };
            while let Some((key, slot)) = next() {
                if !see(key, slot) {
                    return false;
                }
            }
            true
        }
        Node::Inner(children) => {
            let from = child_of(children, low);
            let to = high.map_or(children.len() - 1, |high| child_of(children, high));
            let mut children = children[from..=to.max(from)].iter();
            let mut next = || if reverse { children.next_back() } else { children.next() };
            while let Some(child) = next() {
                if !visit(&child.node, low, high, reverse, see) {
                    return false;
                }
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_checker::random::Random;
    use std::collections::BTreeMap;

    fn key(number: u64) -> StoredKey {
        StoredKey::new(format!("{number:05}").as_bytes())
    }

    fn slot(version: u64) -> Slot {
        Slot { version, value: Bytes::new(), hash: 0 }
    }

    fn rows(tree: &RowTree<Slot>, low: u64, high: Option<u64>, reverse: bool) -> Vec<(Bytes, u64)> {
        let mut rows = Vec::new();
        tree.visit(&key(low), high.map(key).as_ref(), reverse, &mut |key, slot| {
            rows.push((key.to_bytes(), slot.version));
            true
        });
        rows
    }

    fn rows_of(tree: &RowTree<Slot>) -> Vec<(Bytes, u64)> {
        rows(tree, 0, None, false)
    }

    fn model_rows(model: &BTreeMap<u64, u64>, low: u64, high: Option<u64>) -> Vec<(Bytes, u64)> {
        let range = model.range(low..high.unwrap_or(u64::MAX).max(low));
        range.map(|(number, version)| (key(*number).to_bytes(), *version)).collect()
    }

    #[test]
    fn it_does_what_an_ordered_map_does_and_snapshots_stay_as_they_were() {
        let mut random = Random::new(7);
        let (mut tree, mut model) = (RowTree::<Slot>::default(), BTreeMap::new());
        let mut snapshots = Vec::new();
        for version in 0..40_000 {
            // It grows to a few thousand rows, shrinks to few, and grows again.
            let removes = if version / 10_000 % 2 == 0 { 1 } else { 9 };
            let number = random.below(4_000);
            if random.below(10) < removes {
                let old = tree.remove(&key(number)).map(|slot| slot.version);
                assert_eq!(old, model.remove(&number));
            } else {
                let old = tree.insert(key(number), slot(version)).map(|slot| slot.version);
                assert_eq!(old, model.insert(number, version));
            }
            assert_eq!(tree.len(), model.len());
            if version % 97 == 0 {
                let (low, high) = (random.below(4_000), random.below(5_000));
                let high = (high < 4_000).then_some(high);
                let mut expected = model_rows(&model, low, high);
                assert_eq!(rows(&tree, low, high, false), expected);
                expected.reverse();
                assert_eq!(rows(&tree, low, high, true), expected);
            }
            if version % 499 == 0 {
                let low = random.below(4_000);
                let high = low + random.below(60);
                let removed = tree.remove_range(&key(low), Some(&key(high)));
                let removed: Vec<_> =
                    removed.iter().map(|(key, slot)| (key.to_bytes(), slot.version)).collect();
                assert_eq!(removed, model_rows(&model, low, Some(high)));
                model.retain(|number, _| !(low..high).contains(number));
            }
            if version % 2_000 == 0 {
                snapshots.push((tree.clone(), model.clone()));
            }
        }
        for (tree, model) in snapshots {
            assert_eq!(rows(&tree, 0, None, false), model_rows(&model, 0, None));
            assert!((0..4_000).all(|n| tree.get(&key(n)).map(|slot| slot.version) == model.get(&n).copied()));
        }
    }

    fn root(tree: &RowTree<Slot>) -> &Arc<Node<Slot>> {
        tree.root.as_ref().expect("it has rows")
    }

    #[test]
    fn many_rows_at_once_are_as_many_rows_one_by_one() {
        let mut random = Random::new(11);
        let (mut tree, mut model) = (RowTree::<Slot>::default(), BTreeMap::new());
        let mut snapshot = (tree.clone(), model.clone());
        for version in 0..600 {
            let (from, spread) = (random.below(4_000), [8, 300, 4_000][version as usize % 3]);
            let count = random.below(120);
            let mut numbers: Vec<_> = (0..count).map(|_| from + random.below(spread)).collect();
            if version % 2 == 0 {
                numbers.sort_unstable();
            }
            let versions = (0..).map(|place| version * 1000 + place);
            let rows: Vec<_> = numbers.into_iter().zip(versions).collect();
            let (mut old, mut old_of_model) = (Vec::new(), Vec::new());
            for &(number, version) in &rows {
                old_of_model.extend(model.insert(number, version).map(|old| (key(number).to_bytes(), old)));
            }
            let rows = rows.into_iter().map(|(number, version)| (key(number), slot(version))).collect();
            tree.insert_all(rows, &mut |key, slot| old.push((key.to_bytes(), slot.version)));
            old.sort_unstable();
            old_of_model.sort_unstable();
            assert_eq!((old, tree.len()), (old_of_model, model.len()));
            if version % 100 == 0 {
                let (tree_then, model_then) = std::mem::replace(&mut snapshot, (tree.clone(), model.clone()));
                assert_eq!(rows_of(&tree_then), model_rows(&model_then, 0, None));
            }
        }
        assert_eq!(rows_of(&tree), model_rows(&model, 0, None));
        shape(root(&tree), 0, &mut Vec::new());
    }

    #[test]
    fn nodes_take_no_more_memory_than_their_maximum() {
        fn roomiest(node: &Node<Slot>) -> usize {
            match node {
                Node::Leaf(rows) => rows.capacity(),
                Node::Inner(children) => {
                    let below = children.iter().map(|child| roomiest(&child.node)).max();
                    (children.capacity() * LEAF_MAX / INNER_MAX).max(below.unwrap_or(0))
                }
            }
        }
        let (mut random, mut tree) = (Random::new(5), RowTree::default());
        for number in 0..20_000 {
            tree.insert(key(random.below(90_000)), slot(number));
            let _snapshot = (number % 7 == 0).then(|| tree.clone());
        }
        assert!(roomiest(root(&tree)) <= LEAF_MAX + 1, "{}", roomiest(root(&tree)));
    }

    /// Nodes, and the depth of every leaf.
    fn shape(node: &Node<Slot>, depth: usize, depths: &mut Vec<usize>) -> usize {
        assert!(node.len() <= node.max(), "{} in a node", node.len());
        match node {
            Node::Leaf(_) => {
                depths.push(depth);
                1
            }
            Node::Inner(children) => {
                1 + children.iter().map(|child| shape(&child.node, depth + 1, depths)).sum::<usize>()
            }
        }
    }

    #[test]
    fn it_stays_level_and_shrinks_with_its_rows() {
        let mut tree = RowTree::default();
        (0..20_000).for_each(|number| drop(tree.insert(key(number), slot(number))));
        let mut depths = Vec::new();
        let nodes = shape(root(&tree), 0, &mut depths);
        assert!(nodes < 20_000 / LEAF_MAX * 11 / 10, "rows in order fill their leaves: {nodes} nodes");
        assert!(depths.iter().all(|depth| *depth == depths[0]));
        // All but every hundredth: one row per leaf would be 200 leaves of a few rows each.
        (0..20_000).filter(|number| number % 100 > 0).for_each(|number| drop(tree.remove(&key(number))));
        let nodes = shape(root(&tree), 0, &mut Vec::new());
        assert!(nodes <= 90, "{nodes} nodes for 200 rows");
        (0..20_000).for_each(|number| drop(tree.remove(&key(number))));
        assert_eq!((tree.root.is_none(), tree.len()), (true, 0), "nothing is kept for no rows");
    }

    #[test]
    fn a_write_copies_only_what_a_snapshot_shares() {
        let mut tree = RowTree::default();
        (0..5_000).for_each(|number| drop(tree.insert(key(number), slot(0))));
        let before = Arc::as_ptr(root(&tree));
        tree.insert(key(2_500), slot(1));
        assert_eq!(Arc::as_ptr(root(&tree)), before, "nobody shares it");
        let snapshot = tree.clone();
        tree.insert(key(2_500), slot(2));
        let (Node::Inner(ours), Node::Inner(theirs)) = (&**root(&tree), &**root(&snapshot)) else { panic!() };
        let copied = ours.iter().zip(theirs).filter(|(one, other)| !Arc::ptr_eq(&one.node, &other.node));
        assert_eq!(copied.count(), 1, "one path");
    }
}
