//! The root file system of an image while it is put together, in memory: names, owners, permissions and attributes. The
//! content of files is kept apart, by number ([`super::contents`]).
//!
//! Nothing of an archive is ever unpacked by its name. The name is looked up here, where a symbolic link leads to another
//! node of the same tree and `..` above the root is the root, so an archive cannot reach anything of the host. Layers are
//! applied in their order, with whiteouts as the OCI image specification has them: `.wh.NAME` removes NAME of the layers
//! below, and `.wh..wh..opq` removes all that the layers below have in its directory.

use std::collections::BTreeMap;

use super::archive::{EntryKind, TarEntry};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// How many links a name may lead through, as in Linux.
const MAX_LINKS: usize = 40;
/// The longest name of a file in ext4.
const LONGEST_NAME: usize = 255;
/// The longest target of a symbolic link, and the longest path that a program can open.
const LONGEST_PATH: usize = 4095;
/// How many entries an image may have. A large distribution has some hundred thousand.
const MOST_NODES: usize = 4_000_000;

/// Why an entry of a layer cannot be part of an image.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{0:?} has `..` in its name, which could mean a file outside of the image")]
    DotDot(String),
    #[error("{0:?} has a name that no file can have")]
    Name(String),
    #[error("{0:?} lies below something that is not a directory")]
    NotADirectory(String),
    #[error("{0:?} leads through more than {MAX_LINKS} symbolic links")]
    Links(String),
    #[error("{path:?} is a hard link to {target:?}, which is not a file of the image")]
    HardLink { path: String, target: String },
    #[error("{0:?} is a device, and an image may have devices below /dev only")]
    Device(String),
    #[error("{0:?} would take the place of the root directory")]
    Root(String),
    #[error("the image has more than {MOST_NODES} files")]
    Many,
}

/// A node of the tree, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// The content of a file: the number of the file that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentNumber(pub u64);

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeName {
    /// The node.
    pub node: NodeId,
    /// The layer that gave it this name, or that made the directory of this name anew.
    layer: usize,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory(BTreeMap<Vec<u8>, TreeName>),
    /// A regular file, with its size.
    File(ContentNumber, u64),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
}

/// What a node has besides its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The permissions, with the setuid, setgid and sticky bits.
    pub mode: u32,
    /// The number of the owner.
    pub uid: u32,
    /// The number of the group.
    pub gid: u32,
    /// The time of the last change, in seconds.
    pub modified: u64,
    /// The extended attributes.
    pub extended: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A file, a directory or a link.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// What it has besides.
    pub attributes: Attributes,
}

/// A root file system.
#[derive(Debug, Clone)]
pub struct ImageTree {
    nodes: Vec<Node>,
    /// The number of the layer that is applied.
    layer: usize,
}

const ROOT: NodeId = NodeId(0);

type Result<T, E = TreeError> = std::result::Result<T, E>;

impl Default for ImageTree {
    fn default() -> Self {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        Self { nodes: vec![Node { kind: NodeKind::Directory(BTreeMap::new()), attributes }], layer: 0 }
    }
}

/// What an archive's name is in a layer.
enum LayerName {
    /// An entry.
    Plain(Vec<Vec<u8>>),
    /// The removal of this path of the layers below.
    Whiteout(Vec<Vec<u8>>),
    /// The removal of what the layers below have in this directory.
    Opaque(Vec<Vec<u8>>),
}

impl LayerName {
    fn of(path: &[u8]) -> Result<Self> {
        let mut parts = parts(path)?;
        let Some(last) = parts.pop() else { return Ok(Self::Plain(parts)) };
        // The names of whiteouts are no names of files, so nothing can be below one.
        if parts.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(TreeError::Name(shown(path)));
        }
        if last == OPAQUE {
            return Ok(Self::Opaque(parts));
        }
        match last.strip_prefix(WHITEOUT) {
            Some(b"" | b"." | b"..") => Err(TreeError::Name(shown(path))),
            Some(hidden) => {
                parts.push(hidden.to_vec());
                Ok(Self::Whiteout(parts))
            }
            None => {
                parts.push(last);
                Ok(Self::Plain(parts))
            }
        }
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The names of a path. A slash at its beginning means the root of the image.
fn parts(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(TreeError::DotDot(shown(path))),
            // The commands of debugfs, which sets the owners, end at these.
            part if part.len() > LONGEST_NAME || part.iter().any(|byte| b"\0\n\r".contains(byte)) => {
                return Err(TreeError::Name(shown(path)));
            }
            part => parts.push(part.to_vec()),
        }
    }
    if path.len() > LONGEST_PATH { Err(TreeError::Name(shown(path))) } else { Ok(parts) }
}

