//! What it takes to read a tier.
//!
//! A store may hand out a chunk whose layers stay where they are until they are asked for. So two times are measured: what a
//! store takes to find chunks, and what those layers take to be read later, by whom and for what they may be. Layers that
//! are read side by side take the time in which one at least is being read.
//!
//! Each layer of a chunk that was handed out counts when it is read first. It may be read again soon, to be copied into a
//! faster tier: the system has it in its page cache then, and the tier would look twice as fast as it is. What the system has
//! there for another reason (it was read ahead, or an earlier chunk of that id was read a while ago) is read as fast as that.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Clock;
use crate::KvChunk;
use crate::kv::LayerReads;

/// Measurements after which a mean is believed.
const ENOUGH: u32 = 8;
/// Measurements in which an older one fades to a third, about.
const MEMORY: u32 = 2 * ENOUGH;

/// Seconds per token, as measured: a mean in which older measurements fade.
#[derive(Clone, Copy, Default)]
pub(super) struct Rate {
    seconds_per_token: f64,
    measurements: u32,
}

impl Rate {
    pub(super) fn note(&mut self, tokens: usize, time: Duration) {
        if tokens > 0 {
            self.measurements = self.measurements.saturating_add(1);
            let share = 1.0 / f64::from(self.measurements.min(MEMORY));
            self.seconds_per_token += share * (time.as_secs_f64() / tokens as f64 - self.seconds_per_token);
        }
    }

    /// The mean, once it can be believed.
    pub(super) fn measured(&self) -> Option<f64> {
        (self.measurements >= ENOUGH).then_some(self.seconds_per_token)
    }
}

/// The reads of a tier.
pub(super) struct Reads {
    clock: Arc<Clock>,
    sums: Mutex<Sums>,
}

/// Sums in which what is older fades with each find.
#[derive(Default)]
struct Sums {
    finds: u32,
    find_seconds: f64,
    tokens_found: f64,
    /// Of the tokens found, those whose layers were left to be read later.
    tokens_left: f64,
    layers: u32,
    layer_seconds: f64,
    /// A layer of a chunk stands for as large a part of its tokens.
    layer_tokens: f64,
    /// Layers that are being read.
    reading: u32,
    /// Until when the time in which some were being read is counted.
    counted_until: Duration,
}

impl Reads {
    pub(super) fn new(clock: Arc<Clock>) -> Arc<Self> {
        Arc::new(Self { clock, sums: Mutex::default() })
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the store took so long to find these chunks, and counts from now on what their layers take.
    pub(super) fn note(self: &Arc<Self>, found: &mut [Option<KvChunk>], time: Duration) {
        let (mut tokens, mut left) = (0, 0);
        for chunk in found.iter_mut().flatten() {
            tokens += chunk.tokens().len();
            // What lies in memory in one piece was read.
            if chunk.contiguous().is_none() {
                left += chunk.tokens().len();
                chunk.count_reads(Arc::new(ChunkReads::new(Arc::clone(self), chunk)));
            }
        }
        if tokens > 0 {
            self.sums().note(tokens, left, time);
        }
    }

    /// Seconds to read a token, once that can be said.
    pub(super) fn measured(&self) -> Option<f64> {
        self.sums().measured()
    }
}

impl Sums {
    fn note(&mut self, tokens: usize, left: usize, time: Duration) {
        let fading = [
            &mut self.find_seconds,
            &mut self.tokens_found,
            &mut self.tokens_left,
            &mut self.layer_seconds,
            &mut self.layer_tokens,
        ];
        fading.into_iter().for_each(|sum| *sum *= 1.0 - 1.0 / f64::from(MEMORY));
        self.finds = self.finds.saturating_add(1);
        self.find_seconds += time.as_secs_f64();
        self.tokens_found += tokens as f64;
        self.tokens_left += left as f64;
    }

    fn measured(&self) -> Option<f64> {
        let find = (self.finds >= ENOUGH).then(|| self.find_seconds / self.tokens_found)?;
        if self.tokens_left == 0.0 {
            return Some(find);
        }
        // Where nobody reads what is found, nothing is known.
        let is_enough = self.layers >= ENOUGH && self.layer_tokens > 0.0;
        let layers = is_enough.then(|| self.layer_seconds / self.layer_tokens)?;
        Some(find + self.tokens_left / self.tokens_found * layers)
    }

    /// Counts the time until now, if a layer was being read.
    fn count(&mut self, now: Duration) {
        if self.reading > 0 {
            self.layer_seconds += now.saturating_sub(self.counted_until).as_secs_f64();
        }
        self.counted_until = now;
    }
}

/// The reads of a chunk that was handed out.
struct ChunkReads {
    reads: Arc<Reads>,
    tokens_per_layer: f64,
    was_read: Box<[AtomicBool]>,
}

impl ChunkReads {
    fn new(reads: Arc<Reads>, chunk: &KvChunk) -> Self {
        let layers = chunk.shape().layers;
        let tokens_per_layer = chunk.tokens().len() as f64 / layers.max(1) as f64;
        Self { reads, tokens_per_layer, was_read: (0..layers).map(|_| AtomicBool::new(false)).collect() }
    }
}

impl LayerReads for ChunkReads {
    fn begin(&self, layer: usize) -> bool {
        let is_first = self.was_read.get(layer).is_some_and(|was_read| !was_read.swap(true, Relaxed));
        if is_first {
            let mut sums = self.reads.sums();
            sums.count(self.reads.clock.elapsed());
            sums.reading += 1;
        }
        is_first
    }

    fn end(&self, is_read: bool) {
        let mut sums = self.reads.sums();
        sums.count(self.reads.clock.elapsed());
        sums.reading -= 1;
        if is_read {
            sums.layers = sums.layers.saturating_add(1);
            sums.layer_tokens += self.tokens_per_layer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChunkId, Dtype, Encoding, HostKv, KvShape, PrefixId};

    #[test]
    fn layers_that_are_read_side_by_side_take_their_time_once() {
        const SHAPE: KvShape = KvShape { layers: 10, kv_heads: 1, head_dim: 2 };
        let encoding = Encoding::Plain(Dtype::F16);
        let data = Arc::new(HostKv::new(encoding, SHAPE.layers, vec![0; encoding.bytes(&SHAPE, 20)]));
        let chunk = KvChunk::new(ChunkId([1; 32]), PrefixId([0; 32]), SHAPE, vec![0; 20].into(), data).unwrap();
        let clock = Arc::new(Clock::default());
        let reads = Reads::new(Arc::clone(&clock));
        (0..ENOUGH).for_each(|_| reads.sums().note(20, 20, Duration::ZERO));
        let chunk = ChunkReads::new(Arc::clone(&reads), &chunk);
        assert!((0..10).all(|layer| chunk.begin(layer)));
        assert!(!chunk.begin(3) && !chunk.begin(10), "read already, and not there");
        for _ in 0..10 {
            assert_eq!(reads.measured(), None, "nothing is believed too early, or while a layer is being read");
            clock.skip(Duration::from_secs(1));
            chunk.end(true);
            if reads.sums().layers >= ENOUGH {
                break;
            }
        }
        clock.skip(Duration::from_secs(2));
        (0..2).for_each(|_| chunk.end(true));
        clock.skip(Duration::from_secs(50));
        // Ten layers of two tokens each, in ten seconds.
        let measured = reads.measured().unwrap();
        assert!((measured - 0.5).abs() < 0.01, "{measured} seconds for a token");
    }
}
