//! A crash at every point of every operation, and again at every point of the healing that follows.

use super::*;

/// Prepares a store, crashes `act` at each of its points in turn, heals (crashing at each point of that too), and checks.
/// Returns at how many points `act` was cut short.
fn at_every_point<T>(
    prepare: impl Fn(&TempDir, &Store) -> T,
    act: impl Fn(&Store, &T) -> Result<(), StoreError>,
    check: impl Fn(&TempDir, &Store, &Inventory, &T),
) -> u32 {
    for point in 0.. {
        for point_of_healing in 0.. {
            let dir = folder();
            let (store, _) = open(&dir);
            let prepared = prepare(&dir, &store);
            crash::at(Some(point));
            let acted = act(&store, &prepared);
            crash::at(None);
            drop(store);
            if acted.is_ok() {
                return point;
            }
            crash::at(Some(point_of_healing));
            let healed = try_open(&dir);
            crash::at(None);
            let healed_at_once = healed.is_ok();
            drop(healed);
            let (store, inventory) = open(&dir);
            check_visible(&dir, &inventory);
            assert!(own_files(&dir).iter().all(|name| !name.ends_with(".tmp")), "{:?}", own_files(&dir));
            check(&dir, &store, &inventory, &prepared);
            if healed_at_once {
                break;
            }
        }
    }
    unreachable!("an operation has an end")
}

#[test]
fn a_crash_at_any_point_of_a_commit_loses_no_finished_piece_and_shows_no_unfinished_file() {
    let data = content(1, BYTES);
    let names = ["vae/a.safetensors", "vae/sub/b.safetensors"];
    let points = at_every_point(
        |_, store| {
            let (partial, _) = begin(store, &data);
            write(&partial, &data, 0..6);
            partial
        },
        |store, partial| store.commit(partial, commit_of(&data, &names)),
        |dir, store, inventory, _| {
            if inventory.blobs.is_empty() {
                assert!(inventory.links.is_empty());
                assert_eq!(inventory.partials.len(), 1);
                assert_eq!(begin(store, &data).1, [0, 1, 2, 3, 4, 5]);
                store_all(store, &data, &names);
            } else {
                assert_eq!((inventory.links.len(), inventory.partials.len()), (2, 0));
            }
            assert_eq!(visible(dir).len(), 2);
            assert_eq!(scrub(store, digest(&data)), [0; 0]);
        },
    );
    assert!(points >= 6, "{points}");
}

#[test]
fn a_commit_cut_short_is_still_the_partial_of_its_source_or_done() {
    let data = content(2, BYTES);
    let name = PartialName([0x77; 32]);
    at_every_point(
        |_, store| {
            let (partial, _) = store.begin(name, BYTES, &NEVER).expect("begins");
            write(&partial, &data, 0..6);
            partial
        },
        |store, partial| store.commit(partial, commit_of(&data, &["vae/a"])),
        |_, store, inventory, _| {
            if inventory.blobs.is_empty() {
                assert_eq!(inventory.partials[0].name, name);
                assert_eq!(store.begin(name, BYTES, &NEVER).expect("begins").1.len(), 6);
            }
        },
    );
}

#[test]
fn a_crash_while_a_name_is_replaced_leaves_the_old_content_or_the_new() {
    let (old, new) = (content(3, BYTES), content(4, BYTES));
    at_every_point(
        |_, store| {
            store_all(store, &old, &["vae/a"]);
            let (partial, _) = begin(store, &new);
            write(&partial, &new, 0..6);
            partial
        },
        |store, partial| store.commit(partial, commit_of(&new, &["vae/a"])),
        |dir, store, inventory, _| {
            assert_eq!(inventory.links.len(), 1);
            store_all(store, &new, &["vae/a"]);
            assert_eq!(fs::read(&visible(dir)[0].1).expect("readable"), new);
            assert_eq!(scrub(store, digest(&old)), [0; 0]);
        },
    );
}

#[test]
fn a_withdrawal_is_finished_whatever_cuts_it_short_and_keeps_the_good_pieces() {
    let data = content(5, BYTES);
    let points = at_every_point(
        |_, store| {
            let blob = store_all(store, &data, &["vae/a", "vae/b"]);
            damage(&store.paths.blob(blob), 3 * PIECE + 5);
            assert_eq!(scrub(store, blob), [3]);
            blob
        },
        |store, blob| store.withdraw(*blob, &[3]).map(|_| ()),
        |dir, store, inventory, _| {
            assert!(inventory.blobs.is_empty() && visible(dir).is_empty());
            assert_eq!(begin(store, &data).1, [0, 1, 2, 4, 5]);
            store_all(store, &data, &["vae/a"]);
            assert_eq!(scrub(store, digest(&data)), [0; 0]);
        },
    );
    assert!(points >= 6, "{points}");
}

#[test]
fn a_withdrawal_never_writes_to_a_file_that_somebody_outside_shares() {
    let data = content(6, BYTES);
    at_every_point(
        |dir, store| {
            let blob = store_all(store, &data, &["vae/a"]);
            let outside = dir.path().join("mine");
            fs::hard_link(store.paths.blob(blob), &outside).expect("links");
            damage(&outside, 3 * PIECE);
            outside
        },
        |store, _| store.withdraw(digest(&data), &[3]).map(|_| ()),
        |_, store, _, outside| {
            let mine = fs::read(outside).expect("readable");
            assert_eq!(begin(store, &data).1, [0, 1, 2, 4, 5]);
            store_all(store, &data, &["vae/a"]);
            assert!(mine != data && fs::read(outside).expect("readable") == mine);
        },
    );
}

#[test]
fn a_removal_cut_short_is_done_or_undone() {
    let (data, other) = (content(7, BYTES), content(8, BYTES));
    let points = at_every_point(
        |_, store| {
            store_all(store, &other, &["vae/other"]);
            store_all(store, &data, &["vae/a", "vae/sub/b"])
        },
        |store, blob| store.remove(*blob).map(|_| ()),
        |dir, _, inventory, _| match inventory.blobs.len() {
            1 => assert_eq!((inventory.links.len(), own_files(dir).len()), (1, 2)),
            2 => assert_eq!((inventory.links.len(), own_files(dir).len()), (3, 4)),
            other => panic!("{other} blobs"),
        },
    );
    assert!(points >= 4, "{points}");
}

#[test]
fn a_name_taken_away_by_halves_is_there_or_not() {
    let data = content(9, BYTES);
    at_every_point(
        |_, store| store_all(store, &data, &["vae/a", "vae/b"]),
        |store, _| store.unlink(&key("vae/a")),
        |_, _, inventory, _| assert!((1..=2).contains(&inventory.links.len())),
    );
}

#[test]
fn an_adoption_cut_short_leaves_the_file_alone_and_can_be_repeated() {
    let data = content(10, BYTES);
    let adopt = |store: &Store, file: &PathBuf| {
        store.adopt(file, &key("vae/a"), Wall(1), &NEVER, &AtomicU64::new(0)).map(|_| ())
    };
    let points = at_every_point(
        |dir, _| {
            let file = dir.path().join("mine.pt");
            fs::write(&file, &data).expect("writable");
            file
        },
        adopt,
        |dir, store, _, file| {
            assert_eq!(fs::read(file).expect("readable"), data);
            adopt(store, file).expect("adopts");
            assert_eq!(fs::read(&visible(dir)[0].1).expect("readable"), data);
            assert_eq!(scrub(store, digest(&data)), [0; 0]);
        },
    );
    assert!(points >= 4, "{points}");
}

pub(super) fn damage(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reads");
    file.write_all_at(&[!byte[0]], offset).expect("writes");
}
