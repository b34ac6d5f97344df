//! Names for what is answered.

use crate::http::{ApiError, Result};
use crate::keys::hex;

/// 24 hexadecimal digits that nobody had before. What they name is said by what a format puts before them.
///
/// # Errors
/// As [`random`].
pub(crate) fn unique() -> Result<String> {
    random::<12>()
}

/// So many random bytes, in hexadecimal digits.
///
/// # Errors
/// 500 when the system gives none.
pub(crate) fn random<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(&error))?;
    Ok(hex(&bytes))
}

/// A seed that nobody can tell.
///
/// # Errors
/// 500 when the system gives no random bytes.
pub(crate) fn seed() -> Result<u64> {
    getrandom::u64().map_err(|error| ApiError::internal(&error))
}
