//! amem-store
