//! Captures and graphs.

use crate::program::{Program, always_faults, faults, never_faults, on_simulator_alone, ramp};
use amem_cuda_simulator::{counts, fail_call, in_simulator, is_simulated, reset_counts};
use cudarc::driver::{CudaGraph, DriverError, sys};

const THREAD_LOCAL: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// Captures what `body` puts into the compute stream.
fn capture(program: &Program, body: impl FnOnce() -> Result<(), DriverError>) -> Result<CudaGraph, DriverError> {
    program.compute.begin_capture(THREAD_LOCAL)?;
    body()?;
    Ok(program.compute.end_capture(sys::CUgraphInstantiate_flags(0))?.unwrap())
}

fn code<T>(result: Result<T, DriverError>) -> sys::CUresult {
    result.err().unwrap().0
}

#[test]
fn a_graph_computes_with_what_its_input_holds_at_each_launch() {
    in_simulator("graph::a_graph_computes_with_what_its_input_holds_at_each_launch", &[], || {
        never_faults(|program| {
            let mut staging = program.pinned(&[0.0; 64])?;
            let (mut x, mut y) = (program.memory(64)?, program.compute.alloc_zeros::<f32>(64)?);
            let graph = capture(program, || {
                program.compute.memcpy_htod(&staging, &mut x)?;
                program.launch_add(&program.compute, &x, &mut y)
            })?;
            // Nothing has run yet.
            assert_eq!(program.compute.clone_dtoh(&y)?, [0.0; 64]);
            reset_counts();
            for step in 1..=4 {
                staging.as_mut_slice()?.fill(step as f32);
                graph.launch()?;
                program.compute.synchronize()?;
            }
            if is_simulated() {
                let counts = counts();
                assert_eq!((counts.graph_launches, counts.graph_operations, counts.launches), (4, 8, 0));
                assert_eq!((counts.allocations, counts.waits, counts.bytes_to_device), (0, 4, 4 * 256));
            }
            assert_eq!(program.compute.clone_dtoh(&y)?, [10.0; 64]);
            Ok(())
        });
    });
}

#[test]
fn launches_of_a_graph_come_one_after_another() {
    in_simulator("graph::launches_of_a_graph_come_one_after_another", &[], || {
        never_faults(|program| {
            let x = program.compute.clone_htod(&[1.0; 64])?;
            let mut y = program.compute.alloc_zeros::<f32>(64)?;
            let graph = capture(program, || program.launch_add(&program.compute, &x, &mut y))?;
            for _ in 0..10 {
                graph.launch()?;
            }
            program.launch_add(&program.compute, &x, &mut y)?;
            assert_eq!(program.compute.clone_dtoh(&y)?, [11.0; 64]);
            Ok(())
        });
    });
}

/// A graph in which another stream doubles the input while the first one adds it.
fn fork_and_join(program: &Program, wait_before: bool) -> Result<(), DriverError> {
    let x = program.compute.clone_htod(&ramp(64))?;
    let (mut y, mut z) = (program.compute.alloc_zeros::<f32>(64)?, program.memory(64)?);
    let (forked, joined) = (program.context.new_event(None)?, program.context.new_event(None)?);
    let graph = capture(program, || {
        forked.record(&program.compute)?;
        program.copy.wait(&forked)?;
        program.launch_scale(&program.copy, &x, &mut z, 2.0)?;
        joined.record(&program.copy)?;
        program.launch_add(&program.compute, &x, &mut y)?;
        if wait_before {
            program.compute.wait(&joined)?;
            program.launch_add(&program.compute, &z, &mut y)
        } else {
            program.launch_add(&program.compute, &z, &mut y)?;
            program.compute.wait(&joined)
        }
    })?;
    graph.launch()?;
    graph.launch()?;
    let expected: Vec<f32> = ramp(64).iter().map(|x| 6.0 * x).collect();
    assert_eq!(program.compute.clone_dtoh(&y)?, expected);
    Ok(())
}

#[test]
fn the_branches_of_a_graph_are_ordered_by_its_events_alone() {
    on_simulator_alone("graph::the_branches_of_a_graph_are_ordered_by_its_events_alone", &[], || {
        never_faults(|program| fork_and_join(program, true));
        for fault in faults(24, |program| fork_and_join(program, false)) {
            let fault = fault.unwrap();
            assert!(fault.contains("wrong order") || fault.contains("still queued: kernel `scale`"), "{fault}");
        }
    });
}

#[test]
fn another_stream_waits_for_a_graph_or_is_caught() {
    in_simulator("graph::another_stream_waits_for_a_graph_or_is_caught", &[], || {
        let run = |program: &Program, wait: bool| {
            let x = program.compute.clone_htod(&ramp(64))?;
            let mut y = program.compute.alloc_zeros::<f32>(64)?;
            program.compute.synchronize()?;
            let graph = capture(program, || program.launch_add(&program.compute, &x, &mut y))?;
            graph.launch()?;
            if wait {
                program.copy.wait(&program.compute.record_event(None)?)?;
            }
            program.copy.clone_dtoh(&y)?;
            program.compute.synchronize()
        };
        always_faults("wrong order", |program| run(program, false));
        never_faults(|program| run(program, true));
    });
}

