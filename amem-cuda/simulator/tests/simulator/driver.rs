//! Devices, memory, copies, kernels and errors.

use crate::program::{Program, never_faults, on_simulator_alone, ramp};
use amem_cuda_simulator::{
    counts, fail_call, in_simulator, last_fault, library_path, pending_failures, reset_counts, take_fault,
};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::Ptx;
use std::ffi::{CStr, CString, c_void};

#[test]
fn a_kernel_computes_on_uploaded_values() {
    in_simulator("driver::a_kernel_computes_on_uploaded_values", &[], || {
        never_faults(|program| {
            let x = program.compute.clone_htod(&ramp(1000))?;
            let mut y = program.memory(1000)?;
            program.launch_scale(&program.compute, &x, &mut y, 3.0)?;
            program.launch_add(&program.compute, &x, &mut y)?;
            let expected: Vec<f32> = (0..1000).map(|i| 4.0 * i as f32).collect();
            assert_eq!(program.compute.clone_dtoh(&y)?, expected);
            Ok(())
        });
    });
}

#[test]
fn a_copy_stream_feeds_a_compute_stream_through_page_locked_memory() {
    in_simulator("driver::a_copy_stream_feeds_a_compute_stream_through_page_locked_memory", &[], || {
        never_faults(|program| {
            let mut staging = program.pinned(&[0.0; 64])?;
            let mut x = program.memory(64)?;
            let mut y = program.compute.alloc_zeros::<f32>(64)?;
            for step in 1..=5 {
                staging.as_mut_slice()?.fill(step as f32);
                program.copy.memcpy_htod(&staging, &mut x)?;
                let copied = program.copy.record_event(None)?;
                program.compute.wait(&copied)?;
                program.launch_add(&program.compute, &x, &mut y)?;
                program.copy.wait(&program.compute.record_event(None)?)?;
                // cudarc's own event of page-locked memory is not recorded without its event tracking.
                copied.synchronize()?;
            }
            let mut back = program.pinned(&[0.0; 64])?;
            program.compute.memcpy_dtoh(&y, &mut back)?;
            program.compute.synchronize()?;
            assert_eq!(back.as_slice()?, [15.0; 64]);
            Ok(())
        });
    });
}

#[test]
fn a_copy_in_two_dimensions_leaves_the_gaps_alone() {
    in_simulator("driver::a_copy_in_two_dimensions_leaves_the_gaps_alone", &[], || {
        never_faults(|program| {
            let source: Vec<u8> = (0..40).collect();
            let target = program.compute.alloc_zeros::<u8>(64)?;
            let address = cudarc::driver::DevicePtr::device_ptr(&target, &program.compute).0;
            let copy = sys::CUDA_MEMCPY2D {
                srcXInBytes: 2,
                srcY: 1,
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
                srcHost: source.as_ptr().cast(),
                srcDevice: 0,
                srcArray: std::ptr::null_mut(),
                srcPitch: 10,
                dstXInBytes: 4,
                dstY: 0,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstHost: std::ptr::null_mut(),
                dstDevice: address,
                dstArray: std::ptr::null_mut(),
                dstPitch: 16,
                WidthInBytes: 5,
                Height: 3,
            };
            // SAFETY: the rows lie within the source and the target.
            unsafe { sys::cuMemcpy2DAsync_v2(&copy, program.compute.cu_stream()) }.result()?;
            let mut expected = vec![0; 64];
            for row in 0..3 {
                for column in 0..5 {
                    expected[row * 16 + 4 + column] = ((row + 1) * 10 + 2 + column) as u8;
                }
            }
            assert_eq!(program.compute.clone_dtoh(&target)?, expected);
            Ok(())
        });
    });
}

#[test]
fn the_device_says_what_it_is() {
    let settings = [("AMEM_SIM_MEMORY", "1048576"), ("AMEM_SIM_CAPABILITY", "89"), ("AMEM_SIM_DRIVER", "12080")];
    on_simulator_alone("driver::the_device_says_what_it_is", &settings, || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.compute_capability().unwrap(), (8, 9));
        assert_eq!(context.total_mem().unwrap(), 1 << 20);
        assert_eq!(context.mem_get_info().unwrap(), (1 << 20, 1 << 20));
        assert!(context.name().unwrap().contains("Simulated"));
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        assert_eq!(context.attribute(attribute).unwrap(), 99 << 10);
        let module = context.load_module(Ptx::from_src(crate::program::PTX)).unwrap();
        let scale = module.load_function("scale").unwrap();
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert!(scale.set_attribute(attribute, 99 << 10).is_ok());
        assert!(scale.set_attribute(attribute, (99 << 10) + 1).is_err());
        // 1536 threads fit on a multiprocessor, and 100 KiB of shared memory, of which each block takes one more.
        assert_eq!(scale.occupancy_max_active_blocks_per_multiprocessor(512, 0, None).unwrap(), 3);
        assert_eq!(scale.occupancy_max_active_blocks_per_multiprocessor(64, 24 << 10, None).unwrap(), 4);
        assert_eq!(scale.occupancy_max_active_blocks_per_multiprocessor(64, 0, None).unwrap(), 24);
        let mut version = 0;
        // SAFETY: the function stores the version.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().unwrap();
        assert_eq!(version, 12080);
    });
}

