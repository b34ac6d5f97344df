//! What every HTTP server here has in common: errors, bodies, who is asking, listening and shutting down.

mod body;
mod caller;
mod error;
mod listen;
mod metrics;
mod origin;
mod path;
mod unread;

pub use body::{Body, Params};
pub use caller::{Caller, Identity, KeyHeader};
pub use error::{ApiError, Result};
pub use listen::{Limits, bind, layers, meanwhile, serve};
pub use metrics::Metrics;
pub use path::Segments;
