//! Which rows of a blended context are computed again.

use std::ops::Range;

/// Which rows of cached pieces are recomputed in their new context. Rows that are exact where they stand are never
/// chosen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[doc(alias = "recompute")]
pub enum Repair {
    /// None: reuse as it is.
    None,
    /// The first rows of every chunk (EPIC).
    FirstRows(usize),
    /// The rows whose keys differ most from fresh ones at one layer (CacheBlend). All rows are computed up to there.
    Deviation {
        /// Share of all cached rows that go on, 0 to 1.
        ratio: f32,
        /// The layer at which keys are compared, from 1.
        check_layer: usize,
    },
    /// The rows that the last fresh piece attends to most (InfoFlow). In layers with a sliding window it sees no others than
    /// those in the window.
    Attention {
        /// How many.
        budget: Budget,
        /// The layers whose attention is read, from 0.
        layers: Range<usize>,
    },
    /// The rows with the most attention times [sensitivity](crate::KvChunk::sensitivity): what the question needs and what
    /// is wrong there. Without a fresh piece at the end, or with no layers, sensitivity alone decides.
    ///
    /// Reading layer 1 (`1..2`) costs no work: the keys and values of layer 0 depend on the tokens alone, so the question
    /// is exact up to there whatever is cached, and the pass that answers continues from there.
    ///
    /// Where the layers that are read have a sliding window, rows that lie before it are chosen by their sensitivity alone, for
    /// other layers see them. A number of rows is divided between them and the others by how many there are; a share of the
    /// weight is taken of both.
    Weighted {
        /// How many.
        budget: Budget,
        /// The layers whose attention is read, from 0; those that the model does not have are passed over.
        layers: Range<usize>,
    },
    /// Every row of a cached piece that is not exact already. In a new context, and in one that was always repaired like this,
    /// what comes of it is a cold prefill's, up to the rounding of sums. Rows that were computed in a context over less exact
    /// ones, fresh rows or repaired ones, stay as they are.
    All,
}

impl Default for Repair {
    /// A tenth of the cached rows, by attention in layer 1 times sensitivity.
    fn default() -> Self {
        Repair::Weighted { budget: Budget::Ratio(0.1), layers: 1..2 }
    }
}

/// How many rows are repaired.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// This share of all cached rows in the context, exact ones included, 0 to 1, rounded down.
    Ratio(f32),
    /// As few rows as cover this share of the candidates' total weight, 0 to 1.
    Mass(f32),
    /// So many rows.
    Rows(usize),
}
