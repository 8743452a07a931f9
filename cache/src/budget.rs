//! The byte limit of a tier, and what is held and promised against it. Counting only.

/// A tier's budget. `used + reserved` never grows past `limit`: whoever wants bytes reserves them first.
///
/// The limit may fall below what is held (somebody else fills the disk): then nothing new is granted until enough is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    limit: u64,
    used: u64,
    reserved: u64,
}

impl Budget {
    /// An empty budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, used: 0, reserved: 0 }
    }

    /// Bytes that may be held.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are held.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that are promised on top of those held.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Bytes that nobody holds or was promised.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used + self.reserved)
    }

    /// Bytes held or promised beyond the limit.
    #[must_use]
    pub fn over(&self) -> u64 {
        (self.used + self.reserved).saturating_sub(self.limit)
    }

    /// Moves the limit.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Promises bytes, if they are free.
    #[must_use]
    pub fn reserve(&mut self, bytes: u64) -> bool {
        if bytes > self.free() {
            return false;
        }
        self.reserved += bytes;
        true
    }

    /// Takes a promise back.
    pub fn unreserve(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.reserved, "gives back {bytes} of {} reserved bytes", self.reserved);
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Turns a promise into bytes held.
    pub fn settle(&mut self, bytes: u64) {
        self.unreserve(bytes);
        self.used += bytes;
    }

    /// Turns bytes held back into a promise: an unfinished blob that a flight takes up again.
    pub fn resume(&mut self, bytes: u64) {
        self.give_back(bytes);
        self.reserved += bytes;
    }

    /// Counts bytes that were found on the disk: they are there whatever the limit says.
    pub fn found(&mut self, bytes: u64) {
        self.used += bytes;
    }

    /// Bytes are gone from the disk.
    pub fn give_back(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "gives back {bytes} of {} used bytes", self.used);
        self.used = self.used.saturating_sub(bytes);
    }
}
