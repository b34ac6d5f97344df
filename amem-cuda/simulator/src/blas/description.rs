//! What a program tells cuBLASLt about a product: descriptors, layouts and preferences, with their attributes.

use crate::blas::{BlasStatus, Result, refuse};
use half::{bf16, f16};

/// The types of numbers that products are computed in, with the codes of `cudaDataType_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Number {
    F32,
    F16,
    Bf16,
}

impl Number {
    pub(crate) fn from_code(code: u32) -> Result<Number> {
        match code {
            0 => Ok(Number::F32),
            2 => Ok(Number::F16),
            14 => Ok(Number::Bf16),
            _ => refuse(BlasStatus::NOT_SUPPORTED, format!("the simulator does not know data type {code}")),
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Number::F32 => 4,
            Number::F16 | Number::Bf16 => 2,
        }
    }

    /// The nearest number of this type.
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Number::F32 => value,
            Number::F16 => f16::from_f32(value).to_f32(),
            Number::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

/// How exactly a product is computed, with the codes of `cublasComputeType_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compute {
    F32,
    /// Factors in f32 lose the last 13 bits of their fractions.
    Tf32,
}

/// What is added to a product before it is rounded, with the codes of `cublasLtEpilogue_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Epilogue {
    None,
    Bias,
}

/// A `cublasLtMatmulDesc_t`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Description {
    pub(crate) compute: Compute,
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    pub(crate) epilogue: Epilogue,
    pub(crate) bias: u64,
    pub(crate) bias_type: Option<Number>,
}

/// A `cublasLtMatrixLayout_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MatrixLayout {
    pub(crate) number: Number,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    /// Elements between two columns, or between two rows when `row_major`.
    pub(crate) leading: i64,
    pub(crate) row_major: bool,
    pub(crate) batch: i32,
    /// Elements between two matrices of a batch.
    pub(crate) batch_stride: i64,
}

/// A `cublasLtMatmulPreference_t`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) workspace: u64,
    /// How parts of sums may be added up: a mask of `cublasLtReductionScheme_t`. All are allowed if nothing is said.
    pub(crate) reductions: u32,
    /// What the addresses of A, B, C and D are multiples of.
    pub(crate) alignment: [u32; 4],
}

impl Preference {
    /// The reduction schemes that add up parts in the type of D: in place, and those that say so.
    const IN_TYPE_OF_D: u32 = 1 | 4;

    /// Whether parts of sums may be rounded to the type of D before they are added up.
    pub(crate) fn rounds_parts(&self) -> bool {
        self.reductions & Self::IN_TYPE_OF_D != 0
    }
}

impl Default for Preference {
    fn default() -> Preference {
        Preference { workspace: 0, reductions: 7, alignment: [256; 4] }
    }
}

/// An attribute's value, as bytes.
pub(crate) struct Value<'a>(pub(crate) &'a [u8]);

impl Value<'_> {
    fn u32(&self) -> Result<u32> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn i32(&self) -> Result<i32> {
        self.fixed().map(i32::from_le_bytes)
    }

    fn u64(&self) -> Result<u64> {
        self.fixed().map(u64::from_le_bytes)
    }

    fn i64(&self) -> Result<i64> {
        self.fixed().map(i64::from_le_bytes)
    }

    fn fixed<const N: usize>(&self) -> Result<[u8; N]> {
        match self.0.try_into() {
            Ok(bytes) => Ok(bytes),
            Err(_) => {
                let reason = format!("the attribute has {N} bytes, and {} were passed", self.0.len());
                refuse(BlasStatus::INVALID_VALUE, reason)
            }
        }
    }
}

fn unknown<T>(what: &str, attribute: u32) -> Result<T> {
    refuse(BlasStatus::NOT_SUPPORTED, format!("the simulator does not know attribute {attribute} of a {what}"))
}

impl Description {
    pub(crate) fn new(compute: u32, scale: u32) -> Result<Description> {
        if Number::from_code(scale)? != Number::F32 {
            return refuse(BlasStatus::NOT_SUPPORTED, "the simulator scales in f32 only");
        }
        Ok(Description {
            compute: compute_type(compute)?,
            transpose_a: false,
            transpose_b: false,
            epilogue: Epilogue::None,
            bias: 0,
            bias_type: None,
        })
    }

