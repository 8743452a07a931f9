//! Holds `proto/` to its rules, over the compiled descriptors: every element is commented, enums start with
//! `_UNSPECIFIED = 0`, every rpc has messages of its own.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

use crate::rpc::FILE_DESCRIPTOR_SET;
use crate::rpc::gate::METHODS;

fn ours() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the compiled protos decode");
    set.file.into_iter().filter(|file| file.package() == "tierd.v1").collect()
}

/// The paths of all elements of a file, as `SourceCodeInfo` counts them, with a name for the failure's message.
fn elements(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    fn of_enum(path: &[i32], parent: &str, item: &EnumDescriptorProto, all: &mut Vec<(Vec<i32>, String)>) {
        let name = format!("{parent}.{}", item.name());
        all.push((path.to_vec(), name.clone()));
        for (index, value) in (0..).zip(&item.value) {
            all.push(([path, &[2, index]].concat(), format!("{name}.{}", value.name())));
        }
    }
    fn of_message(path: &[i32], parent: &str, item: &DescriptorProto, all: &mut Vec<(Vec<i32>, String)>) {
        let name = format!("{parent}.{}", item.name());
        all.push((path.to_vec(), name.clone()));
        for (index, field) in (0..).zip(&item.field) {
            all.push(([path, &[2, index]].concat(), format!("{name}.{}", field.name())));
        }
        for (index, oneof) in (0..).zip(&item.oneof_decl) {
            // The compiler's own oneof of an `optional` field has no place for a comment.
            if !oneof.name().starts_with('_') {
                all.push(([path, &[8, index]].concat(), format!("{name}.{}", oneof.name())));
            }
        }
        for (index, inner) in (0..).zip(&item.nested_type) {
            of_message(&[path, &[3, index]].concat(), &name, inner, all);
        }
        for (index, inner) in (0..).zip(&item.enum_type) {
            of_enum(&[path, &[4, index]].concat(), &name, inner, all);
        }
    }
    let mut all = Vec::new();
    for (index, item) in (0..).zip(&file.message_type) {
        of_message(&[4, index], file.name(), item, &mut all);
    }
    for (index, item) in (0..).zip(&file.enum_type) {
        of_enum(&[5, index], file.name(), item, &mut all);
    }
    for (index, service) in (0..).zip(&file.service) {
        all.push((vec![6, index], format!("{}.{}", file.name(), service.name())));
        for (inner, method) in (0..).zip(&service.method) {
            all.push((vec![6, index, 2, inner], format!("{}.{}", service.name(), method.name())));
        }
    }
    all
}

#[test]
fn every_element_of_the_contract_is_commented() {
    let mut bare = Vec::new();
    let mut seen = 0;
    for file in ours() {
        let info = file.source_code_info.as_ref().expect("compiled with source info");
        let comments: BTreeMap<&[i32], &str> =
            info.location.iter().map(|place| (place.path.as_slice(), place.leading_comments())).collect();
        for (path, name) in elements(&file) {
            seen += 1;
            let comment = comments.get(path.as_slice()).copied().unwrap_or_default().trim();
            // One sentence at least: it starts like one and ends like one.
            if comment.len() < 8 || !comment.ends_with('.') {
                bare.push(name);
            }
        }
    }
    assert!(seen > 200, "only {seen} elements were looked at");
    assert_eq!(bare, Vec::<String>::new(), "without a comment");
}

#[test]
fn every_enum_starts_with_unspecified_and_carries_its_prefix() {
    for file in ours() {
        for item in &file.enum_type {
            let mut prefix = String::new();
            for letter in item.name().chars() {
                if letter.is_ascii_uppercase() && !prefix.is_empty() {
                    prefix.push('_');
                }
                prefix.push(letter.to_ascii_uppercase());
            }
            assert_eq!((item.value[0].name(), item.value[0].number()), (format!("{prefix}_UNSPECIFIED").as_str(), 0));
            for value in &item.value {
                assert!(value.name().starts_with(&format!("{prefix}_")), "{}", value.name());
            }
        }
    }
}

#[test]
fn every_rpc_has_messages_of_its_own_and_a_metric_label() {
    let mut methods = BTreeSet::new();
    for file in ours() {
        for service in &file.service {
            assert!(service.name().ends_with("Service"));
            for method in &service.method {
                let name = method.name();
                assert_eq!(method.input_type(), format!(".tierd.v1.{name}Request"));
                assert_eq!(method.output_type(), format!(".tierd.v1.{name}Response"));
                assert!(methods.insert(name.to_owned()), "{name} is in two services");
            }
        }
    }
    let known: Vec<&str> = METHODS.iter().map(|(method, _)| *method).collect();
    assert_eq!(methods.iter().map(String::as_str).collect::<Vec<_>>(), known);
}

#[test]
fn every_rpc_says_the_role_that_the_gate_wants() {
    let mut told = BTreeMap::new();
    for file in ours() {
        let info = file.source_code_info.as_ref().expect("compiled with source info");
        for place in info.location.iter().filter(|place| matches!(place.path[..], [6, _, 2, _])) {
            let method = &file.service[place.path[1] as usize].method[place.path[3] as usize];
            let last = place.leading_comments().trim().lines().last().unwrap_or_default().trim();
            told.insert(method.name().to_owned(), last.to_owned());
        }
    }
    let wanted =
        METHODS.iter().map(|(method, role)| ((*method).to_owned(), format!("Role: {}.", role.word()))).collect();
    assert_eq!(told, wanted);
}
