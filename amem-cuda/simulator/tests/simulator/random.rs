//! Programs made at random: what the simulator finds does not depend on chance.

use crate::program::{Program, faults, on_simulator_alone, ramp};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError};
use std::sync::Arc;

const BUFFERS: usize = 4;
const COUNT: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Scale,
    Add,
    Copy,
    Zero,
}

/// An operation of a stream: `to` = f(`from`, `to`).
#[derive(Clone, Debug)]
struct Step {
    kind: Kind,
    stream: usize,
    from: usize,
    to: usize,
    /// The earlier steps whose events the stream waits for.
    waits: Vec<usize>,
}

/// A sequence of numbers that looks random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

impl Step {
    fn conflicts(&self, other: &Step) -> bool {
        let reads = |step: &Step, buffer| step.from == buffer && !matches!(step.kind, Kind::Zero);
        self.to == other.to || reads(self, other.to) || reads(other, self.to)
    }
}

/// A program whose streams wait for whatever they have to wait for, or only for some of it.
fn steps(numbers: &mut Numbers, careless: bool) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for _ in 0..14 {
        let kind = [Kind::Scale, Kind::Add, Kind::Copy, Kind::Zero][numbers.below(4)];
        let to = numbers.below(BUFFERS);
        let from = (to + 1 + numbers.below(BUFFERS - 1)) % BUFFERS;
        let mut step = Step { kind, stream: numbers.below(3), from, to, waits: Vec::new() };
        let needed = steps.iter().enumerate().filter(|(_, before)| before.conflicts(&step));
        let needed: Vec<usize> = needed.map(|(index, _)| index).collect();
        step.waits = needed.into_iter().filter(|_| !careless || numbers.below(5) > 0).collect();
        steps.push(step);
    }
    steps
}

/// What the buffers hold in the end when one step runs after another.
fn expected(steps: &[Step]) -> Vec<Vec<f32>> {
    let mut buffers: Vec<Vec<f32>> = vec![ramp(COUNT); BUFFERS];
    for step in steps {
        let from = buffers[step.from].clone();
        for (to, from) in buffers[step.to].iter_mut().zip(from) {
            *to = match step.kind {
                Kind::Scale => 0.5 * from,
                Kind::Add => *to + from,
                Kind::Copy => from,
                Kind::Zero => 0.0,
            };
        }
    }
    buffers
}

fn run(program: &Program, steps: &[Step]) -> Result<Vec<Vec<f32>>, DriverError> {
    let streams: Vec<Arc<CudaStream>> = (0..3).map(|_| program.context.new_stream()).collect::<Result<_, _>>()?;
    let upload = |_| program.compute.clone_htod(&ramp(COUNT));
    let mut buffers: Vec<CudaSlice<f32>> = (0..BUFFERS).map(upload).collect::<Result<_, _>>()?;
    program.compute.synchronize()?;
    let mut events: Vec<CudaEvent> = Vec::new();
    for step in steps {
        let stream = &streams[step.stream];
        for &wait in &step.waits {
            stream.wait(&events[wait])?;
        }
        let [from, to] = buffers.get_disjoint_mut([step.from, step.to]).unwrap();
        match step.kind {
            Kind::Scale => program.launch_scale(stream, from, to, 0.5)?,
            Kind::Add => program.launch_add(stream, from, to)?,
            Kind::Copy => stream.memcpy_dtod(from, to)?,
            Kind::Zero => stream.memset_zeros(to)?,
        }
        events.push(stream.record_event(None)?);
    }
    program.context.synchronize()?;
    buffers.iter().map(|buffer| program.compute.clone_dtoh(buffer)).collect()
}

/// Runs a program with several seeds. Returns whether it has a fault.
fn faulty(steps: &[Step]) -> bool {
    let found = faults(6, |program| {
        let result = run(program, steps)?;
        assert_eq!(result, expected(steps), "{steps:?}");
        Ok(())
    });
    let faulty = found.iter().flatten().count();
    assert!(faulty == 0 || faulty == found.len(), "{steps:?}: {found:?}");
    faulty > 0
}

#[test]
fn programs_that_wait_for_all_that_they_need_are_right() {
    on_simulator_alone("random::programs_that_wait_for_all_that_they_need_are_right", &[], || {
        let mut numbers = Numbers(1);
        for _ in 0..30 {
            assert!(!faulty(&steps(&mut numbers, false)));
        }
    });
}

#[test]
fn careless_programs_have_a_fault_with_every_seed_or_are_right_with_every_seed() {
    let name = "random::careless_programs_have_a_fault_with_every_seed_or_are_right_with_every_seed";
    on_simulator_alone(name, &[], || {
        let mut numbers = Numbers(2);
        let found: Vec<bool> = (0..60).map(|_| faulty(&steps(&mut numbers, true))).collect();
        // Some waits are not needed, because others order the same operations.
        let faulty = found.iter().filter(|&&faulty| faulty).count();
        assert!((10..=50).contains(&faulty), "{faulty} of 60");
    });
}