#[test]
fn without_a_device_the_driver_says_so() {
    on_simulator_alone("driver::without_a_device_the_driver_says_so", &[("AMEM_SIM_DEVICES", "0")], || {
        let error = CudaContext::new(0).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_NO_DEVICE);
        assert_eq!(error.error_string().unwrap(), c"no CUDA-capable device is detected");
    });
}

#[test]
fn a_driver_older_than_the_ptx_refuses_it() {
    on_simulator_alone("driver::a_driver_older_than_the_ptx_refuses_it", &[("AMEM_SIM_DRIVER", "11040")], || {
        let error = Program::new().err().unwrap();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    });
}

#[test]
fn a_thread_without_a_context_is_refused() {
    in_simulator("driver::a_thread_without_a_context_is_refused", &[], || {
        let _context = CudaContext::new(0).unwrap();
        // SAFETY: the allocation fails.
        let other = std::thread::spawn(|| unsafe { result::malloc_sync(64) });
        let error = other.join().unwrap().unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
    });
}

#[test]
fn memory_runs_out_and_comes_back() {
    on_simulator_alone("driver::memory_runs_out_and_comes_back", &[("AMEM_SIM_MEMORY", "4096")], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let first = stream.alloc_zeros::<u8>(3000).unwrap();
        let error = stream.alloc_zeros::<u8>(1200).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let second = stream.alloc_zeros::<u8>(1024).unwrap();
        drop(first);
        assert_eq!(context.mem_get_info().unwrap(), (3072, 4096));
        stream.alloc_zeros::<u8>(3000).unwrap();
        drop(second);
    });
}

#[test]
fn memory_belongs_to_a_device_without_pools_as_well() {
    on_simulator_alone("driver::memory_belongs_to_a_device_without_pools_as_well", &[("AMEM_SIM_POOLS", "0")], || {
        never_faults(|program| {
            assert!(!program.context.has_async_alloc());
            let x = program.compute.clone_htod(&ramp(10))?;
            assert_eq!(program.compute.clone_dtoh(&x)?, ramp(10));
            Ok(())
        });
    });
}

