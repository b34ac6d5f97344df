//! Metering: what was done for whom.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use uuid::Uuid;

use super::{Namespace, Timestamp};

/// The name of a [`UsageEvent`], by which it is counted once however often it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(Uuid);

impl EventId {
    /// A new id (a version 7 UUID).
    #[allow(clippy::new_without_default, reason = "a default that differs on each call would surprise")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// The id of these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Amounts {
    /// Questions that were answered, or given up by who asked.
    pub requests: u64,
    /// Memories that were added, changed or forgotten.
    pub memory_ops: u64,
    /// Tokens whose KV was used as it was.
    pub reused_tokens: u64,
    /// Cached tokens that were computed again in their new context.
    pub repaired_tokens: u64,
    /// Tokens that had no KV and were computed.
    pub prefilled_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Memories that were put into a context.
    pub chunks: u64,
    /// Those among them whose KV was held.
    pub reused_chunks: u64,
}

impl Amounts {
    /// What one event counts of anything at most: an event beyond it is a mistake, and must not spoil a sum.
    pub const MAX: u64 = 1 << 40;

    /// All amounts, in the order of the fields.
    pub fn to_array(self) -> [u64; 8] {
        let Self { requests, memory_ops, reused_tokens, repaired_tokens, .. } = self;
        let Self { prefilled_tokens, generated_tokens, chunks, reused_chunks, .. } = self;
        let tokens = [reused_tokens, repaired_tokens, prefilled_tokens, generated_tokens];
        [requests, memory_ops, tokens[0], tokens[1], tokens[2], tokens[3], chunks, reused_chunks]
    }

    /// The amounts that [`to_array`](Self::to_array) gave.
    pub fn from_array(all: [u64; 8]) -> Self {
        let [requests, memory_ops, reused_tokens, repaired_tokens, prefilled_tokens, generated_tokens, ..] = all;
        let [.., chunks, reused_chunks] = all;
        Self {
            requests,
            memory_ops,
            reused_tokens,
            repaired_tokens,
            prefilled_tokens,
            generated_tokens,
            chunks,
            reused_chunks,
        }
    }

    /// Each amount within [`MAX`](Self::MAX).
    #[must_use]
    pub fn bounded(self) -> Self {
        Self::from_array(self.to_array().map(|amount| amount.min(Self::MAX)))
    }
}

impl AddAssign for Amounts {
    fn add_assign(&mut self, other: Self) {
        let (mut sum, other) = (self.to_array(), other.to_array());
        sum.iter_mut().zip(other).for_each(|(sum, other)| *sum = sum.saturating_add(other));
        *self = Self::from_array(sum);
    }
}

impl Add for Amounts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl Sum for Amounts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

/// What was done for a namespace at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent {
    /// Its name: an event that is recorded twice counts once.
    pub id: EventId,
    /// For whom.
    pub namespace: Namespace,
    /// When.
    pub at: Timestamp,
    /// How much.
    pub amounts: Amounts,
}

impl UsageEvent {
    /// A new event.
    pub fn new(namespace: Namespace, at: Timestamp, amounts: Amounts) -> Self {
        Self { id: EventId::new(), namespace, at, amounts }
    }
}

/// Which usage is to be summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageQuery {
    /// Of this namespace only.
    pub namespace: Option<Namespace>,
    /// From this moment on.
    pub since: Option<Timestamp>,
    /// Before this moment.
    pub until: Option<Timestamp>,
}

impl UsageQuery {
    /// All usage.
    pub fn all() -> Self {
        Self::default()
    }

    /// Of this namespace only.
    #[must_use]
    pub fn namespace(self, namespace: Namespace) -> Self {
        Self { namespace: Some(namespace), ..self }
    }

    /// From this moment on.
    #[must_use]
    pub fn since(self, moment: Timestamp) -> Self {
        Self { since: Some(moment), ..self }
    }

    /// Before this moment.
    #[must_use]
    pub fn until(self, moment: Timestamp) -> Self {
        Self { until: Some(moment), ..self }
    }

    /// Whether an event at this moment is asked for.
    pub fn covers(&self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

/// The usage of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageTotal {
    /// Whose; `None` for all namespaces that were deleted since, together: their names are forgotten, what they used is
    /// not.
    pub namespace: Option<Namespace>,
    /// Events that were summed up.
    pub events: u64,
    /// The sums.
    pub amounts: Amounts,
    /// When the first of the events was.
    pub first: Timestamp,
    /// When the last was.
    pub last: Timestamp,
}

impl UsageTotal {
    /// The total of no events yet, from this moment on.
    pub fn new(namespace: Option<Namespace>, at: Timestamp) -> Self {
        Self { namespace, events: 0, amounts: Amounts::default(), first: at, last: at }
    }

    /// Counts an event.
    pub fn count(&mut self, at: Timestamp, amounts: Amounts) {
        self.events += 1;
        self.amounts += amounts;
        (self.first, self.last) = (self.first.min(at), self.last.max(at));
    }
}
