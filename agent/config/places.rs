//! Where things are when nobody says so: the configuration file, the state folder, the socket. Follows systemd's
//! variables first, then the XDG ones. Touches no file except to see whether it is there.

use std::path::{Path, PathBuf};

use super::variables::Env;

/// The system's configuration file.
const SYSTEM_CONFIG: &str = "/etc/tierd/config.toml";
/// The socket of a daemon that the system runs.
const SYSTEM_SOCKET: &str = "/run/tierd/tierd.sock";
/// The state folder of a daemon that root runs.
const SYSTEM_STATE: &str = "/var/lib/tierd";

/// The configuration file to read: the one named on the command line, else `$TIERD_CONFIG`, else the first that exists
/// of `$XDG_CONFIG_HOME/tierd/config.toml` (or `~/.config/…`) and `/etc/tierd/config.toml`. None: the defaults are enough.
///
/// A file that is named is returned even if it does not exist, so that reading it says so.
#[must_use]
pub fn find_config(named: Option<&Path>, env: &Env) -> Option<PathBuf> {
    if let Some(named) = named {
        return Some(named.to_owned());
    }
    if let Some(named) = set(env, "TIERD_CONFIG") {
        return Some(named.into());
    }
    let home = || set(env, "HOME").map(|home| Path::new(home).join(".config"));
    let personal = absolute(env, "XDG_CONFIG_HOME").or_else(home).map(|folder| folder.join("tierd/config.toml"));
    personal.into_iter().chain([PathBuf::from(SYSTEM_CONFIG)]).find(|file| file.is_file())
}

/// The socket of the daemon that this user would start with these variables.
#[must_use]
pub fn default_socket(env: &Env) -> PathBuf {
    socket(env, is_root())
}

/// The sockets that a client tries, the most likely first: the one of this user's own daemon, then the system's.
#[must_use]
pub fn client_sockets(env: &Env) -> Vec<PathBuf> {
    let mut sockets = vec![default_socket(env), PathBuf::from(SYSTEM_SOCKET)];
    sockets.dedup();
    sockets
}

/// Whether this process may do what root may.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn socket(env: &Env, root: bool) -> PathBuf {
    if let Some(folder) = systemd_folder(env, "RUNTIME_DIRECTORY") {
        return folder.join("tierd.sock");
    }
    if root {
        return SYSTEM_SOCKET.into();
    }
    match absolute(env, "XDG_RUNTIME_DIR") {
        Some(folder) => folder.join("tierd/tierd.sock"),
        None => state(env, root).join("tierd.sock"),
    }
}

/// The state folder.
pub(super) fn state(env: &Env, root: bool) -> PathBuf {
    if let Some(folder) = systemd_folder(env, "STATE_DIRECTORY") {
        return folder;
    }
    if root {
        return SYSTEM_STATE.into();
    }
    let home = || set(env, "HOME").map(|home| Path::new(home).join(".local/state"));
    absolute(env, "XDG_STATE_HOME").or_else(home).map_or(SYSTEM_STATE.into(), |folder| folder.join("tierd"))
}

/// The home folder, for paths that begin with `~/`.
pub(super) fn home(env: &Env) -> Option<PathBuf> {
    absolute(env, "HOME")
}

fn set<'a>(env: &'a Env, name: &str) -> Option<&'a str> {
    env.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// An absolute path in a variable. The XDG specification says to ignore relative ones.
fn absolute(env: &Env, name: &str) -> Option<PathBuf> {
    set(env, name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// systemd lists several folders with colons between them; the first is ours.
fn systemd_folder(env: &Env, name: &str) -> Option<PathBuf> {
    set(env, name)?.split(':').next().map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn systemd_names_the_folders_before_anyone_else() {
        let env = env(&[
            ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"),
            ("RUNTIME_DIRECTORY", "/run/a"),
            ("XDG_STATE_HOME", "/x"),
            ("XDG_RUNTIME_DIR", "/y"),
        ]);
        for root in [true, false] {
            assert_eq!(state(&env, root), Path::new("/var/lib/a"));
            assert_eq!(socket(&env, root), Path::new("/run/a/tierd.sock"));
        }
    }

    #[test]
    fn a_user_gets_xdg_folders_and_root_the_systems() {
        let user = env(&[("HOME", "/home/a"), ("XDG_RUNTIME_DIR", "/run/user/1000")]);
        assert_eq!(state(&user, false), Path::new("/home/a/.local/state/tierd"));
        assert_eq!(socket(&user, false), Path::new("/run/user/1000/tierd/tierd.sock"));
        assert_eq!(state(&user, true), Path::new("/var/lib/tierd"));
        assert_eq!(socket(&user, true), Path::new("/run/tierd/tierd.sock"));
        let bare = env(&[("XDG_STATE_HOME", "relative/is/ignored")]);
        assert_eq!(socket(&bare, false), Path::new("/var/lib/tierd/tierd.sock"));
    }

    #[test]
    fn a_named_file_is_taken_even_if_it_is_missing_and_an_unnamed_one_only_if_it_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().to_str().expect("plain");
        let missing = env(&[("XDG_CONFIG_HOME", home), ("TIERD_CONFIG", "/b.toml")]);
        assert_eq!(find_config(Some(Path::new("/a.toml")), &missing), Some("/a.toml".into()));
        assert_eq!(find_config(None, &missing), Some("/b.toml".into()));
        std::fs::create_dir(folder.path().join("tierd")).expect("a folder");
        std::fs::write(folder.path().join("tierd/config.toml"), "").expect("a file");
        assert_eq!(
            find_config(None, &env(&[("XDG_CONFIG_HOME", home)])),
            Some(folder.path().join("tierd/config.toml"))
        );
    }
}
