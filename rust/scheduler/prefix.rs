//! The prefixes that are kept: a tree whose nodes are blocks of keys and values.
//!
//! A node is a full block of 64 positions, or the last, partly filled one of a sequence that has ended. The tokens on the way
//! to it are what it was computed of, and they are compared, not hashed: nothing is found that is not the same. Sequences
//! that compute share their blocks with the tree as they fill them, so that each block is in memory once; a node that no
//! sequence uses is kept until the memory is wanted. What is not full is copied by whoever goes on in it.
//!
//! Models with recurrent layers need their state besides the blocks: there is one at some nodes, and a prefix ends at such
//! a node.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::kernels::BLOCK;
use crate::kv::{Block, Layout, Sequence, State};

/// A common part of two blocks that is shorter is computed again: it costs less than to copy a block is worth.
const LEAST: usize = 16;

/// The number of a node, until it is evicted.
pub(super) type NodeId = usize;

/// Whose child a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    /// It is the beginning of sequences with this salt.
    Salt(u64),
    /// It comes after another.
    Node(NodeId),
}

struct Node {
    parent: Parent,
    n_children: usize,
    tokens: Box<[u32]>, // of the block, BLOCK or fewer
    block: Arc<Block>,
    state: Option<Arc<State>>, // after its last token
    used: u64,                 // when, on the clock of the caller
    is_pinned: bool,           // never evicted; the memory is a file's
}

/// The prefixes of one model.
pub(super) struct Prefixes {
    layout: Arc<Layout>,
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    children: HashMap<(Parent, [u32; LEAST]), Vec<NodeId>>,
    n_states: usize,
    n_pinned: usize,
}

/// How far a sequence is in the tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    parent: Parent,
    /// Blocks of the sequence that are in the tree.
    pub n_blocks: usize,
}

impl Place {
    /// At the beginning.
    pub fn new(salt: u64) -> Self {
        Self { parent: Parent::Salt(salt), n_blocks: 0 }
    }
}

/// What of a sequence was found.
pub(super) struct Found {
    place: Place,
    blocks: Vec<Arc<Block>>,
    state: Option<Arc<State>>,
    /// So many tokens.
    pub n: usize,
}

