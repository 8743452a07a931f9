//! What tierd knows of ComfyUI: its workflows. Nothing outside this room knows ComfyUI's formats.

pub mod workflow;
