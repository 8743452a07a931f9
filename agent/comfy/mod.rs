//! What tierd knows of ComfyUI: its workflows, its servers and their queues. Nothing outside this room knows ComfyUI's formats.

pub mod bridge;
pub mod workflow;
