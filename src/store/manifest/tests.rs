use proptest::prelude::*;

use super::*;
use crate::world::{Cpuid, FoundValue, HoldingProcess, OnLeak, UnprovenValue};

fn origin() -> Origin {
    Origin {
        vmm: VmmVersion { major: 53, text: "v53.0".to_owned() },
        cpu: ["avx2", "sse2"].map(String::from).into(),
        shape: BTreeMap::from([("vm.memory".to_owned(), "4GiB".to_owned())]),
    }
}

fn manifest() -> Manifest {
    let file = |name: &str, size, byte| FileRecord {
        name: name.to_owned(),
        size,
        hash: [byte; 32],
        method: HashMethod::Pieces,
    };
    let leaf = (7, 0, [0, 0x219c_03ab, 0, 0x10]);
    Manifest {
        id: SnapshotId(Generation(12)),
        name: Some(SnapshotName::try_from("warm".to_owned()).unwrap()),
        created_ms: 1_764_000_000_123,
        slot: Slot::try_from(3).unwrap(),
        boot: BootId([0xab; 16]),
        shares: true,
        origin: origin(),
        files: vec![file("disk-0.img", 1 << 36, 1), file("memory.img", 4096, 2), file("state.json", 7, 3)],
        given: Given {
            cpuid: Some(Cpuid::of(&[leaf])),
            contents: BTreeMap::from([("vm.kernel".to_owned(), [4; 32])]),
            method: HashMethod::Pieces,
        },
        receipt: Some(Receipt {
            on_leak: OnLeak::Redact,
            zeroes_freed_memory: true,
            values: vec!["EDITOR".to_owned(), "TOKEN".to_owned()],
            bytes: 1 << 20,
            found: vec![FoundValue {
                value: "TOKEN".to_owned(),
                place: "RAM".to_owned(),
                form: "base64".to_owned(),
                count: 2,
            }],
            unproven: vec![UnprovenValue { value: "EDITOR".to_owned(), reason: "it is short".to_owned() }],
            processes: vec![HoldingProcess {
                pid: 7,
                program: "java".to_owned(),
                values: vec!["TOKEN".to_owned()],
            }],
            unproven_places: Vec::new(),
            warnings: Vec::new(),
        }),
    }
}

#[test]
fn digits_in_upper_case_are_a_change() {
    let encoded = encode(&Manifest { files: vec![], ..manifest() }).unwrap();
    let text = String::from_utf8(encoded).unwrap();
    let changed = text.replace(&"ab".repeat(16), &"AB".repeat(16));
    assert_ne!(changed, text);
    assert!(decode(changed.as_bytes()).is_err());
    // Even with a check of its own.
    let mut text: ManifestText = serde_json::from_str(&changed).unwrap();
    text.check.clear();
    text.check = check(&text).unwrap();
    assert!(matches!(decode(&bytes(&text).unwrap()), Err(ManifestError::Rewritten)));
}

#[test]
fn what_is_written_is_read() {
    for manifest in [
        manifest(),
        Manifest { name: None, files: vec![], given: Given::default(), receipt: None, ..manifest() },
    ] {
        assert_eq!(decode(&encode(&manifest).unwrap()).unwrap(), manifest);
    }
}

#[test]
fn every_changed_bit_and_every_cut_is_noticed() {
    let encoded = encode(&manifest()).unwrap();
    for bit in 0..encoded.len() * 8 {
        let mut changed = encoded.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&changed).is_err(), "bit {bit}");
    }
    for length in 0..encoded.len() {
        assert!(decode(&encoded[..length]).is_err(), "{length} bytes");
    }
    let blank = String::from_utf8(encoded).unwrap().replace("  \"id\"", "   \"id\"");
    assert!(matches!(decode(blank.as_bytes()), Err(ManifestError::Rewritten)));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let long = "x".repeat(65);
    for name in ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "../x", "a b", "a\n", "manifest.json", &long]
    {
        let file = FileRecord { name: name.to_owned(), size: 0, hash: [0; 32], method: HashMethod::Pieces };
        let manifest = Manifest { files: vec![file], ..manifest() };
        assert!(matches!(encode(&manifest), Err(ManifestError::FileName(_))), "{name:?}");
    }
    let twice =
        Manifest { files: vec![manifest().files[0].clone(), manifest().files[0].clone()], ..manifest() };
    assert!(matches!(encode(&twice), Err(ManifestError::Twice(_))));
}

#[test]
fn a_newer_format_is_named() {
    let newer = r#"{"format": 4, "something": "else"}"#;
    assert!(matches!(decode(newer.as_bytes()), Err(ManifestError::Format(4))));
}

/// The manifest of a test, byte for byte. A nixbox that wrote or read the formats differently would not read the
/// snapshots that there are.
const FIRST: &str = include_str!("format-1.json");
const SECOND: &str = include_str!("format-2.json");
const THIRD: &str = include_str!("format-3.json");

