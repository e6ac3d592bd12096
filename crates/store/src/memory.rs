//! How much memory the database's caches may take.
//!
//! `SurrealDB` sizes them from the host's memory (half of it, less 1 GiB), which kills a container.
//! Here they follow from what the process may use.

const MIB: u64 = 1 << 20;

/// Sizes of the database's caches, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Blocks of the tree's files that are kept unpacked.
    pub block_cache: u64,
    /// Writes that are not in a file yet; also the most that one transaction can hold.
    pub memtable: u64,
    /// `SurrealDB`'s cache of table and namespace definitions, in entries.
    pub definitions: u64,
}

impl MemoryBudget {
    /// From the bytes that the process may use (its cgroup's limit, or the host's memory).
    ///
    /// A sixteenth each, within what was measured: fewer than 16 MiB of memtable make many small
    /// files, and more cache than 64 MiB does not make a read of the last day any faster.
    pub fn from_limit(limit: u64) -> Self {
        Self {
            block_cache: (limit / 16).clamp(8 * MIB, 32 * MIB),
            memtable: (limit / 16).clamp(16 * MIB, 24 * MIB),
            definitions: 100,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_follow_the_limit_within_bounds() {
        let small = MemoryBudget::from_limit(128 * MIB);
        assert_eq!((small.block_cache, small.memtable), (8 * MIB, 16 * MIB));
        let large = MemoryBudget::from_limit(1 << 40);
        assert_eq!((large.block_cache, large.memtable), (32 * MIB, 24 * MIB));
    }
}
