//! A model that is ready to compute: its weights and its KV cache on a backend.

use std::ops::Range;

use super::backend::{Backend, BlockTable, Placement, Row};
use super::config::{Config, LayerKind};
use super::device_weights::DeviceWeights;
use super::kv_cache::KvCache;
use super::rope::Rope;
use crate::Result;

/// A model on a backend.
pub(super) struct LoadedModel<B: Backend> {
    pub(super) backend: B,
    pub(super) config: Config,
    pub(super) weights: DeviceWeights<B>,
    pub(super) kv: KvCache<B>,
}

impl<B: Backend> LoadedModel<B> {
    /// A plan of these rows for each kind of layer.
    pub(super) fn plans(&self, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<Vec<B::Plan>> {
        let plan = |kind: &LayerKind| match kind.window {
            None => self.backend.plan(&kind.rope, rows, tables),
            Some(window) => {
                let within = |row: &Row| Row { sees: row.sees.last(window), ..row.clone() };
                self.backend.plan(&kind.rope, &rows.iter().map(within).collect::<Vec<_>>(), tables)
            }
        };
        self.config.kinds.iter().map(plan).collect()
    }

    /// How many tokens a token sees in a layer, if that has a window.
    pub(super) fn window(&self, layer: usize) -> Option<usize> {
        self.weights.layers.get(layer).and_then(|layer| self.config.kinds.get(layer.kind)?.window)
    }

    /// Puts some layers of chunks into their slots of a cache.
    pub(super) fn load_kv(
        &self,
        cache: &mut B::Cache,
        layers: Range<usize>,
        placements: &[Placement<'_>],
    ) -> Result<()> {
        let mut ropes: Vec<(&Rope, Vec<usize>)> = Vec::new();
        for (index, layer) in self.weights.layers.iter().enumerate().take(layers.end).skip(layers.start) {
            let rope = &self.config.kinds[layer.kind].rope;
            match ropes.iter_mut().find(|(known, _)| *known == rope) {
                Some((_, layers)) => layers.push(index),
                None => ropes.push((rope, vec![index])),
            }
        }
        ropes.iter().try_for_each(|(rope, layers)| self.backend.load_kv(cache, rope, layers, placements))
    }
}