#[test]
fn the_log_of_the_jit_names_the_line() {
    in_simulator("driver::the_log_of_the_jit_names_the_line", &[], || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let wrong = crate::program::PTX.replace("mul.rn.f32", "mul.rn.f33");
        let line = wrong.lines().position(|line| line.contains("f33")).unwrap() + 1;
        let source = CString::new(wrong).unwrap();
        let mut log = vec![0u8; 4096];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends with a zero byte, and there are two options with their values.
        let result = unsafe {
            let image = source.as_ptr().cast();
            sys::cuModuleLoadDataEx(&mut module, image, 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        assert_eq!(result, sys::CUresult::CUDA_ERROR_INVALID_PTX);
        let log = CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap();
        assert!(log.contains(&format!("line {line};")), "{log}");
        let missing = context.load_module(Ptx::from_src(crate::program::PTX)).unwrap().load_function("nothing");
        assert_eq!(missing.unwrap_err().0, sys::CUresult::CUDA_ERROR_NOT_FOUND);
    });
}

#[test]
fn a_faulting_kernel_makes_every_later_call_fail() {
    on_simulator_alone("driver::a_faulting_kernel_makes_every_later_call_fail", &[], || {
        let program = Program::new().unwrap();
        let x = program.compute.clone_htod(&ramp(10)).unwrap();
        let y = program.memory(10).unwrap();
        let mut launch = program.compute.launch_builder(&program.scale);
        let (a, count) = (2.0f32, 11u32);
        launch.arg(&x).arg(&y).arg(&a).arg(&count);
        // SAFETY: the count is one too many, which the simulator finds.
        unsafe { launch.launch(crate::program::shape(count)) }.unwrap();
        let error = program.compute.synchronize().unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(program.copy.alloc_zeros::<u8>(1).unwrap_err().0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(program.context.synchronize().unwrap_err().0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        let fault = last_fault().unwrap();
        let line = crate::program::PTX.lines().position(|line| line.contains("ld.global.f32 %f2")).unwrap() + 1;
        assert!(fault.contains("kernel `scale`") && fault.contains(&format!("line {line}")), "{fault}");
        assert_eq!(take_fault(), Some(fault));
        assert_eq!(take_fault(), None);
    });
}

#[test]
fn an_unexpected_fault_fails_the_test() {
    on_simulator_alone("driver::an_unexpected_fault_fails_the_test", &[], || {
        let body = || {
            in_simulator("", &[], || {
                let program = Program::new().unwrap();
                let mut memory = program.memory(10).unwrap();
                // Two streams write to the same memory, and the program ends before it waits for either.
                program.compute.memset_zeros(&mut memory).unwrap();
                program.copy.memset_zeros(&mut memory).unwrap();
                std::mem::forget(memory);
            });
        };
        let panic = std::panic::catch_unwind(body).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("wrong order"), "{message}");
    });
}

#[test]
#[should_panic(expected = "no test is called driver::there_is_no_such_test")]
fn a_misspelt_test_name_is_not_a_passed_test() {
    in_simulator("driver::there_is_no_such_test", &[], || {});
}

#[test]
#[should_panic(expected = "the body's own message")]
fn a_failed_body_fails_the_test_with_its_output() {
    in_simulator("driver::a_failed_body_fails_the_test_with_its_output", &[], || {
        // The test expects a panic, so the process inside succeeds when its body panics. It has to fail some other way.
        eprintln!("the body's own message");
        std::process::exit(1);
    });
}

#[test]
fn on_a_device_tests_have_a_process_each_and_those_with_settings_do_not_run() {
    let name = "driver::on_a_device_tests_have_a_process_each_and_those_with_settings_do_not_run";
    if std::env::var("AMEM_CUDA_DEVICE").is_ok() {
        in_simulator("one", &[("AMEM_SIM_FAIL", "cuInit:1:1")], || panic!("its fault is none of a device's"));
        let outside = std::env::var("AMEM_SIM").is_err();
        in_simulator(name, &[], || assert!(!outside, "a process of its own"));
        return;
    }
    // The simulator stands in for a device, and knows nothing of that.
    let mut test = std::process::Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", name, "--nocapture"]).env("AMEM_CUDA_DEVICE", "1");
    let output = test.env("LD_LIBRARY_PATH", library_path().unwrap()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("one: not run, for a device ignores AMEM_SIM_FAIL"), "{printed}");
}

#[test]
fn a_call_fails_when_a_test_asks_for_it() {
    let settings = [("AMEM_SIM_FAIL", "cuMemAllocAsync:2:2")];
    on_simulator_alone("driver::a_call_fails_when_a_test_asks_for_it", &settings, || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        assert!(stream.alloc_zeros::<u8>(1).is_ok());
        let error = stream.alloc_zeros::<u8>(1).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(pending_failures(), 0);
        assert!(stream.alloc_zeros::<u8>(1).is_ok());
        assert!(fail_call("cuStreamSynchronize", 1, 999));
        assert_eq!(pending_failures(), 1);
        assert_eq!(stream.synchronize().unwrap_err().0, sys::CUresult::CUDA_ERROR_UNKNOWN);
        stream.synchronize().unwrap();
        // After this one a device is lost.
        assert!(fail_call("cuStreamSynchronize", 2, 700));
        stream.synchronize().unwrap();
        for _ in 0..2 {
            assert_eq!(stream.synchronize().unwrap_err().0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        }
        assert_eq!(stream.alloc_zeros::<u8>(1).unwrap_err().0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn counts_tell_what_a_step_costs() {
    on_simulator_alone("driver::counts_tell_what_a_step_costs", &[], || {
        let program = Program::new().unwrap();
        let x = program.compute.clone_htod(&ramp(100)).unwrap();
        let mut y = program.memory(100).unwrap();
        reset_counts();
        program.launch_scale(&program.compute, &x, &mut y, 2.0).unwrap();
        program.launch_add(&program.compute, &x, &mut y).unwrap();
        let event = program.compute.record_event(None).unwrap();
        event.synchronize().unwrap();
        // There is nothing more to wait for.
        program.compute.synchronize().unwrap();
        program.compute.clone_dtoh(&y).unwrap();
        let counts = counts();
        assert_eq!((counts.launches, counts.copies, counts.bytes_to_host, counts.bytes_to_device), (2, 1, 400, 0));
        assert_eq!((counts.allocations, counts.host_allocations, counts.frees), (0, 0, 0));
        assert_eq!((counts.wait_calls, counts.waits, counts.event_records), (3, 2, 1));
        assert_eq!(counts.allocated_bytes, 1024);
    });
}

/// As of real ones, where an allocation of more than 1 MiB has pages of 2 MiB to itself.
#[test]
fn a_large_allocation_takes_whole_pages() {
    on_simulator_alone("driver::a_large_allocation_takes_whole_pages", &[], || {
        let program = Program::new().unwrap();
        let taken = |bytes: usize| {
            let before = counts().allocated_bytes;
            let memory = program.compute.alloc_zeros::<u8>(bytes).unwrap();
            let taken = counts().allocated_bytes - before;
            drop(memory);
            assert_eq!(counts().allocated_bytes, before);
            taken
        };
        const MIB: usize = 1 << 20;
        let sizes = [1, 513, MIB, MIB + 1, 2 * MIB, 3 * MIB];
        assert_eq!(sizes.map(taken), [512, 1024, 1 << 20, 2 << 20, 2 << 20, 4 << 20]);
    });
}

#[test]
fn a_launch_that_a_device_refuses_is_refused_at_once() {
    in_simulator("driver::a_launch_that_a_device_refuses_is_refused_at_once", &[], || {
        let program = Program::new().unwrap();
        let x = program.compute.clone_htod(&ramp(1)).unwrap();
        let launch = |config| {
            let mut launch = program.compute.launch_builder(&program.scale);
            let (a, count) = (1.0f32, 1u32);
            launch.arg(&x).arg(&x).arg(&a).arg(&count);
            // SAFETY: the kernel has these parameters.
            unsafe { launch.launch(config) }.map(|_| ()).map_err(|error| error.0)
        };
        let invalid = Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let config = |grid: u32, block: u32, shared_mem_bytes: u32| LaunchConfig {
            grid_dim: (grid, 1, 1),
            block_dim: (block, 1, 1),
            shared_mem_bytes,
        };
        assert_eq!(launch(config(0, 64, 0)), invalid);
        assert_eq!(launch(config(1, 1025, 0)), invalid);
        assert_eq!(launch(config(1, 64, 50_000)), invalid);
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        program.scale.set_attribute(attribute, 60_000).unwrap();
        assert_eq!(launch(config(1, 64, 50_000)), Ok(()));
        assert_eq!(launch(config(1, 64, 60_001)), invalid);
        assert!(program.scale.set_attribute(attribute, 300_000).is_err());
        program.compute.synchronize().unwrap();
    });
}

#[test]
fn device_memory_that_was_never_written_is_not_copied_to_the_host() {
    on_simulator_alone("driver::device_memory_that_was_never_written_is_not_copied_to_the_host", &[], || {
        crate::program::always_faults("never written", |program| {
            let memory = program.memory(4)?;
            program.compute.clone_dtoh(&memory).map(|_| ())
        });
    });
}

#[test]
fn events_measure_simulated_time() {
    in_simulator("driver::events_measure_simulated_time", &[], || {
        never_faults(|program| {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let start = program.compute.record_event(flags)?;
            let mut x = program.compute.alloc_zeros::<f32>(64)?;
            program.compute.memset_zeros(&mut x)?;
            let end = program.compute.record_event(flags)?;
            assert!(start.elapsed_ms(&end)? > 0.0);
            let untimed = program.compute.record_event(None)?;
            assert!(start.elapsed_ms(&untimed).is_err());
            Ok(())
        });
    });
}

#[test]
fn asking_again_and_again_ends() {
    in_simulator("driver::asking_again_and_again_ends", &[], || {
        never_faults(|program| {
            let x = program.copy.clone_htod(&ramp(64))?;
            program.compute.wait(&program.copy.record_event(None)?)?;
            let mut y = program.memory(64)?;
            program.launch_scale(&program.compute, &x, &mut y, 2.0)?;
            let event = program.compute.record_event(None)?;
            let mut asked = 0;
            while !event.try_is_complete()? {
                asked += 1;
                assert!(asked < 100);
            }
            // What was asked for has been waited for, so the other stream may use it.
            let mut z = program.memory(64)?;
            program.launch_scale(&program.copy, &y, &mut z, 2.0)?;
            program.copy.synchronize()
        });
    });
}
