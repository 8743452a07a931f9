//! What the engine holds, as an inventory. A list and nothing else.

use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::view::{NodeView, Tier};

use crate::fleet::message::{INVENTORY_MODELS_MAX, Inventory, TierStock, fingerprint};

/// The node's inventory, but for its name, address and labels. Empty if the engine is going.
pub(super) async fn of(engine: &EngineHandle) -> Inventory {
    let Ok(node) = engine.node().await else { return Inventory::default() };
    let outlook = engine.outlook();
    let stock = |tier: Tier| {
        let mut models: Vec<String> = outlook.stored_in(tier).map(fingerprint).collect();
        models.sort_unstable();
        let truncated = models.len() > INVENTORY_MODELS_MAX;
        models.truncate(INVENTORY_MODELS_MAX);
        let (capacity_bytes, used_bytes) = size_of(&node, tier);
        TierStock { capacity_bytes, used_bytes, models, truncated }
    };
    Inventory {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tiers: [("ram".to_owned(), stock(Tier::Ram)), ("nvme".to_owned(), stock(Tier::Nvme))].into(),
        flights: node.flights,
        waiting: node.ensures,
        ..Inventory::default()
    }
}

fn size_of(node: &NodeView, tier: Tier) -> (u64, u64) {
    node.tiers.iter().find(|row| row.tier == tier).map_or((0, 0), |row| (row.capacity, row.used))
}
