//! Wrong orders, each in a program that has it, which is caught with every seed, and in one that does not.

use crate::program::{Program, always_faults, faults, never_faults, on_simulator_alone, ramp};
use amem_cuda_simulator::in_simulator;
use cudarc::driver::{DevicePtr, DriverError, result, sys};

/// Uploads on the copy stream and computes on the other.
fn upload_and_compute(program: &Program, wait: bool) -> Result<(), DriverError> {
    let source = program.pinned(&ramp(64))?;
    let (mut x, mut y) = (program.memory(64)?, program.memory(64)?);
    program.copy.memcpy_htod(&source, &mut x)?;
    if wait {
        program.compute.wait(&program.copy.record_event(None)?)?;
    }
    program.launch_scale(&program.compute, &x, &mut y, 2.0)?;
    let result = program.compute.clone_dtoh(&y)?;
    program.copy.synchronize()?;
    assert!(!wait || result[63] == 126.0);
    Ok(())
}

#[test]
fn a_kernel_that_does_not_wait_for_its_input_is_caught() {
    on_simulator_alone("order::a_kernel_that_does_not_wait_for_its_input_is_caught", &[], || {
        let found = faults(24, |program| upload_and_compute(program, false));
        for fault in &found {
            // When the kernel runs first, it reads memory that was never written.
            let fault = fault.as_deref().unwrap();
            assert!(fault.contains("wrong order") || fault.contains("still queued: copy of 256 bytes"), "{fault}");
        }
        // Some seeds run the copy first, and find the missing event all the same.
        assert!(found.iter().flatten().any(|fault| fault.contains("wrong order")));
        assert!(found.iter().flatten().any(|fault| fault.contains("never written")));
        never_faults(|program| upload_and_compute(program, true));
    });
}

/// Overwrites the input of a kernel.
fn overwrite(program: &Program, wait: bool) -> Result<(), DriverError> {
    let mut x = program.compute.clone_htod(&ramp(64))?;
    let mut y = program.memory(64)?;
    program.launch_scale(&program.compute, &x, &mut y, 2.0)?;
    if wait {
        program.copy.wait(&program.compute.record_event(None)?)?;
    }
    program.copy.memset_zeros(&mut x)?;
    assert_eq!(program.compute.clone_dtoh(&y)?[63], 126.0);
    program.copy.synchronize()
}

#[test]
fn memory_that_is_overwritten_before_it_was_read_is_caught() {
    in_simulator("order::memory_that_is_overwritten_before_it_was_read_is_caught", &[], || {
        always_faults("wrong order", |program| overwrite(program, false));
        never_faults(|program| overwrite(program, true));
    });
}

#[test]
fn an_event_that_was_recorded_too_early_is_caught() {
    in_simulator("order::an_event_that_was_recorded_too_early_is_caught", &[], || {
        let run = |program: &Program, early: bool| {
            let mut x = program.compute.alloc_zeros::<f32>(64)?;
            let event = program.compute.record_event(None)?;
            program.compute.memset_zeros(&mut x)?;
            if !early {
                event.record(&program.compute)?;
            }
            program.copy.wait(&event)?;
            program.copy.clone_dtoh(&x)?;
            program.compute.synchronize()
        };
        always_faults("wrong order", |program| run(program, true));
        never_faults(|program| run(program, false));
    });
}

#[test]
fn separate_parts_of_one_buffer_may_be_used_at_once() {
    in_simulator("order::separate_parts_of_one_buffer_may_be_used_at_once", &[], || {
        let run = |program: &Program, start: usize| {
            let mut buffer = program.compute.alloc_zeros::<f32>(128)?;
            program.compute.synchronize()?;
            let (mut low, _) = buffer.split_at_mut(64);
            program.compute.memset_zeros(&mut low)?;
            program.copy.memset_zeros(&mut buffer.slice_mut(start..128))?;
            program.context.synchronize()
        };
        never_faults(|program| run(program, 64));
        always_faults("wrong order", |program| run(program, 63));
    });
}

#[test]
fn two_streams_may_read_the_same_memory() {
    in_simulator("order::two_streams_may_read_the_same_memory", &[], || {
        never_faults(|program| {
            let x = program.compute.clone_htod(&ramp(64))?;
            program.compute.synchronize()?;
            let (mut y, mut z) = (program.memory(64)?, program.memory(64)?);
            program.launch_scale(&program.compute, &x, &mut y, 2.0)?;
            program.launch_scale(&program.copy, &x, &mut z, 3.0)?;
            program.context.synchronize()
        });
    });
}

