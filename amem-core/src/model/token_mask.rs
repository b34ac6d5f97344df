//! Sets of tokens.

use crate::Token;

/// A set of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
    tokens: usize,
}

impl TokenMask {
    /// An empty set over a vocabulary of so many tokens.
    pub fn new(vocabulary: usize) -> Self {
        Self { words: vec![0; vocabulary.div_ceil(64)], tokens: vocabulary }
    }

    /// All tokens of a vocabulary.
    pub fn all(vocabulary: usize) -> Self {
        let mut mask = Self { words: vec![u64::MAX; vocabulary.div_ceil(64)], tokens: vocabulary };
        if let Some(last) = mask.words.last_mut().filter(|_| !vocabulary.is_multiple_of(64)) {
            *last = (1 << (vocabulary % 64)) - 1;
        }
        mask
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokens
    }

    /// Adds a token. One that is not in the vocabulary is ignored.
    pub fn insert(&mut self, token: Token) {
        if let Some(word) = self.words.get_mut(token as usize / 64).filter(|_| (token as usize) < self.tokens) {
            *word |= 1 << (token % 64);
        }
    }

    /// Takes a token out, if it is in it.
    pub fn remove(&mut self, token: Token) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            *word &= !(1 << (token % 64));
        }
    }

    /// Whether a token is in it.
    pub fn contains(&self, token: Token) -> bool {
        self.words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Whether no token is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The set as words of 64 tokens each, the lowest token in the lowest bit, for engines that fill one at once.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mask_holds_what_was_put_in_and_not_taken_out(
            vocabulary in 0usize..200,
            full: bool,
            changes in prop::collection::vec((any::<bool>(), 0u32..260), 0..40),
        ) {
            let mut mask = if full { TokenMask::all(vocabulary) } else { TokenMask::new(vocabulary) };
            let mut set = vec![full; vocabulary];
            for (insert, token) in changes {
                if insert { mask.insert(token) } else { mask.remove(token) }
                set.get_mut(token as usize).into_iter().for_each(|held| *held = insert);
            }
            let held: Vec<bool> = (0..260).map(|token| mask.contains(token)).collect();
            set.resize(260, false);
            prop_assert_eq!(mask.is_empty(), !set.contains(&true));
            prop_assert_eq!(held, set);
        }
    }
}
