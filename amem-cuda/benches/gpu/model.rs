//! The whole path, with a model of random weights: what a forward pass costs depends on shapes alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use amem_core::transformer::{Options, Transformer};
use amem_core::{Budget, Context, KvChunk, KvStore, Model, Piece, Repair, Token};
use amem_cuda::CudaBackend;
use futures_lite::future::block_on;
use serde_json::{Value, json};

use crate::timing::waited;

/// The shape of Mistral 7B, or a small one.
struct Shape {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    context: usize,
}

impl Shape {
    fn new(quick: bool) -> Self {
        if quick {
            let (hidden, layers, heads, kv_heads) = (256, 2, 4, 1);
            return Self { hidden, layers, heads, kv_heads, head_dim: 64, intermediate: 512, context: 1024 };
        }
        let (hidden, layers, heads, kv_heads) = (4096, 32, 32, 8);
        Self { hidden, layers, heads, kv_heads, head_dim: 128, intermediate: 14_336, context: 80_000 }
    }

    fn config(&self) -> Value {
        let mut config: Value = serde_json::from_str(amem_demo::CONFIG).expect("the demo model's settings are JSON");
        for (key, value) in [
            ("hidden_size", self.hidden),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate),
            ("max_position_embeddings", self.context),
        ] {
            config[key] = json!(value);
        }
        config
    }

    /// `model.safetensors` in bf16: norms of one, and matrices that repeat a block of small numbers.
    fn weights(&self) -> Vec<u8> {
        let vocabulary = self.config()["vocab_size"].as_u64().expect("the demo model has a vocabulary") as usize;
        let (h, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocabulary, h]),
            ("model.norm.weight".to_owned(), vec![h]),
        ];
        for layer in 0..self.layers {
            let of_layer: [(&str, &[usize]); 9] = [
                ("input_layernorm", &[h]),
                ("self_attn.q_proj", &[q, h]),
                ("self_attn.k_proj", &[kv, h]),
                ("self_attn.v_proj", &[kv, h]),
                ("self_attn.o_proj", &[h, q]),
                ("post_attention_layernorm", &[h]),
                ("mlp.gate_proj", &[self.intermediate, h]),
                ("mlp.up_proj", &[self.intermediate, h]),
                ("mlp.down_proj", &[h, self.intermediate]),
            ];
            let named =
                |(name, shape): (&str, &[usize])| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec());
            shapes.extend(of_layer.map(named));
        }
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in &shapes {
            let (begin, bytes) = (end, 2 * shape.iter().product::<usize>());
            end += bytes;
            header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] }));
        }
        let header = Value::Object(header).to_string();
        let mut file = Vec::with_capacity(8 + header.len() + end);
        file.extend((header.len() as u64).to_le_bytes());
        file.extend(header.bytes());
        // Numbers of both signs around 1/64, in no order that a matrix of this size could show.
        let block: Vec<u8> = (0u32..1 << 20)
            .flat_map(|index| {
                let mixed = index.wrapping_mul(2_654_435_761) >> 16;
                half::bf16::from_f32((mixed as f32 / 32768.0 - 1.0) / 64.0).to_le_bytes()
            })
            .collect();
        for (_, shape) in &shapes {
            let mut missing = 2 * shape.iter().product::<usize>();
            if shape.len() == 1 {
                file.extend(half::bf16::ONE.to_le_bytes().repeat(missing / 2));
                continue;
            }
            while missing > 0 {
                let piece = missing.min(block.len());
                file.extend(&block[..piece]);
                missing -= piece;
            }
        }
        file
    }
}

fn text(seed: u32, tokens: usize) -> Arc<[Token]> {
    (0..tokens as u32).map(|index| (seed * 31 + index * 17) % 1000 + 8).collect()
}

struct Subject {
    model: Transformer<CudaBackend>,
    prefix: Arc<[Token]>,
    question: Arc<[Token]>,
}

impl Subject {
    /// Seconds until the logits after a prompt are there.
    fn first_token(&self, pieces: &[Piece], repair: &Repair) -> f64 {
        let tokens: usize = pieces.iter().map(|piece| piece.tokens().len()).sum();
        waited(|| {
            let mut context = self.model.open(tokens).unwrap();
            self.model.extend(&mut *context, pieces, repair).unwrap();
        })
    }

    fn pieces(&self, memories: &[KvChunk]) -> Vec<Piece> {
        let cached = memories.iter().rev().cloned().map(Piece::Cached);
        let ends = [&self.prefix, &self.question].map(|tokens| Piece::Fresh(Arc::clone(tokens)));
        let [first, last] = ends;
        [first].into_iter().chain(cached).chain([last]).collect()
    }
}

