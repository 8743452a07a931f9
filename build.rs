//! Compiles `proto/` into Rust with a parser in pure Rust: no protoc on the machine, no network. Also writes the
//! descriptor set, comments included, for gRPC reflection and for the test that every element is commented.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;

const WATCHED: &str = "proto/tierd/v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={WATCHED}");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(WATCHED)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            println!("cargo:rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
    files.sort();

    let set = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(files)?
        .file_descriptor_set();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(Path::new(&out).join("tierd.v1.bin"), set.encode_to_vec())?;

    let mut builder = tonic_prost_build::configure()
        .extern_path(".google.protobuf.Timestamp", "crate::rpc::time::Timestamp")
        .extern_path(".google.protobuf.Duration", "crate::rpc::time::Duration")
        .type_attribute(".tierd.v1", "#[derive(serde::Serialize)]")
        .enum_attribute(".tierd.v1", "#[serde(rename_all = \"snake_case\")]");
    for file in set.file.iter().filter(|file| file.package() == "tierd.v1") {
        for message in &file.message_type {
            // No leading dot: with one, the path would also match what is below it, the variants of a oneof.
            let message_path = format!("tierd.v1.{}", message.name());
            // A oneof reads as its set member in JSON, as the proto spells it.
            for oneof in &message.oneof_decl {
                if !oneof.name().starts_with('_') {
                    builder = builder.field_attribute(format!("{message_path}.{}", oneof.name()), "#[serde(flatten)]");
                }
            }
            // An enum is a number in prost, and a word in JSON.
            for field in message.field.iter().filter(|field| field.type_name().starts_with(".tierd.v1.")) {
                if field.r#type() == Type::Enum {
                    let path = format!("{message_path}.{}", field.name());
                    let with = format!("crate::rpc::json::{}", snake(field.type_name()));
                    builder = builder.field_attribute(path, format!("#[serde(serialize_with = \"{with}\")]"));
                }
            }
        }
    }
    builder.compile_fds(set)?;
    Ok(())
}

/// `.tierd.v1.FaultKind` becomes `fault_kind`.
fn snake(type_name: &str) -> String {
    let mut out = String::new();
    for letter in type_name.rsplit('.').next().unwrap_or(type_name).chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}
