//! A model's tokenizer: the text of users, which is only ever text, and that of templates, which steers the model.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::BPE;
use tokenizers::{
    Decoder, DecoderWrapper, Encoding, Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetType,
    PostProcessorWrapper, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Tokenizer, TokenizerImpl,
};

use super::outline::Outline;
use crate::transformer::ModelSource;
use crate::transformer::settings::bad_model;
use crate::{Error, Result, Token};

pub(in crate::transformer) const FILE: &str = "tokenizer.json";

/// `tokenizer.json`.
///
/// It is read in two ways. In a template `<|user|>` is one token. In a user's text it is eight characters: no added token is
/// looked for there, for those that are not marked as special (`<think>`, `<tool_call>`) steer a model as well.
pub(super) struct Tokens {
    tokenizer: Tokenizer,
    /// The special tokens and their texts.
    special: HashMap<Token, String>,
    /// The texts of all added tokens, special or not.
    added: HashSet<String>,
    /// How the vocabulary writes bytes.
    spelling: Spelling,
    /// What characters outside the vocabulary become.
    unknown: Option<Token>,
    /// Whether every text gets a space in front, as sentencepiece does it.
    adds_space: bool,
    vocabulary: usize,
}

/// How a vocabulary writes the bytes of its tokens.
enum Spelling {
    /// A character for each byte, as GPT-2 does.
    ByteLevel(HashMap<char, u8>),
    /// Characters, `▁` for a space, and `<0x0A>` for bytes.
    Pieces {
        /// Whether its decoder makes bytes of the latter, and text of bytes.
        falls_back: bool,
    },
}

