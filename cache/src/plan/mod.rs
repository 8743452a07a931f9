//! Policy: what to keep in which tier, what goes first, how many connections to use. Arithmetic only: time is an argument,
//! nothing is touched.
//!
//! | file | holds |
//! | --- | --- |
//! | `lru`, `fifo`, `s3fifo` | one list a tier: the simple choice, and two baselines |
//! | `lists` | two lists as one policy |
//! | `value` | the default: seconds saved a byte, both tiers weighed together |
//! | `kept` | its counts, as they outlive a restart |
//! | `predict` | what is likely to be asked for next, and whether that is worth acting on |
//! | `rivals` | what the policies that do not act would have done |
//! | `connections` | how many connections an origin gets |

pub mod calibration;
pub mod connections;
pub mod expected;
pub mod fifo;
pub mod kept;
pub mod lists;
pub mod lru;
pub mod predict;
pub mod rank;
pub mod rates;
pub mod readiness;
pub mod report;
pub mod rivals;
pub mod s3fifo;
pub mod value;

use std::time::Duration;

use crate::clock::Tick;
use crate::engine::view::Tier;
use crate::ids::BlobId;

/// Chooses what leaves one tier. Told of everything that happens to the tier's blobs; deletes nothing itself.
pub trait EvictionPolicy: Send + std::fmt::Debug {
    /// The policy's name, as the configuration and the events have it.
    fn name(&self) -> &'static str;

    /// A blob is in the tier now.
    fn inserted(&mut self, blob: BlobId, bytes: u64, now: Tick);

    /// A blob was asked for or used.
    fn used(&mut self, blob: BlobId, now: Tick);

    /// A blob left the tier.
    fn removed(&mut self, blob: BlobId);

    /// Chooses blobs that give back at least `bytes` together, worst first. `evictable` gives a blob's bytes, or `None`
    /// if it is held. Returns what there is if that is not enough: the caller decides whether to go on.
    fn victims(&self, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, now: Tick) -> Vec<BlobId>;
}

/// Chooses for RAM and the disk together. `tier` is one of these two.
pub trait Policy: Send + std::fmt::Debug {
    /// The policy's name, as the configuration and the events have it.
    fn name(&self) -> &'static str;

    /// A blob is in a tier now.
    fn inserted(&mut self, tier: Tier, blob: BlobId, bytes: u64, now: Tick);

    /// A blob that is in a tier was looked up there: recency, for policies that go by it.
    fn used(&mut self, tier: Tier, blob: BlobId, now: Tick);

    /// Somebody waits for a blob, wherever it is, and for others with it: frequency, for policies that go by it. Comes once for each caller
    /// and model.
    fn asked(&mut self, blob: BlobId, bytes: u64, beside: Beside, now: Tick);

    /// A blob that was found at a start was last used so long ago: all that is known of its uses.
    fn recall(&mut self, blob: BlobId, bytes: u64, unused_for: Duration, now: Tick);

    /// What should outlive a restart of what was counted: at most [`kept::ROWS_MAX`] blobs. Nothing from policies that do not count.
    fn kept(&self, _now: Tick) -> Vec<kept::Row> {
        Vec::new()
    }

    /// What was kept of a blob so long ago, and how long ago it was used since then, if it was.
    fn recall_kept(&mut self, _row: &kept::Row, _age: Duration, _unused_for: Option<Duration>, _now: Tick) {}

    /// A blob left a tier.
    fn removed(&mut self, tier: Tier, blob: BlobId);

    /// What bytes cost on this node, as it was measured. Policies that do not weigh do not listen.
    fn measured(&mut self, costs: Costs);

    /// What is known to be wanted soon, the next first: the whole truth, each time.
    fn expect(&mut self, blobs: &[(BlobId, u64)], now: Tick);

    /// What is likely to be wanted, with bytes and uses expected a second, on top of what is counted and known: the whole list, each time. A
    /// policy that does not weigh has no use for it.
    fn guess(&mut self, _blobs: &[(BlobId, u64, f64)]) {}

    /// As [`EvictionPolicy::victims`], in one tier.
    fn victims(&self, tier: Tier, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, now: Tick) -> Vec<BlobId>;

    /// Where a blob that was just read should stay, and what must go for it. The same tier or nothing means: as it is.
    fn place(&self, blob: BlobId, bytes: u64, room: &Room<'_>, now: Tick) -> Placement;

    /// What a blob is worth in a tier, in numbers, for people. `None` from policies that go by order alone.
    fn standing(&self, tier: Tier, blob: BlobId, bytes: u64, now: Tick) -> Option<Standing>;

    /// Whether a blob is placed when its bytes are there, so that nothing goes before it must. If not, room is made for it on the
    /// disk before its first byte.
    fn places_late(&self) -> bool;
}

/// Bytes of the other models of a set that somebody waits for, by where they are. All of a set move at once; those of one tier share its link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beside {
    /// At an origin.
    pub origin: u64,
    /// On the disk.
    pub disk: u64,
    /// In RAM.
    pub ram: u64,
}

impl Beside {
    /// More bytes in a tier.
    pub fn add(&mut self, tier: Tier, bytes: u64) {
        match tier {
            Tier::Origin => self.origin += bytes,
            Tier::Nvme => self.disk += bytes,
            // What is in VRAM is waited for by nobody.
            Tier::Ram | Tier::Vram => self.ram += bytes,
        }
    }

