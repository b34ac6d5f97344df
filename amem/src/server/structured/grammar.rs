//! Grammars over a model's vocabulary, by llguidance.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use amem_core::{Constraint, ConstraintSource, Error, Model, Token, TokenMask};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, panic_utils};
use serde_json::{Map, Value, json};

use super::Part;

/// White space between two parts of JSON: a blank, or a line's end and an indent. A model that is unsure of what comes
/// next would go on with white space for ever.
const WHITE_SPACE: &str = r"\x20|\x0A(\x20{0,16}|\x09{0,8})";
/// Bytes of a token at most that the trie of a vocabulary can hold.
const MAX_TOKEN_BYTES: usize = 1000;
/// Characters of a reason that are told.
const MAX_REASON: usize = 300;

/// A model's vocabulary, as grammars need it.
pub(super) struct Grammars {
    factory: ParserFactory,
    stops: Arc<[Token]>,
}

impl Grammars {
    /// The vocabulary of this model.
    pub(super) fn of(model: &dyn Model) -> Result<Self, String> {
        let (chat, vocabulary) = (model.chat(), model.info().vocabulary);
        let stops: Arc<[Token]> = chat.stops().into();
        let size = u32::try_from(vocabulary).map_err(|_| format!("a vocabulary of {vocabulary} tokens"))?;
        // Without bytes a token can never be drawn. 0xff begins no text, and marks special tokens in a trie.
        let is_text = |bytes: &Vec<u8>| bytes.len() <= MAX_TOKEN_BYTES && !bytes.contains(&0xff);
        let bytes = |token: Token| {
            let bytes = if stops.contains(&token) { None } else { chat.token_bytes(token) };
            bytes.filter(is_text).unwrap_or_default()
        };
        let words: Vec<Vec<u8>> = (0..size).map(bytes).collect();
        // The crate checks what it is given by panics.
        let factory = panic_utils::catch_unwind(|| {
            let info = TokRxInfo::new(size, stops.first().copied().unwrap_or(INVALID_TOKEN));
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
            let mut factory = ParserFactory::new_simple(&env)?;
            *factory.quiet().limits_mut() = limits();
            Ok(factory)
        });
        Ok(Self { factory: factory.map_err(|error| reason(&error.to_string()))?, stops })
    }

    /// Answers that are made of these parts, one behind the other; or why they cannot be had.
    pub(super) fn source(&self, parts: &[Part]) -> Result<ConstraintSource, String> {
        let grammar = match parts {
            [Part::Schema(schema, strict)] => TopLevelGrammar::from_json_schema(with_options(schema, *strict)),
            parts => TopLevelGrammar::from_lark(lark(parts).map_err(|error| error.to_string())?),
        };
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        // A form may make sense and still have no beginning: one that goes on for ever, say.
        let begins = |mut matcher: Matcher| matcher.compute_mask().map(drop);
        if let Some(error) = matcher.get_error() {
            return Err(reason(&error));
        }
        begins(matcher.clone()).map_err(|_| "nothing can be of it".to_owned())?;
        let (first, stops) = (Mutex::new(matcher), Arc::clone(&self.stops));
        Ok(ConstraintSource::new(move || {
            let matcher = first.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut form = Form { matcher, stops: Arc::clone(&stops), is_complete: false };
            form.look()?;
            Ok(Box::new(form))
        }))
    }
}

/// What one schema and one token of an answer may take. A token of all requests waits for this one's.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 200_000,
        step_lexer_fuel: 100_000,
        step_max_items: 20_000,
        max_lexer_states: 50_000,
        max_grammar_size: 100_000,
        // Errors are logged, and what was answered is not to be.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// A schema with how it is to be followed.
fn with_options(schema: &Map<String, Value>, strict: bool) -> Value {
    let mut schema = schema.clone();
    let options = json!({ "whitespace_pattern": WHITE_SPACE, "lenient": !strict, "coerce_one_of": !strict });
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

/// Parts, one behind the other, as a grammar.
fn lark(parts: &[Part]) -> serde_json::Result<String> {
    let mut grammar = "start:".to_owned();
    for part in parts {
        let written = match part {
            Part::Text(text) if text.is_empty() => continue,
            Part::Text(text) => serde_json::to_string(text)?,
            Part::Schema(schema, strict) => format!("%json {}", with_options(schema, *strict)),
        };
        // Writing to a string cannot fail.
        let _ = write!(grammar, " {written}");
    }
    Ok(grammar)
}

/// What llguidance says, in one line and without what it adds for its makers.
fn reason(error: &str) -> String {
    if error.starts_with("panic") {
        return "it is beyond what is understood".to_owned();
    }
    let lines = error.lines().map(str::trim).take_while(|line| !line.starts_with('<'));
    let line = lines.collect::<Vec<_>>().join(" ").replace("Unimplemented keys:", "unsupported keywords:");
    line.chars().take(MAX_REASON).collect()
}

/// One answer of a form.
struct Form {
    matcher: Matcher,
    stops: Arc<[Token]>,
    is_complete: bool,
}

impl Form {
    /// Finds out whether what was drawn is a whole answer.
    fn look(&mut self) -> Result<(), Error> {
        self.is_complete = if self.matcher.is_stopped() {
            self.matcher.stop_reason().is_ok()
        } else {
            self.matcher.is_accepting().map_err(|error| failed(&error))?
        };
        Ok(())
    }
}

impl Constraint for Form {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), Error> {
        if self.matcher.is_stopped() && self.is_complete {
            return Ok(());
        }
        let allowed = self.matcher.compute_mask().map_err(|error| failed(&error))?;
        let (pairs, rest) = allowed.as_slice().as_chunks::<2>();
        let words = pairs.iter().map(|[low, high]| u64::from(*low) | u64::from(*high) << 32);
        let words = words.chain(rest.iter().map(|low| u64::from(*low)));
        mask.words_mut().iter_mut().zip(words).for_each(|(word, allowed)| *word |= allowed);
        self.stops.iter().for_each(|stop| mask.remove(*stop));
        Ok(())
    }

    fn accept(&mut self, token: Token) -> Result<(), Error> {
        self.matcher.consume_token(token).map_err(|error| failed(&error))?;
        self.look()
    }

    fn is_complete(&self) -> bool {
        self.is_complete
    }
}

fn failed(error: &impl ToString) -> Error {
    Error::Model(format!("the answer's form: {}", reason(&error.to_string())).into())
}