impl Tokens {
    /// Reads `tokenizer.json` for a model with so many tokens.
    pub(super) fn open(source: &dyn ModelSource, vocabulary: usize) -> Result<Self> {
        let (mut tokenizer, decoder) = read_tokenizer(source)?;
        // Settings for training in batches, which would cut texts or fill them up.
        tokenizer.with_truncation(None).map_err(bad_tokenizer)?.with_padding(None);

        let added = tokenizer.get_added_tokens_decoder();
        let texts = added.values().map(|token| token.content.clone()).filter(|text| !text.is_empty()).collect();
        let special = added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content));
        let mut tokens = Self {
            special: special.collect(),
            added: texts,
            spelling: Spelling::of(&decoder),
            unknown: None,
            adds_space: false,
            tokenizer,
            vocabulary,
        };
        tokens.unknown = tokens.plain_ids("\u{10FFFD}")?.into_iter().find(|id| tokens.is_special(*id));
        let first = tokens.plain_ids("a")?.first().and_then(|id| tokens.tokenizer.get_model().id_to_token(*id));
        tokens.adds_space = first.is_some_and(|token| token.starts_with(['▁', 'Ġ']));
        Ok(tokens)
    }

    /// Whether a token is one that no text contains.
    pub(super) fn is_special(&self, token: Token) -> bool {
        self.special.contains_key(&token)
    }

    /// The tokens of a user's text. None of them is special, except for unknown characters.
    pub(super) fn text(&self, text: &str) -> Result<Vec<Token>> {
        let spoofed =
            |ids: &[Token]| ids.iter().filter(|id| Some(**id) != self.unknown).find_map(|id| self.special.get(id));
        let ids = self.plain_ids(text)?;
        if spoofed(&ids).is_none() {
            return Ok(ids);
        }
        // Some models have special tokens in their ordinary vocabulary. A cut through its text makes one unreachable.
        let mut tokens = Vec::new();
        let mut start = 0;
        let cuts = self.special.values().filter_map(|special| Some((special, special.char_indices().nth(1)?.0)));
        let cuts: Vec<_> = cuts.collect();
        let mut places: Vec<usize> = cuts
            .iter()
            .flat_map(|(special, second)| text.match_indices(special.as_str()).map(move |(at, _)| at + second))
            .collect();
        places.sort_unstable();
        places.push(text.len());
        for end in places {
            let ids = self.plain_ids(&text[start..end])?;
            if let Some(special) = spoofed(&ids) {
                return Err(bad_model(FILE, format!("it reads a text as the special token {special}")));
            }
            tokens.extend(ids);
            start = end;
        }
        Ok(tokens)
    }

    /// The tokens of a template's string at the start of a conversation.
    pub(super) fn opening(&self, string: &str) -> Result<Vec<Token>> {
        self.template_ids(self.before_text(string))
    }

    /// The tokens of a template's string between two texts.
    pub(super) fn between(&self, string: &str) -> Result<Vec<Token>> {
        self.after_text(self.before_text(string))
    }

    /// The tokens of a template's string after which the model goes on by itself.
    pub(super) fn closing(&self, string: &str) -> Result<Vec<Token>> {
        self.after_text(string)
    }

    /// The text of tokens, without special ones.
    pub(super) fn decode(&self, tokens: &[Token]) -> Result<String> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.vocabulary) {
            return Err(Error::BadValue { what: "token", value: token.to_string(), expected: "in the vocabulary" });
        }
        let text = guarded(|| self.tokenizer.decode(tokens, true))?;
        match (&self.spelling, self.tokenizer.get_decoder()) {
            (Spelling::Pieces { falls_back: true }, Some(decoder)) if text.contains(char::REPLACEMENT_CHARACTER) => {
                let texts = tokens.iter().filter(|token| !self.is_special(**token));
                let texts = texts.filter_map(|token| self.tokenizer.id_to_token(*token)).collect();
                guarded(|| decoder.decode(without_broken_bytes(texts)))
            }
            _ => Ok(text),
        }
    }

    /// The bytes of a token that is not special.
    pub(super) fn bytes(&self, token: Token) -> Option<Vec<u8>> {
        if self.is_special(token) || token as usize >= self.vocabulary {
            return None;
        }
        let written = self.tokenizer.id_to_token(token)?;
        if self.added.contains(&written) {
            return Some(written.into_bytes());
        }
        Some(self.spelling.bytes(&written))
    }

    /// Whether the text of an added token, special or not, stands in a text.
    pub(super) fn has_added(&self, text: &str) -> bool {
        self.added.iter().any(|added| text.contains(added.as_str()))
    }

    /// The text of tokens, special ones included.
    #[cfg(test)]
    pub(super) fn spell(&self, tokens: &[Token]) -> String {
        self.tokenizer.decode(tokens, false).unwrap()
    }

    /// If the text that follows brings its own space, the string's would be a second one.
    fn before_text<'s>(&self, string: &'s str) -> &'s str {
        string.strip_suffix(' ').filter(|_| self.adds_space).unwrap_or(string)
    }

    /// The string as it reads after other text: without the space that a text's start gets.
    fn after_text(&self, string: &str) -> Result<Vec<Token>> {
        if !self.adds_space || string.is_empty() {
            return self.template_ids(string);
        }
        // A line's end merges with nothing, so its tokens can be taken away again.
        let line_end = self.template_ids("\n")?;
        let ids = self.template_ids(&format!("\n{string}"))?;
        match ids.strip_prefix(line_end.as_slice()) {
            Some(ids) => Ok(ids.to_vec()),
            None => self.template_ids(string),
        }
    }

    pub(super) fn template_ids(&self, text: &str) -> Result<Vec<Token>> {
        self.checked(guarded(|| self.tokenizer.encode_fast(text, false))?.get_ids())
    }

    /// The tokens of a text in which no added token is looked for.
    fn plain_ids(&self, text: &str) -> Result<Vec<Token>> {
        let words = guarded(|| {
            let mut text = NormalizedString::from(text);
            if let Some(normalizer) = self.tokenizer.get_normalizer().filter(|_| !text.is_empty()) {
                normalizer.normalize(&mut text)?;
            }
            if text.is_empty() {
                return Ok(Encoding::default());
            }
            let mut words = PreTokenizedString::from(text);
            if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut words)?;
            }
            self.tokenizer.get_model().tokenize_in_pretokenized(&mut words, None)?;
            words.into_encoding(None, 0, OffsetType::None)
        })?;
        self.checked(words.get_ids())
    }

    fn checked(&self, ids: &[Token]) -> Result<Vec<Token>> {
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            Some(id) => Err(bad_model(FILE, format!("it has a token {id} and the model has {}", self.vocabulary))),
            None => Ok(ids.to_vec()),
        }
    }
}

