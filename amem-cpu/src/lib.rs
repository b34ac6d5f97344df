//! amem-cpu