    /// `cublasLtMatmulDescSetAttribute`, with the codes of `cublasLtMatmulDescAttributes_t`.
    pub(crate) fn set(&mut self, attribute: u32, value: &Value<'_>) -> Result<()> {
        match attribute {
            0 => self.compute = compute_type(value.u32()?)?,
            2 if value.u32()? == 0 => {}
            2 => return refuse(BlasStatus::NOT_SUPPORTED, "the simulator takes factors from the host only"),
            3 => self.transpose_a = transpose(value.u32()?)?,
            4 => self.transpose_b = transpose(value.u32()?)?,
            5 if !transpose(value.u32()?)? => {}
            5 => return refuse(BlasStatus::NOT_SUPPORTED, "C cannot be transposed"),
            7 => {
                self.epilogue = match value.u32()? {
                    1 => Epilogue::None,
                    4 => Epilogue::Bias,
                    other => {
                        let reason = format!("the simulator does not know epilogue {other}");
                        return refuse(BlasStatus::NOT_SUPPORTED, reason);
                    }
                }
            }
            8 => self.bias = value.u64()?,
            26 => self.bias_type = Some(Number::from_code(value.u32()?)?),
            other => return unknown("product", other),
        }
        Ok(())
    }
}

fn compute_type(code: u32) -> Result<Compute> {
    match code {
        68 | 69 => Ok(Compute::F32),
        77 => Ok(Compute::Tf32),
        _ => refuse(BlasStatus::NOT_SUPPORTED, format!("the simulator does not know compute type {code}")),
    }
}

/// A `cublasOperation_t`: not, or transposed, or transposed and conjugated, which is the same for real numbers.
fn transpose(code: u32) -> Result<bool> {
    match code {
        0 => Ok(false),
        1 | 2 => Ok(true),
        _ => refuse(BlasStatus::INVALID_VALUE, format!("there is no operation {code}")),
    }
}

impl MatrixLayout {
    pub(crate) fn new(number: u32, rows: u64, columns: u64, leading: i64) -> Result<MatrixLayout> {
        let number = Number::from_code(number)?;
        Ok(MatrixLayout { number, rows, columns, leading, row_major: false, batch: 1, batch_stride: 0 })
    }

    /// `cublasLtMatrixLayoutSetAttribute`, with the codes of `cublasLtMatrixLayoutAttribute_t`.
    pub(crate) fn set(&mut self, attribute: u32, value: &Value<'_>) -> Result<()> {
        match attribute {
            0 => self.number = Number::from_code(value.u32()?)?,
            1 => {
                self.row_major = match value.u32()? {
                    0 => false,
                    1 => true,
                    _ => return refuse(BlasStatus::NOT_SUPPORTED, "matrices are ordered by columns or by rows"),
                }
            }
            2 => self.rows = value.u64()?,
            3 => self.columns = value.u64()?,
            4 => self.leading = value.i64()?,
            5 => self.batch = value.i32()?,
            6 => self.batch_stride = value.i64()?,
            other => return unknown("matrix layout", other),
        }
        Ok(())
    }

    /// Fails when the elements of one column, or row, do not fit between it and the next.
    pub(crate) fn check(&self, name: char) -> Result<()> {
        let run = if self.row_major { self.columns } else { self.rows };
        if self.rows == 0 || self.columns == 0 || self.batch < 1 {
            return refuse(BlasStatus::INVALID_VALUE, format!("matrix {name} is empty"));
        }
        if self.leading < 1 || (self.leading as u64) < run {
            let reason = format!("matrix {name} has leading dimension {} and runs of {run}", self.leading);
            return refuse(BlasStatus::INVALID_VALUE, reason);
        }
        if self.batch > 1 && self.batch_stride < 0 {
            return refuse(BlasStatus::NOT_SUPPORTED, "the simulator knows no negative batch strides");
        }
        Ok(())
    }

    /// How long the runs are whose elements lie side by side, and how many there are: columns, or rows when
    /// `row_major`.
    pub(crate) fn runs(&self) -> (usize, usize) {
        let (rows, columns) = (self.rows as usize, self.columns as usize);
        if self.row_major { (columns, rows) } else { (rows, columns) }
    }

    /// Elements from the first to the last of one matrix.
    pub(crate) fn span(&self) -> usize {
        let (run, runs) = self.runs();
        (runs - 1) * self.leading as usize + run
    }
}

impl Preference {
    /// `cublasLtMatmulPreferenceSetAttribute`, with the codes of `cublasLtMatmulPreferenceAttributes_t`.
    pub(crate) fn set(&mut self, attribute: u32, value: &Value<'_>) -> Result<()> {
        match attribute {
            1 => self.workspace = value.u64()?,
            5..=8 => {
                let alignment = value.u32()?;
                if !alignment.is_power_of_two() {
                    return refuse(BlasStatus::INVALID_VALUE, format!("{alignment} is not an alignment"));
                }
                if let Some(known) = self.alignment.get_mut(attribute as usize - 5) {
                    *known = alignment;
                }
            }
            3 => self.reductions = value.u32()?,
            // The search mode, which says nothing about the result here.
            0 => {}
            other => return unknown("preference", other),
        }
        Ok(())
    }
}