impl Prefixes {
    pub fn new(layout: &Arc<Layout>) -> Self {
        let layout = Arc::clone(layout);
        Self { layout, nodes: Vec::new(), free: Vec::new(), children: HashMap::new(), n_states: 0, n_pinned: 0 }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("a node that was not evicted")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id].as_mut().expect("a node that was not evicted")
    }

    /// The child that has most in common with `tokens`, and how many tokens that are.
    fn best_child(&self, parent: Parent, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let first: [u32; LEAST] = tokens.get(..LEAST)?.try_into().expect("as many");
        let common = |id: &NodeId| {
            let pairs = self.node(*id).tokens.iter().zip(tokens);
            (*id, pairs.take_while(|(a, b)| a == b).count())
        };
        self.children.get(&(parent, first))?.iter().map(common).max_by_key(|&(_, n)| n)
    }

    /// The longest prefix of `tokens` that is there. `now` is when it was used, if it is.
    pub fn find(&mut self, salt: u64, tokens: &[u32], now: Option<u64>) -> Found {
        let mut found = Found { place: Place::new(salt), blocks: Vec::new(), state: None, n: 0 };
        let (mut path, mut parent, mut at) = (Vec::new(), Parent::Salt(salt), 0);
        while let Some((id, n)) = self.best_child(parent, &tokens[at..]) {
            if self.node(id).is_damaged() {
                break;
            }
            path.push((id, n));
            at += n;
            if n < BLOCK {
                break;
            }
            parent = Parent::Node(id);
        }
        if self.layout.is_recurrent() {
            // Up to the last state of all tokens of a node.
            let whole = |&(id, n): &(NodeId, usize)| n == self.node(id).tokens.len() && self.node(id).state.is_some();
            path.truncate(path.iter().rposition(whole).map_or(0, |last| last + 1));
            found.state = path.last().and_then(|&(id, _)| self.node(id).state.clone());
        }
        for (id, n) in path {
            if let Some(now) = now {
                self.node_mut(id).used = now;
            }
            found.blocks.push(Arc::clone(&self.node(id).block));
            found.n += n;
            if n == BLOCK {
                found.place = Place { parent: Parent::Node(id), n_blocks: found.place.n_blocks + 1 };
            }
        }
        found
    }

    /// How far `tokens` are in the tree, in full blocks.
    pub fn locate(&self, salt: u64, tokens: &[u32]) -> Place {
        let mut place = Place::new(salt);
        while let Some((id, BLOCK)) = self.best_child(place.parent, &tokens[place.n_blocks * BLOCK..]) {
            place = Place { parent: Parent::Node(id), n_blocks: place.n_blocks + 1 };
        }
        place
    }

    /// A sequence that goes on from what was found of `tokens`, and its place.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn sequence(&self, found: Found, tokens: &[u32], context_length: usize) -> Result<(Sequence, Place)> {
        let Found { place, blocks, state, n } = found;
        Ok((Sequence::from_blocks(&self.layout, context_length, &tokens[..n], blocks, state)?, place))
    }

    /// Takes in the full blocks of a sequence that are not in the tree yet. A block that is there already replaces that of
    /// the sequence.
    pub fn take_in(&mut self, sequence: &mut Sequence, place: &mut Place, now: u64) {
        while place.n_blocks < sequence.n_full() {
            let i = place.n_blocks;
            let tokens = &sequence.tokens()[i * BLOCK..(i + 1) * BLOCK];
            let id = match self.best_child(place.parent, tokens) {
                Some((id, BLOCK)) => {
                    if self.node(id).is_damaged() {
                        self.renew(id, sequence.share(i));
                    }
                    let node = self.node_mut(id);
                    node.used = now;
                    sequence.adopt(i, &node.block);
                    id
                }
                _ => self.add(place.parent, tokens.into(), Arc::clone(sequence.share(i)), now),
            };
            *place = Place { parent: Parent::Node(id), n_blocks: i + 1 };
        }
    }

    /// Takes in what is left of a sequence that has ended: its last, partly filled block, and the states that it has kept.
    pub fn take_in_end(&mut self, sequence: &mut Sequence, place: Place, now: u64) {
        let at = place.n_blocks * BLOCK;
        let rest = &sequence.tokens()[at..sequence.exact()];
        let is_there = |(id, n): (NodeId, usize)| n == rest.len() && self.node(id).tokens.len() >= n;
        if !self.layout.is_recurrent() && rest.len() >= LEAST && rest.len() < BLOCK {
            if !self.best_child(place.parent, rest).is_some_and(is_there) {
                self.add(place.parent, rest.into(), Arc::clone(sequence.share(place.n_blocks)), now);
            }
            return;
        }
        let (mut parent, mut end) = (place.parent, at);
        while let Parent::Node(id) = parent {
            if let Some(state) = sequence.state_at(end)
                && self.node(id).state.is_none()
            {
                self.node_mut(id).state = Some(Arc::clone(state));
                self.n_states += 1;
            }
            (parent, end) = (self.node(id).parent, end - BLOCK);
        }
    }

    /// The file of a node has changed: what was computed again takes its place.
    fn renew(&mut self, id: NodeId, block: &Arc<Block>) {
        let node = self.node_mut(id);
        node.block = Arc::clone(block);
        node.is_pinned = false;
        let had_state = node.state.take().is_some();
        self.n_pinned -= 1;
        self.n_states -= usize::from(had_state);
    }

    fn add(&mut self, parent: Parent, tokens: Box<[u32]>, block: Arc<Block>, now: u64) -> NodeId {
        let first: [u32; LEAST] = tokens[..LEAST].try_into().expect("as many");
        let id = self.free.pop().unwrap_or(self.nodes.len());
        if id == self.nodes.len() {
            self.nodes.push(None);
        }
        self.nodes[id] = Some(Node { parent, n_children: 0, tokens, block, state: None, used: now, is_pinned: false });
        self.children.entry((parent, first)).or_default().push(id);
        if let Parent::Node(parent) = parent {
            self.node_mut(parent).n_children += 1;
        }
        id
    }

    fn remove(&mut self, id: NodeId) -> usize {
        let node = self.nodes[id].take().expect("a node that was not evicted");
        let key = (node.parent, node.tokens[..LEAST].try_into().expect("as many"));
        let siblings = self.children.get_mut(&key).expect("it is a child");
        siblings.retain(|&sibling| sibling != id);
        if siblings.is_empty() {
            self.children.remove(&key);
        }
        if let Parent::Node(parent) = node.parent {
            self.node_mut(parent).n_children -= 1;
        }
        self.n_states -= usize::from(node.state.is_some());
        self.free.push(id);
        node.tokens.len()
    }

    /// Nodes that no sequence uses and that come after all others: when they were used last, and which they are.
    pub fn leaves(&self) -> impl Iterator<Item = (u64, NodeId)> {
        let all = self.nodes.iter().enumerate().filter_map(|(id, node)| Some((id, node.as_ref()?)));
        all.filter(|(_, node)| node.n_children == 0 && !node.is_pinned && !node.is_used())
            .map(|(id, node)| (node.used, id))
    }

    /// Forgets a leaf; gives how many tokens that are.
    pub fn evict(&mut self, leaf: NodeId) -> usize {
        self.remove(leaf)
    }

    /// Takes in a sequence that came from a file, to be kept for good.
    pub fn pin(&mut self, sequence: &mut Sequence, salt: u64, now: u64) {
        let mut place = Place::new(salt);
        self.take_in(sequence, &mut place, now);
        self.take_in_end(sequence, place, now);
        let mut parent = place.parent;
        while let Parent::Node(id) = parent {
            self.n_pinned += usize::from(!self.node(id).is_pinned);
            self.node_mut(id).is_pinned = true;
            parent = self.node(id).parent;
        }
    }

    /// Bytes of all that is kept, but for what is pinned.
    pub fn bytes(&self) -> u64 {
        let nodes = self.nodes.len() - self.free.len() - self.n_pinned;
        nodes as u64 * self.layout.block_bytes() as u64 + self.n_states as u64 * self.layout.state_bytes() as u64
    }

    /// Bytes of what no sequence uses.
    pub fn unused_bytes(&self) -> u64 {
        let unused = self.nodes.iter().flatten().filter(|node| !node.is_pinned && !node.is_used());
        let state = |node: &Node| node.state.as_ref().map_or(0, |_| self.layout.state_bytes());
        unused.map(|node| (self.layout.block_bytes() + state(node)) as u64).sum()
    }
}

impl Node {
    /// Whether it came from a file that is not what it was.
    fn is_damaged(&self) -> bool {
        self.is_pinned && self.block.check().is_err()
    }

    /// Whether a sequence has the block. Then it has those before it too.
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.block) > 1
    }
}
