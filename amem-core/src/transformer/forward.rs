//! The forward pass: one function over rows.
//!
//! Prefill, packed prefill of many short texts, scoring, repair, decode and batched decode differ in their rows only.
//! A [`Pass`] goes layer by layer in three steps, so that blend can look at a layer's keys and queries, stop early, or
//! go on with fewer rows.

use super::backend::{Backend, Row};
use super::config::Config;
use super::rope::Rope;
use super::weights::{self, Tensor, Weights};
use crate::{Dtype, KvShape, Result, Token};

/// A model's weights on a backend, and how they hang together.
pub(crate) struct Graph<B: Backend> {
    pub(crate) backend: B,
    pub(crate) shape: KvShape,
    /// The number type of its KV caches.
    pub(crate) dtype: Dtype,
    /// How far a row sees back, itself included; no limit if `None`.
    pub(crate) window: Option<u32>,
    rope: Rope,
    norm_eps: f32,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    final_norm: B::Vector,
    /// `None` where the embedding serves as the output matrix too.
    head: Option<B::Matrix>,
}

struct Layer<B: Backend> {
    input_norm: B::Vector,
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    query_norm: Option<B::Vector>,
    key_norm: Option<B::Vector>,
    output: Linear<B>,
    post_norm: B::Vector,
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
}

struct Linear<B: Backend> {
    weight: B::Matrix,
    bias: Option<B::Vector>,
}

impl<B: Backend> Graph<B> {
    /// Uploads the weights.
    pub(crate) fn load(backend: B, config: &Config, weights: &Weights<'_>, dtype: Dtype) -> Result<Self> {
        let vector = |tensor: &Tensor<'_>| backend.vector(&tensor.to_f32());
        let matrix = |t: &Tensor<'_>| backend.matrix(t.dtype, t.rows, t.columns, t.bytes);
        let linear = |weight: &Tensor<'_>, bias: &Option<Tensor<'_>>| -> Result<Linear<B>> {
            Ok(Linear { weight: matrix(weight)?, bias: bias.as_ref().map(vector).transpose()? })
        };
        let layer = |layer: &weights::Layer<'_>| -> Result<Layer<B>> {
            Ok(Layer {
                input_norm: vector(&layer.input_norm)?,
                query: linear(&layer.q, &layer.q_bias)?,
                key: linear(&layer.k, &layer.k_bias)?,
                value: linear(&layer.v, &layer.v_bias)?,
                query_norm: layer.q_norm.as_ref().map(vector).transpose()?,
                key_norm: layer.k_norm.as_ref().map(vector).transpose()?,
                output: linear(&layer.o, &layer.o_bias)?,
                post_norm: vector(&layer.post_norm)?,
                gate: linear(&layer.gate, &None)?,
                up: linear(&layer.up, &None)?,
                down: linear(&layer.down, &None)?,
            })
        };
        let layers = weights.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self {
            shape: config.kv_shape(),
            dtype,
            window: config.window.map(|window| window as u32),
            rope: config.rope.clone(),
            norm_eps: config.norm_eps,
            embedding: matrix(&weights.embedding)?,
            layers,
            final_norm: vector(&weights.norm)?,
            head: weights.head.as_ref().map(matrix).transpose()?,
            backend,
        })
    }

    /// The angles of these positions.
    pub(crate) fn angles(&self, positions: &[u32]) -> Result<B::Angles> {
        self.backend.angles(&self.rope, positions)
    }

    /// The first slot that a row sees, if it could see all from `start` on.
    pub(crate) fn horizon(&self, start: u32, own: u32) -> u32 {
        start.max(self.window.map_or(0, |window| (own + 1).saturating_sub(window)))
    }

    fn apply(&self, linear: &Linear<B>, x: &B::Tensor) -> Result<B::Tensor> {
        self.backend.linear(x, &linear.weight, linear.bias.as_ref())
    }
}

/// Rows on their way through the layers.
pub(crate) struct Pass<'a, B: Backend> {
    graph: &'a Graph<B>,
    rows: Vec<Row>,
    angles: B::Angles,
    /// The residual stream, `[rows][hidden]`.
    hidden: B::Tensor,
    layer: usize,
    /// Rows times layers so far.
    work: u64,
}

/// What a layer's attention works on.
pub(crate) struct Projection<B: Backend> {
    /// Rotated, `[rows][heads * head_dim]`.
    pub(crate) queries: B::Tensor,
    /// Before rotation, `[rows][kv_heads * head_dim]`.
    pub(crate) keys: B::Tensor,
    /// `[rows][kv_heads * head_dim]`.
    pub(crate) values: B::Tensor,
}

impl<'a, B: Backend> Pass<'a, B> {
    /// Rows before the first layer.
    pub(crate) fn start(graph: &'a Graph<B>, rows: Vec<Row>) -> Result<Self> {
        let tokens: Vec<Token> = rows.iter().map(|row| row.token).collect();
        let hidden = graph.backend.embed(&graph.embedding, &tokens)?;
        let angles = graph.angles(&positions(&rows))?;
        Ok(Self { graph, rows, angles, hidden, layer: 0, work: 0 })
    }

    /// The rows that are still on their way.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The layer that comes next.
    pub(crate) fn layer(&self) -> usize {
        self.layer
    }

    /// Rows times layers that have been computed. A layer counts in full even if only a row's keys and values were
    /// wanted of it.
    pub(crate) fn work(&self) -> u64 {
        self.work
    }

