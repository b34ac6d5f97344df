//! PTX text to kernels. What the executor does not know is an error, never ignored.

mod body;
mod instruction;
mod lexer;
mod modifiers;
mod operands;

use std::fmt;

use crate::kernel::Kernel;
use crate::program::Type;
use lexer::{Spanned, Token};

/// Shared memory that one block may have, static and dynamic together: what the largest of the devices allows.
pub(crate) const SHARED_LIMIT: usize = 227 * 1024;

/// Bytes that a kernel's parameters may have.
const PARAMETER_LIMIT: usize = 4352;

/// Why a text is not a module that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the text.
    pub line: u32,
    /// What is wrong there.
    pub reason: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for ParseError {}

/// The kernels of a PTX text.
#[derive(Clone, Debug, Default)]
pub struct Module {
    target: String,
    kernels: Vec<Kernel>,
}

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// When it is not PTX, or uses something that this crate cannot run.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { text, tokens: lexer::tokens(text)?, at: 0 };
        let mut module = Self::default();
        let mut shared = Vec::new();
        while !parser.at_end() {
            match parser.name()? {
                ".version" => {
                    parser.next()?;
                }
                ".target" => {
                    parser.name()?.clone_into(&mut module.target);
                    while parser.take(',') {
                        parser.name()?;
                    }
                }
                ".address_size" => {
                    if parser.integer()? != 64 {
                        return Err(parser.error("only 64-bit addresses can be run"));
                    }
                }
                ".file" => parser.skip_debug_line(),
                ".visible" | ".weak" => {}
                ".extern" => {
                    if parser.name()? != ".shared" {
                        return Err(parser.error("only `.extern .shared` can be run"));
                    }
                    shared.push(parser.shared(true)?);
                }
                ".shared" => shared.push(parser.shared(false)?),
                ".entry" => {
                    let kernel = body::kernel(&mut parser, &shared)?;
                    if module.kernel(kernel.name()).is_some() {
                        return Err(parser.error(format!("there are two kernels `{}`", kernel.name())));
                    }
                    module.kernels.push(kernel);
                }
                other => return Err(parser.error(format!("`{other}` cannot be run"))),
            }
        }
        Ok(module)
    }

    /// The architecture that it names, for example `sm_80`.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The kernel of this name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// All kernels, in the order of the text.
    #[must_use]
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }
}

/// A variable in shared memory.
#[derive(Clone, Debug)]
struct SharedVariable {
    name: String,
    align: usize,
    /// None for dynamic shared memory.
    bytes: Option<usize>,
    line: u32,
}

/// A position in the tokens.
struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Spanned<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn at_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|spanned| &spanned.token)
    }

    /// The line of the next token, or of the last one.
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |spanned| spanned.line)
    }

    /// An error about the token before.
    fn error(&self, reason: impl Into<String>) -> ParseError {
        let before = self.at.saturating_sub(1);
        ParseError::new(self.tokens.get(before).map_or(1, |spanned| spanned.line), reason)
    }

    fn next(&mut self) -> Result<Token<'a>, ParseError> {
        let token = self.tokens.get(self.at).map(|spanned| spanned.token.clone());
        self.at += 1;
        token.ok_or_else(|| ParseError::new(self.line(), "the text ends too early"))
    }

    fn take(&mut self, punctuation: char) -> bool {
        let found = self.peek() == Some(&Token::Punctuation(punctuation));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, punctuation: char) -> Result<(), ParseError> {
        match self.next()? {
            Token::Punctuation(c) if c == punctuation => Ok(()),
            other => Err(self.error(format!("expected `{punctuation}`, found {}", other.describe()))),
        }
    }

    fn name(&mut self) -> Result<&'a str, ParseError> {
        match self.next()? {
            Token::Name(name) => Ok(name),
            other => Err(self.error(format!("expected a name, found {}", other.describe()))),
        }
    }

    fn integer(&mut self) -> Result<u64, ParseError> {
        match self.next()? {
            Token::Integer(value) => Ok(value),
            other => Err(self.error(format!("expected a number, found {}", other.describe()))),
        }
    }

    /// A number that counts or measures something.
    fn size(&mut self) -> Result<usize, ParseError> {
        let value = self.integer()?;
        usize::try_from(value)
            .ok()
            .filter(|&size| size <= 1 << 30)
            .ok_or_else(|| self.error(format!("{value} is too large")))
    }

    fn align(&mut self) -> Result<usize, ParseError> {
        let align = self.size()?;
        if !align.is_power_of_two() || align > 1024 {
            return Err(self.error(format!("{align} is no alignment")));
        }
        Ok(align)
    }

    /// The type that a directive's name gives: `.u32`.
    fn type_of(&self, name: &str) -> Result<Type, ParseError> {
        name.strip_prefix('.')
            .and_then(Type::from_name)
            .ok_or_else(|| self.error(format!("`{name}` is not a type that can be run")))
    }

    /// What stands behind `.loc` and `.file`, which have no mark at their end.
    fn skip_debug_line(&mut self) {
        let line = self.tokens.get(self.at.saturating_sub(1)).map_or(0, |spanned| spanned.line);
        while self.tokens.get(self.at).is_some_and(|spanned| spanned.line == line) {
            self.at += 1;
        }
    }

    /// What stands behind `.shared`.
    fn shared(&mut self, dynamic: bool) -> Result<SharedVariable, ParseError> {
        let line = self.line();
        let mut align = None;
        let mut element = None;
        let name = loop {
            match self.name()? {
                ".align" => align = Some(self.align()?),
                directive if directive.starts_with('.') => element = Some(self.type_of(directive)?.size()),
                name => break name.to_owned(),
            }
        };
        let element = element.ok_or_else(|| self.error(format!("`{name}` has no type")))?;
        let bytes = match (self.take('['), dynamic) {
            (true, true) => {
                self.expect(']')?;
                None
            }
            (true, false) => {
                let elements = self.size()?;
                self.expect(']')?;
                Some(elements.saturating_mul(element))
            }
            (false, true) => return Err(self.error(format!("`{name}` must be an array of no length"))),
            (false, false) => Some(element),
        };
        self.expect(';')?;
        Ok(SharedVariable { name, align: align.unwrap_or(element), bytes, line })
    }
}
