//! The simulated cuBLASLt: descriptions of matrix products, and the products themselves.

pub(crate) mod description;
pub(crate) mod product;

use description::{Description, MatrixLayout, Preference};
use std::collections::{HashMap, HashSet};

/// A `cublasStatus_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlasStatus(pub(crate) u32);

impl BlasStatus {
    pub(crate) const SUCCESS: BlasStatus = BlasStatus(0);
    pub(crate) const INVALID_VALUE: BlasStatus = BlasStatus(7);
    pub(crate) const EXECUTION_FAILED: BlasStatus = BlasStatus(13);
    pub(crate) const NOT_SUPPORTED: BlasStatus = BlasStatus(15);
}

/// Why a call of cuBLASLt failed.
#[derive(Debug)]
pub(crate) struct BlasError {
    pub(crate) status: BlasStatus,
    pub(crate) reason: String,
}

pub(crate) type Result<T> = std::result::Result<T, BlasError>;

pub(crate) fn refuse<T>(status: BlasStatus, reason: impl Into<String>) -> Result<T> {
    Err(BlasError { status, reason: reason.into() })
}

impl From<crate::status::Error> for BlasError {
    fn from(error: crate::status::Error) -> BlasError {
        use crate::status::Status;
        let status = match error.status {
            Status::INVALID_VALUE | Status::INVALID_HANDLE => BlasStatus::INVALID_VALUE,
            _ => BlasStatus::EXECUTION_FAILED,
        };
        BlasError { status, reason: error.reason }
    }
}

/// The objects that programs created.
#[derive(Debug, Default)]
pub(crate) struct Blas {
    pub(crate) handles: HashSet<u64>,
    pub(crate) descriptions: HashMap<u64, Description>,
    pub(crate) layouts: HashMap<u64, MatrixLayout>,
    pub(crate) preferences: HashMap<u64, Preference>,
}
