use proptest::prelude::*;

use super::*;

fn parse(arguments: &[&str]) -> Result<CopyRoute, LocationError> {
    let (target, sources) = arguments.split_last().unwrap();
    let sources: Vec<_> = sources.iter().map(OsString::from).collect();
    CopyRoute::parse(&sources, OsStr::new(target), Path::new("/here"))
}

fn remote(text: &str) -> RemotePath {
    RemotePath::parse(text.as_bytes()).unwrap()
}

#[test]
fn arguments_say_what_is_copied_where() {
    use LocationError::*;
    assert_eq!(parse(&["-", "vm:a"]), Ok(CopyRoute::StdinToGuest(remote("a"))));
    assert_eq!(parse(&["vm:a", "-"]), Ok(CopyRoute::GuestToStdout(remote("a"))));
    assert!(matches!(parse(&["a", "b", "vm:."]), Ok(CopyRoute::ToGuest(sources, _)) if sources.len() == 2));
    assert!(matches!(parse(&["vm:a", "vm:b", "."]), Ok(CopyRoute::ToHost(sources, _)) if sources.len() == 2));
    // A file of this host may have such a name.
    assert!(matches!(parse(&["./vm:a", "vm:b"]), Ok(CopyRoute::ToGuest(..))));
    for (arguments, error) in [
        (&["vm:", "a"][..], NoGuestPath("vm:".into())),
        (&["a", "vm:"], NoGuestPath("vm:".into())),
        (&["", "vm:a"], NoHostPath),
        (&["vm:a", ""], NoHostPath),
        (&["a", "b"], NeitherInGuest),
        (&["-", "-"], NeitherInGuest),
        (&["a", "-"], NeitherInGuest),
        (&["vm:a", "vm:b"], BothInGuest),
        (&["a", "vm:b", "c"], MixedSources),
        (&["a", "vm:b", "vm:c"], MixedSources),
        (&["-", "vm:b", "c"], MixedSources),
        (&["-", "a", "vm:b"], StreamAmongSources),
        (&["-", "-", "vm:b"], StreamAmongSources),
        (&["vm:a", "vm:b", "-"], SeveralToStream),
    ] {
        assert_eq!(parse(arguments), Err(error), "{arguments:?}");
    }
}

#[test]
fn guest_paths_are_split_into_a_directory_and_a_name() {
    for (text, bytes, directory, name, needs_directory) in [
        ("a", "./a", "./", Some("a"), false),
        ("a/b", "./a/b", "./a/", Some("b"), false),
        ("a/b//", "./a/b//", "./a/", Some("b"), true),
        ("/", "/", "/", None, true),
        ("/a", "/a", "/", Some("a"), false),
        ("~", "./", "./", None, true),
        ("~/", "./", "./", None, true),
        ("~/a", "./a", "./", Some("a"), false),
        ("~//a", ".//a", ".//", Some("a"), false),
        (".", "./.", "./.", None, true),
        ("a/.", "./a/.", "./a/.", None, true),
        ("..", "./..", "./..", None, true),
        ("-rf", "./-rf", "./", Some("-rf"), false),
        ("~user", "./~user", "./", Some("~user"), false),
    ] {
        let path = remote(text);
        let (found, entry) = path.split();
        assert_eq!(path.bytes(), bytes.as_bytes(), "{text}");
        assert_eq!((found.as_slice(), entry), (directory.as_bytes(), name.map(OsString::from)), "{text}");
        assert_eq!(path.needs_directory(), needs_directory, "{text}");
    }
    assert_eq!(remote("a").join(OsStr::new("b")).bytes(), b"./a/b");
    assert_eq!(remote("a/").join(OsStr::new("b")).bytes(), b"./a/b");
    assert_eq!(
        (remote("a").shown(), remote("/a").shown(), remote("~").shown()),
        ("vm:a".into(), "vm:/a".into(), "vm:./".into())
    );
}

#[test]
fn host_paths_are_made_absolute() {
    for (text, path, name, needs_directory) in [
        ("a", "/here/a", Some("a"), false),
        ("/a/b/", "/a/b/", Some("b"), true),
        (".", "/here/.", None, true),
        ("a/..", "/here/a/..", None, true),
        ("/", "/", None, true),
    ] {
        let found = LocalPath::parse(OsStr::new(text), Path::new("/here")).unwrap();
        assert_eq!(found.path.as_os_str(), path, "{text}");
        assert_eq!(
            (found.name, found.needs_directory),
            (name.map(OsString::from), needs_directory),
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn a_guest_path_is_never_an_option_and_its_parts_make_the_whole(text in "[-a./~ ]{1,12}") {
        let path = RemotePath::parse(text.as_bytes()).unwrap();
        prop_assert!(path.bytes().starts_with(b"/") || path.bytes().starts_with(b"./"));
        let (directory, name) = path.split();
        prop_assert!(directory.starts_with(b"/") || directory.starts_with(b"./"));
        if let Some(name) = name {
            let joined = [directory.as_slice(), name.as_bytes()].concat();
            prop_assert!(path.bytes().starts_with(&joined));
            prop_assert!(path.bytes()[joined.len()..].iter().all(|byte| *byte == b'/'));
            prop_assert!(!name.as_bytes().contains(&b'/') && name != "." && name != "..");
        }
    }
}
