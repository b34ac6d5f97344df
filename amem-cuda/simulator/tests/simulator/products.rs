//! Matrix products.

use crate::program::{Program, always_faults, never_faults, on_simulator_alone};
use amem_cuda_simulator::{counts, fail_call, in_simulator, is_simulated};
use cudarc::cublaslt::{result as lt, sys};
use cudarc::driver::{CudaSlice, DevicePtr};
use half::{bf16, f16};
use sys::{
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
    cublasLtMatrixLayoutAttribute_t as LayoutAttribute, cudaDataType_t as DataType,
};

/// Bytes of the products' workspaces.
const WORKSPACE: usize = 1 << 16;

/// The relative distance between a number and its neighbour.
fn step(number: DataType) -> f64 {
    match number {
        DataType::CUDA_R_32F => f64::from(f32::EPSILON),
        DataType::CUDA_R_16F => f64::from(f32::from(f16::EPSILON)),
        _ => f64::from(f32::from(bf16::EPSILON)),
    }
}

fn encode(values: &[f32], number: DataType) -> Vec<u8> {
    match number {
        DataType::CUDA_R_32F => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DataType::CUDA_R_16F => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

fn decode(bytes: &[u8], number: DataType) -> Vec<f64> {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match number {
        DataType::CUDA_R_32F => {
            bytes.chunks_exact(4).map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap()))).collect()
        }
        DataType::CUDA_R_16F => pairs().map(|pair| f16::from_le_bytes(pair).to_f64()).collect(),
        _ => pairs().map(|pair| bf16::from_le_bytes(pair).to_f64()).collect(),
    }
}

/// Numbers between -1 and 1 that look random.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let number = |index: usize| {
        let hash = (index as u32 + 1).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
        (hash ^ (hash >> 13)).wrapping_mul(2_246_822_519) as i32 as f32 / 2f32.powi(31)
    };
    (0..count).map(number).collect()
}

/// A column-major matrix of a product, in memory with `gap` unwritten elements between its columns.
struct Matrix {
    memory: CudaSlice<u8>,
    layout: sys::cublasLtMatrixLayout_t,
    values: Vec<f64>,
    rows: usize,
    columns: usize,
    leading: usize,
    number: DataType,
}

impl Matrix {
    fn new(program: &Program, rows: usize, columns: usize, gap: usize, number: DataType, seed: u32) -> Matrix {
        let leading = rows + gap;
        let layout = lt::create_matrix_layout(number, rows as u64, columns as u64, leading as i64).unwrap();
        let width = encode(&[0.0], number).len();
        // SAFETY: what is read is written before.
        let mut memory = unsafe { program.compute.alloc::<u8>(leading * columns * width) }.unwrap();
        let mut values = Vec::new();
        for column in 0..columns {
            let bytes = encode(&noise(rows, seed + column as u32), number);
            values.extend(decode(&bytes, number));
            let start = column * leading * width;
            program.compute.memcpy_htod(&bytes, &mut memory.slice_mut(start..start + bytes.len())).unwrap();
        }
        Matrix { memory, layout, values, rows, columns, leading, number }
    }

    fn get(&self, row: usize, column: usize, transposed: bool) -> f64 {
        let (row, column) = if transposed { (column, row) } else { (row, column) };
        self.values[column * self.rows + row]
    }

    fn download(&self, program: &Program) -> Vec<f64> {
        let width = encode(&[0.0], self.number).len();
        let column = |column: usize| {
            let start = column * self.leading * width;
            let view = self.memory.slice(start..start + self.rows * width);
            decode(&program.compute.clone_dtoh(&view).unwrap(), self.number)
        };
        (0..self.columns).flat_map(column).collect()
    }

    fn pointer(&self, program: &Program) -> *mut std::ffi::c_void {
        self.memory.device_ptr(&program.compute).0 as *mut _
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: the layout is not used again.
        unsafe { lt::destroy_matrix_layout(self.layout) }.unwrap();
    }
}

/// How a product is computed.
struct Plan {
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
}

impl Plan {
    fn new(compute: sys::cublasComputeType_t) -> Plan {
        let description = lt::create_matmul_desc(compute, DataType::CUDA_R_32F).unwrap();
        let (handle, preference) = (lt::create_handle().unwrap(), lt::create_matmul_pref().unwrap());
        let plan = Plan { handle, description, preference };
        plan.prefer(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE);
        let exactly = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        plan.prefer(PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &exactly);
        plan
    }

    fn set<T>(&self, attribute: Attribute, value: &T) {
        let value: *const T = value;
        // SAFETY: the value is as large as it is said to be.
        unsafe { lt::set_matmul_desc_attribute(self.description, attribute, value.cast(), size_of::<T>()) }.unwrap();
    }

