//! From when on rows of a node may wait to be sealed, and in which hours before that: rows that were deleted
//! are met by whoever reads past them until the database has merged its files, so nobody should.
//!
//! It is kept in memory and of an embedded database alone, where nobody else writes; what is not known of a
//! node is looked for among all its rows. Whoever seals begins a [`look`](Frontier::look), reads which rows there
//! are, and says what it found ([`looked`](Frontier::looked)); a row that is written meanwhile or later with a
//! time before that is [`wrote`](Frontier::wrote) before its push is acknowledged. So a reader who asks
//! ([`first`](Frontier::first)) before it reads misses no row that was acknowledged.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nodestats_wire::Timestamp;

use crate::blocks::hour_of;

/// What is known of all nodes. Cloning is cheap; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Frontier(Option<Arc<Mutex<HashMap<String, Node>>>>);

#[derive(Debug)]
struct Node {
    /// Before it there are rows in late hours alone.
    until: Timestamp,
    late: BTreeSet<Timestamp>,
    /// Hours of rows that were written since the last look began.
    since: BTreeSet<Timestamp>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            until: Timestamp::MIN,
            late: BTreeSet::new(),
            since: BTreeSet::new(),
        }
    }
}

impl Node {
    /// See [`Frontier::first`].
    fn first(&self, from: Timestamp) -> Timestamp {
        let late = self.late.range(hour_of(from)..).next();
        // All late hours are before the others.
        late.copied().unwrap_or(self.until).max(from)
    }
}

impl Frontier {
    /// Of a database to which nobody else writes, or of a shared one, of which nothing is known.
    pub(crate) fn new(is_shared: bool) -> Self {
        Self((!is_shared).then(Arc::default))
    }

    fn nodes(&self) -> Option<MutexGuard<'_, HashMap<String, Node>>> {
        let nodes = self.0.as_ref()?;
        Some(nodes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The earliest time from `from` on at which a node may have a row.
    pub(crate) fn first(&self, uid: &str, from: Timestamp) -> Timestamp {
        let nodes = self.nodes();
        let node = nodes.as_ref().and_then(|nodes| nodes.get(uid));
        node.map_or(from, |node| node.first(from))
    }

    /// Whether a node may have a row in a span; of a shared database it is taken to have none.
    pub(crate) fn has_rows(&self, uid: &str, (from, to): (Timestamp, Timestamp)) -> bool {
        self.0.is_some() && self.first(uid, from) <= to
    }

    /// Rows of a node that are stored, and whose push is not acknowledged yet.
    pub(crate) fn wrote(&self, uid: &str, times: impl Iterator<Item = Timestamp>) {
        let Some(mut nodes) = self.nodes() else {
            return;
        };
        let Some(node) = nodes.get_mut(uid) else {
            return;
        };
        for time in times {
            let hour = hour_of(time);
            node.since.insert(hour);
            if time < node.until {
                node.late.insert(hour);
            }
        }
    }

    /// Begins to look for rows of a node; returns from when on.
    pub(crate) fn look(&self, uid: &str) -> Timestamp {
        let Some(mut nodes) = self.nodes() else {
            return Timestamp::MIN;
        };
        let node = nodes.entry(uid.to_owned()).or_default();
        node.since.clear();
        node.first(Timestamp::MIN)
    }

    /// Ends a look that found no row before `until` to be left.
    pub(crate) fn looked(&self, uid: &str, until: Timestamp) {
        let Some(mut nodes) = self.nodes() else {
            return;
        };
        let Some(node) = nodes.get_mut(uid) else {
            return;
        };
        node.until = hour_of(until);
        node.late = node.since.range(..node.until).copied().collect();
    }

    /// Forgets a node.
    pub(crate) fn forget(&self, uid: &str) {
        if let Some(mut nodes) = self.nodes() {
            nodes.remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::HOUR;

    fn hour(number: i64) -> Timestamp {
        Timestamp::from_micros(number * HOUR).expect("a time")
    }

    #[test]
    fn what_is_sealed_is_passed_over_and_what_comes_late_is_not() {
        let frontier = Frontier::new(false);
        let first = |from| frontier.first("a", hour(from));
        assert_eq!(first(3), hour(3), "nothing is known yet");
        assert_eq!(frontier.look("a"), Timestamp::MIN);
        frontier.wrote("a", [hour(8).plus_micros(5)].into_iter());
        frontier.looked("a", hour(9).plus_micros(7));
        assert_eq!(
            (first(3), first(8), first(9), first(10)),
            (hour(8), hour(8), hour(9), hour(10)),
            "one was written while the others were looked for"
        );
        assert_eq!(frontier.look("a"), hour(8));
        frontier.looked("a", hour(9));
        assert_eq!(first(3), hour(9));
        frontier.wrote("a", [hour(2), hour(5), hour(12)].into_iter());
        assert_eq!((first(3), first(0)), (hour(5), hour(2)));
        assert_eq!(first(6), hour(9));
        assert!(frontier.has_rows("a", (hour(3), hour(5))));
        assert!(!frontier.has_rows("a", (hour(6), hour(8))));
        frontier.forget("a");
        assert_eq!(first(3), hour(3));
    }

    #[test]
    fn of_a_shared_database_nothing_is_known() {
        let frontier = Frontier::new(true);
        assert_eq!(frontier.look("a"), Timestamp::MIN);
        frontier.looked("a", hour(9));
        assert_eq!(frontier.first("a", hour(1)), hour(1));
        assert!(!frontier.has_rows("a", (hour(1), hour(10))));
    }
}
