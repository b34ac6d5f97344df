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
    form: Form,
}

/// How commands are launched that come again.
enum Form {
    /// They came once: if they come again, a graph is made of them.
    Commands,
    /// What the graph does, and the driver's form of it.
    Graph(Vec<Command>, Executable),
    /// The driver made no graph of them: one by one, always.
    Refused,
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
        let hash = hash(&commands);
        let Some(known) = self.known.get_mut(&hash) else {
            one_by_one(device, products, &commands)?;
            self.remember(hash);
            return Ok(());
        };
        known.last_used = self.clock;
        if matches!(known.form, Form::Commands) {
            let graph = capture(device, products, &commands);
            known.form = graph.map_or(Form::Refused, |graph| Form::Graph(commands.clone(), graph));
        }
        match &known.form {
            // Others may have the same hash.
            Form::Graph(done, graph) if *done == commands => replay(device, graph),
            _ => one_by_one(device, products, &commands),
        }
    }

    fn remember(&mut self, hash: u64) {
        if self.known.len() >= KEPT {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last_used).map(|(hash, _)| *hash);
            oldest.and_then(|hash| self.known.remove(&hash));
        }
        self.known.insert(hash, Known { last_used: self.clock, form: Form::Commands });
    }
}

fn hash(commands: &[Command]) -> u64 {
    let mut hasher = DefaultHasher::new();
    commands.hash(&mut hasher);
    hasher.finish()
}

fn one_by_one(device: &Device, products: &mut Products, commands: &[Command]) -> Result<()> {
    commands.iter().try_for_each(|command| execute(device, products, command))
}

fn replay(device: &Device, Executable(graph): &Executable) -> Result<()> {
    device.count(|counters| counters.graphs += 1);
    graph.launch().map_err(CudaError::of("cuGraphLaunch"))
}

/// Makes a graph of commands. Nothing is run. `None` when there is none, if only because the driver lacks memory for it: a
/// command that is wrong by itself will say so when it is launched.
fn capture(device: &Device, products: &mut Products, commands: &[Command]) -> Option<Executable> {
    device.compute.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
    let captured = one_by_one(device, products, commands);
    // The capture has to end, whatever came of it.
    let graph = device.compute.end_capture(sys::CUgraphInstantiate_flags(0));
    captured.ok()?;
    graph.ok().flatten().map(Executable)
}
