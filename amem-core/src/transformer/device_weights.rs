//! A model's weights as a backend holds them, and how they get there.

use super::backend::Backend;
use super::config::Config;
use super::weights::{WeightFeedForward, WeightLayer, WeightMlp, WeightTensor, Weights};
use crate::Result;

/// A product with a weight matrix.
pub struct Linear<B: Backend> {
    /// `[outputs][inputs]`.
    pub weight: B::Matrix,
    /// `[outputs]`.
    pub bias: Option<B::Vector>,
}

/// What a layer's attention is made of.
pub struct AttentionWeights<B: Backend> {
    /// `[heads * head_dim][hidden]`.
    pub query: Linear<B>,
    /// `[kv_heads * head_dim][hidden]`.
    pub key: Linear<B>,
    /// `[kv_heads * head_dim][hidden]`.
    pub value: Linear<B>,
    /// Norm of each head of the queries, `[head_dim]`, or of all of them together, `[heads * head_dim]`.
    pub query_norm: Option<B::Vector>,
    /// Norm of each head of the keys, `[head_dim]`, or of all of them together, `[kv_heads * head_dim]`.
    pub key_norm: Option<B::Vector>,
    /// `[hidden][heads * head_dim]`.
    pub output: Linear<B>,
    /// What is added to the mean square in these norms.
    pub norm_eps: f32,
}

/// The function of the gate in a feed-forward block. Fingerprints hold the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu = 0,
    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: GELU in its approximation with tanh.
    GeluTanh = 1,
}

/// A gated feed-forward block.
pub struct MlpWeights<B: Backend> {
    /// The function of the gate.
    pub activation: Activation,
    /// `[intermediate][hidden]`.
    pub gate: Linear<B>,
    /// `[intermediate][hidden]`.
    pub up: Linear<B>,
    /// `[hidden][intermediate]`.
    pub down: Linear<B>,
}

/// The feed-forward blocks of a layer in which each row goes through some of them: a mixture of experts.
pub struct ExpertWeights<B: Backend> {
    /// `[experts][hidden]`. A row's products with it are the scores that it gives the experts.
    pub router: B::Matrix,
    /// The experts, all of the same shape.
    pub experts: Vec<MlpWeights<B>>,
    /// How many of them a row goes through: at least one, and no more than there are.
    pub top_k: usize,
    /// Whether routing weights are the softmax over the chosen experts' logits, not over all (`norm_topk_prob`).
    pub norm_top_k: bool,
}

/// The weights of a layer norm.
pub struct LayerNorm<B: Backend> {
    /// What the normed numbers are multiplied by, `[columns]`.
    pub weight: B::Vector,
    /// What is added to them then, `[columns]`.
    pub bias: B::Vector,
    /// What is added to the variance.
    pub eps: f32,
    /// Weights and biases on the host, for backends without a kernel.
    on_host: [Vec<f32>; 2],
}

impl<B: Backend> LayerNorm<B> {
    /// Uploads as many weights as biases.
    ///
    /// # Errors
    /// [`Error::Full`](crate::Error::Full) when the backend has no memory for them.
    pub fn new(backend: &B, weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Result<Self> {
        Ok(Self { weight: backend.vector(&weight)?, bias: backend.vector(&bias)?, eps, on_host: [weight, bias] })
    }

    /// Norms a row on the host, in f64.
    pub(super) fn apply(&self, row: &mut [f32]) {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
        let square = |x: &f32| (f64::from(*x) - mean) * (f64::from(*x) - mean);
        let variance = row.iter().map(square).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
        let [weight, bias] = &self.on_host;
        for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *x = ((f64::from(*x) - mean) * scale * f64::from(*weight) + f64::from(*bias)) as f32;
        }
    }
}

/// What stands behind attention in a layer.
pub(super) enum FeedForward<B: Backend> {
    Mlp(MlpWeights<B>),
    Experts(ExpertWeights<B>),
}

