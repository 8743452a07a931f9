//! Claims about what the store notices when somebody else was at its files.

use super::crashes::damage;
use super::*;

#[test]
fn a_scrub_names_the_bad_pieces() {
    for direct_io in [DirectIo::Auto, DirectIo::Off] {
        let (dir, data) = (folder(), content(1, BYTES));
        let store = Store::open_with(&StoreConfig { direct_io, ..config(&dir) }, 16, PIECE).expect("opens").0;
        let blob = store_all(&store, &data, &["vae/a"]);
        let progress = AtomicU64::new(0);
        assert_eq!(store.scrub(blob, &NEVER, &progress).expect("scrubs"), [0; 0]);
        assert_eq!(progress.into_inner(), BYTES);
        damage(&store.paths.blob(blob), 2 * PIECE);
        damage(&store.paths.blob(blob), BYTES - 1);
        assert_eq!(scrub(&store, blob), [2, 5]);
        let file = disk::open(&store.paths.blob(blob)).expect("opens");
        file.set_len(3 * PIECE + 100).expect("cuts");
        assert_eq!(scrub(&store, blob), [2, 3, 4, 5]);
        fs::remove_file(store.paths.blob(blob)).expect("removable");
        assert_eq!(scrub(&store, blob), [0, 1, 2, 3, 4, 5]);
        let stopped = store.scrub(blob, &AtomicBool::new(true), &AtomicU64::new(0));
        assert!(stopped.is_ok(), "there is nothing to read");
        assert!(matches!(
            store.scrub(BlobId([0; 32]), &NEVER, &AtomicU64::new(0)),
            Err(StoreError::UnknownBlob { .. })
        ));
    }
}

