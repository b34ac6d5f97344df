//! amem's [`Backend`](amem_core::transformer::Backend) for NVIDIA GPUs: kernels in hand-written PTX, loaded by the driver,
//! and cuBLASLt for dense products.