    /// The same without a model.
    #[must_use]
    pub fn without(mut self, tier: Tier, bytes: u64) -> Self {
        match tier {
            Tier::Origin => self.origin = self.origin.saturating_sub(bytes),
            Tier::Nvme => self.disk = self.disk.saturating_sub(bytes),
            Tier::Ram | Tier::Vram => self.ram = self.ram.saturating_sub(bytes),
        }
        self
    }
}

/// What two tiers hold and may give, as a placement sees it.
pub struct Room<'a> {
    /// The disk.
    pub disk: TierRoom<'a>,
    /// RAM.
    pub ram: TierRoom<'a>,
    /// Whether RAM can hold what the disk does not: then the disk may give up its copy of what RAM holds, and what leaves RAM may
    /// need room on the disk.
    pub ram_alone: bool,
    /// Whether the blob's bytes are in hand now: then the disk may give up its copy of it before RAM has one.
    pub in_hand: bool,
}

/// One tier, as a placement sees it.
pub struct TierRoom<'a> {
    /// Bytes that it may hold.
    pub limit: u64,
    /// Bytes that are free, those on their way out included.
    pub free: u64,
    /// The bytes of a blob of the tier that may go; `None` for one that is held.
    pub evictable: &'a dyn Fn(BlobId) -> Option<u64>,
}

/// Where a blob goes and what goes for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placement {
    /// The tier that it goes to; `None`: it stays where it is, or goes nowhere.
    pub to: Option<Tier>,
    /// What leaves RAM.
    pub from_ram: Vec<BlobId>,
    /// What of that moves to the disk, which does not have it.
    pub to_disk: Vec<BlobId>,
    /// What leaves the disk.
    pub from_disk: Vec<BlobId>,
    /// What it is worth there: expected seconds of waiting that it saves in a second.
    pub gain: f64,
    /// What is lost with what goes, in the same unit. If nothing was done, what would have been.
    pub loss: f64,
}

/// What a blob is worth in a tier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Uses a second that are expected, by what was counted.
    pub counted_rate: f64,
    /// Uses a second that are expected because a prompt that waits will need it.
    pub expected_rate: f64,
    /// Seconds that a use waits less than if its origin had it.
    pub saved_seconds: f64,
    /// Its size.
    pub bytes: u64,
}

impl Standing {
    /// What is compared: seconds of waiting saved a day, for each GiB held.
    #[must_use]
    pub fn worth(&self) -> f64 {
        const DAY: f64 = 86_400.0;
        let saved = (self.counted_rate + self.expected_rate) * self.saved_seconds * DAY;
        saved / (self.bytes.max(1) as f64 / crate::units::GIB as f64)
    }
}

/// How long bytes take on this node: what a policy by cost weighs with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// Seconds to the first byte from an origin.
    pub origin_first_byte: f64,
    /// Seconds a byte from an origin.
    pub origin_byte: f64,
    /// Seconds a byte from the disk.
    pub disk_byte: f64,
    /// Seconds a byte from RAM to where it is used.
    pub ram_byte: f64,
}

impl Default for Costs {
    /// 100 ms and 1 GB/s from origins, 6 GB/s from NVMe, 25 GB/s over PCIe: a node with a 10 Gbit/s link and one good disk. Only
    /// their ratios matter, and those are much the same on most nodes.
    fn default() -> Self {
        Self { origin_first_byte: 0.1, origin_byte: 1e-9, disk_byte: 1.0 / 6e9, ram_byte: 1.0 / 25e9 }
    }
}

impl Costs {
    /// Seconds until a set is ready.
    #[must_use]
    pub fn ready(&self, set: Beside) -> f64 {
        let first_byte = if set.origin > 0 { self.origin_first_byte } else { 0.0 };
        let origin = first_byte + set.origin as f64 * self.origin_byte;
        origin.max(set.disk as f64 * self.disk_byte).max(set.ram as f64 * self.ram_byte)
    }

    /// Seconds that whoever waits for `bytes` bytes, and for others beside them, waits less for having them in a tier instead of at an
    /// origin. A small file that is ready long before a large one saves nothing.
    #[must_use]
    pub fn saved(&self, tier: Tier, bytes: u64, beside: Beside) -> f64 {
        let with = |tier: Tier| {
            let mut set = beside;
            set.add(tier, bytes);
            self.ready(set)
        };
        with(Tier::Origin) - with(tier)
    }
}

/// The policies that the configuration may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyKind {
    /// Seconds saved a byte.
    #[default]
    Value,
    /// Least recently used.
    Lru,
    /// First in, first out.
    Fifo,
    /// S3-FIFO, by bytes.
    S3Fifo,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Value, Self::Lru, Self::Fifo, Self::S3Fifo];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Lru => "lru",
            Self::Fifo => "fifo",
            Self::S3Fifo => "s3fifo",
        }
    }

    /// The policy of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// A policy of this kind that knows nothing yet.
    #[must_use]
    pub fn build(self, costs: Costs) -> Box<dyn Policy> {
        match self {
            Self::Value => Box::new(value::Value::new(costs)),
            Self::Lru => Box::new(lists::Lists::<lru::Lru>::default()),
            Self::Fifo => Box::new(lists::Lists::<fifo::Fifo>::default()),
            Self::S3Fifo => Box::new(lists::Lists::<s3fifo::S3Fifo>::default()),
        }
    }
}
