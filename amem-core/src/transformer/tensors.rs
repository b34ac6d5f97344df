//! The tensors of a model's files, by their names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::SafeTensors;

use super::config::unsupported;
use super::gguf::{self, Gguf};
use super::settings::{Settings, bad_model};
use super::weights::{WeightRole, WeightTensor};
use super::{ModelSource, WeightType};
use crate::Result;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Bytes of a tensor that are in memory at a time while it is hashed.
const HASHED_BYTES: usize = 4 << 20;

/// A tensor as a file declares it.
struct Raw<'a> {
    file: String,
    /// `None` for a type that no weight has.
    dtype: Option<WeightType>,
    /// What the file calls the type.
    type_name: String,
    shape: Vec<usize>,
    bytes: &'a [u8],
    used: AtomicBool,
}

/// Every tensor by the name that its file has for it.
pub(super) struct Tensors<'a> {
    named: BTreeMap<String, Raw<'a>>,
    /// What stands before the names of the tensors that are asked for.
    prefix: &'static str,
    gguf: Option<&'a Gguf>,
    source: &'a dyn ModelSource,
}

impl<'a> Tensors<'a> {
    /// The tensors of `model.safetensors`, or of the shards that its index lists, or of a GGUF file.
    pub(super) fn open(source: &'a dyn ModelSource) -> Result<Self> {
        if let Some(gguf) = source.gguf() {
            return Ok(Self::of_gguf(gguf, source));
        }
        let mut tensors = Self { named: BTreeMap::new(), prefix: "", gguf: None, source };
        if source.file(SINGLE).is_some() {
            tensors.add(source, SINGLE)?;
            return Ok(tensors);
        }
        let missing = || bad_model(SINGLE, format!("it is missing, and so is {INDEX}"));
        let index = Settings::read(source, INDEX)?.ok_or_else(missing)?;
        let places = shards(&index)?;
        let files: BTreeSet<&str> = places.values().map(String::as_str).collect();
        for file in files {
            tensors.add(source, file)?;
        }
        for (name, file) in &places {
            if tensors.named.get(name).is_none_or(|tensor| tensor.file != *file) {
                return Err(bad_model(file, format!("tensor {name} is missing, which {INDEX} says is here")));
            }
        }
        Ok(tensors)
    }

    fn of_gguf(gguf: &'a Gguf, source: &'a dyn ModelSource) -> Self {
        let named = gguf.tensors().map(|tensor| {
            let raw = Raw {
                file: tensor.file.to_owned(),
                dtype: tensor.dtype,
                type_name: tensor.type_name.to_owned(),
                shape: tensor.shape.to_vec(),
                bytes: tensor.bytes,
                used: AtomicBool::new(false),
            };
            (tensor.name.to_owned(), raw)
        });
        Self { named: named.collect(), prefix: "", gguf: Some(gguf), source }
    }

    /// Tensors of a GGUF file are all there to be computed with. What the forward pass does not know would be missing from
    /// it.
    pub(super) fn refuse_unused(&self) -> Result<()> {
        let unused = |(_, raw): &(&String, &Raw<'_>)| !raw.used.load(Ordering::Relaxed);
        match self.named.iter().find(unused).filter(|_| self.gguf.is_some()) {
            Some((name, raw)) => unsupported(
                format!("tensor {name} of {}", raw.file),
                "models of its architecture that have no such tensor are",
            ),
            None => Ok(()),
        }
    }

    fn add(&mut self, source: &'a dyn ModelSource, file: &str) -> Result<()> {
        let bytes = source.file(file).ok_or_else(|| bad_model(file, format!("it is missing, and {INDEX} names it")))?;
        // The crate checks that every tensor's bytes lie in the file, do not overlap, and fit its shape and type.
        let parsed = SafeTensors::deserialize(bytes).map_err(|error| bad_model(file, error.to_string()))?;
        for (name, view) in parsed.iter() {
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => Some(WeightType::F32),
                safetensors::Dtype::F16 => Some(WeightType::F16),
                safetensors::Dtype::BF16 => Some(WeightType::Bf16),
                _ => None,
            };
            let raw = Raw {
                file: file.to_owned(),
                dtype,
                type_name: format!("{:?}", view.dtype()),
                shape: view.shape().to_vec(),
                bytes: view.data(),
                used: AtomicBool::new(false),
            };
            if let Some(other) = self.named.insert(name.to_owned(), raw) {
                return Err(bad_model(file, format!("tensor {name} is in {} too", other.file)));
            }
        }
        Ok(())
    }

