//! The simulated device and what the driver knows: one state, which the exported functions lock.

use crate::blas::Blas;
use crate::context::Contexts;
use crate::counts::Counts;
use crate::graph::{Capture, Executable, Node};
use crate::host::PinnedMemory;
use crate::memory::Allocation;
use crate::module::Function;
use crate::order::{Actor, Clock, History};
use crate::random::Random;
use crate::settings::{Failure, Settings};
use crate::status::{Error, Result, Status, refuse};
use crate::stream::{Event, Stream};
use amem_ptxsim::{Memory, Module};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

/// How soon queued operations run when nothing waits for them. A device may do any of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    /// Not before something waits for them.
    Lazy,
    /// Some of them.
    Mixed,
    /// At once.
    Eager,
}

/// The state of the simulated driver.
pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) pace: Pace,
    pub(crate) initialised: bool,
    /// The first fault, which makes every later call fail.
    fault: Option<String>,
    /// What later calls fail with.
    broken: Option<Status>,
    /// The fault, until a test has asked for it.
    unread_fault: Option<String>,
    failures: Vec<Failure>,
    pub(crate) contexts: Contexts,
    pub(crate) memory: Memory,
    pub(crate) allocations: BTreeMap<u64, Allocation>,
    pub(crate) pinned: PinnedMemory,
    pub(crate) device_history: History,
    pub(crate) host_history: History,
    /// What the host has waited for.
    pub(crate) host_clock: Clock,
    pub(crate) streams: Vec<Stream>,
    pub(crate) stream_handles: HashMap<u64, Actor>,
    pub(crate) thread_streams: HashMap<ThreadId, Actor>,
    /// Operations in all queues.
    pub(crate) queued: usize,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) captures: HashMap<u64, Capture>,
    pub(crate) graphs: HashMap<u64, Arc<[Node]>>,
    pub(crate) executables: HashMap<u64, Executable>,
    pub(crate) modules: HashMap<u64, Arc<Module>>,
    pub(crate) functions: HashMap<u64, Function>,
    pub(crate) blas: Blas,
    pub(crate) counts: Counts,
    /// Simulated time in nanoseconds.
    pub(crate) time: u64,
}

/// The machine. A panic while it is locked becomes a fault, so a poisoned lock is no reason to stop.
pub(crate) fn machine() -> MutexGuard<'static, Machine> {
    static MACHINE: OnceLock<Mutex<Machine>> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        let settings = Settings::read(|name| std::env::var(name).ok()).unwrap_or_else(|error| {
            // A test that misspells a setting would otherwise test something else.
            eprintln!("simulated CUDA: {error}");
            std::process::exit(2)
        });
        Mutex::new(Machine::new(settings))
    });
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle that no other object has or had, so that a handle of something destroyed is never valid again.
pub(crate) fn new_handle() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0x51_0000);
    NEXT.fetch_add(0x10, Ordering::Relaxed)
}

impl Machine {
    pub(crate) fn new(settings: Settings) -> Machine {
        let pace = match settings.seed % 3 {
            0 => Pace::Lazy,
            1 => Pace::Mixed,
            _ => Pace::Eager,
        };
        Machine {
            random: Random::new(settings.seed),
            pace,
            initialised: false,
            fault: None,
            broken: None,
            unread_fault: None,
            failures: settings.failures.clone(),
            contexts: Contexts::default(),
            memory: Memory::new(),
            allocations: BTreeMap::new(),
            pinned: PinnedMemory::default(),
            device_history: History::default(),
            host_history: History::default(),
            host_clock: Clock::default(),
            streams: vec![Stream::legacy()],
            stream_handles: HashMap::new(),
            thread_streams: HashMap::new(),
            queued: 0,
            events: HashMap::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            blas: Blas::default(),
            counts: Counts::default(),
            time: 0,
            settings,
        }
    }

    /// Fails when a test asked for this call to fail.
    pub(crate) fn count_call(&mut self, function: &str) -> Result<()> {
        let mut failed = None;
        for failure in self.failures.iter_mut().filter(|failure| failure.function == function) {
            failure.calls -= 1;
            if failure.calls == 0 {
                failed = Some(failure.status);
            }
        }
        self.failures.retain(|failure| failure.calls > 0);
        let Some(status) = failed.map(Status) else {
            return Ok(());
        };
        if function.starts_with("cu") && !function.starts_with("cublas") && status.is_sticky() {
            self.break_device(status);
        }
        refuse(status, "a test asked for this failure")
    }

    /// How many failures that tests asked for have not happened yet.
    pub(crate) fn pending_failures(&self) -> usize {
        self.failures.len()
    }

    /// Makes a later call of a function fail.
    pub(crate) fn fail_call(&mut self, failure: Failure) {
        if failure.calls > 0 {
            self.failures.push(failure);
        }
    }

    /// Fails when an earlier operation faulted, as every call does after a device's fault.
    pub(crate) fn check_fault(&self) -> Result<()> {
        match self.broken {
            Some(status) => Err(status.into()),
            None => Ok(()),
        }
    }

    /// Notes a mistake of the program. From here on the device is unusable.
    pub(crate) fn fault(&mut self, message: String) -> Error {
        if self.fault.is_none() {
            eprintln!("simulated CUDA: fault: {message}");
            self.unread_fault = Some(message.clone());
            self.fault = Some(message);
        }
        self.break_device(Status::LAUNCH_FAILED);
        Status::LAUNCH_FAILED.into()
    }

    /// From here on every call fails. What is queued never runs.
    fn break_device(&mut self, status: Status) {
        self.broken.get_or_insert(status);
        for stream in &mut self.streams {
            stream.queue.clear();
        }
        self.queued = 0;
    }

    /// The first fault.
    pub(crate) fn last_fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// The fault that no test has asked for yet.
    pub(crate) fn take_fault(&mut self) -> Option<String> {
        self.unread_fault.take()
    }

    /// Begins anew, as a new process does.
    pub(crate) fn reset(&mut self, seed: u64) {
        let settings = Settings { seed, ..self.settings.clone() };
        *self = Machine::new(settings);
    }

    pub(crate) fn reset_counts(&mut self) {
        let Counts { allocated_bytes, host_bytes, modules, .. } = self.counts;
        let most_allocated_bytes = allocated_bytes;
        self.counts = Counts { allocated_bytes, most_allocated_bytes, host_bytes, modules, ..Counts::default() };
    }
}
