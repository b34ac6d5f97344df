//! The forward pass: one function over rows.
//!
//! Prefill, packed prefill of many short texts, scoring, repair, decode and batched decode differ in their rows only.
//! A pass goes layer by layer in three steps, and each step is a type, so that they can only be taken in order:
//!
//! ```text
//! Pass --project--> Projected --write--> Written --finish--> Pass (the next layer)
//! ```
//!
//! Between them blend looks at a layer's keys (`Projected`) or at the attention of its queries (`Written`), goes on with
//! fewer rows, or concatenates two passes.

use std::ops::Range;

use super::backend::{Attention, Backend, BlockTable, Qkv, Row};
use super::device_weights::FeedForward;
use super::loaded_model::LoadedModel;
use super::pass_cache::PassCache;
use crate::{Result, Token};

/// A pass that has begun.
pub(super) struct PassScope<'b, B: Backend>(Option<&'b B>);

impl<'b, B: Backend> PassScope<'b, B> {
    /// Begins a pass. It ends with [`end`](Self::end), and also when what is returned is dropped.
    pub(super) fn begin(backend: &'b B) -> Result<Self> {
        let scope = Self(Some(backend));
        backend.begin_pass()?;
        Ok(scope)
    }

    /// Ends the pass. Until it has ended nobody knows whether what it wrote is there.
    pub(super) fn end(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), B::end_pass)
    }
}

impl<B: Backend> Drop for PassScope<'_, B> {
    fn drop(&mut self) {
        // The pass has failed before, which its caller is told.
        if let Some(Err(error)) = self.0.map(B::end_pass) {
            log::warn!("a failed pass does not end: {error}");
        }
    }
}

/// Rows before a layer.
pub(super) struct Pass<'a, B: Backend> {
    model: &'a LoadedModel<B>,
    tables: &'a [BlockTable<'a>],
    rows: Vec<Row>,
    /// One for each kind of layer.
    plans: Vec<B::Plan>,
    /// The residual stream, `[rows][hidden]`.
    hidden: B::Tensor,
    /// What the last block has to add to it.
    pending: Option<B::Tensor>,
    layer: usize,
}

/// Rows whose queries, keys and values are known.
pub(super) struct Projected<'a, B: Backend> {
    pass: Pass<'a, B>,
    qkv: Qkv<B::Tensor>,
}

/// Rows whose keys and values stand in the cache.
pub(super) struct Written<'a, B: Backend> {
    pass: Pass<'a, B>,
    queries: B::Tensor,
}

