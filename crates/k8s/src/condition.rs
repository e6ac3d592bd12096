//! Conditions in the standard form (KEP-1623): what is true of a node, by type.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Types that the controller owns.
pub mod controller {
    /// The API knows the node under its name and addresses.
    pub const REGISTERED: &str = "Registered";
    /// Samples arrive.
    pub const REPORTING: &str = "Reporting";
    /// The node is registered, reports, and its Node is Ready.
    pub const READY: &str = "Ready";
    /// The node's clock differs from the API's.
    pub const CLOCK_SKEWED: &str = "ClockSkewed";
    /// All of them.
    pub const ALL: [&str; 4] = [REGISTERED, REPORTING, READY, CLOCK_SKEWED];
}

/// Types that the agent owns.
pub mod agent {
    /// Tasks wait for CPUs.
    pub const CPU_PRESSURE: &str = "CPUPressure";
    /// Tasks wait for memory.
    pub const MEMORY_PRESSURE: &str = "MemoryPressure";
    /// Tasks wait for disks.
    pub const IO_PRESSURE: &str = "IOPressure";
    /// A filesystem is nearly full.
    pub const DISK_PRESSURE: &str = "DiskPressure";
    /// All of them.
    pub const ALL: [&str; 4] = [CPU_PRESSURE, MEMORY_PRESSURE, IO_PRESSURE, DISK_PRESSURE];
}

/// Whether something is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is.
    True,
    /// It is not.
    False,
    /// It cannot be told.
    Unknown,
}

impl Status {
    /// As it stands in a condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(is: bool) -> Self {
        if is { Self::True } else { Self::False }
    }
}

/// What is to stand in a condition, without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The condition's type.
    pub type_: &'static str,
    /// Whether it is so.
    pub status: Status,
    /// Why, one word in camel case.
    pub reason: &'static str,
    /// Why, for a person. Holds no figure that changes while nothing happens.
    pub message: String,
}

impl Claim {
    /// The condition that says so at `now`: it keeps the time of the last transition where the
    /// status is the one that `current` has, and is `current` itself where it says the same.
    pub fn since(
        &self,
        current: &[Condition],
        generation: Option<i64>,
        now: k8s_openapi::jiff::Timestamp,
    ) -> Condition {
        let current = find(current, self.type_);
        let since = current
            .filter(|current| current.status == self.status.as_str())
            .map_or(Time(now), |current| current.last_transition_time.clone());
        Condition {
            type_: self.type_.to_owned(),
            status: self.status.as_str().to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            observed_generation: generation,
            last_transition_time: since,
        }
    }
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> k8s_openapi::jiff::Timestamp {
        k8s_openapi::jiff::Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_time_is_that_of_the_last_change_of_status() {
        let claim = |status, reason| Claim {
            type_: controller::READY,
            status,
            reason,
            message: String::new(),
        };
        let first = claim(Status::True, "Reporting").since(&[], Some(1), at(100));
        let same =
            claim(Status::True, "Other").since(std::slice::from_ref(&first), Some(1), at(200));
        assert_eq!(
            (same.last_transition_time.0, &*same.reason),
            (at(100), "Other")
        );
        let changed = claim(Status::False, "Gone").since(&[same], Some(1), at(300));
        assert_eq!(changed.last_transition_time.0, at(300));
        let again =
            claim(Status::False, "Gone").since(std::slice::from_ref(&changed), Some(1), at(400));
        assert_eq!(again, changed);
    }
}