pub(crate) fn table(gpu: CudaBackend, quick: bool) {
    let shape = Shape::new(quick);
    let begun = Instant::now();
    let weights = shape.weights();
    println!("Made {:.1} GB of weights in {:.1} s.", weights.len() as f64 / 1e9, begun.elapsed().as_secs_f64());
    let files = BTreeMap::from([
        ("config.json".to_owned(), shape.config().to_string().into_bytes()),
        ("model.safetensors".to_owned(), weights),
        ("tokenizer.json".to_owned(), amem_demo::TOKENIZER.into()),
        ("tokenizer_config.json".to_owned(), amem_demo::TOKENIZER_CONFIG.into()),
    ]);
    let begun = Instant::now();
    let cache = if quick { 32 << 20 } else { 24 << 30 };
    let options = Options::default().kv(gpu.precision().dtype()).kv_cache_bytes(cache);
    let store = gpu.kv_store();
    let model = Transformer::load(&files, gpu, options).unwrap();
    println!("Loaded them in {:.1} s.\n", begun.elapsed().as_secs_f64());
    drop(files);
    let subject = Subject { model, prefix: text(1, 16), question: text(2, 48) };

    let lengths: &[usize] = if quick { &[256] } else { &[4096, 16_384, 65_536] };
    println!(
        "{:>8} {:>14} {:>14} {:>14} {:>8} {:>16}",
        "tokens", "cold, ms", "from RAM, ms", "from GPU, ms", "ratio", "prefill, tok/s"
    );
    for &tokens in lengths {
        const MEMORY: usize = 256;
        let texts: Vec<Arc<[Token]>> = (0..tokens / MEMORY).map(|index| text(3 + index as u32, MEMORY)).collect();
        let cold: Vec<Piece> = [&subject.prefix]
            .into_iter()
            .chain(texts.iter())
            .chain([&subject.question])
            .map(|tokens| Piece::Fresh(Arc::clone(tokens)))
            .collect();
        let cold = subject.first_token(&cold, &Repair::None);
        let begun = Instant::now();
        let named = subject.model.info().prefill_texts("bench", &subject.prefix, &texts);
        let (memories, _) = subject.model.prefill(&subject.prefix, &named, true).unwrap();
        let prefilled = tokens as f64 / begun.elapsed().as_secs_f64();
        let repair = Repair::Weighted { budget: Budget::Ratio(0.1), layers: 1..2 };
        let from_ram = subject.first_token(&subject.pieces(&memories), &repair);
        block_on(store.put(&memories)).unwrap();
        let ids: Vec<_> = memories.iter().map(KvChunk::id).collect();
        let resident: Vec<KvChunk> = block_on(store.get_many(&ids)).unwrap().into_iter().flatten().collect();
        let from_gpu = subject.first_token(&subject.pieces(&resident), &repair);
        block_on(store.delete(&ids)).unwrap();
        println!(
            "{tokens:>8} {:>14.1} {:>14.1} {:>14.1} {:>7.1}x {prefilled:>16.0}",
            1e3 * cold,
            1e3 * from_ram,
            1e3 * from_gpu,
            cold / from_gpu
        );
    }

    println!("\n{:>8} {:>10} {:>14} {:>14}", "contexts", "tokens", "step, ms", "tokens/s");
    let steps: &[(usize, usize)] = if quick { &[(1, 100), (2, 100)] } else { &[(1, 4096), (8, 4096), (32, 2048)] };
    for &(contexts, tokens) in steps {
        let mut open: Vec<Box<dyn Context>> = (0..contexts)
            .map(|index| {
                let mut context = subject.model.open(tokens + 64).unwrap();
                let piece = Piece::Fresh(text(index as u32, tokens));
                subject.model.extend(&mut *context, &[piece], &Repair::None).unwrap();
                context
            })
            .collect();
        let step = waited(|| {
            for context in &mut open {
                let options = amem_core::AppendOptions::new(Repair::None);
                context.append(&[Piece::Fresh([9].into())], &options).unwrap();
            }
            let mut steps: Vec<amem_core::Step<'_>> =
                open.iter_mut().map(|context| amem_core::Step { context: &mut **context, max_rows: 64 }).collect();
            subject.model.advance(&mut steps).into_iter().for_each(|result| assert!(result.is_ok()));
        });
        println!("{contexts:>8} {tokens:>10} {:>14.2} {:>14.0}", 1e3 * step, contexts as f64 / step);
    }
}