    /// First step of a layer: queries, keys and values.
    pub(crate) fn project(&mut self) -> Result<Projection<B>> {
        let (graph, backend) = (self.graph, &self.graph.backend);
        let layer = &graph.layers[self.layer];
        self.work += self.rows.len() as u64;
        let x = backend.norm(&self.hidden, &layer.input_norm, graph.norm_eps)?;
        let normed = |x: B::Tensor, norm: &Option<B::Vector>| match norm {
            Some(norm) => backend.norm(&x, norm, graph.norm_eps),
            None => Ok(x),
        };
        let mut queries = normed(graph.apply(&layer.query, &x)?, &layer.query_norm)?;
        let keys = normed(graph.apply(&layer.key, &x)?, &layer.key_norm)?;
        let values = graph.apply(&layer.value, &x)?;
        backend.rotate(&mut queries, &self.angles)?;
        Ok(Projection { queries, keys, values })
    }

    /// Second step: keys and values go into the caches, over what stood there.
    pub(crate) fn write(&self, caches: &mut [&mut B::Cache], projection: &Projection<B>) -> Result<()> {
        let Projection { keys, values, .. } = projection;
        self.graph.backend.write(caches, self.layer, &self.rows, &self.angles, keys, values)
    }

    /// Between the first and the second step: how far the keys of each row are from those that stand in its slot.
    pub(crate) fn key_distance(&self, caches: &[&mut B::Cache], projection: &Projection<B>) -> Result<Vec<f32>> {
        self.graph.backend.key_distance(caches, self.layer, &self.rows, &self.angles, &projection.keys)
    }

    /// Third step: attention and the feed-forward block.
    pub(crate) fn finish(&mut self, caches: &[&mut B::Cache], projection: Projection<B>) -> Result<()> {
        let (graph, backend) = (self.graph, &self.graph.backend);
        let layer = &graph.layers[self.layer];
        let attended = backend.attend(caches, self.layer, &self.rows, &projection.queries)?;
        backend.add(&mut self.hidden, &graph.apply(&layer.output, &attended)?)?;
        let x = backend.norm(&self.hidden, &layer.post_norm, graph.norm_eps)?;
        let gated = backend.gate(&graph.apply(&layer.gate, &x)?, &graph.apply(&layer.up, &x)?)?;
        backend.add(&mut self.hidden, &graph.apply(&layer.down, &gated)?)?;
        self.layer += 1;
        Ok(())
    }

    /// Goes on to the second step of a layer that is not behind it.
    pub(crate) fn reach(&mut self, caches: &mut [&mut B::Cache], layer: usize) -> Result<Projection<B>> {
        loop {
            let projection = self.project()?;
            self.write(caches, &projection)?;
            if self.layer == layer {
                return Ok(projection);
            }
            self.finish(caches, projection)?;
        }
    }

    /// Between the second and the third step: goes on with some rows only, given by their indexes in order.
    pub(crate) fn keep(&mut self, projection: &mut Projection<B>, which: &[usize]) -> Result<()> {
        let backend = &self.graph.backend;
        projection.queries = backend.take(&projection.queries, which)?;
        self.hidden = backend.take(&self.hidden, which)?;
        self.rows = which.iter().filter_map(|&index| self.rows.get(index).cloned()).collect();
        self.angles = self.graph.angles(&positions(&self.rows))?;
        Ok(())
    }

    /// Between the second and the third step of both: takes in the rows of another pass, which come after these.
    pub(crate) fn join(
        &mut self,
        projection: &mut Projection<B>,
        other: Pass<'_, B>,
        others: &Projection<B>,
    ) -> Result<()> {
        let backend = &self.graph.backend;
        backend.join(&mut projection.queries, &others.queries)?;
        backend.join(&mut self.hidden, &other.hidden)?;
        self.rows.extend(other.rows);
        self.angles = self.graph.angles(&positions(&self.rows))?;
        self.work += other.work;
        Ok(())
    }

    /// Goes through the layers that are left. Returns the logits, `[wanted][vocabulary]`, of the rows with the wanted
    /// indexes, given in order. In the last layer the others yield keys and values and are done.
    pub(crate) fn run(&mut self, caches: &mut [&mut B::Cache], wanted: &[usize]) -> Result<Vec<f32>> {
        let projection = self.reach(caches, self.layer)?;
        self.run_on(caches, projection, wanted)
    }

    /// As [`run`](Self::run), from the middle of a layer on.
    pub(crate) fn run_on(
        &mut self,
        caches: &mut [&mut B::Cache],
        mut projection: Projection<B>,
        wanted: &[usize],
    ) -> Result<Vec<f32>> {
        let last = self.graph.layers.len() - 1;
        while self.layer < last {
            self.finish(caches, projection)?;
            projection = self.reach(caches, self.layer)?;
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.keep(&mut projection, wanted)?;
        self.finish(caches, projection)?;
        let (graph, backend) = (self.graph, &self.graph.backend);
        let x = backend.norm(&self.hidden, &graph.final_norm, graph.norm_eps)?;
        let logits = backend.linear(&x, graph.head.as_ref().unwrap_or(&graph.embedding), None)?;
        backend.read(&logits)
    }
}

fn positions(rows: &[Row]) -> Vec<u32> {
    rows.iter().map(|row| row.position).collect()
}
