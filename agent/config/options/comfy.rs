//! The options of ComfyUI on this node: the gate, the VRAM ledger, advice. A table and nothing else.

use super::Preset::{Is, Unset};
use super::Section::Comfy;
use super::{Kind, SECOND, Spec, option};

/// The options.
pub(super) const OPTIONS: [Spec; 9] = [
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
        "Whether tierd carries advice out itself, by ComfyUI's `POST /free`, at idle servers on this machine. That unloads every model of the server, which ComfyUI does by moving it into memory of its own: it takes a while and as much RAM. So it is the operator's to allow.",
    ),
    option(
        Comfy,
        "servers",
        Kind::Text,
        Unset,
        "\"http://127.0.0.1:8188, http://127.0.0.1:8189\"",
        "ComfyUI servers whose queues are read ahead, as http addresses with commas between them; nothing is installed there. What a queued prompt needs is on its way before it runs. None by default: a queue holds what people work on, so that the operator says whose is read.",
    ),
    option(
        Comfy,
        "ram_ahead",
        Kind::Count(0, 64),
        Is("2"),
        "0",
        "Prompts of a queue, the running one included, whose models are held in RAM before they are read; `0` for none. The next one's models are read from the disk while this one computes; those of more would push out what is in use.",
    ),
    option(
        Comfy,
        "marks",
        Kind::Flag,
        Is("false"),
        "true",
        "Whether models that could be fetched appear in the models folder as dangling links, so that ComfyUI's lists show them. Off by default: without the node pack's gate, or a queue that is read ahead, ComfyUI fails on a model that is not here yet.",
    ),
];
