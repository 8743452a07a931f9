//! The gRPC border: the only room that knows tonic on the server's side. Converts, limits and authenticates; decides
//! nothing about models and holds no state of the engine.

mod cache;
mod caller;
mod comfy;
mod connection;
pub mod convert;
pub(crate) mod ensure;
pub mod fault;
mod gate;
mod hint;
pub(crate) mod json;
mod listen;
mod node;
mod occurrence;
mod placement;
mod predictions;
mod report;
mod server;
pub mod time;
pub(crate) mod workflow;

pub use listen::RpcError;
pub(crate) use server::chain;
pub use server::{Served, Server};

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
