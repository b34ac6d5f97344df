//! Tokens of PTX text.

use super::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// A name, a directive or an opcode with its modifiers: `loop_end`, `.reg`, `%tid.x`, `ld.global.L1::no_allocate`.
    Name(&'a str),
    Integer(u64),
    /// The bits of an f32: `0f3F800000`.
    Float(u32),
    /// `8.0`, as in `.version 8.0`.
    Decimal(&'a str),
    Text(&'a str),
    Punctuation(char),
}

impl Token<'_> {
    /// For messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Name(text) | Self::Decimal(text) => format!("`{text}`"),
            Self::Integer(value) => format!("`{value}`"),
            Self::Float(bits) => format!("`0f{bits:08X}`"),
            Self::Text(text) => format!("\"{text}\""),
            Self::Punctuation(c) => format!("`{c}`"),
        }
    }
}

/// A token and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Spanned<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) line: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

pub(crate) fn tokens(text: &str) -> Result<Vec<Spanned<'_>>, ParseError> {
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while lexer.skip_blanks()? {
        let (line, start) = (lexer.line, lexer.at);
        let token = lexer.token()?;
        tokens.push(Spanned { token, line, start, end: lexer.at });
    }
    Ok(tokens)
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError::new(self.line, reason)
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn starts_with(&self, prefix: &[u8]) -> bool {
        self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(prefix))
    }

    /// Skips blanks and comments. False at the end of the text.
    fn skip_blanks(&mut self) -> Result<bool, ParseError> {
        while let Some(byte) = self.peek(0) {
            if byte == b'\n' {
                self.line += 1;
                self.at += 1;
            } else if byte.is_ascii_whitespace() {
                self.at += 1;
            } else if self.starts_with(b"//") {
                while self.peek(0).is_some_and(|byte| byte != b'\n') {
                    self.at += 1;
                }
            } else if self.starts_with(b"/*") {
                let begin = self.line;
                while !self.starts_with(b"*/") {
                    match self.peek(0) {
                        Some(b'\n') => self.line += 1,
                        Some(_) => {}
                        None => return Err(ParseError::new(begin, "this comment has no end")),
                    }
                    self.at += 1;
                }
                self.at += 2;
            } else {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take_while(&mut self, keep: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.peek(0).is_some_and(&keep) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn token(&mut self) -> Result<Token<'a>, ParseError> {
        match self.peek(0) {
            Some(byte) if byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'%' | b'$' | b'.') => Ok(self.name()),
            Some(byte) if byte.is_ascii_digit() => self.number(),
            Some(b'"') => {
                self.at += 1;
                let text = self.take_while(|byte| byte != b'"' && byte != b'\n');
                if self.peek(0) != Some(b'"') {
                    return Err(self.error("this string has no end"));
                }
                self.at += 1;
                Ok(Token::Text(text))
            }
            Some(byte) if byte.is_ascii_punctuation() => {
                self.at += 1;
                Ok(Token::Punctuation(char::from(byte)))
            }
            _ => Err(self.error("a character that PTX does not have")),
        }
    }

    fn name(&mut self) -> Token<'a> {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.' | b'%') {
                self.at += 1;
            } else if self.starts_with(b"::") {
                self.at += 2;
            } else {
                break;
            }
        }
        Token::Name(self.text.get(start..self.at).unwrap_or_default())
    }

    fn number(&mut self) -> Result<Token<'a>, ParseError> {
        let start = self.at;
        let digits = self.take_while(|byte| byte.is_ascii_alphanumeric());
        if self.peek(0) == Some(b'.') && self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
            self.take_while(|byte| byte.is_ascii_alphanumeric());
            return Ok(Token::Decimal(self.text.get(start..self.at).unwrap_or_default()));
        }
        let bad = || self.error(format!("`{digits}` is not a number"));
        if let Some(hex) = digits.strip_prefix("0f").or_else(|| digits.strip_prefix("0F")) {
            if hex.len() != 8 {
                return Err(self.error(format!("`{digits}` is not an f32: it needs 8 hexadecimal digits")));
            }
            return u32::from_str_radix(hex, 16).map(Token::Float).map_err(|_| bad());
        }
        let plain = digits.strip_suffix('U').unwrap_or(digits);
        let (radix, plain) = if let Some(hex) = plain.strip_prefix("0x").or_else(|| plain.strip_prefix("0X")) {
            (16, hex)
        } else if let Some(binary) = plain.strip_prefix("0b").or_else(|| plain.strip_prefix("0B")) {
            (2, binary)
        } else if plain.len() > 1 && plain.starts_with('0') {
            (8, plain)
        } else {
            (10, plain)
        };
        u64::from_str_radix(plain, radix).map(Token::Integer).map_err(|_| bad())
    }
}
