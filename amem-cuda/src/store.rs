//! The tier of KV that lies in the GPU's memory.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use amem_core::{Encoding, Error, KvChunk, KvData, RamStore, Result};

use crate::backend::CudaBackend;
use crate::driver::{Buffer, Device};

/// A chunk's KV in the GPU's memory, layer by layer as its encoding says.
struct DeviceKv {
    device: Arc<Device>,
    encoding: Encoding,
    layers: usize,
    /// Bytes from one layer to the next: those of a layer, and what aligns the next one.
    stride: usize,
    layer_bytes: usize,
    memory: Buffer,
}

impl KvData for DeviceKv {
    fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn size(&self) -> usize {
        self.layers * self.layer_bytes
    }

    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
        if layer >= self.layers {
            let reason = format!("layer {layer} of a chunk with {} layers", self.layers);
            return Err(Error::WrongKv { reason });
        }
        Ok(Cow::Owned(self.device.read(&self.memory, layer * self.stride, self.layer_bytes)?))
    }
}

/// The address of a chunk's layer, if it lies on the backend's GPU.
pub(crate) fn resident(backend: &CudaBackend, chunk: &KvChunk, layer: usize) -> Option<u64> {
    let data: &dyn Any = &**chunk.data();
    let data = data.downcast_ref::<DeviceKv>().filter(|data| Arc::ptr_eq(&data.device, backend.device()))?;
    (layer < data.layers).then(|| data.memory.address() + (layer * data.stride) as u64)
}

impl CudaBackend {
    /// A store whose chunks lie in this GPU's memory, from where contexts are made of them without the host. Put it above
    /// RAM in [`Tiered`](amem_core::Tiered), under a budget that leaves room for the model and its KV cache.
    ///
    /// [`put`](amem_core::KvStore::put) fails with [`Error::Full`] when the GPU has no memory left.
    pub fn kv_store(&self) -> RamStore {
        let device = Arc::clone(self.device());
        RamStore::with_copy(move |chunk| upload(&device, chunk))
    }
}

fn upload(device: &Arc<Device>, chunk: &KvChunk) -> Result<KvChunk> {
    const ALIGNMENT: usize = 16;
    let (encoding, layers) = (chunk.encoding(), chunk.shape().layers);
    let layer_bytes = encoding.layer_bytes(chunk.shape(), chunk.tokens().len());
    let stride = layer_bytes.next_multiple_of(ALIGNMENT);
    let memory = Buffer::lasting(device, layers * stride)?;
    let mut buffer = Vec::new();
    for layer in 0..layers {
        device.write(&memory, layer * stride, chunk.layer_in(layer, &mut buffer)?.bytes())?;
    }
    let device = Arc::clone(device);
    chunk.clone().with_data(Arc::new(DeviceKv { device, encoding, layers, stride, layer_bytes, memory }))
}
