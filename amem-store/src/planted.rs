//! Mistakes that tests plant, to show that they would be noticed.

use std::cell::Cell;

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Planted {
    /// Payloads are not compared with their checksums.
    NoPayloadChecksum,
    /// Headers are not compared with their checksums.
    NoHeaderChecksum,
    /// A record may be one of any segment and any place.
    AnyPlace,
    /// A record may be one of a segment of any generation.
    AnyGeneration,
    /// A record may be one of any place in its segment.
    AnyOffset,
    /// A process goes on writing behind the last record of a segment that it found without a seal.
    TailReused,
    /// A damaged record hides an older one that is whole.
    NoOlderRecord,
    /// What is in a segment without a seal is taken for durable.
    UnsealedTrusted,
    /// A file that is to be replaced is written over.
    WrittenOver,
    /// What held a key that was destroyed is removed as it is.
    #[cfg(feature = "encryption")]
    KeyNotWiped,
    /// A purge does nothing.
    NothingPurged,
    /// Nothing is counted against the limit.
    NoLimit,
    /// A segment is removed before what it holds is written anew.
    RemovedFirst,
}

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

/// Whether this thread's stores make a mistake.
pub(crate) fn is(mistake: Planted) -> bool {
    PLANTED.get() == Some(mistake)
}

/// Lets this thread's stores make a mistake, or none.
pub(crate) fn plant(mistake: Option<Planted>) {
    PLANTED.set(mistake);
}
