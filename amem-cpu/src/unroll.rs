//! Loops over the rows of a tile and over vectors that must not be left to compilers.

/// Rows of a tile at most.
pub(crate) const MOST_ROWS: usize = 12;

/// Does something for each of the first `$count` rows of a tile, or vectors, at most [`MOST_ROWS`], whose index is the
/// constant `$row`. An array whose indexes are all constants stays in registers; with a loop variable for an index,
/// compilers keep it in memory.
macro_rules! each_row {
    ($row:ident < $count:expr, $body:block) => {
        $crate::unroll::each_row!(@ $row < $count, $body; 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $row:ident < $count:expr, $body:block; $($number:literal)*) => {
        $(if $number < $count {
            const $row: usize = $number;
            $body
        })*
    };
}
pub(crate) use each_row;

/// Runs `$body` with `$rows` as a constant, for each number of rows that a tile may have, at most [`MOST_ROWS`].
macro_rules! with_rows {
    ($count:expr, |$rows:ident| $body:expr) => {
        $crate::unroll::with_rows!(@each $count, $rows, $body, 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@each $count:expr, $rows:ident, $body:expr, $($n:literal)*) => {
        match $count {
            $($n => { const $rows: usize = $n; $body })*
            rows => debug_assert_eq!(rows, 0, "no kernel is compiled for tiles of so many rows"),
        }
    };
}
pub(crate) use with_rows;
