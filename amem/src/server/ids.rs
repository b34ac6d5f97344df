//! Names for what is answered.

use std::fmt::Write as _;

use crate::http::{ApiError, Result};

/// 24 hexadecimal digits that nobody had before. What they name is said by what a format puts before them.
///
/// # Errors
/// 500 when the system gives no random bytes.
pub(crate) fn unique() -> Result<String> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(&error))?;
    Ok(bytes.iter().fold(String::new(), |mut id, byte| {
        // Writing to a string cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    }))
}

/// A seed that nobody can tell.
///
/// # Errors
/// 500 when the system gives no random bytes.
pub(crate) fn seed() -> Result<u64> {
    getrandom::u64().map_err(|error| ApiError::internal(&error))
}
