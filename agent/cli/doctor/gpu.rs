//! Whether GPUs can be looked at, and whether somebody tells what is on them.

use super::Finding;
use crate::gpu::{GpuError, GpuMeter, Seen};
use crate::rpc::pb;

/// Looks at the GPUs: as the daemon has them, or from this shell.
pub(super) async fn look(node: Option<&pb::Node>) -> Vec<Finding> {
    match node {
        Some(node) => vec![told(node), workers(node)],
        None => vec![tried(&GpuMeter::default().seen().await)],
    }
}

fn tried(seen: &Seen) -> Finding {
    match &seen.error {
        None => Finding::good("vram", seen.detail()),
        // A node without a GPU is a node all the same.
        Some(GpuError::NoDriver { .. }) => {
            Finding::good("vram", format!("{}: what workers tell is all that is known", seen.detail()))
        }
        Some(error) => Finding::note("vram", error.to_string(), "until then what workers tell is all that is known"),
    }
}

fn told(node: &pb::Node) -> Finding {
    let over = node.devices.iter().find(|device| device.overclaimed_bytes > 0);
    match over {
        Some(device) => Finding::note(
            "vram",
            format!("workers claim more of device {} than the driver has in use", device.index),
            "see `tierd workers`; restart the worker whose process is not listed by nvidia-smi",
        ),
        None => Finding::good("vram", node.driver_detail.clone()),
    }
}

fn workers(node: &pb::Node) -> Finding {
    match node.workers.len() {
        0 => Finding::note(
            "workers",
            "no ComfyUI reports what it has in VRAM",
            "link the node pack into its custom_nodes; without it models in use may be evicted",
        ),
        workers => Finding::good("workers", format!("{workers} report what they have in VRAM")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn no_driver_is_no_fault_and_a_refusal_is_told() {
        let seen = |error| Seen { gpus: Vec::new(), error: Some(error) };
        let detail = || "x".to_owned();
        assert_eq!(tried(&seen(GpuError::NoDriver { detail: detail() })).verdict, Verdict::Good);
        let refused = tried(&seen(GpuError::NoPermission { detail: detail() }));
        assert_eq!(refused.verdict, Verdict::Note);
        assert!(refused.text.contains("/dev/nvidia"), "{}", refused.text);
    }
}