#[test]
fn page_locked_memory_that_is_reused_too_early_is_caught() {
    on_simulator_alone("order::page_locked_memory_that_is_reused_too_early_is_caught", &[], || {
        let run = |program: &Program, wait: bool| {
            let mut staging = program.pinned(&[1.0; 64])?;
            let mut x = program.memory(64)?;
            program.copy.memcpy_htod(&staging, &mut x)?;
            if wait {
                program.copy.synchronize()?;
            }
            staging.as_mut_slice()?.fill(2.0);
            assert!(!wait || program.copy.clone_dtoh(&x)? == [1.0; 64]);
            program.copy.synchronize()
        };
        let found = faults(24, |program| run(program, false));
        // 1.0 and 2.0 differ in their third bytes first. A copy that ran before the change is no mistake that shows.
        let text = "the program changed byte 2 of the page-locked source before the copy ran";
        assert!(found.iter().flatten().all(|fault| fault.contains(text)));
        assert!(found.iter().flatten().count() >= 8);
        never_faults(|program| run(program, true));
    });
}

#[test]
fn page_locked_memory_that_is_read_too_early_holds_no_results() {
    on_simulator_alone("order::page_locked_memory_that_is_read_too_early_holds_no_results", &[], || {
        amem_cuda_simulator::reset(0);
        let program = Program::new().unwrap();
        // The memory holds the right answer of a step before.
        let mut back = program.pinned(&[7.0; 4]).unwrap();
        let x = program.compute.clone_htod(&[7.0; 4]).unwrap();
        program.compute.memcpy_dtoh(&x, &mut back).unwrap();
        assert_ne!(back.as_slice().unwrap(), [7.0; 4]);
        program.compute.synchronize().unwrap();
        assert_eq!(back.as_slice().unwrap(), [7.0; 4]);
    });
}

#[test]
fn a_copy_from_pageable_memory_takes_the_values_at_once() {
    in_simulator("order::a_copy_from_pageable_memory_takes_the_values_at_once", &[], || {
        never_faults(|program| {
            let mut values = vec![1.0f32; 64];
            let mut x = program.memory(64)?;
            program.copy.memcpy_htod(&values, &mut x)?;
            values.fill(2.0);
            assert_eq!(program.copy.clone_dtoh(&x)?, [1.0; 64]);
            Ok(())
        });
    });
}

#[test]
fn the_host_does_not_wait_for_a_copy_from_pageable_memory() {
    on_simulator_alone("order::the_host_does_not_wait_for_a_copy_from_pageable_memory", &[], || {
        let run = |program: &Program, wait: bool| {
            let x = program.copy.clone_htod(&ramp(64))?;
            let mut y = program.memory(64)?;
            if wait {
                program.copy.synchronize()?;
            }
            program.launch_scale(&program.compute, &x, &mut y, 2.0)?;
            program.context.synchronize()
        };
        assert!(faults(24, |program| run(program, false)).iter().all(Option::is_some));
        never_faults(|program| run(program, true));
    });
}

#[test]
fn two_copies_into_the_same_page_locked_memory_need_an_order() {
    in_simulator("order::two_copies_into_the_same_page_locked_memory_need_an_order", &[], || {
        let run = |program: &Program, wait: bool| {
            let mut back = program.pinned(&[0.0; 64])?;
            let x = program.compute.clone_htod(&ramp(64))?;
            program.compute.synchronize()?;
            program.compute.memcpy_dtoh(&x, &mut back)?;
            if wait {
                program.copy.wait(&program.compute.record_event(None)?)?;
            }
            program.copy.memcpy_dtoh(&x, &mut back)?;
            program.context.synchronize()
        };
        always_faults("wrong order", |program| run(program, false));
        never_faults(|program| run(program, true));
    });
}

#[test]
fn memory_that_is_freed_while_another_stream_uses_it_is_caught() {
    on_simulator_alone("order::memory_that_is_freed_while_another_stream_uses_it_is_caught", &[], || {
        let run = |program: &Program, wait: bool| {
            let x = program.compute.clone_htod(&ramp(64))?;
            program.compute.synchronize()?;
            let mut y = program.memory(64)?;
            program.launch_scale(&program.copy, &x, &mut y, 2.0)?;
            if wait {
                program.compute.wait(&program.copy.record_event(None)?)?;
            }
            // The compute stream frees it.
            drop(x);
            program.context.synchronize()
        };
        let found = faults(24, |program| run(program, false));
        for fault in &found {
            let fault = fault.as_deref().unwrap();
            assert!(fault.contains("wrong order") || fault.contains("was freed"), "{fault}");
        }
        never_faults(|program| run(program, true));
    });
}

