//! Matrix products, in plain loops.

use crate::blas::description::{Compute, Description, Epilogue, MatrixLayout, Number, Preference};
use crate::blas::{BlasStatus, Result, refuse};
use amem_ptxsim::Memory;
use half::{bf16, f16};
use std::ops::Range;

/// The simulator's only algorithm splits sums when it has this many bytes to put parts in.
const SPLIT_WORKSPACE: u64 = 4096;

/// The words of a `cublasLtMatmulAlgo_t`.
pub(crate) type Algorithm = [u64; 8];

/// Marks algorithms of the simulator.
const MAGIC: u64 = 0x616d_656d_7369_6d31;

/// One matrix product: D = alpha A B + beta C + bias.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub(crate) description: Description,
    pub(crate) a: (u64, MatrixLayout),
    pub(crate) b: (u64, MatrixLayout),
    pub(crate) c: (u64, MatrixLayout),
    pub(crate) d: (u64, MatrixLayout),
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    /// What the algorithm writes intermediate results to.
    pub(crate) workspace: Range<u64>,
    /// Whether parts of sums are rounded to the type of D before they are added up.
    pub(crate) rounds_parts: bool,
}

/// The shape of a product: rows and columns of D, and the length of the sums.
fn shape(
    description: &Description,
    a: &MatrixLayout,
    b: &MatrixLayout,
    c: &MatrixLayout,
    d: &MatrixLayout,
) -> Result<[u64; 3]> {
    for (name, layout) in [('A', a), ('B', b), ('C', c), ('D', d)] {
        layout.check(name)?;
    }
    let swap = |swap: bool, layout: &MatrixLayout| match swap {
        true => (layout.columns, layout.rows),
        false => (layout.rows, layout.columns),
    };
    let (m, k) = swap(description.transpose_a, a);
    let (k_of_b, n) = swap(description.transpose_b, b);
    if k != k_of_b || (d.rows, d.columns) != (m, n) || (c.rows, c.columns) != (m, n) {
        let reason = format!(
            "the shapes do not fit: {m}x{k} times {k_of_b}x{n}, C is {}x{}, D is {}x{}",
            c.rows, c.columns, d.rows, d.columns
        );
        return refuse(BlasStatus::INVALID_VALUE, reason);
    }
    if [b, c, d].iter().any(|layout| layout.batch != a.batch) {
        return refuse(BlasStatus::INVALID_VALUE, "the matrices have different batch counts");
    }
    if d.batch > 1 && (d.batch_stride as u64) < d.span() as u64 {
        return refuse(BlasStatus::INVALID_VALUE, "the matrices of the batch of D overlap");
    }
    Ok([m, n, k])
}

/// The combinations of types that cuBLASLt documents for computing in f32.
fn check_types(description: &Description, a: Number, b: Number, c: Number, d: Number) -> Result<()> {
    let supported = a == b && c == d && (d == a || d == Number::F32);
    if !supported {
        return refuse(BlasStatus::NOT_SUPPORTED, format!("{a:?} times {b:?} plus {c:?} into {d:?}"));
    }
    if description.compute == Compute::Tf32 && a != Number::F32 {
        return refuse(BlasStatus::NOT_SUPPORTED, format!("TF32 computes with f32, not {a:?}"));
    }
    if description.epilogue == Epilogue::Bias && description.bias_type.is_some_and(|bias| bias != d) {
        return refuse(BlasStatus::NOT_SUPPORTED, format!("a bias has the type of D, which is {d:?}"));
    }
    Ok(())
}

/// What an algorithm was chosen for. Another product may not use it.
fn fingerprint(description: &Description, layouts: [&MatrixLayout; 4]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let Description { compute, transpose_a, transpose_b, epilogue, bias: _, bias_type } = description;
    (*compute as u8, *transpose_a, *transpose_b, *epilogue as u8, bias_type.map(|number| number as u8))
        .hash(&mut hasher);
    for MatrixLayout { number, rows, columns, leading, row_major, batch, batch_stride } in layouts {
        (*number as u8, rows, columns, leading, row_major, batch, batch_stride).hash(&mut hasher);
    }
    hasher.finish()
}

/// Chooses an algorithm: `cublasLtMatmulAlgoGetHeuristic`. Also returns the workspace that it needs.
pub(crate) fn choose(
    description: &Description,
    layouts: [&MatrixLayout; 4],
    preference: &Preference,
) -> Result<(Algorithm, u64)> {
    let [a, b, c, d] = layouts;
    shape(description, a, b, c, d)?;
    check_types(description, a.number, b.number, c.number, d.number)?;
    let workspace = if preference.workspace >= SPLIT_WORKSPACE { SPLIT_WORKSPACE } else { 0 };
    let [align_a, align_b, align_c, align_d] = preference.alignment.map(|alignment| u64::from(alignment.min(1 << 15)));
    let alignments = align_a | align_b << 16 | align_c << 32 | align_d << 48;
    // Whoever allows it gets sums whose parts are rounded, as a device may do it.
    let rounds = u64::from(workspace > 0 && preference.rounds_parts());
    Ok(([MAGIC, fingerprint(description, layouts), workspace, alignments, rounds, 0, 0, 0], workspace))
}

