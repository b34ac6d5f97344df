//! Softmax attention over contexts' slots.

mod exact;
mod fast;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "instructions are called that were found to be there")]
mod pairs;
mod ready;
mod tile;
mod walk;
mod wide;

use std::ops::Range;

use amem_core::transformer::Attention;

use crate::cache::Cache;
use crate::{Cpu, Plan, Tensor};

impl Cpu {
    /// See [`Backend::attend`](amem_core::transformer::Backend::attend).
    pub(crate) fn attention(&self, cache: &Cache, attention: Attention, plan: &Plan, queries: &Tensor) -> Tensor {
        if self.is_fast() {
            self.fast_attention(cache, attention, plan, queries)
        } else {
            self.exact_attention(cache, attention, plan, queries)
        }
    }

    /// See [`Backend::attention_mass`](amem_core::transformer::Backend::attention_mass).
    pub(crate) fn mass(
        &self,
        cache: &Cache,
        attention: Attention,
        plan: &Plan,
        rows: Range<usize>,
        queries: &Tensor,
        mass: &mut Tensor,
    ) {
        if self.is_fast() {
            self.fast_mass(cache, attention, plan, rows, queries, mass);
        } else {
            self.exact_mass(cache, attention, plan, rows, queries, mass);
        }
    }
}
