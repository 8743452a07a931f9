//! Who uses what first. ComfyUI reads a model when it is used, not when its loader runs: a model flows from its loader
//! through nodes that patch it (those that hand on what they were given) to the first that does something with it.

use std::collections::HashMap;

use super::graph::Graph;

/// Steps after which each node's models are first used: text encoders before the diffusion model, the VAE that decodes last.
/// `u32::MAX` for nodes that nobody waits for. Nodes that do not run have no say.
pub(super) fn first_uses(graph: &Graph<'_>) -> Vec<u32> {
    let runs = |index: usize| graph.nodes[index].idle.is_none();
    let mut takers: Vec<Vec<(usize, &str)>> = vec![Vec::new(); graph.nodes.len()];
    for (taker, node) in graph.nodes.iter().enumerate().filter(|(taker, _)| runs(*taker)) {
        for feed in node.feeds.iter().filter(|feed| runs(feed.from)) {
            takers[feed.from].push((taker, feed.kind));
        }
    }
    let (order, steps) = steps(graph, &takers);

    // For each node and what flows through it: when that is first used. Filled from the end of the flow.
    let mut uses: Vec<HashMap<&str, u32>> = vec![HashMap::new(); graph.nodes.len()];
    for &node in order.iter().rev() {
        let mut mine: HashMap<&str, u32> = HashMap::new();
        for (taker, kind) in &takers[node] {
            // Who hands the same on does not use it yet.
            let used = uses[*taker].get(kind).copied().unwrap_or(steps[*taker]);
            let first = mine.entry(kind).or_insert(u32::MAX);
            *first = used.min(*first);
        }
        uses[node] = mine;
    }
    uses.into_iter().map(|kinds| kinds.into_values().min().unwrap_or(u32::MAX)).collect()
}

/// The nodes in an order in which each comes behind what feeds it, and the step in which each can run. Nodes in a circle, and
/// those behind one, come last, in the order of the workflow.
fn steps(graph: &Graph<'_>, takers: &[Vec<(usize, &str)>]) -> (Vec<usize>, Vec<u32>) {
    let count = graph.nodes.len();
    let mut waits = vec![0_usize; count];
    for taker in takers.iter().flatten().map(|(taker, _)| *taker) {
        waits[taker] += 1;
    }
    let mut steps = vec![0_u32; count];
    let mut order: Vec<usize> = (0..count).filter(|node| waits[*node] == 0).collect();
    let mut next = 0;
    while let Some(&node) = order.get(next) {
        next += 1;
        for (taker, _) in &takers[node] {
            steps[*taker] = steps[*taker].max(steps[node] + 1);
            waits[*taker] -= 1;
            if waits[*taker] == 0 {
                order.push(*taker);
            }
        }
    }
    let last = steps.iter().max().copied().unwrap_or(0) + 1;
    for node in (0..count).filter(|node| waits[*node] > 0) {
        steps[node] = last;
        order.push(node);
    }
    (order, steps)
}

/// Where a folder's models stand among those that are first used in one step.
pub(super) fn rank(folder: &str) -> u8 {
    match folder {
        "text_encoders" => 0,
        "embeddings" => 1,
        "clip_vision" | "audio_encoders" => 2,
        "checkpoints" => 3,
        "diffusion_models" | "diffusers" => 4,
        "loras" | "model_patches" | "style_models" => 5,
        "controlnet" => 6,
        "vae" => 8,
        "vae_approx" => 9,
        "latent_upscale_models" | "upscale_models" => 10,
        _ => 7,
    }
}