    /// Takes the first of these prefixes with which there is a tensor of this name, or the first of all.
    pub(super) fn take_prefix(&mut self, prefixes: &[&'static str], name: &str) {
        let found = prefixes.iter().find(|prefix| self.named.contains_key(&format!("{prefix}{name}")));
        self.prefix = found.or(prefixes.first()).copied().unwrap_or_default();
    }

    /// Hashes all tensors in the order of their names, on all threads of the pool that this is called on.
    pub(super) fn hash(&self, hash: &mut blake3::Hasher) {
        for (name, tensor) in &self.named {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(format!("{name}{}{:?}", tensor.type_name, tensor.shape).as_bytes());
            for bytes in tensor.bytes.chunks(HASHED_BYTES) {
                hash.update_rayon(bytes);
                self.release(bytes);
            }
        }
    }

    /// Takes note that a tensor's bytes have been taken over.
    pub(super) fn release(&self, bytes: &[u8]) {
        self.source.release(bytes);
    }

    /// A tensor of the text model.
    pub(super) fn of_text(&self, name: &str, role: WeightRole, shape: &[usize]) -> Result<WeightTensor<'a>> {
        self.tensor(&format!("{}{name}", self.prefix), role, shape)
    }

    /// A tensor of this name, which has this shape.
    pub(super) fn tensor(&self, name: &str, role: WeightRole, shape: &[usize]) -> Result<WeightTensor<'a>> {
        let ((name, expert), file) = match self.gguf {
            Some(gguf) => (gguf.name_of(name), gguf.file_name()),
            None => ((name.to_owned(), None), SINGLE),
        };
        let raw = self.named.get(&name).ok_or_else(|| bad_model(file, format!("tensor {name} is missing")))?;
        let fits = match (raw.shape.as_slice(), expert) {
            (found, None) => found == shape,
            ([experts, found @ ..], Some(expert)) => expert < *experts && found == shape,
            ([], Some(_)) => false,
        };
        if !fits {
            let reason = format!("tensor {name} has shape {:?} and the configuration asks for {shape:?}", raw.shape);
            return Err(bad_model(&raw.file, reason));
        }
        raw.used.store(true, Ordering::Relaxed);
        let supported = if self.gguf.is_some() { gguf::TYPES_READ } else { "F32, F16 and BF16 are" };
        let Some(dtype) = raw.dtype else {
            return unsupported(format!("tensor {name} of {} in {}", raw.file, raw.type_name), supported);
        };
        let bytes = match (self.gguf, expert) {
            (Some(gguf), None) => gguf.rows(&name, raw.bytes),
            (Some(_), Some(expert)) => {
                let size = raw.bytes.len() / raw.shape.first().copied().unwrap_or(1).max(1);
                raw.bytes.get(expert * size..(expert + 1) * size).unwrap_or_default()
            }
            (None, _) => raw.bytes,
        };
        let (rows, columns) = match shape {
            [rows, columns] => (*rows, *columns),
            _ => (1, shape.iter().product()),
        };
        Ok(WeightTensor::new(role, dtype, rows, columns, bytes))
    }
}

/// The file of each tensor, as the index says. Its names become file names, so they are held to plain ones.
fn shards(index: &Settings<'_>) -> Result<BTreeMap<String, String>> {
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| bad_model(INDEX, "it has no weight_map"))?;
    let plain = |file: &str| {
        file.ends_with(".safetensors")
            && file.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    map.iter()
        .map(|(name, file)| match file.as_str() {
            Some(file) if plain(file) => Ok((name.clone(), file.to_owned())),
            _ => Err(index.wrong(name, file, "the plain name of a .safetensors file")),
        })
        .collect()
}
