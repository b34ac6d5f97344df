//! What is missing or breaks is said by name.

use amem_core::transformer::{Attention, Backend, WeightRole, WeightTensor};
use amem_core::{Dtype, Error, KvShape};
use amem_cuda::{CudaBackend, CudaError, CudaOptions, Precision};
use amem_cuda_simulator::in_simulator;

use crate::{open, open_as_it_is};

fn opened() -> Result<(), CudaError> {
    CudaBackend::open(CudaOptions::default()).map(drop)
}

#[test]
fn without_a_driver_there_is_no_panic_but_an_error_that_says_so() {
    // Where there is one, this cannot be tried.
    if std::path::Path::new("/dev/nvidiactl").exists() || std::env::var_os("AMEM_CUDA_DEVICE").is_some() {
        return;
    }
    let error = opened().unwrap_err();
    assert!(matches!(error, CudaError::NoDriver), "{error}");
    assert!(error.to_string().contains("amem-cpu"), "{error}");
}

#[test]
fn a_machine_without_gpus_has_no_gpu_0() {
    in_simulator("failures::a_machine_without_gpus_has_no_gpu_0", &[("AMEM_SIM_DEVICES", "0")], || {
        assert!(matches!(opened(), Err(CudaError::NoDevice { ordinal: 0, found: 0 })));
    });
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    in_simulator("failures::a_gpu_that_is_not_there_is_named", &[], || {
        let error = CudaBackend::open(CudaOptions::default().ordinal(7)).err().unwrap();
        assert!(matches!(error, CudaError::NoDevice { ordinal: 7, found: 1.. }), "{error}");
    });
}

#[test]
fn an_old_driver_is_named_with_what_is_needed() {
    in_simulator("failures::an_old_driver_is_named_with_what_is_needed", &[("AMEM_SIM_DRIVER", "11040")], || {
        let error = opened().unwrap_err();
        assert!(error.to_string().contains("CUDA 11.4 and 12.0 is needed"), "{error}");
    });
}

/// Where programs only run, libraries have the versions in their names that programs ask for.
#[test]
fn the_files_that_come_without_a_toolkit_are_found_for_cuda_12_and_13() {
    fn computes() {
        let gpu = open(Precision::F16);
        let x = gpu.upload(8, &[1.0; 9 * 8]).unwrap();
        let product = gpu.linear(&x, &matrix(&gpu, 8, 8).unwrap(), None).unwrap();
        assert_eq!(gpu.read(&product).unwrap(), [0.0; 9 * 8]);
    }
    let name = "failures::the_files_that_come_without_a_toolkit_are_found_for_cuda_12_and_13";
    for names in ["libcuda.so.1,libcublasLt.so.12", "libcuda.so.1,libcublasLt.so.13"] {
        in_simulator(name, &[("AMEM_SIM_NAMES", names)], computes);
    }
}

#[test]
fn an_old_cublas_is_named_with_what_is_needed() {
    let settings = [("AMEM_SIM_NAMES", "libcuda.so.1,libcublasLt.so.11"), ("AMEM_SIM_CUBLAS", "111103")];
    in_simulator("failures::an_old_cublas_is_named_with_what_is_needed", &settings, || {
        let error = opened().unwrap_err();
        assert!(matches!(error, CudaError::OldCublas { version: 111_103 }), "{error}");
        assert!(error.to_string().contains("12.0 (120000) is needed"), "{error}");
    });
}

#[test]
fn a_module_that_the_driver_refuses_comes_with_the_compilers_words() {
    let settings = [("AMEM_SIM_FAIL", "cuModuleLoadDataEx:1:218")];
    in_simulator("failures::a_module_that_the_driver_refuses_comes_with_the_compilers_words", &settings, || {
        let gpu = open(Precision::F16);
        let error = gpu.embed(&matrix(&gpu, 8, 8).unwrap(), &[0]).err().unwrap();
        assert!(error.to_string().contains("elementwise_f16"), "{error}");
    });
}

fn matrix(gpu: &CudaBackend, rows: usize, columns: usize) -> amem_core::Result<amem_cuda::Matrix> {
    let bytes = vec![0; rows * columns * 2];
    gpu.matrix(&WeightTensor::new(WeightRole::Embedding, Dtype::F16, rows, columns, &bytes))
}