impl ImageTree {
    /// Begins a layer above those that were applied.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// A node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Applies an entry of the present layer. The content of a regular file is in `content`.
    ///
    /// # Errors
    /// [`TreeError`]; the tree is as it was then.
    pub fn apply(&mut self, entry: &TarEntry, content: Option<ContentNumber>) -> Result<()> {
        let path = match LayerName::of(&entry.path)? {
            LayerName::Plain(path) => path,
            LayerName::Whiteout(path) => {
                self.white_out(&path);
                return Ok(());
            }
            LayerName::Opaque(directory) => {
                if let Some(directory) = self.find(&directory, true) {
                    self.remove_lower_children(directory);
                }
                return Ok(());
            }
        };
        let attributes = Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified,
            extended: entry.attributes.clone(),
        };
        let kind = match entry.kind {
            EntryKind::Directory => return self.put_directory(&path, &entry.path, attributes),
            EntryKind::HardLink => return self.put_hard_link(&path, entry),
            EntryKind::Device => {
                // The guest's kernel fills /dev.
                let below_dev = path.len() > 1 && path[0] == b"dev";
                return if below_dev { Ok(()) } else { Err(TreeError::Device(entry.shown())) };
            }
            EntryKind::File => {
                NodeKind::File(content.ok_or_else(|| TreeError::Name(entry.shown()))?, entry.size)
            }
            EntryKind::Symlink if entry.link.is_empty() || entry.link.len() > LONGEST_PATH => {
                return Err(TreeError::Name(entry.shown()));
            }
            EntryKind::Symlink => NodeKind::Symlink(entry.link.clone()),
            EntryKind::Fifo => NodeKind::Fifo,
        };
        let (parent, name) = self.place(&path, &entry.path)?;
        let id = self.add(Node { kind, attributes })?;
        self.name(parent, name, id);
        Ok(())
    }

    fn name(&mut self, parent: NodeId, name: Vec<u8>, node: NodeId) {
        let layer = self.layer;
        // `parent` is a directory: `walk` returns nothing else.
        if let Some(children) = self.children_mut(parent) {
            children.insert(name, TreeName { node, layer });
        }
    }

    fn put_directory(&mut self, path: &[Vec<u8>], written: &[u8], attributes: Attributes) -> Result<()> {
        if path.is_empty() {
            self.nodes[ROOT.0].attributes = attributes;
            return Ok(());
        }
        let (parent, name) = self.place(path, written)?;
        if let Some(there) = self.child(parent, &name)
            && matches!(self.node(there).kind, NodeKind::Directory(_))
        {
            self.nodes[there.0].attributes = attributes;
            self.name(parent, name, there);
            return Ok(());
        }
        let id = self.add(Node { kind: NodeKind::Directory(BTreeMap::new()), attributes })?;
        self.name(parent, name, id);
        Ok(())
    }

    fn put_hard_link(&mut self, path: &[Vec<u8>], entry: &TarEntry) -> Result<()> {
        let refused = || TreeError::HardLink { path: entry.shown(), target: shown(&entry.link) };
        let target = self.find(&parts(&entry.link)?, false).ok_or_else(refused)?;
        if matches!(self.node(target).kind, NodeKind::Directory(_)) {
            return Err(refused());
        }
        let (parent, name) = self.place(path, &entry.path)?;
        self.name(parent, name, target);
        Ok(())
    }

    /// The directory in which an entry is put, made where it is missing, and the name of the entry in it.
    fn place(&mut self, path: &[Vec<u8>], written: &[u8]) -> Result<(NodeId, Vec<u8>)> {
        let (name, above) = path.split_last().ok_or_else(|| TreeError::Root(shown(written)))?;
        let mut budget = MAX_LINKS;
        let parent = self.walk(ROOT, above, written, &mut budget)?;
        Ok((parent, name.clone()))
    }

    /// Follows directories and links, and makes directories that are missing.
    fn walk(&mut self, from: NodeId, path: &[Vec<u8>], written: &[u8], budget: &mut usize) -> Result<NodeId> {
        // The path from the root to the present directory, for `..` in the target of a link.
        let mut trail = vec![from];
        let mut open: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        while let Some(part) = open.pop() {
            let at = *trail.last().unwrap_or(&ROOT);
            if part == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let Some(next) = self.child(at, &part) else {
                let attributes = Attributes { mode: 0o755, ..Attributes::default() };
                let kind = NodeKind::Directory(BTreeMap::new());
                let made = self.add(Node { kind, attributes })?;
                self.name(at, part, made);
                trail.push(made);
                continue;
            };
            match &self.node(next).kind {
                NodeKind::Directory(_) => trail.push(next),
                NodeKind::Symlink(target) => {
                    *budget = budget.checked_sub(1).ok_or_else(|| TreeError::Links(shown(written)))?;
                    let target = target.clone();
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    open.extend(link_parts(&target).into_iter().rev());
                }
                _ => return Err(TreeError::NotADirectory(shown(written))),
            }
        }
        Ok(*trail.last().unwrap_or(&ROOT))
    }

    /// The node of a path; links in its directories are followed, and its last name is too if `follow` is given.
    #[must_use]
    pub fn find(&self, path: &[Vec<u8>], follow: bool) -> Option<NodeId> {
        let mut trail = vec![ROOT];
        let mut open: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        let mut budget = MAX_LINKS;
        while let Some(part) = open.pop() {
            if part == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let NodeKind::Directory(children) = &self.node(*trail.last()?).kind else { return None };
            let next = children.get(&part)?.node;
            match &self.node(next).kind {
                NodeKind::Symlink(target) if follow || !open.is_empty() => {
                    budget = budget.checked_sub(1)?;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    open.extend(link_parts(target).into_iter().rev());
                }
                _ => trail.push(next),
            }
        }
        trail.last().copied()
    }

    /// The node of a path, with all links followed.
    #[must_use]
    pub fn look_up(&self, path: &str) -> Option<NodeId> {
        self.find(&parts(path.as_bytes()).ok()?, true)
    }

    /// The names in a directory; none if the path is not a directory.
    #[must_use]
    pub fn names(&self, path: &str) -> Vec<String> {
        let node = self.look_up(path).map(|id| &self.node(id).kind);
        let Some(NodeKind::Directory(children)) = node else { return Vec::new() };
        children.keys().map(|name| shown(name)).collect()
    }

    /// Every name with its node, directories before what is in them, without the root.
    #[must_use]
    pub fn paths(&self) -> Vec<(Vec<u8>, NodeId)> {
        let mut found = Vec::new();
        let mut open = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = open.pop() {
            let NodeKind::Directory(children) = &self.node(id).kind else { continue };
            for (name, child) in children {
                let path = [&path[..], b"/", name].concat();
                found.push((path.clone(), child.node));
                open.push((path, child.node));
            }
        }
        found
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> &Node {
        self.node(ROOT)
    }

    fn white_out(&mut self, path: &[Vec<u8>]) {
        let Some((name, above)) = path.split_last() else { return };
        let Some(parent) = self.find(above, true) else { return };
        self.remove_lower(parent, name);
    }

    /// Removes what the layers below have under a name.
    fn remove_lower(&mut self, parent: NodeId, name: &[u8]) {
        let NodeKind::Directory(children) = &self.node(parent).kind else { return };
        let Some(child) = children.get(name).copied() else { return };
        if matches!(self.node(child.node).kind, NodeKind::Directory(_)) {
            self.remove_lower_children(child.node);
        }
        let node = self.node(child.node);
        let empty = !matches!(&node.kind, NodeKind::Directory(children) if !children.is_empty());
        let lower = child.layer < self.layer;
        if let Some(children) = self.children_mut(parent).filter(|_| lower && empty) {
            children.remove(name);
        }
    }

    fn remove_lower_children(&mut self, directory: NodeId) {
        let NodeKind::Directory(children) = &self.node(directory).kind else { return };
        let names: Vec<Vec<u8>> = children.keys().cloned().collect();
        for name in names {
            self.remove_lower(directory, &name);
        }
    }

    fn add(&mut self, node: Node) -> Result<NodeId> {
        if self.nodes.len() >= MOST_NODES {
            return Err(TreeError::Many);
        }
        self.nodes.push(node);
        Ok(NodeId(self.nodes.len() - 1))
    }

    fn child(&self, id: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[id.0].kind {
            NodeKind::Directory(children) => children.get(name).map(|child| child.node),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Vec<u8>, TreeName>> {
        match &mut self.nodes[id.0].kind {
            NodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }
}

/// The names in the target of a link, `..` included.
fn link_parts(target: &[u8]) -> Vec<Vec<u8>> {
    let parts = target.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests;
