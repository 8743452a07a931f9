//! Claims about marks: dangling links for what could be had.

use super::super::marks::nowhere;
use super::*;
use std::collections::BTreeSet;

fn keys(names: &[&str]) -> Option<BTreeSet<ModelKey>> {
    Some(names.iter().map(|name| key(name)).collect())
}

/// Names of marks, and of whole files, below the models folder.
fn shown(dir: &TempDir) -> (Vec<String>, Vec<String>) {
    let (marks, files): (Vec<_>, Vec<_>) =
        visible(dir).into_iter().partition(|(_, path)| fs::symlink_metadata(path).expect("there").is_symlink());
    let names = |rows: Vec<(String, PathBuf)>| rows.into_iter().map(|(name, _)| name).collect();
    (names(marks), names(files))
}

#[test]
fn a_mark_dangles_and_says_which_model_it_stands_for() {
    let dir = folder();
    let (store, _) = open(&dir);
    let marked = store.set_marks(keys(&["vae/sub/a", "loras/b"])).expect("marks");
    assert_eq!((marked.made, marked.removed, marked.left_out), (2, 0, 0));
    let (path, target) = nowhere(&store.paths, &key("vae/sub/a"));
    assert_eq!(fs::read_link(&path).expect("a link"), target);
    assert!(!path.exists(), "it leads nowhere");
    assert_eq!(store.set_marks(keys(&["vae/sub/a", "loras/b"])).expect("marks"), Marked::default(), "nothing to do");
}

#[test]
fn a_whole_file_takes_its_marks_place_and_an_eviction_puts_it_back() {
    let (dir, data) = (folder(), content(1, BYTES));
    let (store, _) = open(&dir);
    store.set_marks(keys(&["vae/a", "vae/b"])).expect("marks");
    let before = fs::metadata(store.paths.models.join("vae")).expect("there").modified().expect("known");
    let blob = store_all(&store, &data, &["vae/a"]);
    assert_eq!(shown(&dir), (vec!["vae/b".to_owned()], vec!["vae/a".to_owned()]));
    let after = fs::metadata(store.paths.models.join("vae")).expect("there").modified().expect("known");
    assert!(after >= before);
    store.remove(blob).expect("removes");
    assert_eq!(shown(&dir), (vec!["vae/a".to_owned(), "vae/b".to_owned()], Vec::new()));
}

#[test]
fn marks_go_when_they_are_off_or_their_model_left_its_origin_and_nothing_else_does() {
    let (dir, data) = (folder(), content(1, BYTES));
    let (store, _) = open(&dir);
    store_all(&store, &data, &["vae/a"]);
    let models = store.paths.models.clone();
    fs::create_dir_all(models.join("loras")).expect("made");
    std::os::unix::fs::symlink("/nowhere/at/all", models.join("loras/theirs")).expect("made");
    fs::write(models.join("loras/file"), "theirs").expect("written");
    let marked =
        store.set_marks(keys(&["vae/a", "vae/deep/er/x", "vae/y", "loras/theirs", "loras/file"])).expect("marks");
    assert_eq!((marked.made, marked.left_out), (2, 2), "what is not ours is left alone");
    let marked = store.set_marks(keys(&["vae/y"])).expect("marks");
    assert_eq!((marked.made, marked.removed), (0, 1));
    assert!(!models.join("vae/deep").exists(), "empty folders go too");
    drop(store);
    assert_eq!(remove_marks(&models).expect("removes").removed, 1);
    let left = (vec!["loras/theirs".to_owned()], vec!["loras/file".to_owned(), "vae/a".to_owned()]);
    assert_eq!(shown(&dir), left);
    assert!(models.join("vae").is_dir() && models.join("loras").is_dir(), "ComfyUI's folders stay");
}

#[test]
fn no_eviction_puts_a_mark_back_once_they_are_off() {
    let (dir, data) = (folder(), content(1, BYTES));
    let (store, _) = open(&dir);
    store.set_marks(keys(&["vae/a"])).expect("marks");
    let blob = store_all(&store, &data, &["vae/a"]);
    store.set_marks(None).expect("marks");
    store.remove(blob).expect("removes");
    assert_eq!(shown(&dir), (Vec::new(), Vec::new()));
}

#[test]
fn there_are_never_more_than_the_limit() {
    let dir = folder();
    let (store, _) = open(&dir);
    let many = (0..MARKS_MAX + 3).map(|n| key(&format!("loras/{n}"))).collect();
    let marked = store.set_marks(Some(many)).expect("marks");
    assert_eq!((marked.made, marked.left_out), (MARKS_MAX as u64, 3));
}

#[test]
fn a_crash_at_any_point_leaves_names_or_marks_and_the_next_call_finishes() {
    let data = content(1, BYTES);
    let wanted = || keys(&["vae/a", "vae/b", "loras/c"]);
    for point in 0..40 {
        let dir = folder();
        let (store, _) = open(&dir);
        store.set_marks(wanted()).expect("marks");
        let (partial, _) = begin(&store, &data);
        write(&partial, &data, 0..layout(&data).pieces());
        crash::at(Some(point));
        let done = store
            .commit(&partial, commit_of(&data, &["vae/a"]))
            .and_then(|()| store.remove(digest(&data)))
            .and_then(|_| store.set_marks(keys(&["vae/a", "vae/d"])));
        crash::at(None);
        drop((partial, store));
        let (store, inventory) = open(&dir);
        let (marks, files) = shown(&dir);
        assert!(marks.iter().chain(&files).any(|name| name == "vae/a"), "point {point}: it is always listed");
        assert_eq!(files.len(), inventory.links.len(), "point {point}");
        store.set_marks(wanted()).expect("marks");
        let (marks, files) = shown(&dir);
        let mut all: Vec<String> = marks.into_iter().chain(files).collect();
        all.sort();
        assert_eq!(all, ["loras/c", "vae/a", "vae/b"], "point {point}");
        assert!(own_files(&dir).iter().all(|name| !name.ends_with(".tmp")), "point {point}: nothing is left over");
        if done.is_ok() {
            return;
        }
    }
    panic!("it never got to the end");
}