/// Whether an algorithm rounds parts of sums before it adds them up.
pub(crate) fn rounds_parts(algorithm: &Algorithm) -> bool {
    algorithm[4] != 0
}

impl Product {
    /// Fails when the product cannot be computed with an algorithm, or with the memory that is there.
    pub(crate) fn check(&self, algorithm: &Algorithm, workspace_bytes: u64) -> Result<()> {
        let layouts = [&self.a.1, &self.b.1, &self.c.1, &self.d.1];
        let [a, b, c, d] = layouts;
        shape(&self.description, a, b, c, d)?;
        check_types(&self.description, a.number, b.number, c.number, d.number)?;
        let [magic, chosen_for, needed, alignments, ..] = *algorithm;
        if magic != MAGIC {
            return refuse(BlasStatus::INVALID_VALUE, "the algorithm did not come from cuBLASLt");
        }
        if chosen_for != fingerprint(&self.description, layouts) {
            return refuse(BlasStatus::INVALID_VALUE, "the algorithm was chosen for another product");
        }
        if workspace_bytes < needed {
            let reason = format!("the algorithm needs a workspace of {needed} bytes, not {workspace_bytes}");
            return refuse(BlasStatus::INVALID_VALUE, reason);
        }
        if !self.workspace.start.is_multiple_of(16) {
            return refuse(BlasStatus::INVALID_VALUE, "the workspace is not a multiple of 16");
        }
        let addresses = [self.a.0, self.b.0, self.c.0, self.d.0];
        for (index, (name, address)) in ['A', 'B', 'C', 'D'].into_iter().zip(addresses).enumerate() {
            let alignment = alignments >> (16 * index) & 0xffff;
            if alignment > 0 && !address.is_multiple_of(alignment) {
                let reason = format!(
                    "matrix {name} is at {address:#x}, and the preference promised a multiple of {alignment}: set \
                     CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{name}_BYTES"
                );
                return refuse(BlasStatus::INVALID_VALUE, reason);
            }
        }
        if self.c.0 == self.d.0 && self.c.1 != self.d.1 {
            return refuse(BlasStatus::INVALID_VALUE, "C and D are the same memory with different layouts");
        }
        if self.description.epilogue == Epilogue::Bias && self.description.bias == 0 {
            return refuse(BlasStatus::INVALID_VALUE, "the epilogue adds a bias, and its pointer is null");
        }
        Ok(())
    }

    pub(crate) fn label(&self) -> String {
        let (d, a) = (&self.d.1, &self.a.1);
        let k = if self.description.transpose_a { a.rows } else { a.columns };
        format!("cublasLtMatmul of {}x{}x{k} {:?}", d.rows, d.columns, a.number)
    }

    /// The memory that it reads.
    pub(crate) fn reads(&self) -> Vec<Range<u64>> {
        let mut ranges = elements(&self.a);
        ranges.extend(elements(&self.b));
        if self.beta != 0.0 {
            ranges.extend(elements(&self.c));
        }
        if self.description.epilogue == Epilogue::Bias {
            let bytes = self.d.1.rows * self.bias_type().bytes() as u64;
            ranges.push(self.description.bias..self.description.bias + bytes);
        }
        ranges
    }

    /// The memory that it writes.
    pub(crate) fn writes(&self) -> Vec<Range<u64>> {
        let mut ranges = elements(&self.d);
        ranges.push(self.workspace.clone());
        ranges
    }

    fn bias_type(&self) -> Number {
        self.description.bias_type.unwrap_or(self.d.1.number)
    }

    /// Computes the product. Sums are in f32, and each element is rounded once, unless the algorithm rounds parts too.
    pub(crate) fn compute(&self, memory: &mut Memory) -> std::result::Result<(), String> {
        let scratch = (self.workspace.end - self.workspace.start) as usize;
        if scratch > 0 {
            memory.fill(self.workspace.start, crate::host::UNWRITTEN, scratch).map_err(|error| error.to_string())?;
        }
        let (rows, columns) = (self.d.1.rows as usize, self.d.1.columns as usize);
        let bias = match self.description.epilogue {
            Epilogue::Bias => load(memory, self.description.bias, rows, self.bias_type())?,
            Epilogue::None => vec![0.0; rows],
        };
        for batch in 0..self.d.1.batch as usize {
            let a = self.factor(memory, &self.a, self.description.transpose_a, batch)?;
            let b = self.factor(memory, &self.b, !self.description.transpose_b, batch)?;
            let depth = a.len() / rows;
            let c = match self.beta != 0.0 {
                true => matrix(memory, &self.c, false, batch)?,
                false => vec![0.0; rows * columns],
            };
            let mut d = vec![0.0; rows * columns];
            for row in 0..rows {
                let left = &a[row * depth..(row + 1) * depth];
                for column in 0..columns {
                    let sum = self.sum(left, &b[column * depth..(column + 1) * depth]);
                    let at = row * columns + column;
                    d[at] = self.alpha * sum + self.beta * c[at] + bias[row];
                }
            }
            store(memory, &self.d, batch, &d)?;
        }
        Ok(())
    }