#[test]
fn a_gpu_without_room_is_full_and_goes_on_once_there_is_some() {
    // Eight million bytes beside what cuBLASLt's workspace takes.
    let settings = [("AMEM_SIM_MEMORY", "41554432")];
    in_simulator("failures::a_gpu_without_room_is_full_and_goes_on_once_there_is_some", &settings, || {
        let gpu = open_as_it_is(Precision::F16);
        let shape = KvShape { layers: 4, kv_heads: 2, head_dim: 64 };
        let cache = |blocks| gpu.cache(&shape, Dtype::F16, blocks);
        let error = cache(1000).err().unwrap();
        assert!(matches!(error, Error::Full { .. }) && error.to_string().contains("bytes"), "{error}");
        // Half of what there is, twice: the second takes what the pool kept of the first.
        let held = cache(30).unwrap();
        drop(held);
        cache(40).unwrap();
    });
}

#[test]
fn a_gpu_without_room_for_a_workspace_is_full_and_opens_once_there_is_some() {
    let settings = [("AMEM_SIM_FAIL", "cuMemAlloc_v2:1:2")];
    in_simulator(
        "failures::a_gpu_without_room_for_a_workspace_is_full_and_opens_once_there_is_some",
        &settings,
        || {
            let error = opened().unwrap_err();
            assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
            let gpu = open(Precision::F16);
            let x = gpu.upload(16, &[1.0; 9 * 16]).unwrap();
            let product = gpu.linear(&x, &matrix(&gpu, 8, 16).unwrap(), None).unwrap();
            assert_eq!(gpu.read(&product).unwrap(), [0.0; 9 * 8]);
        },
    );
}

#[test]
fn after_a_kernel_failed_every_call_says_that_the_gpu_is_lost() {
    let settings = [("AMEM_SIM_FAIL", "cuStreamSynchronize:1:700")];
    in_simulator("failures::after_a_kernel_failed_every_call_says_that_the_gpu_is_lost", &settings, || {
        let gpu = open(Precision::F16);
        let x = gpu.upload(8, &[1.0; 8]).unwrap();
        let error = gpu.read(&x).unwrap_err();
        assert!(error.to_string().contains("start it again"), "{error}");
    });
}

/// Rows of other widths would not begin where kernels can read 16 bytes, and a GPU is lost after the first that does not.
#[test]
fn matrices_of_widths_that_kernels_cannot_read_are_refused() {
    in_simulator("failures::matrices_of_widths_that_kernels_cannot_read_are_refused", &[], || {
        for (precision, refused, taken) in [(Precision::F16, [12, 37], 8), (Precision::F32, [6, 37], 12)] {
            let gpu = open(precision);
            for columns in refused {
                let error = matrix(&gpu, 8, columns).err().unwrap();
                assert!(matches!(error, Error::UnsupportedModel { .. }), "{error}");
                assert!(error.to_string().contains(&format!("rows of {columns} numbers")), "{error}");
            }
            let x = gpu.upload(taken, &vec![1.0; taken]).unwrap();
            let product = gpu.linear(&x, &matrix(&gpu, 8, taken).unwrap(), None).unwrap();
            assert_eq!(gpu.read(&product).unwrap(), [0.0; 8]);
        }
    });
}

#[test]
fn arguments_that_do_not_fit_are_errors() {
    in_simulator("failures::arguments_that_do_not_fit_are_errors", &[], || {
        let gpu = open(Precision::Bf16);
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 60 };
        let error = gpu.cache(&shape, Dtype::Bf16, 1).err().unwrap();
        assert!(error.to_string().contains("heads of 60 numbers in bf16"), "{error}");
        let shape = KvShape { head_dim: 64, ..shape };
        let error = gpu.cache(&shape, Dtype::F16, 1).err().unwrap();
        assert!(error.to_string().contains("what the backend computes in"), "{error}");
        let capped = |cap| gpu.check_attention(&Attention::new(0, 64).soft_cap(Some(cap)));
        assert!(capped(50.0).is_ok());
        let error = capped(2000.0).unwrap_err();
        assert!(matches!(error, Error::UnsupportedModel { .. }) && error.to_string().contains("2000"), "{error}");
        let x = gpu.upload(8, &[0.0; 16]).unwrap();
        assert!(gpu.gather(&x, &[2]).is_err());
        assert!(gpu.sum_rows(&x, &[(2, 1.0)], 1).is_err());
        assert!(gpu.linear(&x, &matrix(&gpu, 8, 16).unwrap(), None).is_err());
        assert!(gpu.embed(&matrix(&gpu, 8, 8).unwrap(), &[8]).is_err());
    });
}
