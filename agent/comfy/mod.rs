//! ComfyUI on this node: its workflows, its queues, what its node pack says, and what is asked of it. Nothing outside this room
//! knows ComfyUI's formats. Translates; decides nothing about models.

pub mod bridge;
pub mod free;
pub(crate) mod pack_api;
pub mod workflow;
