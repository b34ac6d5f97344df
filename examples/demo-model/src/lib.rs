//! amem's demo model, embedded, and the small [world] of notes that it was trained on.
//!
//! The model is a Llama of 1,058,176 parameters (5 layers, width 128, 4 query and 2 key/value heads of 64, a gated MLP
//! of 192, a byte-level BPE of 1,536 tokens, RoPE with base 10,000, tied embeddings) in 2.1 MB of f16. It answers
//! questions from notes in its context, so that amem runs, and the fidelity of a blended context can be measured, with
//! no download.
//!
//! It reads one form of prompt, which its chat template writes; see [`SYSTEM`] for the line in it:
//!
//! ```text
//! <|bos|><|system|>Answer from the notes.<|mem|>note<|mem|>note…<|user|>question<|assistant|>answer<|end|>
//! ```
//!
//! Answers match exactly, on fresh worlds whose pairs of name and value were never in training, in percent:
//!
//! | notes (mean tokens) | one-hop | two-hop | coreference | reverse | unknown |
//! | ------------------- | ------- | ------- | ----------- | ------- | ------- |
//! | 1–3 (51)            | 97.6    | 100     | 97.0        | 81      | 95      |
//! | 4–6 (109)           | 98.9    | 90.0    | 99.0        | 39      | 80      |
//! | 7–10 (168)          | 98.5    | 87.2    | 96.9        | 34      | 79      |
//! | 14–18 (305)         | 93.9    | 90.2    | 90.8        | 5       | 62      |
//! | 22–26 (457)         | 95.4    | 80.0    | 88.2        | 10      | 49      |
//!
//! Lean on one-hop, two-hop and coreference questions. Do not lean on reverse questions ("Who lives in Oslo?"), nor on
//! "I don't know." beyond three notes. Contexts above 560 tokens and conversations of several turns are untried.

pub mod world;

/// The system line that the model was trained behind; any other is out of its world.
pub const SYSTEM: &str = "Answer from the notes.";

/// `config.json`: the shape of the model, as Hugging Face writes it.
pub const CONFIG: &str = include_str!("../model/config.json");

/// `tokenizer.json`: the byte-level BPE and its seven special tokens.
pub const TOKENIZER: &str = include_str!("../model/tokenizer.json");

/// `tokenizer_config.json`: the names of the special tokens and the chat template.
pub const TOKENIZER_CONFIG: &str = include_str!("../model/tokenizer_config.json");

/// `model.safetensors`: the weights in f16, aligned to 64 bytes so that they can be read in place.
pub const MODEL: &[u8] = &ALIGNED.0;

/// The four files of the model directory, by name, for a loader that takes a directory from memory.
pub fn files() -> [(&'static str, &'static [u8]); 4] {
    [
        ("config.json", CONFIG.as_bytes()),
        ("tokenizer.json", TOKENIZER.as_bytes()),
        ("tokenizer_config.json", TOKENIZER_CONFIG.as_bytes()),
        ("model.safetensors", MODEL),
    ]
}

#[repr(align(64))]
struct Aligned<Bytes: ?Sized>(Bytes);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../model/model.safetensors"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_weights_can_be_read_in_place() {
        assert_eq!(MODEL.as_ptr().align_offset(64), 0);
        let header = u64::from_le_bytes(MODEL[..8].try_into().unwrap());
        assert_eq!(MODEL[8], b'{');
        assert_eq!((8 + header) % 8, 0, "tensors start at a multiple of eight bytes");
    }

    #[test]
    fn the_directory_has_every_file_of_a_model() {
        for (name, bytes) in files() {
            assert!(!bytes.is_empty(), "{name} is empty");
        }
        assert!(CONFIG.contains("LlamaForCausalLM"));
        assert!(TOKENIZER_CONFIG.contains("chat_template"));
    }
}
