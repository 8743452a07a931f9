//! Claims about files that were on the node before.

use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::engine::view::ImportHow;

fn adopt(store: &Store, file: &Path, name: &str) -> Result<Adopted, StoreError> {
    store.adopt(file, &key(name), Wall(1), &NEVER, &AtomicU64::new(0))
}

fn lora() -> Vec<u8> {
    let header = br#"{"x.lora_up.weight":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, b"12345"].concat()
}

#[test]
fn a_file_is_adopted_by_a_hard_link_and_stays_as_it_is() {
    let (dir, data) = (folder(), content(1, BYTES));
    let (store, _) = open(&dir);
    let file = dir.path().join("mine.pt");
    fs::write(&file, &data).expect("writable");
    let adopted = adopt(&store, &file, "vae/a.pt").expect("adopts");
    assert_eq!(adopted, Adopted { blob: digest(&data), bytes: BYTES, how: ImportHow::HardLink });
    let inode = |path: &Path| fs::metadata(path).expect("there").ino();
    assert_eq!(inode(&file), inode(&store.model_path(&key("vae/a.pt"))));
    assert_eq!(adopt(&store, &file, "vae/a.pt").expect("again").how, ImportHow::Known);
    assert_eq!(adopt(&store, &file, "vae/b.pt").expect("again").how, ImportHow::Known);
    assert_eq!(store.inspect(adopted.blob, &key("vae/a.pt")).expect("looks"), Inspection::Intact);
    drop(store);
    let (store, inventory) = open(&dir);
    check_visible(&dir, &inventory);
    assert_eq!((inventory.blobs[0].trust, inventory.links.len()), (Trust::Imported, 2));
    assert_eq!(store.remove(adopted.blob).expect("removes"), 0, "the file outside still holds the bytes");
    assert_eq!(fs::read(&file).expect("kept"), data);
}

#[test]
fn a_file_on_another_file_system_is_copied() {
    let (dir, data) = (folder(), content(2, BYTES));
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    let (store, _) = open(&dir);
    let file = elsewhere.path().join("mine.pt");
    fs::write(&file, &data).expect("writable");
    let adopted = adopt(&store, &file, "vae/a.pt").expect("adopts");
    assert_eq!((adopted.how, adopted.blob), (ImportHow::Copy, digest(&data)));
    assert_eq!(fs::read(store.model_path(&key("vae/a.pt"))).expect("readable"), data);
    assert_eq!(scrub(&store, adopted.blob), [0; 0]);
    assert_eq!(adopt(&store, &file, "vae/b.pt").expect("again").how, ImportHow::Known);
    assert_eq!(own_files(&dir).len(), 2, "{:?}", own_files(&dir));
}

#[test]
fn a_file_in_the_models_folder_is_adopted_in_place_and_a_twin_shares_its_blob() {
    let (dir, data) = (folder(), content(3, BYTES));
    let (store, _) = open(&dir);
    let models = config(&dir).models;
    fs::create_dir_all(models.join("vae")).expect("made");
    for name in ["a.pt", "b.pt"] {
        fs::write(models.join("vae").join(name), &data).expect("writable");
    }
    let found = store.scan_import(&models).expect("scans");
    let hows: Vec<ImportHow> = found
        .iter()
        .map(|found| {
            let (model, _) = found.model.as_ref().expect("a model");
            adopt(&store, &found.file, model.as_str()).expect("adopts").how
        })
        .collect();
    assert_eq!(hows, [ImportHow::HardLink, ImportHow::Known]);
    let inode = |name: &str| fs::metadata(models.join(name)).expect("there").ino();
    assert_eq!(inode("vae/a.pt"), inode("vae/b.pt"));
    assert!(store.scan_import(&models).expect("scans").is_empty(), "what is ours already is passed over");
}

