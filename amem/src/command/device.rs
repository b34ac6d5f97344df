//! What computes.

use std::error::Error;
use std::num::NonZero;
use std::str::FromStr;
use std::sync::Arc;

use amem_core::transformer::{ModelSource, Options, Transformer};
use amem_core::{Model, Tier};
use amem_cpu::{Arithmetic, Cpu, CpuOptions, WeightFormat};
use clap::{Args, ValueEnum};

/// What a model is computed on, and in what.
#[derive(Args, Clone, Debug)]
pub(crate) struct Compute {
    /// What computes: cpu, cuda for the first NVIDIA GPU, or cuda:N for another one.
    #[arg(long, value_name = "DEVICE", env = "AMEM_DEVICE", default_value = "cpu")]
    device: Device,
    /// The number type that a GPU computes in. Auto takes f16 for a model that says so in its config.json, bf16 for others.
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    /// How a CPU keeps weight matrices. Fewer bits take less memory and less time, and answers change a little.
    #[arg(long, value_enum, default_value_t)]
    weights: Weights,
    /// Compute on the CPU in f32 throughout, with the same bits on every machine; slower.
    #[arg(long)]
    exact: bool,
    /// Threads that a CPU computes with; one for each core unless said otherwise.
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Tokens that one context holds at most, if fewer than the model was made for.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_model_len: Option<u32>,
    /// MiB of KV of all contexts together; one full context always has room. A GPU takes them at the start.
    #[arg(long, default_value_t = 4096)]
    kv_cache_mib: u64,
    /// MiB of a GPU's memory for memories' KV that is to be close at hand, before RAM and disk.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    gpu_kv_mib: u64,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let number = match name {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => "0",
            _ => name.strip_prefix("cuda:").unwrap_or_default(),
        };
        number.parse().map(Device::Cuda).map_err(|_| "there are cpu, cuda and cuda:N")
    }
}

/// The number type that is computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Dtype {
    #[default]
    Auto,
    Bf16,
    F16,
    F32,
}

/// How weight matrices are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Weights {
    /// As the model's files have them.
    #[default]
    AsStored,
    /// In 8 bits.
    Int8,
    /// In 4 bits, embeddings and output matrix in 8.
    Int4,
}

/// A model, and the tier of KV in the memory of what computes it, if it has one.
pub(crate) type Loaded = (Arc<dyn Model>, Option<Tier>);

impl Compute {
    /// Loads a model.
    pub(crate) fn load(&self, source: &dyn ModelSource, options: Options) -> Result<Loaded, Box<dyn Error>> {
        let mut options = options.kv_cache_bytes(self.kv_cache_mib << 20);
        if let Some(tokens) = self.max_model_len {
            options = options.context(tokens as usize);
        }
        match self.device {
            Device::Cpu if self.dtype != Dtype::Auto || self.gpu_kv_mib > 0 => {
                Err("--dtype and --gpu-kv-mib are for a GPU: name one with --device cuda".into())
            }
            Device::Cpu => Ok((Arc::new(Transformer::load(source, self.cpu()?, options)?), None)),
            Device::Cuda(_) if self.weights != Weights::AsStored || self.exact || self.threads.is_some() => {
                Err("--weights, --exact and --threads are for the CPU".into())
            }
            Device::Cuda(ordinal) => self.load_on_gpu(ordinal, source, options),
        }
    }

    /// A CPU for an encoder beside the model, which keeps its weights as they are stored.
    pub(crate) fn cpu_for_encoder(&self) -> amem_core::Result<Cpu> {
        Self { weights: Weights::AsStored, ..self.clone() }.cpu()
    }

    fn cpu(&self) -> amem_core::Result<Cpu> {
        let mut options = CpuOptions::default().weights(match self.weights {
            Weights::AsStored => WeightFormat::AsStored,
            Weights::Int8 => WeightFormat::Int8,
            Weights::Int4 => WeightFormat::Int4,
        });
        options.threads = self.threads.map(NonZero::get);
        if self.exact {
            options.arithmetic = Arithmetic::Exact;
        }
        Cpu::open(options)
    }

    #[cfg(feature = "cuda")]
    fn load_on_gpu(
        &self,
        ordinal: usize,
        source: &dyn ModelSource,
        options: Options,
    ) -> Result<Loaded, Box<dyn Error>> {
        use amem_cuda::{CudaBackend, CudaOptions, Precision};

        let precision = match self.dtype {
            Dtype::Auto if stored_in_f16(source) => Precision::F16,
            Dtype::Auto | Dtype::Bf16 => Precision::Bf16,
            Dtype::F16 => Precision::F16,
            Dtype::F32 => Precision::F32,
        };
        let gpu = CudaBackend::open(CudaOptions::default().ordinal(ordinal).precision(precision))?;
        let tier = (self.gpu_kv_mib > 0).then(|| Tier::new(Arc::new(gpu.kv_store()), self.gpu_kv_mib << 20));
        Ok((Arc::new(Transformer::load(source, gpu, options.kv(precision.dtype()))?), tier))
    }

    #[cfg(not(feature = "cuda"))]
    fn load_on_gpu(&self, _: usize, _: &dyn ModelSource, _: Options) -> Result<Loaded, Box<dyn Error>> {
        Err("this amem cannot use GPUs: build it with the feature `cuda`".into())
    }
}

/// Whether a model says that its weights are f16.
#[cfg(feature = "cuda")]
fn stored_in_f16(source: &dyn ModelSource) -> bool {
    let config = source.file("config.json").and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok());
    let dtype = config.as_ref().and_then(|config| config.get("dtype").or_else(|| config.get("torch_dtype")));
    dtype.and_then(serde_json::Value::as_str) == Some("float16")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_as_elsewhere() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}
