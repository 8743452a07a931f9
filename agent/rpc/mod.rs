//! The gRPC border: the only room that knows tonic on the server's side. Converts, limits and authenticates; decides
//! nothing about models and holds no state of the engine.

mod access;
mod cache;
mod caller;
pub(crate) mod comfy;
mod connection;
pub mod convert;
pub(crate) mod ensure;
mod explain;
pub mod fault;
mod follow;
mod gate;
mod hint;
pub(crate) mod json;
mod limits;
mod listen;
mod meter;
pub(crate) mod node;
mod occurrence;
mod placement;
mod predictions;
mod report;
mod server;
mod subject;
pub mod time;
mod tls;
pub(crate) mod workflow;

pub(crate) use hint::hostile as hostile_hint;
pub use listen::RpcError;
pub(crate) use server::chain;
pub use server::{Served, Server};
pub(crate) use subject::hostile as hostile_certificate;

/// The messages, the servers and the clients, generated from `proto/tierd/v1`. The proto files are the documentation.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod pb {
    tonic::include_proto!("tierd.v1");
}

/// The compiled `proto/`, imports and comments included, as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tierd.v1.bin"));

/// Largest answer that our own clients read: a lease list at its limits stays below.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod proto_test;