impl<'a, B: Backend> Pass<'a, B> {
    /// Rows before the first layer. Their contexts are indexes into `tables`.
    pub(super) fn start(model: &'a LoadedModel<B>, rows: Vec<Row>, tables: &'a [BlockTable<'a>]) -> Result<Self> {
        let tokens: Vec<Token> = rows.iter().map(|row| row.token).collect();
        let mut hidden = model.backend.embed(&model.weights.embedding, &tokens)?;
        if model.config.embedding_scale != 1.0 {
            model.backend.scale(&mut hidden, model.config.embedding_scale)?;
        }
        let plans = model.plans(&rows, tables)?;
        Ok(Self { model, tables, rows, plans, hidden, pending: None, layer: 0 })
    }

    /// The layer that comes next.
    pub(super) fn layer(&self) -> usize {
        self.layer
    }

    /// How the next layer attends.
    fn attention(&self) -> Attention {
        self.model.config.attention(self.layer)
    }

    /// The plan of the next layer.
    fn plan(&self) -> &B::Plan {
        &self.plans[self.model.weights.layers[self.layer].kind]
    }

    /// Adds what is pending to the hidden state, and returns its norm, if there is one before the next block.
    fn add_pending(&mut self, norm: Option<&B::Vector>) -> Result<Option<B::Tensor>> {
        let (backend, eps) = (&self.model.backend, self.model.config.norm_eps);
        match (self.pending.take(), norm) {
            (Some(pending), Some(norm)) => backend.add_rms_norm(&mut self.hidden, &pending, norm, eps).map(Some),
            (Some(pending), None) => backend.add(&mut self.hidden, &pending).map(|()| None),
            (None, Some(norm)) => backend.rms_norm(&self.hidden, norm, eps).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// What a block gives, normed and scaled: it is added to the hidden state with the next norm.
    fn set_pending(&mut self, output: B::Tensor, norm: Option<&B::Vector>) -> Result<()> {
        let (backend, model) = (&self.model.backend, self.model);
        let mut output = match norm {
            Some(norm) => backend.rms_norm(&output, norm, model.config.norm_eps)?,
            None => output,
        };
        if model.config.residual_scale != 1.0 {
            backend.scale(&mut output, model.config.residual_scale)?;
        }
        self.pending = Some(output);
        Ok(())
    }

    /// Queries, keys and values of the next layer.
    pub(super) fn project(mut self) -> Result<Projected<'a, B>> {
        let (backend, layer) = (&self.model.backend, &self.model.weights.layers[self.layer]);
        let x = self.add_pending(layer.attention_norm.as_ref())?;
        let qkv = backend.qkv(x.as_ref().unwrap_or(&self.hidden), &layer.attention, self.plan())?;
        Ok(Projected { pass: self, qkv })
    }

    /// Runs layers until the keys and values of `layer`, or of the current one if that is later, are in the KV cache.
    pub(super) fn advance_to(mut self, cache: &mut PassCache<'_, B>, layer: usize) -> Result<Written<'a, B>> {
        loop {
            let written = self.project()?.write(cache)?;
            if written.pass.layer >= layer {
                return Ok(written);
            }
            self = written.finish(cache)?;
        }
    }
}

impl<'a, B: Backend> Projected<'a, B> {
    /// Keys (before rotation) and values, `[rows][kv_heads * head_dim]` each, of rows that go no further.
    pub(super) fn into_kv(self) -> [B::Tensor; 2] {
        [self.qkv.keys, self.qkv.values]
    }

    /// How far the keys of each row are from those that stand in its slot. Waits for the device.
    pub(super) fn key_distance(&self, cache: &mut PassCache<'_, B>) -> Result<Vec<f32>> {
        let (backend, pass) = (&self.pass.model.backend, &self.pass);
        backend.read(&backend.key_distance(cache.layer(pass.layer)?, pass.layer, pass.plan(), &self.qkv.keys)?)
    }

    /// Puts keys and values into the cache, over what stood there.
    pub(super) fn write(self, cache: &mut PassCache<'_, B>) -> Result<Written<'a, B>> {
        Ok(self.write_and_keep(cache)?.0)
    }

    /// As [`write`](Self::write), and returns them too.
    pub(super) fn write_and_keep(self, cache: &mut PassCache<'_, B>) -> Result<(Written<'a, B>, [B::Tensor; 2])> {
        let Self { pass, qkv: Qkv { queries, keys, values } } = self;
        pass.model.backend.write_kv(cache.layer(pass.layer)?, pass.layer, pass.plan(), &keys, &values)?;
        Ok((Written { pass, queries }, [keys, values]))
    }
}

impl<'a, B: Backend> Written<'a, B> {
    /// The layer that the rows are in.
    pub(super) fn layer(&self) -> usize {
        self.pass.layer
    }

    /// Adds up the attention that the slots of one context get from some of its rows.
    pub(super) fn attention_mass(
        &self,
        cache: &mut PassCache<'_, B>,
        rows: Range<usize>,
        mass: &mut B::Tensor,
    ) -> Result<()> {
        let pass = &self.pass;
        pass.model.backend.attention_mass(
            cache.layer(pass.layer)?,
            pass.attention(),
            pass.plan(),
            rows,
            &self.queries,
            mass,
        )
    }

    /// Goes on with some rows only, given by their indexes in order.
    pub(super) fn keep(self, which: &[usize]) -> Result<Self> {
        if which.len() == self.pass.rows.len() {
            return Ok(self);
        }
        let Self { mut pass, queries } = self;
        let backend = &pass.model.backend;
        let queries = backend.gather(&queries, which)?;
        pass.hidden = backend.gather(&pass.hidden, which)?;
        pass.rows = which.iter().filter_map(|&index| pass.rows.get(index).cloned()).collect();
        pass.plans = pass.model.plans(&pass.rows, pass.tables)?;
        Ok(Self { pass, queries })
    }

    /// Takes in the rows of another pass over the same tables that is in the same layer. They come after these.
    pub(super) fn concat(mut self, other: Self) -> Result<Self> {
        let backend = &self.pass.model.backend;
        backend.concat(&mut self.queries, &other.queries)?;
        backend.concat(&mut self.pass.hidden, &other.pass.hidden)?;
        self.pass.rows.extend(other.pass.rows);
        self.pass.plans = self.pass.model.plans(&self.pass.rows, self.pass.tables)?;
        Ok(self)
    }

    /// Attention and the feed-forward block.
    pub(super) fn finish(self, cache: &mut PassCache<'_, B>) -> Result<Pass<'a, B>> {
        let Self { mut pass, queries } = self;
        let (model, backend) = (pass.model, &pass.model.backend);
        let layer = &model.weights.layers[pass.layer];
        let attended = backend.attend(cache.layer(pass.layer)?, pass.attention(), pass.plan(), &queries)?;
        let output = &layer.attention.output;
        let output = backend.linear(&attended, &output.weight, output.bias.as_ref())?;
        pass.set_pending(output, layer.attention_output_norm.as_ref())?;
        let x = pass.add_pending(layer.mlp_norm.as_ref())?;
        let x = x.as_ref().unwrap_or(&pass.hidden);
        let output = match &layer.feed_forward {
            FeedForward::Mlp(mlp) => backend.mlp(x, mlp)?,
            FeedForward::Experts(experts) => backend.experts(x, experts)?,
        };
        pass.set_pending(output, layer.mlp_output_norm.as_ref())?;
        pass.layer += 1;
        Ok(pass)
    }

    /// Goes through the layers that are left. Returns the logits, `[wanted][vocabulary]`, of the rows with the wanted
    /// indexes, given in order. In the last layer the others yield keys and values and are done. Waits for the device
    /// if anything is wanted.
    pub(super) fn run(mut self, cache: &mut PassCache<'_, B>, wanted: &[usize]) -> Result<Vec<f32>> {
        let last = self.pass.model.config.layers - 1;
        if self.pass.layer < last {
            self = self.finish(cache)?.advance_to(cache, last)?;
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut pass = self.keep(wanted)?.finish(cache)?;
        let (model, backend) = (pass.model, &pass.model.backend);
        let x = pass.add_pending(Some(&model.weights.final_norm))?;
        let x = x.as_ref().unwrap_or(&pass.hidden);
        let mut logits = backend.linear(x, model.weights.lm_head.as_ref().unwrap_or(&model.weights.embedding), None)?;
        if model.config.logit_scale != 1.0 {
            backend.scale(&mut logits, model.config.logit_scale)?;
        }
        if let Some(cap) = model.config.logit_soft_cap {
            backend.soft_cap(&mut logits, cap)?;
        }
        backend.read(&logits)
    }
}
