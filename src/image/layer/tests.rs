use super::*;
use crate::files::Folder;
use crate::image::archive::tests::python;
use crate::image::contents::ContentError;
use crate::image::tree::NodeKind;

struct Unpacked {
    tree: ImageTree,
    contents: ContentStore,
    _directory: tempfile::TempDir,
}

fn unpacked(layers: &[&[u8]], limit: u64) -> Result<Unpacked, LayerError> {
    let directory = tempfile::tempdir().unwrap();
    let mut contents = ContentStore::new(Folder::open(directory.path()).unwrap(), limit);
    let mut tree = ImageTree::default();
    for layer in layers {
        apply(*layer, &mut tree, &mut contents)?;
    }
    Ok(Unpacked { tree, contents, _directory: directory })
}

/// Every path with its kind, permissions, owner and content.
fn shown(unpacked: &Unpacked) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, id) in unpacked.tree.paths() {
        let node = unpacked.tree.node(id);
        let what = match &node.kind {
            NodeKind::Directory(_) => "directory".to_owned(),
            NodeKind::Fifo => "fifo".to_owned(),
            NodeKind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            NodeKind::File(number, size) => {
                let mut text = String::new();
                unpacked.contents.open(*number).unwrap().read_to_string(&mut text).unwrap();
                format!("{size} {text:?}")
            }
        };
        let attributes = &node.attributes;
        let path = String::from_utf8_lossy(&path).into_owned();
        lines.push(format!("{path} {:o} {}:{} {what}", attributes.mode, attributes.uid, attributes.gid));
    }
    lines.sort();
    lines
}

#[test]
fn the_layers_of_two_tools_give_the_same_tree() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for (path, text) in [("etc/passwd", "root"), ("usr/bin/tool", "#!"), ("var/old", "x")] {
        std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        std::fs::write(root.join(path), text).unwrap();
    }
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    std::fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/twin")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    let gnu = std::process::Command::new("tar")
        .args(["--sort=name", "--mode=0750", "--owner=1:12", "--group=2:34", "-cf", "-", "-C"])
        .arg(root)
        .arg(".")
        .output()
        .unwrap()
        .stdout;
    let lines = "dirs = dict(type=tarfile.DIRTYPE, mode=0o750, uid=12, gid=34)\n\
        for name in ['etc', 'usr', 'usr/bin', 'var']: add(name, **dirs)\n\
        own = dict(mode=0o750, uid=12, gid=34)\n\
        add('etc/passwd', b'root', **own)\n\
        add('usr/bin/tool', b'#!', **own)\n\
        add('/usr/bin/twin', type=tarfile.LNKTYPE, linkname='/usr/bin/tool', **own)\n\
        add('var/old', b'x', **own)\n\
        add('bin', type=tarfile.SYMTYPE, linkname='usr/bin', mode=0o777, uid=12, gid=34)\n\
        add('pipe', type=tarfile.FIFOTYPE, **own)";
    let Some(python) = python("PAX_FORMAT", lines) else { return };
    let (gnu, python) = (unpacked(&[&gnu], 1 << 20).unwrap(), unpacked(&[&python], 1 << 20).unwrap());
    let without_links = |unpacked: &Unpacked| {
        let lines = shown(unpacked).into_iter();
        // GNU tar applies --mode to symbolic links too.
        lines.map(|line| line.replace("/bin 750 12:34 ->", "/bin 777 12:34 ->")).collect::<Vec<_>>()
    };
    assert_eq!(without_links(&gnu), without_links(&python));
    assert!(shown(&python).contains(&"/usr/bin/twin 750 12:34 2 \"#!\"".to_owned()));
    assert_eq!(python.tree.look_up("bin/tool"), python.tree.look_up("/usr/bin/twin"));
}

#[test]
fn what_unpacks_to_more_than_it_may_is_refused() {
    let Some(archive) = python("PAX_FORMAT", "add('big', b'0' * 5000)\nadd('small', b'1')") else { return };
    assert!(unpacked(&[&archive], 5001).is_ok());
    let error = unpacked(&[&archive], 5000).err().unwrap();
    assert!(
        matches!(error, LayerError::Content { source: ContentError::TooLarge { limit: 5000 }, .. }),
        "{error}"
    );
    let error = unpacked(&[&archive[..2000]], 1 << 20).err().unwrap();
    assert!(matches!(error, LayerError::Content { source: ContentError::Truncated, .. }), "{error}");
}
