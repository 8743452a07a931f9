//! ComfyUI on this node: its workflows, what its node pack says, and what is asked of it. Nothing outside this room knows
//! ComfyUI's formats. Translates; decides nothing about models.

pub mod free;
pub(crate) mod pack_api;
pub mod workflow;
