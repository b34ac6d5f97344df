//! Facts in what a model said, and sentences in a text.

use std::collections::HashSet;

use unicode_segmentation::UnicodeSegmentation;

/// What a fact may have in bytes: a sentence.
const MAX_FACT_BYTES: usize = 512;

/// The list that a model gave: a JSON list of texts, whatever stands around it, or else lines that are all items of a list.
/// `None` if it gave none.
pub(super) fn list_in(answer: &str) -> Option<Vec<String>> {
    let facts = match answer.find('[').map(|start| &answer[start..]) {
        // What follows the list is the model's own remark.
        Some(json) => serde_json::Deserializer::from_str(json).into_iter::<Vec<String>>().next()?.ok()?,
        None => items(answer)?,
    };
    Some(facts.iter().map(|fact| fact.trim().to_owned()).filter(|fact| !fact.is_empty()).collect())
}

/// Lines that begin with a bullet or a number.
fn items(answer: &str) -> Option<Vec<String>> {
    let lines: Vec<&str> = answer.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let item = |line: &&str| {
        let numbered = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let rest = match numbered.len() < line.len() {
            true => numbered.strip_prefix(['.', ')'])?,
            false => line.strip_prefix(['-', '*', '•'])?,
        };
        rest.starts_with(' ').then(|| rest.trim().to_owned())
    };
    if lines.is_empty() { None } else { lines.iter().map(item).collect() }
}

/// Whether a text says what a fact does, as far as words tell: it has all of the fact's numbers and names, and at least
/// half of its words. "The user" is nobody's name.
pub(super) fn is_grounded(fact: &str, text: &str) -> bool {
    let there: HashSet<String> = text.unicode_words().map(str::to_lowercase).collect();
    let words: Vec<&str> = fact.unicode_words().collect();
    let holds = |word: &str| there.contains(&word.to_lowercase());
    let is_name = |(index, word): (usize, &&str)| {
        let begins_large = word.chars().next().is_some_and(char::is_uppercase);
        word.chars().any(char::is_numeric) || index > 0 && begins_large
    };
    let names = words.iter().enumerate().filter(|(index, word)| is_name((*index, word))).all(|(_, word)| holds(word));
    let known = words.iter().filter(|word| holds(word)).count();
    fact.len() <= MAX_FACT_BYTES && words.len() >= 2 && names && 2 * known >= words.len()
}

/// The sentences of a text. A title or an initial ("Dr.", "J.") ends none.
pub(super) fn sentences(text: &str) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    for line in text.lines() {
        let (mut is_first, mut goes_on) = (true, false);
        for part in line.split_sentence_bounds().filter(|part| !part.trim().is_empty()) {
            // As after what somebody says: "Why?" she asked.
            goes_on |= !is_first && part.starts_with(char::is_lowercase);
            match sentences.last_mut().filter(|_| goes_on) {
                Some(last) => last.push_str(part),
                None => sentences.push(part.to_owned()),
            }
            (is_first, goes_on) = (false, ends_with_abbreviation(part.trim_end()));
        }
    }
    sentences.iter().map(|sentence| sentence.trim().to_owned()).collect()
}

fn ends_with_abbreviation(part: &str) -> bool {
    const TITLES: [&str; 12] = ["Dr", "Mr", "Mrs", "Ms", "Prof", "St", "Jr", "Sr", "Mt", "No", "vs", "approx"];
    let Some(before) = part.strip_suffix('.') else { return false };
    let last = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    let mut letters = last.chars();
    let is_initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none() && last != "I";
    is_initial || TITLES.contains(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_found_in_what_a_model_said() {
        let two = Some(vec!["A b.".to_owned(), "C d.".to_owned()]);
        for answer in [
            r#"["A b.", "C d."]"#,
            "Here you are:\n```json\n[\"A b.\", \" C d. \", \"\"]\n```\nThat is all [of it].",
            "- A b.\n- C d.",
            "1. A b.\n2) C d.\n",
            "* A b.\n\n• C d.",
        ] {
            assert_eq!(list_in(answer), two, "{answer}");
        }
        assert_eq!(list_in("There is nothing: []"), Some(Vec::new()));
        for answer in ["", "A b.", "A b.\n- C d.", "[1, 2]", r#"["A b.", "C"#, "-5 degrees", "3.5 miles"] {
            assert_eq!(list_in(answer), None, "{answer}");
        }
    }

    #[test]
    fn a_fact_is_grounded_in_a_text_that_has_its_names_numbers_and_most_of_its_words() {
        let text = "I moved to Denver in 2024, and my sister Maria stayed in Paris.";
        for grounded in ["Maria stayed in Paris.", "The user moved to Denver in 2024.", "My sister is Maria."] {
            assert!(is_grounded(grounded, text), "{grounded}");
        }
        for invented in
            ["Maria stayed in London.", "The user moved to Denver in 2023.", "Maria", "", "What a nice day it was"]
        {
            assert!(!is_grounded(invented, text), "{invented}");
        }
        assert!(!is_grounded(&"Denver ".repeat(100), text), "too long for a fact");
    }

    #[test]
    fn a_text_is_its_sentences() {
        let text = "Dr. J. Smith lives in St. Moritz. It costs 3.5 million! \"Why?\" she asked\n\n- One item\nNo end";
        let expected = [
            "Dr. J. Smith lives in St. Moritz.",
            "It costs 3.5 million!",
            "\"Why?\" she asked",
            "- One item",
            "No end",
        ];
        assert_eq!(sentences(text), expected);
        assert!(sentences(" \n\t ").is_empty());
        assert_eq!(sentences("So do I. You too."), ["So do I.", "You too."]);
    }
}