#[test]
fn a_scrub_can_be_stopped() {
    let (dir, data) = (folder(), content(1, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/a"]);
    let stopped = store.scrub(blob, &AtomicBool::new(true), &AtomicU64::new(0));
    assert!(matches!(stopped, Err(StoreError::Stopped)), "{stopped:?}");
}

#[test]
fn a_damaged_blob_is_repaired_piece_by_piece() {
    let (dir, data) = (folder(), content(2, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/a", "vae/b"]);
    damage(&store.paths.blob(blob), 4 * PIECE + 1);
    let bad = scrub(&store, blob);
    assert_eq!(store.withdraw(blob, &bad).expect("withdrawn"), PartialName::of_blob(blob));
    assert!(visible(&dir).is_empty());
    let (partial, finished) = begin(&store, &data);
    assert_eq!(finished, [0, 1, 2, 3, 5]);
    write(&partial, &data, [4]);
    store.commit(&partial, commit_of(&data, &["vae/a", "vae/b"])).expect("commits");
    assert_eq!(scrub(&store, blob), [0; 0]);
    drop((partial, store));
    check_visible(&dir, &open(&dir).1);
}

#[test]
fn a_file_that_grew_or_vanished_is_repaired_too() {
    let (dir, data) = (folder(), content(3, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/a"]);
    disk::open(&store.paths.blob(blob))
        .and_then(|file| file.set_len(BYTES + 9).wrap("grow", dir.path()))
        .expect("grows");
    let bad = scrub(&store, blob);
    assert_eq!(bad, [5]);
    store.withdraw(blob, &bad).expect("withdrawn");
    store_all(&store, &data, &["vae/a"]);
    assert_eq!(fs::read(&visible(&dir)[0].1).expect("readable"), data);
    fs::remove_file(store.paths.blob(blob)).expect("removable");
    fs::remove_file(&visible(&dir)[0].1).expect("removable");
    assert_eq!(store.inspect(blob, &key("vae/a")).expect("looks"), Inspection::Missing);
    store.withdraw(blob, &scrub(&store, blob)).expect("withdrawn");
    assert_eq!(begin(&store, &data).1, [0; 0]);
    store_all(&store, &data, &["vae/a"]);
}

#[test]
fn a_cheap_look_notices_writes_and_replaced_files_and_heals_names() {
    let (dir, data) = (folder(), content(4, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/a"]);
    let look = || store.inspect(blob, &key("vae/a")).expect("looks");
    assert_eq!(look(), Inspection::Intact);
    fs::remove_file(&visible(&dir)[0].1).expect("removable");
    assert_eq!((look(), look()), (Inspection::LinkMissing, Inspection::Intact));
    let path = store.paths.blob(blob);
    // Written to, and then as it was: only a scrub can tell.
    let file = disk::open(&path).expect("opens");
    file.set_modified(std::time::UNIX_EPOCH).expect("touched");
    assert!(matches!(look(), Inspection::Changed { .. }));
    assert_eq!(scrub(&store, blob), [0; 0]);
    store.bless(blob).expect("blessed");
    assert_eq!(look(), Inspection::Intact);
    file.set_len(1).expect("cuts");
    let Inspection::Changed { detail } = look() else { panic!("a cut file is intact") };
    assert!(detail.contains("size was 82697 bytes and is 1"), "{detail}");
    drop(store);
    let (store, _) = open(&dir);
    assert!(matches!(store.inspect(blob, &key("vae/a")), Ok(Inspection::Changed { .. })));
}

#[test]
fn a_blob_that_lost_its_place_gets_it_back_from_its_name() {
    let (dir, data) = (folder(), content(5, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/a"]);
    fs::remove_file(store.paths.blob(blob)).expect("removable");
    assert_eq!(store.inspect(blob, &key("vae/a")).expect("looks"), Inspection::Intact);
    fs::remove_file(store.paths.blob(blob)).expect("removable");
    drop(store);
    let (store, inventory) = open(&dir);
    check_visible(&dir, &inventory);
    assert_eq!((inventory.blobs.len(), scrub(&store, blob)), (1, vec![]));
}

#[test]
fn a_lost_sidecar_is_made_again_if_the_content_is_good() {
    let (dir, data) = (folder(), content(6, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/a"]);
    fs::write(store.paths.sidecar(blob), b"torn").expect("writable");
    assert_eq!(scrub(&store, blob), [0; 0]);
    damage(&store.paths.blob(blob), PIECE);
    assert_eq!(scrub(&store, blob), [1], "the sidecar is back");
    fs::remove_file(store.paths.sidecar(blob)).expect("removable");
    assert_eq!(scrub(&store, blob), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_name_whose_record_was_lost_is_found_again() {
    let (dir, data) = (folder(), content(3, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/x.safetensors"]);
    let index = store.paths.index();
    drop(store);
    let text = fs::read_to_string(&index).expect("readable");
    let kept: String = text.lines().filter(|line| !line.contains("vae/x")).map(|line| format!("{line}\n")).collect();
    assert_ne!(text, kept, "the name had a record");
    fs::write(&index, kept).expect("writable");
    let (store, inventory) = open(&dir);
    let names: Vec<&str> = inventory.links.iter().map(|link| link.model.as_str()).collect();
    assert_eq!(names, ["vae/x.safetensors"]);
    assert_eq!(store.inspect(blob, &key("vae/x.safetensors")).expect("looks"), Inspection::Intact);
}

#[test]
fn a_lost_index_leaves_visible_files_alone_and_an_import_brings_them_back() {
    let (dir, data) = (folder(), content(7, BYTES));
    let (store, _) = open(&dir);
    store_all(&store, &data, &["vae/a.pt"]);
    fs::remove_file(store.paths.index()).expect("removable");
    drop(store);
    let (store, inventory) = open(&dir);
    assert!(inventory.blobs.is_empty() && own_files(&dir).is_empty());
    assert_eq!(fs::read(&visible(&dir)[0].1).expect("kept"), data);
    let found = store.scan_import(&config(&dir).models).expect("scans");
    let (model, _) = found[0].model.clone().expect("a model");
    store.adopt(&found[0].file, &model, Wall(1), &NEVER, &AtomicU64::new(0)).expect("adopts");
    assert_eq!(scrub(&store, digest(&data)), [0; 0]);
    drop(store);
    check_visible(&dir, &open(&dir).1);
}

#[test]
fn a_lost_index_turns_nameless_blobs_into_partials_that_are_checked_again() {
    let (dir, data) = (folder(), content(8, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &[]);
    damage(&store.paths.blob(blob), PIECE);
    fs::remove_file(store.paths.index()).expect("removable");
    drop(store);
    let (store, inventory) = open(&dir);
    assert_eq!((inventory.blobs.len(), inventory.partials.len()), (0, 1));
    assert_eq!(begin(&store, &data).1, [0, 2, 3, 4, 5]);
}

#[test]
fn a_move_that_power_loss_undid_is_repeated() {
    let (dir, data) = (folder(), content(9, BYTES));
    let (store, _) = open(&dir);
    let blob = store_all(&store, &data, &["vae/a"]);
    fs::rename(store.paths.blob(blob), store.paths.data(PartialName::of_blob(blob))).expect("moves back");
    drop(store);
    let (store, inventory) = open(&dir);
    check_visible(&dir, &inventory);
    assert_eq!((inventory.blobs.len(), inventory.partials.len(), scrub(&store, blob)), (1, 0, vec![]));
}

#[test]
fn a_partial_whose_file_somebody_shares_is_begun_anew() {
    let (dir, data) = (folder(), content(10, BYTES));
    let (store, _) = open(&dir);
    let (partial, _) = begin(&store, &data);
    write(&partial, &data, 0..6);
    fs::hard_link(&partial.file.path, dir.path().join("mine")).expect("links");
    assert_eq!(begin(&store, &data).1, [0; 0]);
    store_all(&store, &data, &["vae/a"]);
}
