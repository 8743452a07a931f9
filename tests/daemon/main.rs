//! The border tests: a real daemon process, real origins, real sockets. One binary, so that it is linked once and its tests
//! overlap their waits. Every test is a claim, has a deadline, and keeps to a folder and to ports of its own.

mod rig;

mod api;
mod bounded;
mod callers;
mod comfy_marks;
mod comfy_pack;
mod comfy_queue;
mod crash;
mod deploy;
mod docs;
mod fetch;
mod fleet;
mod following;
mod idle;
mod landing;
mod learned;
mod looks;
mod page;
mod peers;
mod pressure;
mod ram;
mod readiness;
mod replay;
mod report;
mod roles;
mod room;
mod secrets;
mod seeing;
mod servers;
mod store_faults;
mod tls;
mod tracing;
mod wire_faults;
mod workflow;
