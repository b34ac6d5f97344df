//! Work that was launched before is launched as a graph.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use cudarc::driver::{CudaGraph, sys};

use super::Device;
use super::matmul::Products;
use super::queue::{Command, execute};
use crate::error::{CudaError, Result};

/// Graphs that are kept, and runs of commands that are remembered.
const KEPT: usize = 64;

/// Runs of commands that came before, by their hash.
#[derive(Default)]
pub(super) struct Graphs {
    known: HashMap<u64, Known>,
    /// Counts launches, so that the graph that was not used for longest can be let go.
    clock: u64,
}

struct Known {
    last_used: u64,
    /// What it does and the driver's form of it, once it has come twice.
    graph: Option<(Vec<Command>, Executable)>,
}

/// A graph that can be launched.
struct Executable(CudaGraph);

// SAFETY: the driver takes a graph from any thread, one at a time. It is only reached under the queue's lock, after the
// context was made current.
unsafe impl Send for Executable {}

impl Graphs {
    /// Launches commands: one by one when they come first, as a graph from the second time on.
    pub(super) fn launch(&mut self, device: &Device, products: &mut Products, commands: Vec<Command>) -> Result<()> {
        device.bind()?;
        self.clock += 1;
        let mut hasher = DefaultHasher::new();
        commands.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(known) = self.known.get_mut(&hash) {
            known.last_used = self.clock;
            match &known.graph {
                Some((done, Executable(graph))) if *done == commands => {
                    device.count(|counters| counters.graphs += 1);
                    return graph.launch().map_err(CudaError::of("cuGraphLaunch"));
                }
                // Other commands with the same hash.
                Some(_) => {}
                None => {
                    if let Some(graph) = capture(device, products, &commands)? {
                        device.count(|counters| counters.graphs += 1);
                        graph.launch().map_err(CudaError::of("cuGraphLaunch"))?;
                        known.graph = Some((commands, Executable(graph)));
                        return Ok(());
                    }
                }
            }
        } else {
            self.remember(hash);
        }
        commands.iter().try_for_each(|command| execute(device, products, command))
    }

    fn remember(&mut self, hash: u64) {
        if self.known.len() >= KEPT {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last_used).map(|(hash, _)| *hash);
            oldest.and_then(|hash| self.known.remove(&hash));
        }
        self.known.insert(hash, Known { last_used: self.clock, graph: None });
    }
}

/// Makes a graph of commands. Nothing is run. `None` if the driver makes none of them.
fn capture(device: &Device, products: &mut Products, commands: &[Command]) -> Result<Option<CudaGraph>> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    device.compute.begin_capture(mode).map_err(CudaError::of("cuStreamBeginCapture"))?;
    let captured = commands.iter().try_for_each(|command| execute(device, products, command));
    let graph = device.compute.end_capture(sys::CUgraphInstantiate_flags(0));
    captured?;
    graph.map_err(CudaError::of("cuStreamEndCapture"))
}
