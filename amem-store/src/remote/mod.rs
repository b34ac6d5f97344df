//! Chunks of KV on a server that many machines share: Redis, S3, and whatever else OpenDAL reaches.
//!
//! `format` is how a chunk is cut into objects; it knows no network. `objects` asks the server, `breaker` leaves a dead one
//! alone, and `store` puts these together.

#[cfg(feature = "remote")]
mod breaker;
#[cfg(feature = "remote")]
mod error;
#[cfg(all(test, feature = "redis", feature = "s3"))]
mod figures;
#[cfg_attr(not(feature = "remote"), allow(dead_code, reason = "only its parser is fuzzed then"))]
pub(crate) mod format;
#[cfg(feature = "remote")]
mod objects;
#[cfg(feature = "remote")]
mod options;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "remote")]
mod store;

#[cfg(feature = "remote")]
pub use error::RemoteError;
/// The version of OpenDAL whose [`Operator`](opendal::Operator) a [`RemoteStore`] takes.
#[cfg(feature = "remote")]
pub use opendal;
#[cfg(feature = "remote")]
pub use options::RemoteOptions;
#[cfg(feature = "remote")]
pub use store::RemoteStore;
