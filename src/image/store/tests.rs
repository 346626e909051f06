use std::io::Write as _;

use super::*;

fn store(directory: &Path) -> ImageStore {
    ImageStore::new(Folder::open(directory).unwrap())
}

fn description(name: &str, digit: &str) -> ImageDescription {
    ImageDescription {
        id: ImageId::try_from(digit.repeat(32)).unwrap(),
        name: name.parse().unwrap(),
        source: "a test".to_owned(),
        architecture: "x86_64".to_owned(),
        size: ByteSize::from_bytes(1 << 30),
        content: ByteSize::from_bytes(1),
        kernel: "6.1".to_owned(),
        kernel_from: "image".to_owned(),
        user: None,
        environment: Vec::new(),
        created: 0,
    }
}

fn staged(store: &ImageStore, lock: &ImageStoreLock) -> StagedImage {
    let staged = store.begin(lock).unwrap();
    for name in FILES {
        staged.folder().new_file(name).unwrap().write_all(name.as_bytes()).unwrap();
    }
    staged
}

fn listed(store: &ImageStore) -> Vec<String> {
    store.list().unwrap().into_iter().map(|image| image.unwrap().description.name.to_string()).collect()
}

#[test]
fn an_image_is_listed_when_it_is_whole_and_not_when_it_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let lock = store.lock().unwrap();
    let image = staged(&store, &lock);
    assert!(listed(&store).is_empty());
    let made = store.commit(&lock, image, &description("one", "1")).unwrap();
    assert_eq!(fs::read_to_string(made.kernel()).unwrap(), "vmlinuz");
    let image = staged(&store, &lock);
    store.commit(&lock, image, &description("another", "2")).unwrap();
    assert_eq!(listed(&store), ["another", "one"]);
    assert_eq!(store.find("one").unwrap(), Some(made.clone()));
    assert_eq!(store.find(&"1".repeat(32)).unwrap(), Some(made));
    assert!(
        store.check_name(&"one".parse().unwrap()).is_err()
            && store.check_name(&"two".parse().unwrap()).is_ok()
    );
    store.remove(&lock, &ImageId::try_from("1".repeat(32)).unwrap()).unwrap();
    assert_eq!(listed(&store), ["another"]);
}

#[test]
fn what_a_killed_command_left_is_not_listed_and_is_removed_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    // Each file that an image has may be the last one that was written.
    for count in 0..=FILES.len() {
        let lock = store.lock().unwrap();
        let image = store.begin(&lock).unwrap();
        for name in &FILES[..count] {
            image.folder().new_file(name).unwrap();
        }
        fs::create_dir_all(image.folder().path_of("work").join("root/a/b/c/d/e/f/g/h/i/j")).unwrap();
        drop((image, lock));
        assert!(listed(&store).is_empty());
        drop(store.lock().unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the lock alone is left");
    }
    // A removal that was killed after its rename.
    let lock = store.lock().unwrap();
    let image = staged(&store, &lock);
    store.commit(&lock, image, &description("one", "1")).unwrap();
    store.folder.rename("1".repeat(32), format!("{TRASH}{}", "1".repeat(32))).unwrap();
    drop(lock);
    assert!(listed(&store).is_empty());
    drop(store.lock().unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn two_at_once_and_damaged_images_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let lock = store.lock().unwrap();
    assert!(matches!(store.lock(), Err(ImageStoreError::Locked(_))));
    let image = staged(&store, &lock);
    let made = store.commit(&lock, image, &description("one", "1")).unwrap();
    fs::remove_file(made.disk()).unwrap();
    let found = store.list().unwrap().pop().unwrap();
    assert!(matches!(found, Err(ImageStoreError::Incomplete { file: "disk.img", .. })), "{found:?}");
    fs::write(made.directory.join(DESCRIPTION), "{}").unwrap();
    let found = store.list().unwrap().pop().unwrap();
    assert!(matches!(found, Err(ImageStoreError::Description { .. })), "{found:?}");
    assert_eq!(store.find("one").unwrap(), None);
}