    fn prefer<T>(&self, attribute: PreferenceAttribute, value: &T) {
        let value: *const T = value;
        // SAFETY: the value is as large as it is said to be.
        unsafe { lt::set_matmul_pref_attribute(self.preference, attribute, value.cast(), size_of::<T>()) }.unwrap();
    }

    fn choose(&self, matrices: [&Matrix; 4]) -> Result<sys::cublasLtMatmulHeuristicResult_t, lt::CublasError> {
        let [a, b, c, d] = matrices.map(|matrix| matrix.layout);
        // SAFETY: everything that is named is alive.
        unsafe { lt::get_matmul_algo_heuristic(self.handle, self.description, a, b, c, d, self.preference) }
    }

    /// D = alpha A B + beta C
    fn run(
        &self,
        program: &Program,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        [a, b, c, d]: [&Matrix; 4],
        factors: [f32; 2],
        (workspace, bytes): (&CudaSlice<u8>, usize),
    ) -> Result<(), lt::CublasError> {
        let [alpha, beta] = &factors;
        let (alpha, beta): (*const f32, *const f32) = (alpha, beta);
        let workspace = workspace.device_ptr(&program.compute).0 as *mut _;
        let stream = program.compute.cu_stream().cast();
        // SAFETY: the simulator checks that the matrices lie in their memory.
        unsafe {
            lt::matmul(
                self.handle,
                self.description,
                alpha.cast(),
                beta.cast(),
                a.pointer(program),
                a.layout,
                b.pointer(program),
                b.layout,
                c.pointer(program),
                c.layout,
                d.pointer(program),
                d.layout,
                algorithm,
                workspace,
                bytes,
                stream,
            )
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: none of them is used again.
        unsafe {
            lt::destroy_matmul_pref(self.preference).unwrap();
            lt::destroy_matmul_desc(self.description).unwrap();
            lt::destroy_handle(self.handle).unwrap();
        }
    }
}

const F32: sys::cublasComputeType_t = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;

fn workspace(program: &Program) -> CudaSlice<u8> {
    // SAFETY: only the product uses it.
    unsafe { program.compute.alloc(WORKSPACE) }.unwrap()
}

/// Computes one product and compares it with one in f64.
fn compare(program: &Program, from: DataType, to: DataType, transposed: [bool; 2], bias: bool, beta: f32) {
    let (m, n, k) = (24, 7, 40);
    let swap = |swap: bool, rows, columns| if swap { (columns, rows) } else { (rows, columns) };
    let (a_rows, a_columns) = swap(transposed[0], m, k);
    let (b_rows, b_columns) = swap(transposed[1], k, n);
    let a = Matrix::new(program, a_rows, a_columns, 8, from, 1);
    let b = Matrix::new(program, b_rows, b_columns, 0, from, 2);
    let c = Matrix::new(program, m, n, 0, to, 3);
    let d = Matrix::new(program, m, n, 8, to, 4);
    let plan = Plan::new(F32);
    plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(transposed[0]));
    plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(transposed[1]));
    let bias_bytes = encode(&noise(m, 5), to);
    let bias_memory = program.compute.clone_htod(&bias_bytes).unwrap();
    let bias_values = if bias { decode(&bias_bytes, to) } else { vec![0.0; m] };
    if bias {
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS);
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &to);
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias_memory.device_ptr(&program.compute).0);
    }
    let matrices = [&a, &b, &c, &d];
    let chosen = plan.choose(matrices).unwrap();
    let alpha = 0.75;
    let scratch = workspace(program);
    plan.run(program, &chosen.algo, matrices, [alpha, beta], (&scratch, WORKSPACE)).unwrap();
    let result = d.download(program);
    for column in 0..n {
        for row in 0..m {
            let terms: Vec<f64> =
                (0..k).map(|i| a.get(row, i, transposed[0]) * b.get(i, column, transposed[1])).collect();
            let rest = f64::from(beta) * c.get(row, column, false) + bias_values[row];
            let expected = f64::from(alpha) * terms.iter().sum::<f64>() + rest;
            // Every addition in f32 rounds, and the result once more, to its own type.
            let size = terms.iter().map(|term| term.abs()).sum::<f64>() + rest.abs();
            let allowed = k as f64 * f64::from(f32::EPSILON) * size + step(to) / 2.0 * expected.abs();
            let found = result[column * m + row];
            assert!((found - expected).abs() <= allowed, "{from:?} {to:?} {transposed:?}: {found} is not {expected}");
        }
    }
}

#[test]
fn products_of_all_types_are_right() {
    in_simulator("products::products_of_all_types_are_right", &[], || {
        let program = Program::new().unwrap();
        let (f32, f16, bf16) = (DataType::CUDA_R_32F, DataType::CUDA_R_16F, DataType::CUDA_R_16BF);
        for (from, to) in [(f32, f32), (f16, f16), (f16, f32), (bf16, bf16), (bf16, f32)] {
            for transposed in [[false, false], [true, false], [false, true], [true, true]] {
                compare(&program, from, to, transposed, false, 0.0);
                compare(&program, from, to, transposed, true, 0.5);
            }
        }
    });
}

