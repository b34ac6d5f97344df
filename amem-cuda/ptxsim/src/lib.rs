//! An interpreter of PTX for tests: it runs kernels on a CPU and finds races, unwaited copies, memory that was never
//! written, and accesses out of bounds.
#![forbid(unsafe_code)]
