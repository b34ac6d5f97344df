//! amem-core