#[test]
fn products_in_tf32_lose_the_end_of_their_factors() {
    in_simulator("products::products_in_tf32_lose_the_end_of_their_factors", &[], || {
        let program = Program::new().unwrap();
        let number = DataType::CUDA_R_32F;
        let [a, b] = [1, 2].map(|seed| Matrix::new(&program, 32, 32, 0, number, seed));
        let d = Matrix::new(&program, 32, 32, 0, number, 3);
        let matrices = [&a, &b, &d, &d];
        let scratch = workspace(&program);
        let error = |compute| {
            let plan = Plan::new(compute);
            let chosen = plan.choose(matrices).unwrap();
            plan.run(&program, &chosen.algo, matrices, [1.0, 0.0], (&scratch, WORKSPACE)).unwrap();
            let result = d.download(&program);
            let exact = |at: usize| (0..32).map(|i| a.get(at % 32, i, false) * b.get(i, at / 32, false)).sum::<f64>();
            (0..32 * 32).map(|at| (result[at] - exact(at)).abs()).fold(0.0, f64::max)
        };
        let (full, short) = (error(F32), error(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32));
        // The factors keep 10 bits of their fractions, and 32 products of numbers below 1 are added.
        assert!(full < 1e-5 && short > 1e-4 && short < 32.0 * 2f64.powi(-10), "{full} {short}");
    });
}

#[test]
fn a_batch_of_products_is_computed_in_one_call() {
    in_simulator("products::a_batch_of_products_is_computed_in_one_call", &[], || {
        let program = Program::new().unwrap();
        let number = DataType::CUDA_R_32F;
        // Three matrices beside each other are one with three times the columns.
        let [a, b, d] = [1, 2, 3].map(|seed| Matrix::new(&program, 8, 24, 0, number, seed));
        for matrix in [&a, &b, &d] {
            let (columns, count, stride) = (8u64, 3i32, 64i64);
            // SAFETY: the values are as large as they are said to be.
            unsafe {
                let set =
                    |attribute, value, bytes| lt::set_matrix_layout_attribute(matrix.layout, attribute, value, bytes);
                set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_COLS, (&raw const columns).cast(), 8).unwrap();
                set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), 4).unwrap();
                set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, (&raw const stride).cast(), 8)
                    .unwrap();
            }
        }
        let matrices = [&a, &b, &d, &d];
        let plan = Plan::new(F32);
        let chosen = plan.choose(matrices).unwrap();
        plan.run(&program, &chosen.algo, matrices, [1.0, 0.0], (&workspace(&program), WORKSPACE)).unwrap();
        let result = d.download(&program);
        for (at, found) in result.iter().enumerate() {
            let (batch, row, column) = (at / 64, at % 8, at / 8 % 8);
            let product = |i: usize| a.get(row, batch * 8 + i, false) * b.get(i, batch * 8 + column, false);
            let expected: f64 = (0..8).map(product).sum();
            assert!((found - expected).abs() < 1e-5, "{batch} {row} {column}");
        }
    });
}

#[test]
fn what_cublaslt_does_not_do_is_refused() {
    in_simulator("products::what_cublaslt_does_not_do_is_refused", &[], || {
        let program = Program::new().unwrap();
        let (f32, f16, bf16) = (DataType::CUDA_R_32F, DataType::CUDA_R_16F, DataType::CUDA_R_16BF);
        let matrix = |number| Matrix::new(&program, 16, 16, 0, number, 1);
        let plan = Plan::new(F32);
        let choose = |[a, b, d]: [DataType; 3]| {
            let (a, b, d) = (matrix(a), matrix(b), matrix(d));
            plan.choose([&a, &b, &d, &d]).map(|_| ()).map_err(|error| error.0)
        };
        let unsupported = Err(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
        assert_eq!(choose([f16, f16, f16]), Ok(()));
        assert_eq!(choose([f16, bf16, f32]), unsupported);
        assert_eq!(choose([f16, f16, bf16]), unsupported);
        assert_eq!(choose([f32, f32, f16]), unsupported);
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS);
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &f32);
        assert_eq!(choose([f16, f16, f32]), Ok(()));
        assert_eq!(choose([f16, f16, f16]), unsupported);
        let (narrow, wide) = (Matrix::new(&program, 8, 16, 0, f32, 1), matrix(f32));
        let shapes = plan.choose([&wide, &narrow, &wide, &wide]).map_err(|error| error.0);
        assert_eq!(shapes.err(), Some(sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE));
    });
}

