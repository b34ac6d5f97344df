//! A CUDA driver library and a cuBLASLt that compute on a CPU, for tests: what a backend does with a GPU is done here by
//! an interpreter of PTX.