#[test]
fn an_input_that_changes_before_a_graph_has_copied_it_is_caught() {
    on_simulator_alone("graph::an_input_that_changes_before_a_graph_has_copied_it_is_caught", &[], || {
        let found = faults(24, |program| {
            let mut staging = program.pinned(&[1.0; 64])?;
            let mut x = program.memory(64)?;
            let graph = capture(program, || program.compute.memcpy_htod(&staging, &mut x))?;
            graph.launch()?;
            staging.as_mut_slice()?.fill(2.0);
            program.compute.synchronize()
        });
        assert!(found.iter().flatten().all(|fault| fault.contains("changed byte 2 of the page-locked source")));
        assert!(found.iter().flatten().count() >= 8);
    });
}

#[test]
fn a_graph_does_not_keep_its_memory_alive() {
    in_simulator("graph::a_graph_does_not_keep_its_memory_alive", &[], || {
        always_faults("was freed", |program| {
            let x = program.compute.clone_htod(&ramp(64))?;
            let mut y = program.memory(64)?;
            let graph = capture(program, || program.launch_scale(&program.compute, &x, &mut y, 1.0))?;
            drop(x);
            graph.launch()?;
            program.compute.synchronize()
        });
    });
}

#[test]
fn what_a_capture_forbids_fails_and_spoils_the_capture() {
    in_simulator("graph::what_a_capture_forbids_fails_and_spoils_the_capture", &[], || {
        use sys::CUresult::*;
        let program = Program::new().unwrap();
        let memory = program.compute.alloc_zeros::<f32>(64).unwrap();
        let outside = program.copy.record_event(None).unwrap();
        let staging = program.pinned(&ramp(4)).unwrap();
        let spoilt = |call: &dyn Fn() -> sys::CUresult, expected| {
            program.compute.begin_capture(THREAD_LOCAL).unwrap();
            assert_eq!(call(), expected);
            let end = program.compute.end_capture(sys::CUgraphInstantiate_flags(0));
            assert_eq!(code(end), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
            let status = program.compute.capture_status().unwrap();
            assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
        };
        spoilt(&|| code(program.compute.synchronize()), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        spoilt(&|| code(program.context.synchronize()), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        spoilt(&|| code(program.compute.alloc_zeros::<f32>(4)), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        spoilt(&|| code(program.compute.clone_dtoh(&memory)), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        spoilt(&|| code(program.pinned(&ramp(4))), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        spoilt(&|| code(program.compute.wait(&outside)), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        // SAFETY: the call fails.
        let allocate = || code(unsafe { cudarc::driver::result::malloc_sync(64) });
        spoilt(&allocate, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        // A capture is over also when a test lets its end fail.
        if fail_call("cuStreamEndCapture", 1, 999) {
            program.compute.begin_capture(THREAD_LOCAL).unwrap();
            let end = program.compute.end_capture(sys::CUgraphInstantiate_flags(0));
            assert_eq!(code(end), CUDA_ERROR_UNKNOWN);
            program.compute.synchronize().unwrap();
        }
        // Another thread may allocate while this one captures.
        program.compute.begin_capture(THREAD_LOCAL).unwrap();
        let context = program.context.clone();
        let allocated = std::thread::spawn(move || {
            context.bind_to_thread().unwrap();
            // SAFETY: the memory is freed once.
            let address = unsafe { cudarc::driver::result::malloc_sync(64) }.unwrap();
            // SAFETY: nothing uses the memory.
            unsafe { cudarc::driver::result::free_sync(address) }.unwrap();
        });
        allocated.join().unwrap();
        assert!(program.compute.end_capture(sys::CUgraphInstantiate_flags(0)).is_ok());
        drop(staging);
    });
}

#[test]
fn a_capture_has_to_be_joined_and_its_events_stay_in_it() {
    in_simulator("graph::a_capture_has_to_be_joined_and_its_events_stay_in_it", &[], || {
        use sys::CUresult::*;
        let program = Program::new().unwrap();
        let mut memory = program.compute.alloc_zeros::<f32>(64).unwrap();
        let event = program.context.new_event(None).unwrap();
        program.compute.begin_capture(THREAD_LOCAL).unwrap();
        event.record(&program.compute).unwrap();
        assert_eq!(code(event.synchronize()), CUDA_ERROR_CAPTURED_EVENT);
        program.copy.wait(&event).unwrap();
        program.copy.memset_zeros(&mut memory).unwrap();
        let end = program.compute.end_capture(sys::CUgraphInstantiate_flags(0));
        assert_eq!(code(end), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        assert_eq!(code(program.copy.wait(&event)), CUDA_ERROR_CAPTURED_EVENT);
        program.context.synchronize().unwrap();
    });
}