#[test]
fn an_algorithm_is_for_the_product_workspace_and_alignment_that_it_was_chosen_for() {
    let name = "products::an_algorithm_is_for_the_product_workspace_and_alignment_that_it_was_chosen_for";
    on_simulator_alone(name, &[], || {
        let program = Program::new().unwrap();
        let number = DataType::CUDA_R_32F;
        let [a, b, d] = [1, 2, 3].map(|seed| Matrix::new(&program, 16, 16, 0, number, seed));
        let other = Matrix::new(&program, 16, 8, 0, number, 4);
        let plan = Plan::new(F32);
        let matrices = [&a, &b, &d, &d];
        let chosen = plan.choose(matrices).unwrap();
        let scratch = workspace(&program);
        let run = |algorithm: &_, matrices, bytes| {
            let done = plan.run(&program, algorithm, matrices, [1.0, 0.0], (&scratch, bytes));
            done.map_err(|error| error.0)
        };
        let invalid = Err(sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(run(&chosen.algo, matrices, WORKSPACE), Ok(()));
        assert_eq!(run(&chosen.algo, [&a, &other, &other, &other], WORKSPACE), invalid);
        assert_eq!(run(&sys::cublasLtMatmulAlgo_t { data: [0; 8] }, matrices, WORKSPACE), invalid);
        assert!(chosen.workspaceSize > 0 && chosen.workspaceSize <= WORKSPACE);
        assert_eq!(run(&chosen.algo, matrices, chosen.workspaceSize - 1), invalid);
        // More than there is.
        assert_eq!(run(&chosen.algo, matrices, WORKSPACE + 1), invalid);
        plan.prefer(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &1024u32);
        let aligned = plan.choose(matrices).unwrap();
        let expected = if a.pointer(&program).addr() % 1024 == 0 { Ok(()) } else { invalid };
        assert_eq!(run(&aligned.algo, matrices, WORKSPACE), expected);
        program.compute.synchronize().unwrap();
    });
}

#[test]
fn a_product_is_part_of_its_streams_order() {
    in_simulator("products::a_product_is_part_of_its_streams_order", &[], || {
        let run = |program: &Program, wait: bool| {
            let number = DataType::CUDA_R_16F;
            let [a, b] = [1, 2].map(|seed| Matrix::new(program, 16, 16, 0, number, seed));
            let mut d = Matrix::new(program, 16, 16, 0, number, 3);
            let plan = Plan::new(F32);
            let chosen = plan.choose([&a, &b, &d, &d]).unwrap();
            let scratch = workspace(program);
            plan.run(program, &chosen.algo, [&a, &b, &d, &d], [1.0, 0.0], (&scratch, WORKSPACE)).ok();
            if wait {
                program.copy.wait(&program.compute.record_event(None)?)?;
            }
            program.copy.memset_zeros(&mut d.memory)?;
            program.context.synchronize()
        };
        always_faults("wrong order", |program| run(program, false));
        never_faults(|program| run(program, true));
    });
}

#[test]
fn the_workspace_is_written_to() {
    in_simulator("products::the_workspace_is_written_to", &[], || {
        let program = Program::new().unwrap();
        let [a, b, d] = [1, 2, 3].map(|seed| Matrix::new(&program, 16, 16, 0, DataType::CUDA_R_32F, seed));
        let scratch = program.compute.clone_htod(&vec![1u8; WORKSPACE]).unwrap();
        let plan = Plan::new(F32);
        let chosen = plan.choose([&a, &b, &d, &d]).unwrap();
        plan.run(&program, &chosen.algo, [&a, &b, &d, &d], [1.0, 0.0], (&scratch, WORKSPACE)).unwrap();
        let bytes = program.compute.clone_dtoh(&scratch).unwrap();
        assert!(!is_simulated() || bytes[..chosen.workspaceSize].iter().all(|&byte| byte != 1));
        assert!(bytes[chosen.workspaceSize..].iter().all(|&byte| byte == 1));
    });
}

#[test]
fn products_and_heuristics_are_counted_and_can_fail() {
    on_simulator_alone("products::products_and_heuristics_are_counted_and_can_fail", &[], || {
        let program = Program::new().unwrap();
        let [a, b, d] = [1, 2, 3].map(|seed| Matrix::new(&program, 16, 16, 0, DataType::CUDA_R_32F, seed));
        let matrices = [&a, &b, &d, &d];
        let plan = Plan::new(F32);
        let chosen = plan.choose(matrices).unwrap();
        let scratch = workspace(&program);
        assert!(fail_call("cublasLtMatmul", 2, sys::cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR as u32));
        let run = || plan.run(&program, &chosen.algo, matrices, [1.0, 0.0], (&scratch, WORKSPACE)).is_ok();
        assert_eq!([run(), run(), run()], [true, false, true]);
        let counts = counts();
        assert_eq!((counts.products, counts.heuristics), (2, 1));
    });
}