#[test]
fn what_cannot_be_adopted_is_refused_and_leaves_nothing() {
    let (dir, data) = (folder(), content(4, BYTES));
    let (store, _) = open(&dir);
    let path = |name: &str| dir.path().join(name);
    fs::write(path("good.pt"), &data).expect("writable");
    fs::write(path("empty.pt"), b"").expect("writable");
    symlink(path("good.pt"), path("link.pt")).expect("linked");
    for name in ["empty.pt", "link.pt", "store"] {
        let adopted = adopt(&store, &path(name), "vae/a.pt");
        assert!(matches!(adopted, Err(StoreError::NotImportable { .. })), "{name}: {adopted:?}");
    }
    assert!(matches!(adopt(&store, &path("absent.pt"), "vae/a.pt"), Err(StoreError::Io { .. })));
    let other = content(5, 100);
    store_all(&store, &other, &["vae/taken.pt"]);
    let taken = adopt(&store, &path("good.pt"), "vae/taken.pt");
    assert!(matches!(taken, Err(StoreError::NotImportable { .. })), "{taken:?}");
    fs::write(config(&dir).models.join("vae/theirs.pt"), b"theirs").expect("writable");
    assert!(matches!(adopt(&store, &path("good.pt"), "vae/theirs.pt"), Err(StoreError::Foreign { .. })));
    let stopped = store.adopt(&path("good.pt"), &key("vae/a.pt"), Wall(1), &AtomicBool::new(true), &AtomicU64::new(0));
    assert!(matches!(stopped, Err(StoreError::Stopped)), "{stopped:?}");
    assert_eq!(own_files(&dir).len(), 2, "{:?}", own_files(&dir));
}

#[test]
fn a_folder_that_becomes_a_link_is_not_walked_through() {
    let (dir, data) = (folder(), content(7, BYTES));
    let (store, _) = open(&dir);
    let (found, secret) = (dir.path().join("found"), dir.path().join("secret"));
    for (place, data) in [(&found, &data), (&secret, &content(8, BYTES))] {
        fs::create_dir(place).expect("made");
        fs::write(place.join("x.safetensors"), data).expect("writable");
    }
    // Between the scan and the adoption, a folder on the way is swapped for a link to where only the daemon may read.
    fs::remove_dir_all(&found).expect("removed");
    symlink(&secret, &found).expect("linked");
    let adopted = adopt(&store, &found.join("x.safetensors"), "vae/x.safetensors");
    assert!(matches!(adopted, Err(StoreError::Io { .. })), "{adopted:?}");
    let rows = store.scan_import(dir.path()).expect("scans");
    assert!(rows.iter().all(|row| !row.file.starts_with(&found)), "{rows:?}");
    assert!(own_files(&dir).is_empty(), "{:?}", own_files(&dir));
}

#[test]
fn a_file_that_is_swapped_for_a_link_while_it_is_imported_never_brings_in_what_the_link_points_to() {
    let (dir, secret) = (folder(), content(9, BYTES));
    // On another file system, where files are opened and copied.
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    let (store, _) = open(&dir);
    let path = |name: &str| elsewhere.path().join(name);
    fs::write(path("secret"), &secret).expect("writable");
    use std::sync::atomic::Ordering::Relaxed;
    const SWAPS: u64 = 500;
    let swapped = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while swapped.load(Relaxed) < SWAPS {
                fs::write(path("file"), content(10, 4096)).expect("writable");
                fs::rename(path("file"), path("x.pt")).expect("renamed");
                symlink(path("secret"), path("link")).expect("linked");
                fs::rename(path("link"), path("x.pt")).expect("renamed");
                swapped.fetch_add(1, Relaxed);
            }
        });
        while swapped.load(Relaxed) < SWAPS {
            if let Ok(adopted) = adopt(&store, &path("x.pt"), "vae/x.pt") {
                assert_eq!(adopted.bytes, 4096, "what only the daemon may read became a model");
                store.remove(adopted.blob).expect("removes");
            }
        }
    });
}

