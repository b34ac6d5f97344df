//! Mixture of experts: a router chooses, for each row, some of many feed-forward blocks, and how much each of them counts.
//!
//! Here rows are chosen for on the host, from a few numbers each. What a row yields depends on the row alone: on which
//! experts it chose, and in which order, not on who else chose them.

use super::backend::Backend;
use super::device_weights::ExpertWeights;
use crate::{Error, Result};

impl<B: Backend> ExpertWeights<B> {
    /// What [`Backend::experts`] is, made of the backend's other methods: the rows of `x`, `[rows][hidden]`, are dealt out
    /// to the experts by the host, which waits for their scores.
    ///
    /// # Errors
    /// [`Error::BadValue`] where nothing is chosen or there is nothing to choose from, and those of the backend.
    pub fn apply(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        if self.experts.is_empty() || self.top_k == 0 {
            let value = format!("{} of {}", self.top_k, self.experts.len());
            return Err(Error::BadValue { what: "experts of a row", value, expected: "one or more" });
        }
        let scores = backend.read(&backend.linear(x, &self.router, None)?)?;
        let mut choices = Vec::new();
        for scores in scores.chunks_exact(self.experts.len()) {
            choices.extend(choose(scores, self.top_k, self.norm_top_k));
        }
        let each = self.top_k.min(self.experts.len());
        let mut rows_of: Vec<Vec<usize>> = vec![Vec::new(); self.experts.len()];
        // Where what the expert makes of the row will stand, among the rows of that expert for now.
        let mut picked = Vec::with_capacity(choices.len());
        for (index, (expert, weight)) in choices.iter().enumerate() {
            picked.push((rows_of[*expert].len(), *weight));
            rows_of[*expert].push(index / each);
        }
        let (mut firsts, mut made): (Vec<usize>, Option<B::Tensor>) = (Vec::new(), None);
        let mut first = 0;
        for (rows, expert) in rows_of.iter().zip(&self.experts) {
            firsts.push(first);
            first += rows.len();
            if rows.is_empty() {
                continue;
            }
            let y = backend.mlp(&backend.gather(x, rows)?, expert)?;
            match &mut made {
                Some(made) => backend.concat(made, &y)?,
                None => made = Some(y),
            }
        }
        for ((place, _), (expert, _)) in picked.iter_mut().zip(&choices) {
            *place += firsts[*expert];
        }
        match made {
            Some(made) => backend.sum_rows(&made, &picked, each),
            None => backend.gather(x, &[]),
        }
    }
}

/// The experts with the largest scores, the first of equals first, and their weights: the softmax over all scores, or
/// over those that were chosen.
fn choose(scores: &[f32], top_k: usize, norm_top_k: bool) -> impl Iterator<Item = (usize, f32)> {
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    // In f64 and then rounded, so that machines whose `exp` differs in the last place agree but for rare cases on the
    // exponentials.
    let top = ranked.first().map_or(0.0, |&first| f64::from(scores[first]));
    let weight = |index: &usize| (f64::from(scores[*index]) - top).exp();
    let all: f64 = (0..scores.len()).map(|index| weight(&index)).sum();
    ranked.truncate(top_k);
    let total = if norm_top_k { ranked.iter().map(weight).sum() } else { all };
    let chosen: Vec<(usize, f32)> = ranked.iter().map(|index| (*index, (weight(index) / total) as f32)).collect();
    chosen.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_goes_through_the_experts_with_the_largest_scores() {
        let scores = [0.0, 2.0f32.ln(), 5.0f32.ln(), 2.0f32.ln()];
        let close = |found: Vec<(usize, f32)>, expected: &[(usize, f32)]| {
            let same = |((a, x), (b, y)): (&(usize, f32), &(usize, f32))| a == b && (x - y).abs() < 1e-6;
            found.len() == expected.len() && found.iter().zip(expected).all(same)
        };
        // The exponentials are 1, 2, 5 and 2.
        assert!(close(choose(&scores, 2, false).collect(), &[(2, 0.5), (1, 0.2)]));
        assert!(close(choose(&scores, 3, true).collect(), &[(2, 5.0 / 9.0), (1, 2.0 / 9.0), (3, 2.0 / 9.0)]));
        assert!(close(choose(&scores, 9, false).collect(), &[(2, 0.5), (1, 0.2), (3, 0.2), (0, 0.1)]));
        assert!(close(choose(&[700.0, -700.0], 1, true).collect(), &[(0, 1.0)]), "scores may be far apart");
    }
}