#[test]
fn memory_that_is_freed_at_once_must_not_be_in_use() {
    in_simulator("order::memory_that_is_freed_at_once_must_not_be_in_use", &[], || {
        let run = |program: &Program, wait: bool| {
            // SAFETY: the memory is freed once.
            let address = unsafe { result::malloc_sync(256)? };
            // SAFETY: the fill lies within the memory.
            unsafe { result::memset_d8_async(address, 0, 256, program.compute.cu_stream())? };
            if wait {
                program.compute.synchronize()?;
            }
            // SAFETY: whether nothing uses the memory is what is tested.
            unsafe { result::free_sync(address) }
        };
        always_faults("cuMemFree", |program| run(program, false));
        never_faults(|program| run(program, true));
    });
}

#[test]
fn freed_memory_cannot_be_named_again() {
    on_simulator_alone("order::freed_memory_cannot_be_named_again", &[], || {
        never_faults(|program| {
            let x = program.compute.clone_htod(&ramp(64))?;
            let address = x.device_ptr(&program.compute).0;
            drop(x);
            // SAFETY: the calls fail.
            unsafe {
                let fill = result::memset_d8_async(address, 0, 256, program.compute.cu_stream());
                assert_eq!(fill.unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
                let free = result::free_async(address, program.compute.cu_stream());
                assert_eq!(free.unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
            }
            Ok(())
        });
    });
}

#[test]
fn page_locked_memory_that_is_freed_too_early_is_caught() {
    in_simulator("order::page_locked_memory_that_is_freed_too_early_is_caught", &[], || {
        let run = |program: &Program, wait: bool| {
            let staging = program.pinned(&[1.0; 64])?;
            let mut x = program.memory(64)?;
            program.copy.memcpy_htod(&staging, &mut x)?;
            if wait {
                program.copy.synchronize()?;
            }
            drop(staging);
            program.copy.synchronize()
        };
        always_faults("cuMemFreeHost", |program| run(program, false));
        never_faults(|program| run(program, true));
    });
}

#[test]
fn memory_of_one_stream_is_not_there_for_another_at_once() {
    in_simulator("order::memory_of_one_stream_is_not_there_for_another_at_once", &[], || {
        let run = |program: &Program, wait: bool| {
            // SAFETY: the memory is written before it is read.
            let mut x = unsafe { program.compute.alloc::<f32>(64)? };
            if wait {
                program.copy.wait(&program.compute.record_event(None)?)?;
            }
            program.copy.memset_zeros(&mut x)?;
            program.context.synchronize()
        };
        always_faults("wrong order", |program| run(program, false));
        never_faults(|program| run(program, true));
    });
}

#[test]
fn the_null_stream_waits_for_blocking_streams_only() {
    in_simulator("order::the_null_stream_waits_for_blocking_streams_only", &[], || {
        let run = |program: &Program, kind: result::stream::StreamKind| {
            let mut x = program.compute.alloc_zeros::<f32>(64)?;
            program.compute.synchronize()?;
            let stream = result::stream::create(kind)?;
            let address = x.device_ptr(&program.compute).0;
            // SAFETY: the fill lies within the memory.
            unsafe { result::memset_d8_async(address, 1, 256, stream)? };
            program.context.default_stream().memset_zeros(&mut x)?;
            // SAFETY: as above.
            unsafe { result::memset_d8_async(address, 1, 256, stream)? };
            // SAFETY: the stream is not used again.
            unsafe { result::stream::destroy(stream)? };
            program.context.synchronize()
        };
        always_faults("wrong order", |program| run(program, result::stream::StreamKind::NonBlocking));
        never_faults(|program| run(program, result::stream::StreamKind::Default));
    });
}

#[test]
fn a_function_of_the_program_runs_in_its_turn() {
    in_simulator("order::a_function_of_the_program_runs_in_its_turn", &[], || {
        unsafe extern "C" fn note(count: *mut std::ffi::c_void) {
            // SAFETY: the program passes an atomic counter that outlives the stream's work.
            let count = unsafe { &*count.cast::<std::sync::atomic::AtomicU32>() };
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        never_faults(|program| {
            let count = std::sync::atomic::AtomicU32::new(0);
            let argument = std::ptr::from_ref(&count).cast_mut().cast();
            for _ in 0..3 {
                // SAFETY: the stream is synchronised before the counter goes.
                unsafe { result::stream::launch_host_function(program.compute.cu_stream(), note, argument)? };
            }
            program.compute.synchronize()?;
            assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 3);
            Ok(())
        });
    });
}
