//! What can go wrong with a GPU, and what to do about it.

use amem_core::Error;
use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// The result of everything in this crate that only a GPU can make fail.
pub(crate) type Result<T, E = CudaError> = std::result::Result<T, E>;

/// What a GPU, its driver or cuBLASLt failed at.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// libcuda cannot be loaded.
    #[error("there is no NVIDIA driver: libcuda.so could not be loaded. Install the driver, or compute with amem-cpu")]
    NoDriver,
    /// cuBLASLt cannot be loaded.
    #[error(
        "libcublasLt.so could not be loaded: install the CUDA toolkit's cuBLAS, 12 or later, and put it where the loader finds it (LD_LIBRARY_PATH)"
    )]
    NoCublas,
    /// The first cuBLASLt that the loader finds is too old.
    #[error(
        "the libcublasLt.so that the loader finds has version {version} and 12.0 (120000) is needed: install a newer CUDA toolkit's cuBLAS, and put it where the loader looks first (LD_LIBRARY_PATH)"
    )]
    OldCublas {
        /// As the library says it: 10000 · major + 100 · minor + patch, from 12.0 on.
        version: usize,
    },
    /// The driver is older than what is used of it.
    #[error("the driver supports CUDA {}.{} and 12.0 is needed: update the driver", version / 1000, version % 1000 / 10)]
    OldDriver {
        /// As the driver says it: 1000 · major + 10 · minor.
        version: i32,
    },
    /// There is no such GPU.
    #[error("there is no GPU {ordinal}: the driver sees {found}")]
    NoDevice {
        /// The one that was asked for.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// The GPU lacks instructions that the kernels use.
    #[error("{name} has compute capability {major}.{minor} and 8.0 is needed (Ampere or later)")]
    OldDevice {
        /// What the driver calls it.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// The driver does not accept a kernel.
    #[error("the driver refused the PTX module {module} ({code:?}): {log}")]
    Refused {
        /// The module's name.
        module: String,
        /// The driver's answer.
        code: CUresult,
        /// What its compiler said.
        log: String,
    },
    /// There is no memory left on the GPU, after all that could be given up was.
    #[error(
        "the GPU has no room for {bytes} bytes: {free} of {total} are free. Give the KV cache less, shorten the context, or load a smaller model"
    )]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// What is free.
        free: usize,
        /// What there is.
        total: usize,
    },
    /// A kernel failed, and with it all that is on the GPU: the driver answers nothing else from then on.
    #[error("the GPU failed at {what} ({code:?}), and this process cannot use it any more: start it again")]
    Lost {
        /// What was called.
        what: &'static str,
        /// The driver's answer.
        code: CUresult,
    },
    /// The driver failed at something else.
    #[error("the driver failed at {what} ({code:?})")]
    Driver {
        /// What was called.
        what: &'static str,
        /// The driver's answer.
        code: CUresult,
    },
    /// cuBLASLt failed.
    #[error("cuBLASLt failed at {what} ({status})")]
    Cublas {
        /// What was called.
        what: &'static str,
        /// Its answer.
        status: String,
    },
    /// A kernel was to be given less memory than it reads or writes.
    #[error("{kernel} needs {needed} bytes where there are {found}: the shapes of its arguments do not fit each other")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// Bytes that it touches.
        needed: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// There are no kernels for such heads.
    #[error(
        "heads of {head_dim} numbers in {dtype}: there are kernels for 64, 80, 96, 128 and 256 in f16 and bf16, and for all even sizes up to 256 in f32"
    )]
    HeadDim {
        /// Numbers in a head.
        head_dim: usize,
        /// The type that is computed in.
        dtype: &'static str,
    },
}

impl CudaError {
    /// What a driver's answer means.
    pub(crate) fn of(what: &'static str) -> impl Fn(DriverError) -> Self {
        move |DriverError(code)| match code {
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED => CudaError::Lost { what, code },
            _ => CudaError::Driver { what, code },
        }
    }

    pub(crate) fn cublas(what: &'static str) -> impl Fn(CublasError) -> Self {
        move |CublasError(status)| CudaError::Cublas { what, status: format!("{status:?}") }
    }
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::OutOfMemory { .. } => {
                Error::Full { what: "the GPU's memory".to_owned(), reason: error.to_string() }
            }
            other => Error::Model(other.into()),
        }
    }
}
