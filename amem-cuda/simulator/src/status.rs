//! The results of driver calls, with the names and texts that `cuGetErrorName` and `cuGetErrorString` give.

use std::ffi::CStr;

/// A `CUresult`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Status(pub(crate) u32);

macro_rules! statuses {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        impl Status {
            // The simulator returns some of them only where a test asks for it, by number.
            $(#[allow(dead_code)] pub(crate) const $name: Status = Status($code);)*

            /// The name that CUDA's header gives the code.
            pub(crate) fn name(self) -> Option<&'static CStr> {
                match self.0 {
                    $($code => as_c_str(concat!(prefix!($name), "\0")),)*
                    _ => None,
                }
            }

            /// What the code says, in words.
            pub(crate) fn text(self) -> Option<&'static CStr> {
                match self.0 {
                    $($code => as_c_str(concat!($text, "\0")),)*
                    _ => None,
                }
            }
        }
    };
}

/// The header names success `CUDA_SUCCESS` and everything else `CUDA_ERROR_...`.
macro_rules! prefix {
    (SUCCESS) => {
        "CUDA_SUCCESS"
    };
    ($name:ident) => {
        concat!("CUDA_ERROR_", stringify!($name))
    };
}

fn as_c_str(text: &'static str) -> Option<&'static CStr> {
    CStr::from_bytes_with_nul(text.as_bytes()).ok()
}

statuses! {
    SUCCESS = 0, "no error";
    INVALID_VALUE = 1, "invalid argument";
    OUT_OF_MEMORY = 2, "out of memory";
    NOT_INITIALIZED = 3, "initialization error";
    NO_DEVICE = 100, "no CUDA-capable device is detected";
    INVALID_DEVICE = 101, "invalid device ordinal";
    INVALID_IMAGE = 200, "device kernel image is invalid";
    INVALID_CONTEXT = 201, "invalid device context";
    INVALID_PTX = 218, "a PTX JIT compilation failed";
    ECC_UNCORRECTABLE = 214, "uncorrectable ECC error encountered";
    UNSUPPORTED_PTX_VERSION = 222, "the provided PTX was compiled with an unsupported toolchain.";
    FILE_NOT_FOUND = 301, "file not found";
    INVALID_HANDLE = 400, "invalid resource handle";
    NOT_FOUND = 500, "named symbol not found";
    NOT_READY = 600, "device not ready";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    HOST_MEMORY_ALREADY_REGISTERED = 712, "part or all of the requested memory range is already mapped";
    HOST_MEMORY_NOT_REGISTERED = 713, "pointer does not correspond to a registered memory region";
    ILLEGAL_INSTRUCTION = 715, "an illegal instruction was encountered";
    MISALIGNED_ADDRESS = 716, "misaligned address";
    LAUNCH_FAILED = 719, "unspecified launch failure";
    NOT_PERMITTED = 800, "operation not permitted";
    NOT_SUPPORTED = 801, "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = 901, "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE = 902, "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED = 903, "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED = 904, "capturing stream has unjoined work";
    STREAM_CAPTURE_ISOLATION = 905, "dependency created on uncaptured work in another stream";
    STREAM_CAPTURE_IMPLICIT = 906, "operation would make the legacy stream depend on a capturing blocking stream";
    CAPTURED_EVENT = 907, "operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD = 908, "attempt to terminate a thread-local capture sequence from another thread";
    UNKNOWN = 999, "unknown error";
}

impl Status {
    /// Whether a device is unusable after it, so that every later call returns it too.
    pub(crate) fn is_sticky(self) -> bool {
        matches!(self.0, 214 | 700 | 702 | 710 | 714..=719)
    }
}

/// Why a call failed. A reason is printed, because a result code alone does not say what was wrong.
#[derive(Debug)]
pub(crate) struct Error {
    pub(crate) status: Status,
    pub(crate) reason: String,
}

/// What a call of the simulated driver returns before it becomes a code.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl From<Status> for Error {
    /// A failure that a correct program can see, so that there is nothing to explain.
    fn from(status: Status) -> Error {
        Error { status, reason: String::new() }
    }
}

/// A failed call and why.
pub(crate) fn refuse<T>(status: Status, reason: impl Into<String>) -> Result<T> {
    Err(Error { status, reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_of_cudas_header() {
        assert_eq!(Status(0).name(), Some(c"CUDA_SUCCESS"));
        assert_eq!(Status(2).name(), Some(c"CUDA_ERROR_OUT_OF_MEMORY"));
        assert_eq!(Status(719).text(), Some(c"unspecified launch failure"));
        assert_eq!(Status(4711).name(), None);
    }
}
