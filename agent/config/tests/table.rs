//! Claims about the table of options, and files made at random.

use proptest::prelude::*;

use super::super::kind::Kind;
use super::super::options::{self, Preset, Section};
use super::super::variables::{self, Env};
use super::super::*;
use super::{Sandbox, debug};

/// A file that sets one option, with what that option needs around it.
fn file_with(spec: &options::Spec, value: &str) -> String {
    let section = spec.section;
    let origin = match spec.only {
        ["http"] => "[[origin]]\nname = \"a\"\nkind = \"http\"\nurl = \"http://h\"\n",
        ["folder"] => "[[origin]]\nname = \"a\"\nkind = \"folder\"\npath = \"/f\"\n",
        _ => "[[origin]]\nname = \"a\"\nkind = \"s3\"\nbucket = \"b\"\n",
    };
    let tcp = "[listen.tcp]\naddress = \"127.0.0.1:1\"\n";
    let tls = "[listen.tcp.tls]\ncertificate = \"/dev/null\"\nkey = \"/dev/null\"\n";
    let base = match section {
        Section::Origin => origin.to_owned(),
        Section::Tcp => tcp.to_owned(),
        Section::Tls if spec.key == "client_role" => format!("{tcp}{tls}client_ca = \"/dev/null\"\n"),
        Section::Tls => format!("{tcp}{tls}"),
        // Known by something else than by what is set.
        Section::Caller => {
            let proof = if spec.key == "uid" { "gid" } else { "uid" };
            // Without a space, so that a caller's key is told from that of the section.
            let tls = format!("{tls}client_ca = \"/dev/null\"\n").replace(" = ", "=");
            format!("{tcp}{tls}[[caller]]\nname = \"a\"\nrole = \"read\"\n{proof} = 7\n")
        }
        Section::Fleet => "[fleet]\nnats = \"nats://h:4222\"\n".to_owned(),
        _ => format!("{}\n", section.header()),
    };
    format!("{}{} = {value}\n", without(&base, spec), spec.key)
}

/// The same file without that option.
fn without(text: &str, spec: &options::Spec) -> String {
    let is_other = |line: &&str| !line.starts_with(&format!("{} =", spec.key));
    text.lines().filter(is_other).map(|line| format!("{line}\n")).collect()
}

#[test]
fn no_option_is_read_and_ignored() {
    for spec in options::all() {
        // Credentials come in groups: secrets_come_from_files_variables_and_credentials has them.
        if spec.key.ends_with("_file") || spec.key.ends_with("_env") || spec.key == "access_key_id" {
            continue;
        }
        let is_file = matches!(spec.section, Section::Tls | Section::Fleet) && spec.kind == Kind::Path;
        let example = if is_file { "\"/dev/zero\"" } else { spec.example };
        let with = file_with(spec, example);
        let plain = without(&with, spec);
        let sandbox = Sandbox::new();
        let changed = sandbox.load(&with).unwrap_or_else(|problems| panic!("{with}\n{problems}"));
        if spec.preset == Preset::Required {
            let problems = sandbox.load(&plain).expect_err("it is required").to_string();
            assert!(problems.contains(&format!("{}: is not set", spec.key)), "{problems}");
            continue;
        }
        let plain = sandbox.load(&plain).unwrap_or_else(|problems| panic!("{plain}\n{problems}"));
        assert_ne!(debug(&plain), debug(&changed), "{} changes nothing", spec.path());
    }
}

#[test]
fn the_stated_defaults_are_those_that_the_code_has() {
    for spec in options::all() {
        let Preset::Is(default) = spec.preset else { continue };
        let with = file_with(spec, default);
        let sandbox = Sandbox::new();
        let (stated, coded) = (sandbox.load(&with), sandbox.load(&without(&with, spec)));
        assert_eq!(debug(&stated.expect("good")), debug(&coded.expect("good")), "{}", spec.path());
    }
}