/// One transformer layer.
pub(super) struct Layer<B: Backend> {
    /// Its kind: an index into [`Config::kinds`].
    pub(super) kind: usize,
    /// Norm of what attention takes.
    pub(super) attention_norm: Option<B::Vector>,
    pub(super) attention: AttentionWeights<B>,
    /// Norm of what attention gives.
    pub(super) attention_output_norm: Option<B::Vector>,
    /// Norm of what the feed-forward block takes.
    pub(super) mlp_norm: Option<B::Vector>,
    pub(super) feed_forward: FeedForward<B>,
    /// Norm of what the feed-forward block gives.
    pub(super) mlp_output_norm: Option<B::Vector>,
}

/// All weights of a model.
pub(super) struct DeviceWeights<B: Backend> {
    pub(super) embedding: B::Matrix,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) final_norm: B::Vector,
    /// `None` where the embedding serves as the output matrix too.
    pub(super) lm_head: Option<B::Matrix>,
}

impl<B: Backend> DeviceWeights<B> {
    /// Uploads the weights.
    pub(super) fn load(backend: &B, config: &Config, weights: &Weights<'_>) -> Result<Self> {
        let loader = Loader { backend, config, weights };
        // A matrix lies in memory twice while it is packed: once as in its file. The largest go first, when nothing else is
        // there.
        let embedding = loader.matrix(&weights.embedding)?;
        let lm_head = weights.lm_head.as_ref().map(|tensor| loader.matrix(tensor)).transpose()?;
        let layers = weights.layers.iter().enumerate();
        let layers = layers.map(|(index, layer)| loader.layer(index, layer)).collect::<Result<_>>()?;
        let final_norm = loader.norm(&weights.norm)?;
        Ok(Self { embedding, layers, final_norm, lm_head })
    }
}

/// What turns the tensors of files into weights on a backend.
struct Loader<'l, 'w, B> {
    backend: &'l B,
    config: &'l Config,
    weights: &'l Weights<'w>,
}

impl<B: Backend> Loader<'_, '_, B> {
    /// A matrix, whose file's pages are not kept beside it.
    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<B::Matrix> {
        let matrix = self.backend.matrix(tensor)?;
        self.weights.release(tensor.bytes);
        Ok(matrix)
    }