#[test]
fn a_pipe_or_a_device_is_no_model_and_is_not_waited_for() {
    let dir = folder();
    let (store, _) = open(&dir);
    let pipe = dir.path().join("x.safetensors");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("made");
    let adopted = adopt(&store, &pipe, "vae/x.safetensors");
    assert!(matches!(adopted, Err(StoreError::NotImportable { .. })), "{adopted:?}");
    let rows = store.scan_import(dir.path()).expect("scans");
    assert!(matches!(&rows[..], [row] if row.model.is_err()), "{rows:?}");
    // Swapped in behind the look: opening it does not wait for who writes.
    assert!(
        !disk::open_theirs(&pipe).and_then(|file| file.metadata().wrap("look at", &pipe)).expect("opens").is_file()
    );
}

#[test]
fn a_later_write_to_an_adopted_file_is_noticed() {
    let (dir, data) = (folder(), content(6, BYTES));
    let (store, _) = open(&dir);
    let file = dir.path().join("mine.pt");
    fs::write(&file, &data).expect("writable");
    fs::File::options().write(true).open(&file).and_then(|f| f.set_modified(std::time::UNIX_EPOCH)).expect("aged");
    let blob = adopt(&store, &file, "vae/a.pt").expect("adopts").blob;
    super::crashes::damage(&file, 3 * PIECE);
    assert!(matches!(store.inspect(blob, &key("vae/a.pt")), Ok(Inspection::Changed { .. })));
    let again = adopt(&store, &file, "vae/b.pt").expect("a file of its own content");
    assert!(again.blob != blob);
}

#[test]
fn a_scan_finds_model_files_says_what_they_are_and_follows_no_link() {
    let dir = folder();
    let (store, _) = open(&dir);
    let top = dir.path().join("downloads");
    fs::create_dir_all(top.join("unet/deep")).expect("made");
    fs::write(top.join("thing.safetensors"), lora()).expect("writable");
    fs::write(top.join("unet/deep/m.gguf"), b"gguf").expect("writable");
    fs::write(top.join("cut.sft"), &lora()[..60]).expect("writable");
    fs::write(top.join("some-vae.PT"), b"x").expect("writable");
    fs::write(top.join("mystery.bin"), b"x").expect("writable");
    fs::write(top.join("zz-vae.pt"), b"").expect("writable");
    fs::write(top.join("notes.txt"), b"x").expect("writable");
    fs::create_dir_all(top.join("again")).expect("made");
    fs::write(top.join("again/thing.safetensors"), lora()).expect("writable");
    symlink("/", top.join("root")).expect("linked");
    symlink("/etc/passwd", top.join("z.pt")).expect("linked");
    let found = store.scan_import(&top).expect("scans");
    let rows: Vec<(String, Option<(String, &str)>)> = found
        .iter()
        .map(|row| {
            let file = row.file.strip_prefix(fs::canonicalize(&top).expect("there")).expect("below");
            let model = row.model.as_ref().ok().map(|(model, why)| (model.to_string(), *why));
            (file.to_string_lossy().into_owned(), model)
        })
        .collect();
    let expected = [
        ("again/thing.safetensors", Some(("loras/thing.safetensors", "safetensors header"))),
        ("cut.sft", None),
        ("mystery.bin", None),
        ("some-vae.PT", Some(("vae/some-vae.PT", "file name"))),
        ("thing.safetensors", None),
        ("unet/deep/m.gguf", Some(("diffusion_models/deep/m.gguf", "path"))),
        ("z.pt", None),
        ("zz-vae.pt", None),
    ];
    assert_eq!(rows, expected.map(|(file, model)| (file.to_owned(), model.map(|(m, why)| (m.to_owned(), why)))));
    assert_eq!(store.scan_import(&top.join("some-vae.PT")).expect("scans").len(), 1);
    assert!(store.scan_import(&top.join("absent")).is_err());
    store_all(&store, &lora(), &["loras/x.safetensors"]);
    assert!(store.scan_import(&config(&dir).path).expect("scans").is_empty(), "the store itself is no source");
}