#[test]
fn the_reference_file_reads_as_no_change() {
    let sandbox = Sandbox::new();
    let config = sandbox.load(&reference_toml()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(debug(&config), debug(&sandbox.load("").expect("good")));
    assert!(reference_toml().lines().all(|line| line.chars().count() <= 250));
}

#[test]
fn what_is_printed_reads_as_the_same_configuration() {
    let sandbox = Sandbox::new();
    for text in [
        "",
        "[store]\nbudget = \"123456789 B\"\nkeep_free = \"2.5%\"\npath = '/a \"b\"\\c'\n[ram]\nbudget = 0\nreserve = \"7%\"\n[fetch]\nbandwidth_max = \"3 MiB/s\"\n\
         [listen]\nhttp = \"off\"\n[listen.tcp]\naddress = \"127.0.0.1:5\"\n[listen.tcp.tls]\ncertificate = \"/dev/null\"\n\
         key = \"/dev/null\"\nclient_ca = \"/dev/null\"\n[log]\nformat = \"json\"\n\
         [[caller]]\nname = \"a\"\nrole = \"ensure\"\nuid = 0\ngid = 4294967295\ncertificate = \"CN \\\" é\"\n\
         [[origin]]\nname = \"a\"\nkind = \"s3\"\nbucket = \"b\"\nanonymous = true\nstall_timeout = \"1500ms\"\n\
         [[origin]]\nname = \"h\"\nkind = \"http\"\nurl = \"http://h/\"\nprefix = \"/x/\"\n",
    ] {
        let config = sandbox.load(text).unwrap_or_else(|problems| panic!("{problems}"));
        let again = sandbox.load(&config.to_string()).unwrap_or_else(|problems| panic!("{config}\n{problems}"));
        assert_eq!(debug(&config), debug(&again));
    }
}

#[test]
fn the_configuration_document_is_what_the_table_says() {
    crate::telemetry::tests::assert_document("docs/configuration.md", &reference_markdown());
}

#[test]
fn the_variables_in_the_shipped_files_set_something() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut env = Env::new();
    for file in ["Dockerfile", "compose.yaml"] {
        let text = std::fs::read_to_string(root.join(file)).expect("it is shipped");
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            if word.starts_with("TIERD_") && word.contains("__") {
                env.insert(word.to_owned(), String::new());
            }
        }
    }
    assert!(env.len() >= 8, "{env:?}");
    for variable in env.keys() {
        let (head, key) = variable["TIERD_".len()..].rsplit_once("__").expect("two underscores");
        let section =
            if head.starts_with("ORIGIN_") { "origin".to_owned() } else { head.replace("__", ".").to_lowercase() };
        let section = Section::named(&section).unwrap_or_else(|| panic!("{variable}: no such section"));
        assert!(options::find(section, &key.to_lowercase()).is_some(), "{variable}: no such option");
    }
}

#[test]
fn systemd_waits_longer_than_a_drain_may_take() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/tierd.service");
    let unit = std::fs::read_to_string(unit).expect("it is shipped");
    let wait = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).expect("a limit");
    let wait: u64 = wait.parse().expect("seconds");
    let config = Config::load_as(None, &Env::new(), true).expect("good");
    assert!(Duration::from_secs(wait) > config.drain_deadline);
}

/// Pieces of files, so that random files get past the first line.
fn fragment() -> impl Strategy<Value = String> {
    let keys = options::all().map(|spec| spec.key).collect::<Vec<_>>();
    let headers = Section::ALL.map(Section::header).to_vec();
    let values = vec![
        "1",
        "-1",
        "true",
        "\"5%\"",
        "\"1 GiB\"",
        "\"\"",
        "[]",
        "{ a = 1 }",
        "1979-05-27",
        "nan",
        "99999999999999999999",
        "0o7",
        "\"\\u0000\"",
        "\"é\"",
    ];
    prop_oneof![
        proptest::sample::select(headers).prop_map(|header| format!("{header}\n")),
        (proptest::sample::select(keys), proptest::sample::select(values))
            .prop_map(|(key, value)| format!("{key} = {value}\n")),
        "\\PC{0,12}\n",
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_file_and_no_variable_makes_the_parser_panic(
        fragments in proptest::collection::vec(fragment(), 0..12),
        variable in "TIERD_[A-Z_]{0,20}(__[A-Z_]{0,12})?",
        value in any::<String>(),
    ) {
        let mut problems = Gathered::default();
        let mut raw = raw::read(&fragments.concat(), &mut problems);
        let env = Env::from([(variable, value)]);
        variables::apply(&env, &mut raw, &mut problems);
        parse::build(&raw, &mut Reader { env: &env, root: false, folder: None, problems: &mut problems });
        prop_assert!(problems.finish(None).problems.len() <= PROBLEMS_MAX);
    }
}
