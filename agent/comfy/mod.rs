//! ComfyUI on this node: what its node pack says, and what is asked of it. Translates; decides nothing about models.

pub mod free;
pub(crate) mod pack_api;
