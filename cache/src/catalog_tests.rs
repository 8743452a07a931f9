//! Claims about what the catalog makes of listings and manifests.

use super::*;

fn key(name: &str) -> ModelKey {
    ModelKey::parse(name).unwrap()
}

fn listed(name: &str, bytes: u64) -> Listed {
    let validator = Validator { etag: Some(format!("\"{name}\"")), modified_ms: None };
    Listed { model: key(name), path: format!("p/{name}"), bytes, validator }
}

fn promised(name: &str, size: u64, digest: u8) -> ManifestModel {
    ManifestModel { name: key(name), size, blake3: Some(BlobId([digest; 32])), sha256: None, sources: Vec::new() }
}

fn snapshot(origin: &str, listed: Vec<Listed>, models: Vec<ManifestModel>) -> OriginSnapshot {
    let manifest = Some(Manifest { version: 1, models });
    OriginSnapshot { origin: OriginName::new(origin), at: Wall(0), prefix: "p".to_owned(), listed, manifest }
}

fn origins(catalog: &Catalog, name: &str) -> Vec<String> {
    catalog.get(&key(name)).map_or_else(Vec::new, |entry| entry.sources.iter().map(|s| s.origin.to_string()).collect())
}

#[test]
fn a_manifest_gives_its_digests_to_what_is_listed() {
    let catalog =
        Catalog::build(&[snapshot("a", vec![listed("vae/x.sft", 5)], vec![promised("vae/x.sft", 5, 1)])], &[]);
    let entry = catalog.get(&key("vae/x.sft")).unwrap();
    assert_eq!(entry.blake3, Some(BlobId([1; 32])));
    assert_eq!(entry.sources[0].validator, listed("vae/x.sft", 5).validator);
}

#[test]
fn a_manifest_with_another_size_is_stale_for_that_model_alone() {
    let objects = vec![listed("vae/x.sft", 6), listed("vae/y.sft", 5)];
    let catalog =
        Catalog::build(&[snapshot("a", objects, vec![promised("vae/x.sft", 5, 1), promised("vae/y.sft", 5, 2)])], &[]);
    let entry = catalog.get(&key("vae/x.sft")).unwrap();
    assert_eq!((entry.bytes, entry.blake3), (6, None));
    assert_eq!(catalog.get(&key("vae/y.sft")).unwrap().blake3, Some(BlobId([2; 32])));
}

#[test]
fn a_manifest_alone_is_enough_where_nothing_can_be_listed() {
    let catalog = Catalog::build(&[snapshot("web", Vec::new(), vec![promised("vae/x.sft", 5, 1)])], &[]);
    let entry = catalog.get(&key("vae/x.sft")).unwrap();
    assert_eq!((entry.bytes, entry.sources[0].path.as_str()), (5, "p/vae/x.sft"));
}

#[test]
fn a_manifest_does_not_invent_objects_where_they_are_listed() {
    let catalog =
        Catalog::build(&[snapshot("a", vec![listed("vae/y.sft", 1)], vec![promised("vae/x.sft", 5, 1)])], &[]);
    assert!(catalog.get(&key("vae/x.sft")).is_none());
    assert_eq!(catalog.len(), 1);
}

#[test]
fn other_paths_of_a_manifest_are_below_the_prefix_and_replace_the_name() {
    let mut model = promised("vae/x.sft", 5, 1);
    model.sources = vec!["blobs/1".to_owned(), "vae/y.sft".to_owned(), "vae/z.sft".to_owned()];
    let objects = vec![listed("vae/y.sft", 5), listed("vae/z.sft", 6)];
    let catalog = Catalog::build(&[snapshot("a", objects, vec![model])], &[]);
    let entry = catalog.get(&key("vae/x.sft")).unwrap();
    let paths: Vec<&str> = entry.sources.iter().map(|source| source.path.as_str()).collect();
    assert_eq!(paths, ["p/blobs/1", "p/vae/y.sft"], "the third is listed with another size");
    assert_eq!(entry.sources[1].validator, listed("vae/y.sft", 5).validator);
}

#[test]
fn origins_with_the_same_size_and_no_contradiction_join() {
    let first = snapshot("a", vec![listed("vae/x.sft", 5)], Vec::new());
    let second = snapshot("b", vec![listed("vae/x.sft", 5)], vec![promised("vae/x.sft", 5, 1)]);
    let third = snapshot("c", vec![listed("vae/x.sft", 5)], vec![promised("vae/x.sft", 5, 2)]);
    let fourth = snapshot("d", vec![listed("vae/x.sft", 6)], Vec::new());
    let catalog = Catalog::build(&[first, second, third, fourth], &[]);
    assert_eq!(origins(&catalog, "vae/x.sft"), ["a", "b"]);
    assert_eq!(catalog.get(&key("vae/x.sft")).unwrap().blake3, Some(BlobId([1; 32])));
}

#[test]
fn what_was_found_by_name_counts_for_its_origin_and_takes_the_manifests_digests() {
    let web = snapshot("web", Vec::new(), vec![promised("vae/x.sft", 5, 1), promised("vae/y.sft", 5, 2)]);
    let found = [
        (OriginName::new("web"), listed("vae/x.sft", 5)),
        (OriginName::new("web"), listed("vae/y.sft", 6)),
        (OriginName::new("gone"), listed("vae/z.sft", 7)),
    ];
    let catalog = Catalog::build(&[web], &found);
    let entry = catalog.get(&key("vae/x.sft")).unwrap();
    assert_eq!((entry.blake3, entry.sources.len()), (Some(BlobId([1; 32])), 1));
    assert!(entry.sources[0].validator.etag.is_some());
    assert_eq!(catalog.get(&key("vae/y.sft")).unwrap().bytes, 6, "what the server says now beats the manifest");
    assert!(catalog.get(&key("vae/z.sft")).is_none());
}
