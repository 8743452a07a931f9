//! Claims about configuration files: what is refused, where the message points, and that defaults are stated truly.

mod table;

use std::path::Path;

use tierd_cache::config::{Credentials, OriginKind};
use tierd_cache::units::Share;

use super::variables::Env;
use super::*;

/// A file in a folder of its own.
struct Sandbox {
    folder: tempfile::TempDir,
    env: Env,
}

impl Sandbox {
    fn new() -> Self {
        let env = [("HOME", "/home/a"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { folder: tempfile::tempdir().expect("a folder"), env }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn holding(self, file: &str, text: &str) -> Self {
        std::fs::write(self.folder.path().join(file), text).expect("a file");
        self
    }

    fn load(&self, text: &str) -> Result<Config, ConfigProblems> {
        let file = self.folder.path().join("t.toml");
        std::fs::write(&file, text).expect("a file");
        Config::load_as(Some(&file), &self.env, false)
    }

    /// The problems, one a line, without the folder's name.
    fn problems(&self, text: &str) -> Vec<String> {
        let problems = self.load(text).expect_err("there are problems");
        let folder = format!("{}/", self.folder.path().display());
        problems.to_string().lines().map(|line| line.replace(&folder, "")).collect()
    }
}

fn debug(config: &Config) -> String {
    format!("{config:#?}")
}

#[test]
fn without_a_file_the_embedded_defaults_are_enough() {
    let sandbox = Sandbox::new();
    let config = Config::load_as(None, &sandbox.env, false).expect("good");
    assert_eq!(config.engine.store.path, Path::new("/home/a/.local/state/tierd"));
    assert_eq!(config.engine.store.models, Path::new("/home/a/.local/state/tierd/models"));
    assert_eq!(config.listen.unix, Path::new("/run/user/7/tierd/tierd.sock"));
    let origins = format!("{:?}", config.engine.origins);
    assert_eq!(config.engine.origins.len(), 1);
    assert!(origins.contains("\"local\"") && origins.contains("/home/a/.local/state/tierd/origin"), "{origins}");
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line_and_column() {
    let text = "\
[store]
budgt = \"1 GiB\"
  budget = \"5 parsec\"
keep_free = true
file_mode = 640
colour = 1

[fetch]
connections_max = 0
backoff_min = \"1m\"
backoff_max = \"30\"
refresh_interval = \"1m\"

[[origin]]
name = \"a\"
kind = \"s3\"

[[origin]]
name = \"a\"
kind = \"ftp\"

[logs]
[origins]
";
    let expected = [
        "t.toml:2:1: store.budgt: unknown key; did you mean \"budget\"?",
        "t.toml:3:3: store.budget: \"5 parsec\" is not understood; expected a size or a share such as \"500 GiB\" or \"80%\"",
        "t.toml:4:1: store.keep_free: is a boolean; expected a size or a share such as \"500 GiB\" or \"80%\"",
        "t.toml:5:1: store.file_mode: 640 is not written in octal; expected permissions in octal such as \"0640\"",
        "t.toml:6:1: store.colour: unknown key",
        "t.toml:9:1: fetch.connections_max: 0 is out of range; expected a whole number from 1 to 1024",
        "t.toml:10:1: fetch.backoff_min: backoff_min (60s) is longer than backoff_max (20s)",
        "t.toml:11:1: fetch.backoff_max: \"30\" is not understood; expected a duration such as \"30s\", from 1ms to 1h",
        "t.toml:12:1: fetch.refresh_interval: unknown key here; did you mean catalog.refresh_interval?",
        "t.toml:14:1: origin[a].bucket: is not set; set it, for example bucket = \"models\"",
        "t.toml:19:1: origin[a].name: is the name of another origin too; give each origin a name of its own",
        "t.toml:20:1: origin[a].kind: \"ftp\" is unknown; expected \"s3\" or \"http\" or \"folder\"",
        "t.toml:22:2: logs: unknown section; did you mean [log]?",
        "t.toml:23:2: origins: unknown section; did you mean [[origin]]?",
    ];
    assert_eq!(Sandbox::new().problems(text), expected);
}

#[test]
fn a_file_that_is_no_toml_says_where_and_still_reports_the_rest() {
    let lines = Sandbox::new().problems("[store]\npath = \"/a\nbudget = = 3\n[log]\nformat = \"xml\"\n");
    assert!(lines.iter().any(|line| line.starts_with("t.toml:2:")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("t.toml:5:1: log.format: \"xml\" is unknown")), "{lines:#?}");
}

#[test]
fn a_missing_file_is_a_problem_and_no_default() {
    let problems = Config::load(Some(Path::new("/nowhere/t.toml")), &Env::new()).expect_err("missing");
    assert!(problems.to_string().starts_with("/nowhere/t.toml: cannot be read: No such file"), "{problems}");
}

#[test]
fn an_inline_secret_is_refused_and_never_printed() {
    let text = "\
[[origin]]
name = \"r2\"
kind = \"s3\"
bucket = \"m\"
secret_access_key = \"hunter2\"
session_token_env = \"hunter2\"
access_key_id_file = \"hunter2\"
endpoint = \"https://user:hunter2@example.com\"
[[origin]]
name = \"hub\"
kind = \"http\"
url = \"hunter2\"
bearer = \"hunter2\"
[listen.tcp]
address = \"127.0.0.1:1\"
token = \"hunter2\"
token_file = \"/nowhere/t\"
";
    let sandbox = Sandbox::new().with("TIERD_ORIGIN_R2__SECRET_ACCESS_KEY", "hunter2");
    let problems = sandbox.load(text).expect_err("refused");
    let all = format!("{problems} {problems:?}");
    assert!(!all.contains("hunter2"), "{all}");
    let unquoted = Sandbox::new().load("[[origin]]\nname = \"a\"\nsecret_access_key = hunter2\n").expect_err("refused");
    assert!(!format!("{unquoted} {unquoted:?}").contains("hunter2"), "{unquoted}");
    let lines = sandbox.problems(text);
    for start in [
        "t.toml:5:1: origin[r2].secret_access_key: secrets are not written into the configuration",
        "t.toml:6:1: origin[r2].session_token_env: is no name of an environment variable (not shown",
        "t.toml:7:1: origin[r2].access_key_id_file: cannot read the file (not shown",
        "t.toml:8:1: origin[r2].endpoint: holds a user or a password (not shown)",
        "t.toml:12:1: origin[hub].url: does not start with https:// or http://",
        "t.toml:13:1: origin[hub].bearer: secrets are not written",
        "t.toml:16:1: listen.tcp.token: secrets are not written",
        "t.toml:17:1: listen.tcp.token_file: cannot read /nowhere/t: No such file",
        "$TIERD_ORIGIN_R2__SECRET_ACCESS_KEY: origin[r2].secret_access_key: secrets are not written",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}\n{lines:#?}");
    }
}

#[test]
fn secrets_come_from_files_variables_and_credentials() {
    let sandbox = Sandbox::new().with("SECRET", "from-variable").holding("id", "from-file\n");
    let credentials = tempfile::tempdir().expect("a folder");
    std::fs::write(credentials.path().join("token"), "from-credential").expect("a file");
    let sandbox = sandbox.with("CREDENTIALS_DIRECTORY", credentials.path().to_str().expect("plain"));
    let origin = "[[origin]]\nname = \"r2\"\nkind = \"s3\"\nbucket = \"m\"\naccess_key_id_file = \"id\"\n\
                  secret_access_key_env = \"SECRET\"\nsession_token_file = \"token\"\n";
    let config = sandbox.load(origin).expect("good");
    let OriginKind::S3 { credentials: Credentials::Keys { id, secret, token }, .. } = &config.engine.origins[0].kind
    else {
        panic!("not keys: {config:?}");
    };
    let token = token.as_ref().map(Secret::expose);
    assert_eq!((id.as_str(), secret.expose(), token), ("from-file", "from-variable", Some("from-credential")));
    let printed = format!("{config} {config:?}");
    assert!(!printed.contains("from-variable") && !printed.contains("from-credential"), "{printed}");
    assert!(printed.contains("# the secret key is set"), "{printed}");
}

#[test]
fn a_secret_that_cannot_be_had_is_reported_by_name() {
    let sandbox = Sandbox::new().with("EMPTY", "  ").holding("two", "a\nb\n");
    let lines = sandbox.problems(
        "[[origin]]\nname = \"a\"\nkind = \"http\"\nurl = \"http://h\"\nbearer_env = \"NOT_SET\"\n\
         [[origin]]\nname = \"b\"\nkind = \"http\"\nurl = \"http://h\"\nbearer_env = \"EMPTY\"\n\
         [[origin]]\nname = \"c\"\nkind = \"http\"\nurl = \"http://h\"\nbearer_file = \"two\"\n\
         [[origin]]\nname = \"d\"\nkind = \"http\"\nurl = \"http://h\"\nbearer_file = \"two\"\nbearer_env = \"EMPTY\"\n",
    );
    let expected = [
        "t.toml:5:1: origin[a].bearer_env: $NOT_SET is not set",
        "t.toml:10:1: origin[b].bearer_env: the secret there is empty",
        "t.toml:15:1: origin[c].bearer_file: the secret there has several lines or control characters",
        "t.toml:21:1: origin[d].bearer_env: conflicts with bearer_file: both say where the secret is; keep one of them",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn options_that_conflict_are_refused_together() {
    let sandbox = Sandbox::new().holding("k", "x");
    let lines = sandbox.problems(
        "[store]\npath = \"/d\"\nmodels = \"/d\"\nbudget = \"1 MiB\"\nkeep_free = \"100%\"\nfile_mode = \"0440\"\n\
         [[origin]]\nname = \"a\"\nkind = \"s3\"\nbucket = \"b/c\"\nanonymous = true\nsecret_access_key_file = \"k\"\n\
         [[origin]]\nname = \"b\"\nkind = \"s3\"\nbucket = \"b\"\naccess_key_id = \"AK\"\nurl = \"http://h\"\n\
         [[origin]]\nname = \"c\"\nkind = \"folder\"\npath = \"/d/sub\"\nprefix = \"x/../y\"\n\
         [[origin]]\nname = \"C\"\nkind = \"http\"\nurl = \"https://h/p?sig=1\"\n\
         [listen]\nhttp = \"0.0.0.0:9000\"\n[listen.tcp]\naddress = \"127.0.0.1:9000\"\n",
    );
    let expected = [
        "t.toml:3:1: store.models: is store.path or around it",
        "t.toml:4:1: store.budget: has no room for a model",
        "t.toml:5:1: store.keep_free: leaves nothing for models",
        "t.toml:6:1: store.file_mode: would lock the daemon itself out",
        "t.toml:10:1: origin[a].bucket: holds a slash",
        "t.toml:11:1: origin[a].anonymous: conflicts with keys",
        "t.toml:13:1: origin[b].access_key_id: is set without its secret key",
        "t.toml:18:1: origin[b].url: does not apply to kind = \"s3\"; it is for http",
        "t.toml:22:1: origin[c].path: overlaps store.models, which is /d",
        "t.toml:23:1: origin[c].prefix: has a part that is empty, . or ..",
        "t.toml:25:1: origin[C].name: differs from \"c\" only in",
        "t.toml:27:1: origin[C].url: holds a query or a fragment (not shown",
        "t.toml:31:1: listen.tcp.address: 127.0.0.1:9000 is taken by listen.http",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{start}\n{lines:#?}");
    }
}

#[test]
fn tcp_beyond_loopback_needs_tls_and_a_proof_of_who_calls() {
    let sandbox = || Sandbox::new().holding("cert", "x").holding("key", "x").holding("ca", "x").holding("token", "t");
    let tls = "[listen.tcp.tls]\ncertificate = \"cert\"\nkey = \"key\"\n";
    let tcp = "[listen.tcp]\naddress = \"0.0.0.0:9470\"\n";
    let bare = sandbox().problems(tcp);
    assert_eq!(bare.len(), 2, "{bare:#?}");
    assert!(bare[0].starts_with("t.toml:2:1: listen.tcp.address: 0.0.0.0:9470 is not loopback, and"), "{bare:#?}");
    assert_eq!(sandbox().problems(&format!("{tcp}{tls}")).len(), 1);
    assert_eq!(sandbox().problems(&format!("{tcp}token_file = \"token\"\n")).len(), 1);
    for good in [
        format!("{tcp}token_file = \"token\"\n{tls}"),
        format!("{tcp}{tls}client_ca = \"ca\"\n"),
        "[listen.tcp]\naddress = \"127.0.0.1:9470\"\n".to_owned(),
        "[listen.tcp]\naddress = \"[::1]:9470\"\n".to_owned(),
    ] {
        let config = sandbox().load(&good).unwrap_or_else(|problems| panic!("{good}\n{problems}"));
        assert!(config.listen.tcp.is_some());
    }
    let lines =
        sandbox().problems("[listen.tcp.tls]\ncertificate = \"gone\"\n[listen.tcp]\naddress = \"127.0.0.1:1\"\n");
    assert_eq!(lines[0], "t.toml:1:13: listen.tcp.tls.key: is not set; set it, for example key = \"server.key\"");
    assert!(
        lines[1].starts_with("t.toml:2:1: listen.tcp.tls.certificate: cannot read gone: No such file"),
        "{lines:#?}"
    );
}

#[test]
fn callers_are_known_by_something_that_is_asked_for_and_share_no_token() {
    let sandbox = Sandbox::new().holding("t", "same").holding("u", "same").with("OTHER", "other");
    let text = "\
[[caller]]
name = \"a\"
role = \"writer\"
[[caller]]
name = \"b c\"
role = \"read\"
uid = 4294967296
[[caller]]
name = \"d\"
role = \"ensure\"
token_file = \"t\"
certificate = \"cn\"
[[caller]]
name = \"d\"
role = \"admin\"
token_env = \"OTHER\"
[[caller]]
role = \"admin\"
token = \"hunter2\"
token_file = \"u\"
";
    let lines = sandbox.problems(text);
    for start in [
        "t.toml:1:1: caller[a]: is known by nothing; set token_file, token_env, certificate, uid or gid",
        "t.toml:3:1: caller[a].role: \"writer\" is unknown; expected \"read\" or \"ensure\" or \"admin\"",
        "t.toml:5:1: caller[b c].name: is no name for a caller",
        "t.toml:7:1: caller[b c].uid: 4294967296 is out of range",
        "t.toml:11:1: caller[d].token_file: is for TCP, and there is no [listen.tcp]",
        "t.toml:12:1: caller[d].certificate: is never asked for; set client_ca in [listen.tcp.tls]",
        "t.toml:14:1: caller[d].name: is the name of another caller too",
        "t.toml:17:1: caller[#5].name: is not set",
        "t.toml:19:1: caller[#5].token: secrets are not written into the configuration",
        "t.toml:20:1: caller[#5].token_file: holds the token of d too",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}\n{lines:#?}");
    }
    let all = lines.join("\n");
    assert!(!all.contains("hunter2") && !all.contains("same"), "{all}");
}

#[test]
fn callers_come_from_the_file_and_from_variables_and_their_tokens_are_never_shown() {
    let config = Sandbox::new()
        .holding("t", "s3cret")
        .with("TIERD_CALLER_FLEET_A__ROLE", "ensure")
        .with("TIERD_CALLER_NEW__ROLE", "admin")
        .with("TIERD_CALLER_NEW__UID", "7")
        .with("TIERD_LISTEN__SOCKET_ROLE", "none")
        .load(
            "[listen.tcp]\naddress = \"127.0.0.1:1\"\n\
             [[caller]]\nname = \"fleet-a\"\nrole = \"read\"\ntoken_file = \"t\"\n",
        )
        .expect("good");
    let callers = &config.listen.callers;
    let rows: Vec<(&str, Role, Option<u32>)> =
        callers.iter().map(|caller| (caller.name.as_str(), caller.role, caller.uid)).collect();
    assert_eq!(rows, [("fleet-a", Role::Ensure, None), ("new", Role::Admin, Some(7))]);
    assert_eq!((config.listen.socket_role, callers[0].token.as_ref().map(Secret::expose)), (None, Some("s3cret")));
    let printed = format!("{config} {config:?}");
    assert!(!printed.contains("s3cret") && printed.contains("# the bearer token is set"), "{printed}");
}

#[test]
fn the_environment_overrides_the_file_and_makes_origins() {
    let config = Sandbox::new()
        .with("TIERD_STORE__BUDGET", "2 GiB")
        .with("TIERD_FETCH__CONNECTIONS_MAX", "7")
        .with("TIERD_LISTEN__HTTP", "off")
        .with("TIERD_LISTEN__TCP__ADDRESS", "127.0.0.1:1")
        .with("TIERD_ORIGIN_MY_R2__BUCKET", "other")
        .with("TIERD_ORIGIN_MY_R2__VIRTUAL_HOSTED", "true")
        .with("TIERD_ORIGIN_NEW__KIND", "folder")
        .with("TIERD_ORIGIN_NEW__PATH", "/n")
        .with("TIERD_CONFIG", "ignored here")
        .with("TIERD_SERVICE_HOST", "10.0.0.1")
        .load("[store]\nbudget = \"1 GiB\"\n[[origin]]\nname = \"my-r2\"\nkind = \"s3\"\nbucket = \"b\"\n")
        .expect("good");
    assert_eq!(config.engine.store.budget, Share::Bytes(2 << 30));
    assert_eq!(config.engine.fetch.connections_max, 7);
    assert!(config.listen.http.is_none() && config.listen.tcp.is_some());
    let names: Vec<String> = config.engine.origins.iter().map(|origin| origin.name.to_string()).collect();
    assert_eq!(names, ["my-r2", "new"]);
    let kind = format!("{:?}", config.engine.origins[0].kind);
    assert!(kind.contains("\"other\"") && kind.contains("virtual_hosted: true"), "{kind}");
}

#[test]
fn the_ram_tier_can_be_turned_off_and_a_reserve_of_everything_is_refused() {
    for off in ["0", "\"0\"", "\"0%\""] {
        let config = Sandbox::new().load(&format!("[ram]\nbudget = {off}\n")).expect("good");
        assert_eq!(config.engine.ram.budget.of(1 << 40), 0, "{off}");
    }
    let lines = Sandbox::new().problems("[ram]\nbudget = \"8 GiB\"\nreserve = \"100%\"\n");
    assert_eq!(
        lines,
        ["t.toml:3:1: ram.reserve: leaves nothing for models; to turn the tier off, write budget = \"0\""]
    );
}

#[test]
fn a_variable_that_sets_nothing_is_a_mistake() {
    let lines = Sandbox::new()
        .with("TIERD_STORE__BUDGT", "1")
        .with("TIERD_STROE__PATH", "/a")
        .with("TIERD_STORE_PATH", "/a")
        .with("TIERD_STORE__MODELS", "relative")
        .with("TIERD_ORIGIN_R3__BUCKET", "b")
        .with("TIERD_ORIGIN__BUCKET", "b")
        .with("TIERD_FETCH__ATTEMPTS_MAX", "many")
        .problems("[[origin]]\nname = \"r2\"\nkind = \"s3\"\nbucket = \"b\"\n");
    let expected = [
        "$TIERD_FETCH__ATTEMPTS_MAX: fetch.attempts_max: \"many\" is no whole number; expected a whole number from 1 to 100",
        "$TIERD_ORIGIN_R3__BUCKET: origin[r3].kind: the file has no such origin, and its kind is not set; \
         set its kind too, or use the name of one in the file: origin[r2]",
        "$TIERD_ORIGIN__BUCKET: sets nothing: there is no such section; an origin's variables are called TIERD_ORIGIN_<NAME>__<KEY>",
        "$TIERD_STORE_PATH: sets nothing; two underscores part section and key: TIERD_STORE__PATH",
        "$TIERD_STORE__BUDGT: store.budgt: unknown key; did you mean \"budget\"?",
        "$TIERD_STORE__MODELS: store.models: is a relative path; write an absolute one",
        "$TIERD_STROE__PATH: sets nothing: there is no such section; did you mean TIERD_STORE__PATH?",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_client_finds_the_configured_socket_without_the_secrets_and_beside_mistakes() {
    let sandbox = Sandbox::new();
    let file = sandbox.folder.path().join("t.toml");
    let text = "[listen]\nunix = \"run/t.sock\"\n[listen.tcp]\naddress = \"127.0.0.1:1\"\ntoken_file = \"/not/there\"\n[store]\nbudgt = 1";
    std::fs::write(&file, text).expect("a file");
    let socket = |file: &Path, env: &Env| Config::socket(Some(file), env);
    assert_eq!(socket(&file, &sandbox.env), Ok(Some(sandbox.folder.path().join("run/t.sock"))));
    let sandbox = sandbox.with("TIERD_LISTEN__UNIX", "/run/other.sock");
    assert_eq!(socket(&file, &sandbox.env), Ok(Some("/run/other.sock".into())));
    assert!(socket(Path::new("/not/there.toml"), &sandbox.env).is_err());
    assert_eq!(Config::socket(None, &Sandbox::new().env), Ok(None));
}