/// `tokenizer.json` as a tokenizer, and the decoder in it as it is written.
pub(in crate::transformer) fn read_tokenizer(source: &dyn ModelSource) -> Result<(Tokenizer, serde_json::Value)> {
    let bytes = source.file(FILE).ok_or_else(|| bad_model(FILE, "it is missing"))?;
    // The tokenizers crate panics at some kinds of broken JSON.
    let outline: serde_json::Result<Outline> = serde_json::from_slice(bytes);
    let outline = outline.map_err(|error| bad_model(FILE, format!("it cannot be read: {error}")))?;
    let tokenizer = guarded(|| match outline.model.kind.as_deref() {
        // Read as any kind of model, its vocabulary and merges would be copied twice on the way.
        Some("BPE") => serde_json::from_slice(bytes).map(|parsed: BpeTokenizer| parsed.into()).map_err(Into::into),
        _ => Tokenizer::from_bytes(bytes),
    })?;
    Ok((tokenizer, outline.decoder))
}

/// Runs what reads a tokenizer or is done with one. The tokenizers crate panics at some parts that are no more than
/// wrong, such as a normalizer's table whose entries point beyond it: at some of them only once a text comes to them.
pub(in crate::transformer) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.map_err(|_| bad_model(FILE, "a part of it is damaged"))?.map_err(bad_tokenizer)
}

/// [`Tokenizer`] with a model of one kind.
type BpeTokenizer = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

impl Spelling {
    /// The spelling that a decoder of `tokenizer.json` undoes.
    fn of(decoder: &serde_json::Value) -> Self {
        let parts = decoder["decoders"].as_array().map_or(std::slice::from_ref(decoder), Vec::as_slice);
        if parts.iter().any(|part| part["type"] == "ByteLevel") {
            Self::ByteLevel(byte_letters())
        } else {
            Self::Pieces { falls_back: parts.iter().any(|part| part["type"] == "ByteFallback") }
        }
    }

    fn bytes(&self, written: &str) -> Vec<u8> {
        match self {
            // A character that stands for no byte stands for itself.
            Self::ByteLevel(letters) => {
                let bytes = |letter: char| match letters.get(&letter) {
                    Some(byte) => vec![*byte],
                    None => letter.to_string().into_bytes(),
                };
                written.chars().flat_map(bytes).collect()
            }
            Self::Pieces { .. } => match spelled_byte(written) {
                Some(byte) => vec![byte],
                None => written.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// The byte that is written like `<0x0A>`.
fn spelled_byte(written: &str) -> Option<u8> {
    let digits = written.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// Tokens' texts with U+FFFD in the place of bytes that are part of no character. The decoder would make U+FFFD of all
/// bytes that stand beside them, those of whole characters included, and so take back what it made of these before.
fn without_broken_bytes(texts: Vec<String>) -> Vec<String> {
    let (mut mended, mut bytes) = (Vec::with_capacity(texts.len()), Vec::new());
    let end_bytes = |bytes: &mut Vec<u8>, mended: &mut Vec<String>| {
        for chunk in bytes.utf8_chunks() {
            mended.extend(chunk.valid().bytes().map(|byte| format!("<0x{byte:02X}>")));
            mended.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER.to_string()));
        }
        bytes.clear();
    };
    for text in texts {
        match spelled_byte(&text) {
            Some(byte) => bytes.push(byte),
            None => {
                end_bytes(&mut bytes, &mut mended);
                mended.push(text);
            }
        }
    }
    end_bytes(&mut bytes, &mut mended);
    mended
}

/// The characters that byte-level vocabularies write bytes with: printable ones for themselves, and the first others from
/// U+0100 on for the rest, in order (GPT-2's `bytes_to_unicode`).
fn byte_letters() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let (plain, others): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(printable);
    let others = others.into_iter().zip('\u{100}'..).map(|(byte, letter)| (letter, byte));
    plain.into_iter().map(|byte| (char::from(byte), byte)).chain(others).collect()
}

/// [`Error::BadModel`] about `tokenizer.json`.
pub(in crate::transformer) fn bad_tokenizer(error: tokenizers::Error) -> Error {
    bad_model(FILE, error.to_string())
}
