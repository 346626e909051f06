use super::*;

fn descriptor(architecture: &str, digit: char) -> serde_json::Value {
    serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
        "digest": format!("sha256:{}", digit.to_string().repeat(64)),
        "platform": {"architecture": architecture, "os": "linux"}})
}

fn parse_index(manifests: &[serde_json::Value]) -> Result<ContainerManifest> {
    ContainerManifest::parse(
        serde_json::json!({ "manifests": manifests }).to_string().as_bytes(),
        "index.json",
    )
}

#[test]
fn the_image_for_this_architecture_is_chosen_and_attestations_are_passed_over() {
    let mut attestation = descriptor("unknown", '3');
    attestation["platform"]["os"] = "unknown".into();
    let index = [descriptor("arm64", '1'), descriptor("amd64", '2'), attestation.clone()];
    let Ok(ContainerManifest::Refers(chosen)) = parse_index(&index) else { panic!("no image") };
    assert!(chosen.digest.hex().starts_with('2'));
    let error = parse_index(&[descriptor("arm64", '1'), attestation]).unwrap_err().to_string();
    assert!(error.contains("linux/arm64") && error.contains("linux/amd64"), "{error}");
    let several = parse_index(&[descriptor("amd64", '1'), descriptor("amd64", '2')]);
    assert!(matches!(several, Err(ContainerError::Several { count: 2 })));
    assert!(matches!(parse_index(&[]), Err(ContainerError::None)));
}

#[test]
fn layers_that_are_no_archives_and_digests_that_are_none_are_refused() {
    let manifest = |layer: serde_json::Value| {
        let document = serde_json::json!({"config": descriptor("amd64", '1'), "layers": [layer]});
        ContainerManifest::parse(document.to_string().as_bytes(), "the manifest")
    };
    let digest = format!("sha256:{}", "a".repeat(64));
    let layer = |kind: &str| serde_json::json!({"mediaType": kind, "digest": digest, "size": 1});
    for good in
        ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"]
    {
        assert!(matches!(manifest(layer(good)), Ok(ContainerManifest::Image(_))), "{good}");
    }
    for bad in ["application/vnd.in-toto+json", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"] {
        assert!(matches!(manifest(layer(bad)), Err(ContainerError::MediaType(_))), "{bad}");
    }
    for bad in ["sha256:../../etc/passwd", "sha256:AA", "md5:00", ""] {
        let layer = serde_json::json!({"mediaType": "x.tar", "digest": bad, "size": 1});
        assert!(matches!(manifest(layer), Err(ContainerError::Document { .. })), "{bad}");
    }
}

#[test]
fn an_image_of_another_architecture_or_with_other_layers_is_refused() {
    let config = |architecture: &str, layers: usize| {
        let ids = vec![format!("sha256:{}", "b".repeat(64)); layers];
        serde_json::json!({"architecture": architecture, "os": "linux", "rootfs": {"diff_ids": ids},
            "config": {"Env": ["A=b"], "User": "node"}})
        .to_string()
    };
    let layers = |count: usize| vec![LayerBlob { path: "x".to_owned(), file: None, archive: None }; count];
    let good = ContainerImage::with_layers(config("amd64", 1).as_bytes(), layers(1)).unwrap();
    assert_eq!((good.config.user(), good.config.environment()), (Some("node"), vec!["A=b".to_owned()]));
    let wrong = ContainerImage::with_layers(config("arm64", 1).as_bytes(), layers(1));
    assert!(matches!(wrong, Err(ContainerError::Architecture { .. })));
    let wrong = ContainerImage::with_layers(config("amd64", 2).as_bytes(), layers(1));
    assert!(matches!(wrong, Err(ContainerError::LayerCount { layers: 1, listed: 2 })));
}
