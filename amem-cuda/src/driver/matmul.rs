//! Dense products, by cuBLASLt. Its descriptors and the algorithm that its heuristic names are kept for each shape.

use std::collections::HashMap;

use amem_core::Dtype;
use cudarc::cublaslt::{result, sys};

use super::memory::{allocate, free_all};
use super::{Buffer, Device};
use crate::error::{CudaError, Result};

/// Memory that algorithms may use; NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;

/// How an algorithm that splits sums may add up their parts: in f32 only. It might also do so in the type of `y`.
const REDUCTION: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// `CUBLAS_OP_T`, which cudarc has in another library's bindings only.
const TRANSPOSED: i32 = 1;

/// Shapes whose algorithms are kept.
const KEPT: usize = 4096;

/// `y = x · wᵀ + bias`, of `x` `[rows][inputs]` and `w` `[outputs][inputs]`, summed in f32.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    shape: Shape,
    x: u64,
    w: u64,
    bias: u64,
    y: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// The type of `x` and `w`.
    from: Dtype,
    /// The type of `y` and the bias.
    to: Dtype,
    biased: bool,
}

impl Product {
    /// A product of these buffers, of the types that are named: that of `x` and `w`, and that of the bias and `y`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when one of them is too small.
    pub(crate) fn new(
        (rows, inputs, outputs): (usize, usize, usize),
        (from, to): (Dtype, Dtype),
        [x, w, y]: [&Buffer; 3],
        bias: Option<&Buffer>,
    ) -> Result<Self> {
        let needs = |buffer: &Buffer, numbers: usize, dtype: Dtype| {
            let (needed, found) = (numbers.saturating_mul(dtype.size()), buffer.bytes());
            if needed <= found {
                Ok(buffer.address())
            } else {
                Err(CudaError::Shape { kernel: "a product", needed, found })
            }
        };
        Ok(Self {
            x: needs(x, rows.saturating_mul(inputs), from)?,
            w: needs(w, outputs.saturating_mul(inputs), from)?,
            y: needs(y, rows.saturating_mul(outputs), to)?,
            bias: bias.map_or(Ok(0), |bias| needs(bias, outputs, to))?,
            shape: Shape { rows, inputs, outputs, from, to, biased: bias.is_some() },
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shape.rows == 0
    }
}

/// The library, and what it was found to do best.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    /// The address of the memory that algorithms may use.
    workspace: u64,
    prepared: HashMap<Shape, Prepared>,
}

// SAFETY: the library's handle and descriptors may be used from any thread, one at a time. They are only reached
// under the queue's lock.
unsafe impl Send for Products {}

/// How one shape is computed.
struct Prepared {
    product: Descriptor,
    /// Of `w`, `x` and `y`: the library counts columns first, so the factors change places.
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

struct Descriptor(sys::cublasLtMatmulDesc_t);
struct Layout(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it was created and is destroyed once. There is nobody to tell of a failure.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as for `Descriptor`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as for `Descriptor`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.prepared.clear();
        // SAFETY: it was created and is destroyed once, after all that was made with it. There is nobody to tell of a
        // failure, here or below.
        let _ = unsafe { result::destroy_handle(self.handle) };
        // The context is current, and no product runs any more.
        let _ = free_all((self.workspace != 0).then_some(self.workspace));
    }
}

impl Products {
    /// The library must be present, and a context must be current on this thread. The workspace is taken at once: later
    /// there might be no room for it, and it cannot be allocated while a graph is captured.
    pub(super) fn new() -> Result<Self> {
        let handle = result::create_handle().map_err(CudaError::cublas("cublasLtCreate"))?;
        let mut products = Self { handle, workspace: 0, prepared: HashMap::new() };
        products.workspace = allocate(WORKSPACE)?;
        Ok(products)
    }

    pub(super) fn execute(&mut self, device: &Device, product: &Product) -> Result<()> {
        if !self.prepared.contains_key(&product.shape) {
            if self.prepared.len() >= KEPT {
                self.prepared.clear();
            }
            self.prepared.insert(product.shape, Prepared::new(self.handle, &product.shape)?);
        }
        let Some(Prepared { product: descriptor, layouts: [w, x, y], algorithm }) = self.prepared.get(&product.shape)
        else {
            return Ok(());
        };
        if product.shape.biased {
            set(descriptor, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.bias)?;
        }
        let (one, zero) = (1f32, 0f32);
        let pointer = |address: u64| std::ptr::with_exposed_provenance_mut::<std::ffi::c_void>(address as usize);
        // SAFETY: the layouts describe what `Product::new` checked the buffers for, the workspace has the size that the
        // algorithm was chosen for, and the two factors outlive the call, which reads them.
        unsafe {
            result::matmul(
                self.handle,
                descriptor.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                pointer(product.w),
                w.0,
                pointer(product.x),
                x.0,
                pointer(product.y),
                y.0,
                pointer(product.y),
                y.0,
                algorithm,
                pointer(self.workspace),
                WORKSPACE,
                device.compute.cu_stream().cast(),
            )
        }
        .map_err(CudaError::cublas("cublasLtMatmul"))
    }
}

impl Prepared {
    fn new(handle: sys::cublasLtHandle_t, shape: &Shape) -> Result<Self> {
        use sys::{cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Preferred};
        let Shape { rows, inputs, outputs, from, to, biased } = *shape;
        let real = sys::cudaDataType_t::CUDA_R_32F;
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, real)
            .map(Descriptor)
            .map_err(CudaError::cublas("cublasLtMatmulDescCreate"))?;
        set(&product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if biased {
            set(&product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            set(&product, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &kind(to))?;
        }
        let layout = |dtype, rows: usize, columns: usize| {
            result::create_matrix_layout(kind(dtype), rows as u64, columns as u64, rows as i64)
                .map(Layout)
                .map_err(CudaError::cublas("cublasLtMatrixLayoutCreate"))
        };
        let layouts = [layout(from, inputs, outputs)?, layout(from, inputs, rows)?, layout(to, outputs, rows)?];
        let preference = result::create_matmul_pref()
            .map(Preference)
            .map_err(CudaError::cublas("cublasLtMatmulPreferenceCreate"))?;
        prefer(&preference, Preferred::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        prefer(&preference, Preferred::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCTION)?;
        let [w, x, y] = &layouts;
        // SAFETY: everything that is named is alive.
        let found = unsafe { result::get_matmul_algo_heuristic(handle, product.0, w.0, x.0, y.0, y.0, preference.0) }
            .map_err(CudaError::cublas("cublasLtMatmulAlgoGetHeuristic"))?;
        Ok(Self { product, layouts, algorithm: found.algo })
    }
}

fn prefer<T>(preference: &Preference, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the preference is alive, and the attribute is read from where it is said to be. Callers give each attribute
    // a value of its type.
    unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, size_of::<T>()) }
        .map_err(CudaError::cublas("cublasLtMatmulPreferenceSetAttribute"))
}

fn set<T>(product: &Descriptor, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
    // SAFETY: the descriptor is alive, and the attribute is read from where it is said to be. Callers give each
    // attribute a value of its type.
    unsafe { result::set_matmul_desc_attribute(product.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
        .map_err(CudaError::cublas("cublasLtMatmulDescSetAttribute"))
}

fn kind(dtype: Dtype) -> sys::cudaDataType_t {
    match dtype {
        Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}
