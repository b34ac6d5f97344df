//! examples/demo-model