    fn layer(&self, index: usize, layer: &WeightLayer<'_>) -> Result<Layer<B>> {
        let config = self.config;
        let norm = |tensor: &Option<WeightTensor<'_>>| tensor.as_ref().map(|tensor| self.norm(tensor)).transpose();
        // Queries and keys are turned in pairs (i, i + head_dim/2). Where only the first part of a head is rotated, its
        // pairs stand closer together in the file: so the outputs are put into another order, in queries and keys alike,
        // which changes none of their products.
        let order = (config.rotated < config.head_dim).then(|| rotated_first(config.head_dim, config.rotated));
        let in_order = |tensor: &WeightTensor<'_>| order.as_ref().map(|order| tensor.in_order(order));
        let turned = |weight: &WeightTensor<'_>, bias: &Option<WeightTensor<'_>>| -> Result<Linear<B>> {
            let moved = in_order(weight);
            let weight = match &moved {
                Some(bytes) => &WeightTensor { bytes, ..*weight },
                None => weight,
            };
            let bias = bias.as_ref().map(|bias| self.backend.vector(&self.turned(bias, order.as_deref())));
            Ok(Linear { weight: self.matrix(weight)?, bias: bias.transpose()? })
        };
        let head_norm = |tensor: &Option<WeightTensor<'_>>| {
            let numbers = tensor.as_ref().map(|tensor| self.offset(self.turned(tensor, order.as_deref())));
            numbers.map(|numbers| self.backend.vector(&numbers)).transpose()
        };
        Ok(Layer {
            kind: config.kind_of[index],
            attention_norm: norm(&layer.attention_norm)?,
            attention: AttentionWeights {
                query: turned(&layer.q, &layer.q_bias)?,
                key: turned(&layer.k, &layer.k_bias)?,
                value: self.linear(&layer.v, &layer.v_bias)?,
                query_norm: head_norm(&layer.q_norm)?,
                key_norm: head_norm(&layer.k_norm)?,
                output: self.linear(&layer.o, &layer.o_bias)?,
                norm_eps: config.norm_eps,
            },
            attention_output_norm: norm(&layer.attention_output_norm)?,
            mlp_norm: norm(&layer.mlp_norm)?,
            feed_forward: match &layer.feed_forward {
                WeightFeedForward::Mlp(mlp) => FeedForward::Mlp(self.mlp(mlp)?),
                WeightFeedForward::Experts { router, experts } => {
                    let settings = config.experts_of(index);
                    FeedForward::Experts(ExpertWeights {
                        router: self.matrix(router)?,
                        experts: experts.iter().map(|mlp| self.mlp(mlp)).collect::<Result<_>>()?,
                        top_k: settings.map_or(1, |settings| settings.top_k),
                        norm_top_k: settings.is_some_and(|settings| settings.norm_top_k),
                    })
                }
            },
            mlp_output_norm: norm(&layer.mlp_output_norm)?,
        })
    }

    fn norm(&self, tensor: &WeightTensor<'_>) -> Result<B::Vector> {
        self.backend.vector(&self.offset(tensor.to_f32()))
    }

    fn offset(&self, mut weights: Vec<f32>) -> Vec<f32> {
        if self.config.norm_offset != 0.0 {
            weights.iter_mut().for_each(|weight| *weight += self.config.norm_offset);
        }
        weights
    }

    /// A vector, its heads in another order.
    fn turned(&self, tensor: &WeightTensor<'_>, order: Option<&[usize]>) -> Vec<f32> {
        let numbers = tensor.to_f32();
        let Some(order) = order else { return numbers };
        let heads = numbers.chunks_exact(order.len());
        heads.flat_map(|head| order.iter().map(|&index| head[index])).collect()
    }

    fn linear(&self, weight: &WeightTensor<'_>, bias: &Option<WeightTensor<'_>>) -> Result<Linear<B>> {
        let bias = bias.as_ref().map(|bias| self.backend.vector(&bias.to_f32())).transpose()?;
        Ok(Linear { weight: self.matrix(weight)?, bias })
    }

    fn mlp(&self, mlp: &WeightMlp<'_>) -> Result<MlpWeights<B>> {
        Ok(MlpWeights {
            activation: self.config.activation,
            gate: self.linear(&mlp.gate, &mlp.gate_bias)?,
            up: self.linear(&mlp.up, &mlp.up_bias)?,
            down: self.linear(&mlp.down, &mlp.down_bias)?,
        })
    }
}

/// For each number of a head, where it stands in the file: pairs that are (i, i + rotated/2) there come to stand half a
/// head apart, and what is not rotated comes behind them in both halves.
fn rotated_first(head_dim: usize, rotated: usize) -> Vec<usize> {
    let (half, pairs) = (head_dim / 2, rotated / 2);
    let rest = half - pairs;
    let low = (0..pairs).chain(rotated..rotated + rest);
    low.chain(pairs..rotated).chain(rotated + rest..head_dim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_a_part_of_a_head_come_to_stand_half_a_head_apart() {
        // Of ten numbers six are rotated: (0, 3), (1, 4) and (2, 5).
        assert_eq!(rotated_first(10, 6), [0, 1, 2, 6, 7, 3, 4, 5, 8, 9]);
        assert_eq!(rotated_first(8, 2), [0, 2, 3, 4, 1, 5, 6, 7]);
        assert_eq!(rotated_first(6, 6), [0, 1, 2, 3, 4, 5]);
    }
}