    /// A sum of products, in two parts if the algorithm rounds them.
    fn sum(&self, a: &[f32], b: &[f32]) -> f32 {
        if !self.rounds_parts {
            return dot(a, b);
        }
        let half = a.len() / 2;
        let ([a, more_of_a], [b, more_of_b]) = ([&a[..half], &a[half..]], [&b[..half], &b[half..]]);
        self.d.1.number.round(dot(a, b)) + self.d.1.number.round(dot(more_of_a, more_of_b))
    }

    /// A factor as rows of the length of the sums.
    fn factor(
        &self,
        memory: &Memory,
        source: &(u64, MatrixLayout),
        transpose: bool,
        batch: usize,
    ) -> std::result::Result<Vec<f32>, String> {
        let mut values = matrix(memory, source, transpose, batch)?;
        if self.description.compute == Compute::Tf32 {
            for value in &mut values {
                *value = f32::from_bits(value.to_bits().wrapping_add(0x1000) & !0x1fff);
            }
        }
        Ok(values)
    }
}

/// The memory of a matrix's elements, without the gaps between its columns, which may belong to something else.
fn elements((address, layout): &(u64, MatrixLayout)) -> Vec<Range<u64>> {
    let bytes = layout.number.bytes();
    let (run, runs) = layout.runs();
    let batches = 0..layout.batch as usize;
    let start = |batch: usize| address + (batch * layout.batch_stride as usize * bytes) as u64;
    batches
        .flat_map(|batch| crate::operation::rows(start(batch), layout.leading as usize * bytes, run * bytes, runs))
        .collect()
}

/// A sum of products, in eight parts that are added at the end.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0f32; 8];
    let (a_runs, b_runs) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_runs.remainder().iter().zip(b_runs.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_runs.zip(b_runs) {
        for lane in 0..8 {
            parts[lane] += x[lane] * y[lane];
        }
    }
    parts.iter().sum::<f32>() + rest
}

/// The elements of a matrix, row by row, or column by column when `transpose`.
fn matrix(
    memory: &Memory,
    (address, layout): &(u64, MatrixLayout),
    transpose: bool,
    batch: usize,
) -> std::result::Result<Vec<f32>, String> {
    let bytes = layout.number.bytes();
    let start = address + (batch * layout.batch_stride as usize * bytes) as u64;
    let (rows, columns) = (layout.rows as usize, layout.columns as usize);
    // The gaps between columns may never have been written, so each column is read by itself.
    let (run, runs) = layout.runs();
    let mut elements = Vec::with_capacity(run * runs);
    for index in 0..runs {
        let at = start + (index * layout.leading as usize * bytes) as u64;
        elements.extend(load(memory, at, run, layout.number)?);
    }
    if transpose != layout.row_major {
        // In the wanted order already: columns of a matrix by columns, or rows of one by rows.
        return Ok(elements);
    }
    let (outer, inner) = if transpose { (columns, rows) } else { (rows, columns) };
    let order = (0..outer).flat_map(|outer| (0..inner).map(move |inner| (outer, inner)));
    // The elements are the other way round, so `inner` counts the runs here.
    Ok(order.filter_map(|(outer, inner)| elements.get(inner * run + outer).copied()).collect())
}

fn load(memory: &Memory, address: u64, count: usize, number: Number) -> std::result::Result<Vec<f32>, String> {
    let mut bytes = vec![0; count * number.bytes()];
    memory.read(address, &mut bytes).map_err(|error| error.to_string())?;
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    Ok(match number {
        Number::F32 => {
            bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
        }
        Number::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Number::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
    })
}

/// Rounds a matrix that is given row by row, and writes it.
fn store(
    memory: &mut Memory,
    (address, layout): &(u64, MatrixLayout),
    batch: usize,
    values: &[f32],
) -> std::result::Result<(), String> {
    let width = layout.number.bytes();
    let start = address + (batch * layout.batch_stride as usize * width) as u64;
    let columns = layout.columns as usize;
    let (run, runs) = layout.runs();
    for index in 0..runs {
        let mut bytes = Vec::with_capacity(run * width);
        for within in 0..run {
            let (row, column) = if layout.row_major { (index, within) } else { (within, index) };
            let value = values[row * columns + column];
            match layout.number {
                Number::F32 => bytes.extend(value.to_le_bytes()),
                Number::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                Number::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
        let at = start + (index * layout.leading as usize * width) as u64;
        memory.write(at, &bytes).map_err(|error| error.to_string())?;
    }
    Ok(())
}
