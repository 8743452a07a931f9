//! Claims about the Kubernetes manifests: they are what the schema says, and what they tell the daemon is understood.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tierd::cli::Cli;
use tierd::config::Config;

use crate::rig::servers::tool;

const MANIFESTS: [&str; 2] = ["deploy/kubernetes/daemonset.yaml", "deploy/kubernetes/sidecar.yaml"];
/// Prints all documents of a YAML file as one JSON list. The validator needs the same library.
const TO_JSON: &str = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs a program; its output, or what it said instead.
fn run(program: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().expect("it runs");
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() { Ok(out) } else { Err(out + &err) }
}

/// The documents of a manifest. The Python is the one that the validator is installed for.
fn documents(validator: &Path, manifest: &Path) -> Vec<Value> {
    let beside = validator.canonicalize().expect("it is there").with_file_name("python");
    let python = if beside.exists() { beside } else { PathBuf::from("python3") };
    let json = run(&python, &["-c", TO_JSON, manifest.to_str().expect("plain")]).expect("it is YAML");
    serde_json::from_str(&json).expect("it is JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text: quote it")).to_owned()
}

/// The variables of a container, with those of the image.
fn variables(container: &Value, documents: &[Value]) -> BTreeMap<String, String> {
    let image = [("STATE_DIRECTORY", "/var/lib/tierd"), ("RUNTIME_DIRECTORY", "/run/tierd")];
    let mut all: BTreeMap<String, String> = image.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    for from in list(&container["envFrom"]) {
        let map = documents
            .iter()
            .find(|other| other["kind"] == "ConfigMap" && other["metadata"]["name"] == from["configMapRef"]["name"]);
        let data = map.and_then(|map| map["data"].as_object()).expect("the map is in the same file");
        all.extend(data.iter().map(|(name, value)| (name.clone(), text(value))));
    }
    all.extend(list(&container["env"]).iter().map(|row| (text(&row["name"]), text(&row["value"]))));
    all
}

/// Holds one container of ours against what the daemon understands.
fn check(container: &Value, pod: &Value, documents: &[Value], secret: &Path) {
    let args = list(&container["args"]).iter().map(text);
    let line: Vec<String> = std::iter::once("tierd".to_owned()).chain(args).collect();
    assert!(line.len() == 1 || Cli::read(&line).is_ok(), "{line:?}");
    let mounts: Vec<String> = list(&container["volumeMounts"]).iter().map(|mount| text(&mount["mountPath"])).collect();
    let mut env = variables(container, documents);
    if !env.contains_key("TIERD_LISTEN__HTTP") {
        return;
    }
    let named = env.get_mut("TIERD_ORIGIN_R2__SECRET_ACCESS_KEY_FILE").expect("it has an origin");
    assert!(mounts.iter().any(|mount| named.starts_with(&format!("{mount}/"))), "{named} is not mounted");
    *named = secret.to_str().expect("plain").to_owned();
    let config = Config::load(None, &env).unwrap_or_else(|problems| panic!("{problems}"));
    for path in [&config.engine.store.path, &config.engine.store.models, &config.listen.unix] {
        assert!(mounts.iter().any(|mount| path.starts_with(mount)), "{} is on no volume", path.display());
    }
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("it is set");
    assert!(grace > config.drain_deadline.as_secs(), "killed after {grace} s, before it has drained");
    let port = config.listen.http.expect("it is on").port();
    assert_eq!(container["ports"][0]["containerPort"], u64::from(port));
    for probe in ["startupProbe", "livenessProbe"] {
        let asked = &container[probe]["httpGet"];
        assert!(["/livez", "/readyz"].contains(&text(&asked["path"]).as_str()) && asked["port"] == "http", "{probe}");
    }
}

#[test]
fn the_unit_keeps_an_exposure_of_at_most_two() {
    let unit = file("systemd/tierd.service");
    let args = ["security", "--offline=true", "--threshold=20", "--no-pager", unit.to_str().expect("plain")];
    let Ok(output) = Command::new("systemd-analyze").args(args).output() else {
        // No systemd here, as in a container: there is nothing that could look.
        return println!("skipped: there is no systemd-analyze");
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("Overall exposure level"), "{said}");
}

#[test]
fn the_kubernetes_manifests_are_valid_and_the_daemon_understands_them() {
    let Some(validator) = tool("deploy_kubernetes", "kubernetes-validate") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "not-a-secret").expect("its folder can be written");
    for name in MANIFESTS {
        let manifest = file(name);
        run(&validator, &["--strict", manifest.to_str().expect("plain")]).unwrap_or_else(|said| panic!("{said}"));
        let documents = documents(&validator, &manifest);
        let mut ours = 0;
        for document in &documents {
            let pod = &document["spec"]["template"]["spec"];
            for container in list(&pod["initContainers"]).iter().chain(list(&pod["containers"])) {
                if text(&container["image"]).contains("/tierd:") {
                    check(container, pod, &documents, &secret);
                    ours += 1;
                }
            }
        }
        assert!(ours > 0, "{name} has no container of ours");
    }

    // A slip is found.
    let slip =
        std::fs::read_to_string(file(MANIFESTS[0])).expect("it can be read").replace("failureThreshold", "failures");
    let path = folder.path().join("slip.yaml");
    std::fs::write(&path, slip).expect("its folder can be written");
    assert!(run(&validator, &["--strict", path.to_str().expect("plain")]).is_err());
}
