//! An opcode's modifiers: `ld.global.v4.f32` is `ld` with three.

use super::ParseError;
use crate::program::Type;

/// The modifiers that are not yet understood. An instruction is only accepted when none is left.
pub(crate) struct Modifiers<'a> {
    opcode: &'a str,
    line: u32,
    left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    /// Returns the opcode's first part, and the others.
    pub(crate) fn split(opcode: &'a str, line: u32) -> (&'a str, Self) {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or_default();
        (base, Self { opcode, line, left: parts.collect() })
    }

    pub(crate) fn error(&self, reason: impl AsRef<str>) -> ParseError {
        ParseError::new(self.line, format!("`{}`: {}", self.opcode, reason.as_ref()))
    }

    /// Takes a modifier, if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        match self.left.iter().position(|left| *left == name) {
            Some(index) => {
                self.left.remove(index);
                true
            }
            None => false,
        }
    }

    /// Takes all of these, as far as they are there.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        self.left.retain(|left| !names.contains(left));
    }

    pub(crate) fn require(&mut self, name: &str) -> Result<(), ParseError> {
        if self.take(name) { Ok(()) } else { Err(self.error(format!("`.{name}` is missing"))) }
    }

    /// Takes the first modifier that is one of these.
    pub(crate) fn one_of<T: Copy>(&mut self, known: &[(&str, T)]) -> Option<T> {
        let (index, value) =
            self.left.iter().enumerate().find_map(|(index, left)| {
                known.iter().find(|(name, _)| name == left).map(|(_, value)| (index, *value))
            })?;
        self.left.remove(index);
        Some(value)
    }

    pub(crate) fn require_one_of<T: Copy>(&mut self, known: &[(&str, T)]) -> Result<T, ParseError> {
        self.one_of(known).ok_or_else(|| {
            let names: Vec<String> = known.iter().map(|(name, _)| format!("`.{name}`")).collect();
            self.error(format!("needs one of {}", names.join(", ")))
        })
    }

    /// Takes the next modifier that is a type.
    pub(crate) fn next_type(&mut self) -> Result<Type, ParseError> {
        let found = self.left.iter().enumerate().find_map(|(index, left)| Some((index, Type::from_name(left)?)));
        let (index, ty) = found.ok_or_else(|| self.error("its type is missing"))?;
        self.left.remove(index);
        Ok(ty)
    }

    /// Takes the next modifier that is a type, which must be one of these.
    pub(crate) fn type_of(&mut self, allowed: &[Type]) -> Result<Type, ParseError> {
        let ty = self.next_type()?;
        if allowed.contains(&ty) { Ok(ty) } else { Err(self.error("not with this type")) }
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), ParseError> {
        match self.left.first() {
            None => Ok(()),
            Some(left) => Err(self.error(format!("`.{left}` cannot be run here"))),
        }
    }
}
