//! Choosing the rows to repair where their attention lies.

use amem_core::{Dtype, Error, Result};

use crate::backend::CudaBackend;
use crate::driver::{Buffer, Launch};
use crate::tensor::Tensor;

impl CudaBackend {
    /// The indexes of the heaviest of some slots. Nothing but these comes back to the host.
    pub(crate) fn choose(
        &self,
        mass: &Tensor,
        slots: &[u32],
        factors: Option<&[f32]>,
        count: usize,
    ) -> Result<Vec<usize>> {
        // What the kernel found stands before what it chose, where 16 bytes are.
        const HEAD: usize = 16;
        let count = count.min(slots.len());
        if count == 0 {
            return Ok(Vec::new());
        }
        if mass.dtype != Dtype::F32 || factors.is_some_and(|factors| factors.len() != slots.len()) {
            let value = format!("{:?} for {} slots", mass.dtype, slots.len());
            return Err(Error::BadValue { what: "attention", value, expected: "f32, and a factor for each slot" });
        }
        let device = self.device();
        let numbers = 4 * slots.len();
        let places = device.upload(bytemuck::cast_slice(slots))?;
        let factors = factors.map(|factors| device.upload(bytemuck::cast_slice(factors))).transpose()?;
        let weights = Buffer::new(device, numbers)?;
        let chosen = Buffer::new(device, HEAD + 4 * count)?;
        device.zero(&chosen)?;
        let weigh = device.kernel("select", "weigh")?;
        let launch = Launch::new(&weigh, [slots.len().div_ceil(weigh.threads()), 1, 1])
            .buffer(&mass.buffer, mass.bytes())?
            .buffer(&places, numbers)?;
        let launch = match &factors {
            Some(factors) => launch.buffer(factors, numbers)?,
            None => launch.none(),
        };
        launch.buffer(&weights, numbers)?.count(slots.len()).count(mass.numbers()).submit(device)?;
        Launch::new(&device.kernel("select", "top_k")?, [1, 1, 1])
            .buffer(&weights, numbers)?
            .count(slots.len())
            .count(count)
            .part(&chosen, HEAD, 4 * count)?
            .part(&chosen, 0, 4)?
            .submit(device)?;
        let read = device.read(&chosen, 0, HEAD + 4 * count)?;
        let words = read.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word) as usize);
        let words: Vec<usize> = words.collect();
        let found = words.first().copied().unwrap_or(0).min(count);
        Ok(words.into_iter().skip(HEAD / 4).take(found).collect())
    }
}
