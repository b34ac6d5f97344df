//! stub
/// s
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {}
