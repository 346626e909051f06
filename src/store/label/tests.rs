use super::*;

fn label(name: Option<&str>, note: Option<&str>) -> SnapshotLabel {
    SnapshotLabel {
        name: name.map(|name| name.parse().unwrap()),
        note: note.map(|note| note.parse().unwrap()),
    }
}

#[test]
fn a_label_is_read_as_it_was_written() {
    let longest = "\u{1f600}\"".repeat(500);
    for one in [
        label(None, None),
        label(Some("warm"), None),
        label(None, Some("a \"note\" \\ with größe")),
        label(Some(&"n".repeat(64)), Some(&longest)),
    ] {
        let encoded = encode(&one).unwrap();
        assert!((encoded.len() as u64) < LIMIT);
        assert_eq!(decode(&encoded).unwrap(), one);
    }
}

#[test]
fn what_nixbox_would_not_write_is_no_label() {
    for bad in [
        "",
        "{",
        "[]",
        "null",
        r#"{"name": null, "note": null}"#,
        r#"{"format": 1, "name": null, "note": null, "more": 1}"#,
        r#"{"format": 1, "name": null, "note": null} x"#,
        r#"{"format": -1, "name": null, "note": null}"#,
        r#"{"format": 1, "name": "a/b", "note": null}"#,
        r#"{"format": 1, "name": "12", "note": null}"#,
        r#"{"format": 1, "name": "a\nb", "note": null}"#,
        r#"{"format": 1, "name": null, "note": "a\u001bb"}"#,
        r#"{"format": 1, "name": null, "note": ""}"#,
        r#"{"format": 1, "name": 3, "note": null}"#,
    ] {
        assert!(!matches!(decode(bad.as_bytes()).unwrap_err(), LabelError::Version(_)), "{bad}");
    }
    let newer = decode(br#"{"format": 2, "names": ["a", "b"]}"#).unwrap_err();
    assert!(matches!(newer, LabelError::Version(2)), "{newer}");
    let long = format!(r#"{{"format": 1, "name": "{}", "note": null}}"#, "n".repeat(65));
    assert!(matches!(decode(long.as_bytes()).unwrap_err(), LabelError::Value(_)));
}
