//! Text as terms: the words that an index knows.
//!
//! A word is a run of letters and digits, in lower case and stemmed; numbers are words. Scripts that put no spaces
//! between words (Chinese, Japanese) and Korean, whose words are whole phrases, are cut into pairs of neighbouring
//! characters, as search engines do.

use rust_stemmers::Stemmer;

/// The terms of a text that is to be found, in order, repeated ones included.
pub(super) fn terms(text: &str, stemmer: &Stemmer) -> Vec<String> {
    cut(text, stemmer, true)
}

/// The terms to look for: as [`terms`], but a single character of a pair is not looked for by itself.
pub(super) fn query_terms(text: &str, stemmer: &Stemmer) -> Vec<String> {
    cut(text, stemmer, false)
}

fn cut(text: &str, stemmer: &Stemmer, single: bool) -> Vec<String> {
    let mut terms = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(char::is_alphanumeric) {
        rest = &rest[start..];
        let paired = rest.starts_with(goes_in_pairs);
        let belongs = |c: char| is_mark(c) || (c.is_alphanumeric() && goes_in_pairs(c) == paired);
        let (run, after) = rest.split_at(rest.find(|c| !belongs(c)).unwrap_or(rest.len()));
        rest = after;
        if paired {
            pairs(run, single, &mut terms);
        } else {
            let word: String = run.chars().filter(|c| !is_mark(*c)).flat_map(char::to_lowercase).collect();
            terms.push(stemmer.stem(&word).into_owned());
        }
    }
    terms
}

/// The pairs of neighbours in a run of characters, and each character by itself if `single` or if it is the only one.
fn pairs(run: &str, single: bool, terms: &mut Vec<String>) {
    let chars: Vec<char> = run.chars().filter(|c| !is_mark(*c)).collect();
    if single || chars.len() == 1 {
        terms.extend(chars.iter().map(char::to_string));
    }
    terms.extend(chars.windows(2).map(|pair| pair.iter().collect::<String>()));
}

/// Accents written as characters of their own do not end a word.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}')
}

/// Han, kana and Hangul.
fn goes_in_pairs(c: char) -> bool {
    matches!(c,
        '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}' | '\u{ff66}'..='\u{ff9f}' | '\u{20000}'..='\u{3134f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rust_stemmers::Algorithm;

    use super::*;

    fn english() -> Stemmer {
        Stemmer::create(Algorithm::English)
    }

    #[test]
    fn texts_are_cut_into_stemmed_words() {
        for (text, expected) in [
            ("The cats were RUNNING.", "the cat were run"),
            ("Room 42, floor 3", "room 42 floor 3"),
            ("e-mail: anna@home", "e mail anna home"),
            ("ÄRGER straße", "ärger straße"),
            ("cafe\u{301}s", "cafe"),
            ("", ""),
            ("… — !?", ""),
            ("v2release", "v2releas"),
        ] {
            assert_eq!(terms(text, &english()).join(" "), expected, "{text:?}");
        }
    }

    #[test]
    fn text_without_spaces_is_cut_into_pairs() {
        assert_eq!(terms("黑猫睡", &english()), ["黑", "猫", "睡", "黑猫", "猫睡"]);
        assert_eq!(query_terms("黑猫睡", &english()), ["黑猫", "猫睡"]);
        assert_eq!(query_terms("猫", &english()), ["猫"]);
        assert_eq!(query_terms("GPT模型7号", &english()), ["gpt", "模型", "7", "号"]);
    }

    proptest! {
        #[test]
        fn every_term_of_a_query_is_a_term_of_the_same_text(text in ".{0,80}") {
            let known = terms(&text, &english());
            prop_assert!(query_terms(&text, &english()).iter().all(|term| known.contains(term)));
        }

        #[test]
        fn case_does_not_matter(text in "[a-zäöüé0-9 ]{0,80}") {
            prop_assert_eq!(terms(&text, &english()), terms(&text.to_uppercase(), &english()));
        }
    }
}
