//! The options of ComfyUI on this node: the gate, the VRAM ledger, advice. A table and nothing else.

use super::Preset::Is;
use super::Section::Comfy;
use super::{Kind, SECOND, Spec, option};

/// The options.
pub(super) const OPTIONS: [Spec; 6] = [
    option(
        Comfy,
        "gate",
        Kind::Flag,
        Is("true"),
        "false",
        "Whether ComfyUI's node pack may hold a prompt until a model that it names is fetched. Without it such a prompt fails, as it would without tierd.",
    ),
    option(
        Comfy,
        "gate_timeout",
        Kind::Time(SECOND, 24 * 3600 * SECOND),
        Is("\"30m\""),
        "\"5m\"",
        "Longest time that the gate holds a prompt. A large checkpoint over a slow link takes half an hour; the fetch goes on after that.",
    ),
    option(
        Comfy,
        "worker_expiry",
        Kind::Time(2 * SECOND, 600 * SECOND),
        Is("\"10s\""),
        "\"30s\"",
        "How long what a ComfyUI process last said of its VRAM is believed. It reports every second; ten missed reports mean that it is gone or stuck.",
    ),
    option(
        Comfy,
        "vram_high_percent",
        Kind::Count(1, 100),
        Is("85"),
        "90",
        "VRAM use above which models that nothing needs should leave it. The rest is for activations: a large image or video takes a tenth of a card.",
    ),
    option(
        Comfy,
        "vram_low_percent",
        Kind::Count(0, 99),
        Is("60"),
        "50",
        "VRAM use below which models of the next prompts could be loaded ahead, up to this share. Must be below vram_high_percent: between both nothing is advised, so that advice does not swing.",
    ),
    option(
        Comfy,
        "free",
        Kind::Flag,
        Is("false"),
        "true",
        "Whether tierd carries advice out itself, by ComfyUI's `POST /free`, at idle servers on this machine. That unloads every model of the server, so it is the operator's to allow.",
    ),
];
