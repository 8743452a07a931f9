//! `tierd workers`, and the lines about VRAM of `status` and `top`: which processes load models onto GPUs, and what they hold.

use std::path::Path;

use tierd_cache::units::human_duration;

use crate::cli::exit::Outcome;
use crate::cli::out::{aligned, bar, size};
use crate::cli::{Context, client};
use crate::rpc::pb;

/// Cells of a device's bar.
const BAR_CELLS: usize = 24;
/// Models of one device in a table; the JSON has them all.
const MODELS_MAX: usize = 20;

/// Runs `tierd workers`.
pub(crate) async fn workers(context: &Context) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let node = daemon.node.get_node(pb::GetNodeRequest {}).await?.into_inner().node.unwrap_or_default();
    let out = context.out;
    out.document(&serde_json::json!({ "workers": node.workers, "devices": node.devices }))?;
    if node.workers.is_empty() {
        out.line("no worker reports its VRAM; link the node pack into ComfyUI's custom_nodes")?;
    } else {
        out.table(&HEAD, &node.workers.iter().map(row).collect::<Vec<_>>())?;
    }
    for worker in &node.workers {
        for line in model_lines(worker) {
            out.line(line)?;
        }
    }
    if !node.devices.is_empty() {
        out.line("")?;
    }
    for line in device_lines(&node) {
        out.line(line)?;
    }
    Ok(())
}

const HEAD: [&str; 8] = ["WORKER", "PID>", "VERSION", "ADDRESS", "RUNNING>", "WAITING>", "HEARD", "HOOKS"];

fn row(worker: &pb::Worker) -> Vec<String> {
    let info = worker.info.clone().unwrap_or_default();
    let silent = worker.silent.and_then(|silent| silent.to_std()).unwrap_or_default();
    let ill: Vec<String> = info
        .hooks
        .iter()
        .filter(|hook| hook.state != "attached")
        .map(|hook| format!("{} {}", hook.hook, hook.state))
        .collect();
    let attached = format!("{}/{}", info.hooks.len() - ill.len(), info.hooks.len());
    let hooks = if ill.is_empty() { attached } else { format!("{attached} ({})", ill.join(", ")) };
    vec![
        worker.worker.clone(),
        info.pid.to_string(),
        info.version,
        info.address,
        worker.running.to_string(),
        worker.waiting.to_string(),
        format!("{} ago", human_duration(silent)),
        hooks,
    ]
}

/// What a worker has on each device.
fn model_lines(worker: &pb::Worker) -> Vec<String> {
    let mut rows = Vec::new();
    for device in &worker.devices {
        for model in device.models.iter().take(MODELS_MAX) {
            let name = Path::new(&model.file)
                .file_name()
                .map_or(model.file.clone(), |name| name.to_string_lossy().into_owned());
            let part = bar(model.loaded_bytes, model.bytes, BAR_CELLS / 2);
            let used = if model.in_use { "in use" } else { "" };
            let ours = if model.blob.is_empty() { "not tierd's" } else { "" };
            let cells = [device.index.to_string(), part, size(model.loaded_bytes), size(model.bytes), name];
            rows.push([&cells[..], &[[used, ours].join(" ").trim().to_owned()]].concat());
        }
        if device.models.len() > MODELS_MAX {
            let more = format!("and {} more", device.models.len() - MODELS_MAX);
            rows.push(vec![device.index.to_string(), String::new(), String::new(), String::new(), more, String::new()]);
        }
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let head = format!("\n{}:", worker.worker);
    let table = aligned(&["DEVICE>", "", "LOADED>", "SIZE>", "FILE", ""], &rows);
    std::iter::once(head).chain(table).collect()
}

/// Devices with bars, and below them how they are known. Nothing where there is no device.
pub(crate) fn device_lines(node: &pb::Node) -> Vec<String> {
    if node.devices.is_empty() {
        return Vec::new();
    }
    let row = |device: &pb::VramDevice| {
        vec![
            device.index.to_string(),
            bar(device.used_bytes, device.total_bytes, BAR_CELLS),
            size(device.used_bytes),
            size(device.claimed_bytes),
            size(device.other_bytes),
            size(device.total_bytes),
            device.models.to_string(),
            device.utilisation_percent.map_or_else(String::new, |percent| format!("{percent}%")),
            device.name.clone(),
        ]
    };
    let rows: Vec<_> = node.devices.iter().map(row).collect();
    let names = ["DEVICE>", "", "USED>", "MODELS' BYTES>", "OTHER>", "VRAM>", "MODELS>", "BUSY>", "NAME"];
    let mut lines = aligned(&names, &rows);
    for device in node.devices.iter().filter(|device| device.overclaimed_bytes > 0) {
        let over = size(device.overclaimed_bytes);
        lines.push(format!("device {}: workers claim {over} more than is in use", device.index));
    }
    let word = node.devices.iter().filter(|device| !device.by_driver).count();
    if word > 0 {
        lines.push(format!(
            "vram: a worker's word for {word} of {} devices; {}",
            node.devices.len(),
            node.driver_detail
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_workers_claim_too_much_of_is_told() {
        let device = pb::VramDevice {
            total_bytes: 80 << 30,
            used_bytes: 40 << 30,
            claimed_bytes: 50 << 30,
            overclaimed_bytes: 10 << 30,
            name: "H100".into(),
            ..Default::default()
        };
        let node =
            pb::Node { devices: vec![device], driver_detail: "no NVIDIA driver: x".into(), ..Default::default() };
        let text = device_lines(&node).join("\n");
        for part in
            ["[############------------]", "H100", "claim 10 GiB more", "word for 1 of 1 devices; no NVIDIA driver"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(device_lines(&pb::Node::default()).is_empty());
    }

    #[test]
    fn a_hook_that_is_not_attached_is_named() {
        let hook = |hook: &str, state: &str| pb::WorkerHook { hook: hook.into(), state: state.into() };
        let hooks = vec![hook("reads", "attached"), hook("prompts", "failed: no such name")];
        let info = Some(pb::WorkerInfo { hooks, ..Default::default() });
        let row = row(&pb::Worker { info, ..Default::default() });
        assert_eq!(row.last().map(String::as_str), Some("1/2 (prompts failed: no such name)"));
    }
}