/// The manifest as an older nixbox wrote it.
fn older(given: Given) -> Manifest {
    let mut manifest = Manifest { given, receipt: None, ..manifest() };
    manifest.files.iter_mut().for_each(|file| file.method = HashMethod::Whole);
    if !manifest.given.contents.is_empty() {
        manifest.given.method = HashMethod::Whole;
    }
    manifest
}

#[test]
fn all_formats_are_read_and_the_third_is_written() {
    assert_eq!(decode(FIRST.as_bytes()).unwrap(), older(Given::default()));
    assert_eq!(decode(SECOND.as_bytes()).unwrap(), older(manifest().given));
    let newest = Manifest { receipt: None, ..manifest() };
    assert_eq!(decode(THIRD.as_bytes()).unwrap(), newest);
    assert_eq!(String::from_utf8(encode(&newest).unwrap()).unwrap(), THIRD);
}

#[test]
fn a_file_has_one_hash_and_pieces_belong_to_the_third_format() {
    let hash = || Some("ab".repeat(32));
    for (blake3, pieces, format, good) in [
        (hash(), None, 1, true),
        (hash(), None, 2, true),
        (hash(), None, 3, true),
        (None, hash(), 1, false),
        (None, hash(), 2, false),
        (None, hash(), 3, true),
        (hash(), hash(), 3, false),
        (None, None, 3, false),
    ] {
        let changed = resealed(if format == 1 { FIRST } else { SECOND }, |text| {
            text.format = format;
            text.files[0].blake3 = blake3.clone();
            text.files[0].pieces = pieces.clone();
        });
        assert_eq!(decode(&changed).is_ok(), good, "format {format}: {blake3:?}, {pieces:?}");
    }
}

/// The same text with a check of its own.
fn resealed(text: &str, change: impl FnOnce(&mut ManifestText)) -> Vec<u8> {
    let mut text: ManifestText = serde_json::from_str(text).unwrap();
    change(&mut text);
    text.check.clear();
    text.check = check(&text).unwrap();
    bytes(&text).unwrap()
}

#[test]
fn a_section_of_a_later_nixbox_is_passed_over_and_is_covered_by_the_check() {
    let later = resealed(SECOND, |text| {
        let later = serde_json::json!({ "pieces": ["a", "b"], "bytes": 7 });
        text.sections.as_mut().unwrap().insert("pieces".to_owned(), later);
    });
    assert_eq!(decode(&later).unwrap(), older(manifest().given));
    let changed = String::from_utf8(later).unwrap().replace("\"bytes\": 7", "\"bytes\": 8");
    assert!(matches!(decode(changed.as_bytes()), Err(ManifestError::Check)));
}

#[test]
fn sections_belong_to_the_later_formats_and_their_values_are_exact() {
    let odd: [fn(&mut ManifestText); 4] = [
        |text| text.sections = None,
        |text| text.format = 1,
        |text| {
            drop(text.sections.as_mut().unwrap().insert("contents".into(), serde_json::json!({"a": "AB"})))
        },
        |text| {
            drop(
                text.sections
                    .as_mut()
                    .unwrap()
                    .insert("cpuid".into(), serde_json::json!({"1.0.eax": "00000001"})),
            )
        },
    ];
    for change in odd {
        assert!(decode(&resealed(SECOND, change)).is_err());
    }
    assert!(decode(&resealed(FIRST, |text| text.format = 2)).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn any_manifest_survives(
        id in any::<u64>(), created_ms in any::<u64>(), slot in 0_u8..65, boot in any::<[u8; 16]>(),
        shares in any::<bool>(), cpu in proptest::collection::btree_set("[a-z0-9_]{1,9}", 0..4),
        shape in proptest::collection::btree_map("[a-z.]{1,9}", any::<String>(), 0..4), name in proptest::option::of("[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}"),
        files in proptest::collection::btree_map("[a-z0-9][a-z0-9._-]{0,63}", any::<(u64, [u8; 32], bool)>(), 0..5),
        contents in proptest::collection::btree_map("[a-z.]{1,9}", any::<[u8; 32]>(), 0..4), cpuid in any::<bool>(), leaf in any::<[u32; 4]>(),
    ) {
        let manifest = Manifest {
            id: SnapshotId(Generation(id)),
            name: name.map(|name| SnapshotName::try_from(name).unwrap()),
            created_ms, slot: Slot::try_from(slot).unwrap(), boot: BootId(boot), shares,
            origin: Origin { cpu, shape, ..origin() },
            files: files.into_iter().map(|(name, (size, hash, whole))| FileRecord {
                name, size, hash, method: if whole { HashMethod::Whole } else { HashMethod::Pieces },
            }).collect(),
            given: Given {
                method: if shares || contents.is_empty() { HashMethod::Pieces } else { HashMethod::Whole },
                cpuid: cpuid.then(|| Cpuid::of(&[(1, 0, leaf)])), contents,
            },
            receipt: if shares { manifest().receipt } else { None },
        };
        prop_assert_eq!(decode(&encode(&manifest).unwrap()).unwrap(), manifest);
    }
}
