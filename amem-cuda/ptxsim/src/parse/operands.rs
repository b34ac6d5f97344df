//! Operands, and the names that they refer to.

use std::collections::HashMap;

use super::lexer::Token;
use super::{ParseError, Parser, SharedVariable};
use crate::kernel::Parameter;
use crate::program::{Address, Condition, Predicate, Preset, Register, Registers, Special, Type};

/// Registers that a kernel may use, immediates included.
const REGISTER_LIMIT: usize = 16 * 1024;

/// An operand as it is written. What it must be, the instruction says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Register {
        index: Register,
        ty: Type,
    },
    Predicate(Condition),
    Special(Special),
    /// An integer, negative ones as two's complement, or an address in shared memory.
    Integer(u64),
    Float(u32),
    List(Vec<Operand>),
    /// `[base + offset]`
    Address {
        base: Box<Operand>,
        offset: i64,
    },
    /// `p|q`
    Pair(Box<Operand>, Box<Operand>),
    /// `_`: not wanted.
    Sink,
    Parameter(usize),
    /// A name that is not declared.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
enum Declared {
    Register(Register, Type),
    Predicate(Predicate),
}

/// `%r<8>` declares `%r0` to `%r7`.
struct Range<'a> {
    prefix: &'a str,
    count: usize,
    ty: Type,
}

#[derive(Default)]
struct Scope<'a> {
    names: HashMap<&'a str, (Type, Option<Declared>)>,
    ranges: Vec<Range<'a>>,
    /// Shared variables, and their addresses.
    shared: HashMap<String, u64>,
}

/// What names mean in the body of a kernel.
pub(crate) struct Names<'a> {
    scopes: Vec<Scope<'a>>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) register_names: Vec<String>,
    pub(crate) predicate_names: Vec<String>,
    presets: HashMap<u64, Register>,
    specials: HashMap<Special, Register>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(parameters: Vec<Parameter>) -> Self {
        Self {
            scopes: vec![Scope::default()],
            parameters,
            register_names: Vec::new(),
            predicate_names: Vec::new(),
            presets: HashMap::new(),
            specials: HashMap::new(),
        }
    }

    pub(crate) fn enter(&mut self) {
        self.scopes.push(Scope::default());
    }

    /// False when the scope left is the kernel's body.
    pub(crate) fn leave(&mut self) -> bool {
        self.scopes.pop();
        !self.scopes.is_empty()
    }

    /// What registers hold before a warp starts.
    pub(crate) fn presets(&self) -> Vec<(Register, Preset)> {
        let constants = self.presets.iter().map(|(value, register)| (*register, Preset::Constant(*value)));
        let specials = self.specials.iter().map(|(special, register)| (*register, Preset::Special(*special)));
        let mut presets: Vec<_> = constants.chain(specials).collect();
        presets.sort_by_key(|(register, _)| *register);
        presets
    }

    pub(crate) fn parameter(&self, index: usize) -> Option<&Parameter> {
        self.parameters.get(index)
    }

    /// What stands behind `.reg`.
    pub(crate) fn declare(&mut self, parser: &mut Parser<'a>) -> Result<(), ParseError> {
        let directive = parser.name()?;
        let ty = parser.type_of(directive)?;
        loop {
            let name = parser.name()?;
            if special(name).is_some() {
                return Err(parser.error(format!("`{name}` is a special register")));
            }
            let count = if parser.take('<') {
                let count = parser.size()?;
                parser.expect('>')?;
                Some(count)
            } else {
                None
            };
            let Some(scope) = self.scopes.last_mut() else { return Err(parser.error("`.reg` outside of a kernel")) };
            match count {
                Some(count) => scope.ranges.push(Range { prefix: name, count, ty }),
                None if scope.names.insert(name, (ty, None)).is_some() => {
                    return Err(parser.error(format!("`{name}` is declared twice")));
                }
                None => {}
            }
            if !parser.take(',') {
                break;
            }
        }
        parser.expect(';')
    }

    pub(crate) fn declare_shared(&mut self, variable: &SharedVariable, address: u64) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.shared.insert(variable.name.clone(), address);
        }
    }

    fn new_register(&mut self, name: String, parser: &Parser<'a>) -> Result<Register, ParseError> {
        if self.register_names.len() >= REGISTER_LIMIT {
            return Err(parser.error(format!("more than {REGISTER_LIMIT} registers")));
        }
        self.register_names.push(name);
        Ok((self.register_names.len() - 1) as Register)
    }

    /// A register that nobody reads: the target `_`.
    pub(crate) fn unnamed(&mut self, parser: &Parser<'a>) -> Result<Register, ParseError> {
        self.new_register("_".to_owned(), parser)
    }

    /// The register that always holds this value.
    pub(crate) fn constant(&mut self, value: u64, parser: &Parser<'a>) -> Result<Register, ParseError> {
        if let Some(register) = self.presets.get(&value) {
            return Ok(*register);
        }
        let register = self.new_register(value.to_string(), parser)?;
        self.presets.insert(value, register);
        Ok(register)
    }

    fn special(&mut self, special: Special, name: &str, parser: &Parser<'a>) -> Result<Register, ParseError> {
        if let Some(register) = self.specials.get(&special) {
            return Ok(*register);
        }
        let register = self.new_register(name.to_owned(), parser)?;
        self.specials.insert(special, register);
        Ok(register)
    }

    /// A declared register gets its index when it is first used, so that unused ones cost nothing.
    fn resolve(&mut self, name: &'a str, parser: &Parser<'a>) -> Result<Option<Operand>, ParseError> {
        for depth in (0..self.scopes.len()).rev() {
            let scope = &self.scopes[depth];
            let (ty, declared) = match scope.names.get(name) {
                Some(found) => *found,
                None => match scope.ranges.iter().find(|range| range.contains(name)) {
                    Some(range) => (range.ty, None),
                    None => match scope.shared.get(name) {
                        Some(address) => return Ok(Some(Operand::Integer(*address))),
                        None => continue,
                    },
                },
            };
            let declared = match declared {
                Some(declared) => declared,
                None if ty == Type::Pred => {
                    if self.predicate_names.len() >= REGISTER_LIMIT {
                        return Err(parser.error(format!("more than {REGISTER_LIMIT} predicates")));
                    }
                    self.predicate_names.push(name.to_owned());
                    Declared::Predicate((self.predicate_names.len() - 1) as Predicate)
                }
                None => Declared::Register(self.new_register(name.to_owned(), parser)?, ty),
            };
            self.scopes[depth].names.insert(name, (ty, Some(declared)));
            return Ok(Some(match declared {
                Declared::Register(index, ty) => Operand::Register { index, ty },
                Declared::Predicate(predicate) => Operand::Predicate(Condition { predicate, negated: false }),
            }));
        }
        Ok(None)
    }

    /// A predicate that guards an instruction, behind `@`.
    pub(crate) fn guard(&mut self, parser: &mut Parser<'a>) -> Result<Condition, ParseError> {
        let negated = parser.take('!');
        let name = parser.name()?;
        match self.resolve(name, parser)? {
            Some(Operand::Predicate(condition)) => Ok(Condition { negated, ..condition }),
            _ => Err(parser.error(format!("`{name}` is not a predicate"))),
        }
    }

    /// All operands of an instruction, with the semicolon at their end.
    pub(crate) fn operands(&mut self, parser: &mut Parser<'a>) -> Result<Vec<Operand>, ParseError> {
        let mut operands = Vec::new();
        if parser.take(';') {
            return Ok(operands);
        }
        loop {
            let operand = self.operand(parser)?;
            let operand = if parser.take('|') {
                let second = self.operand(parser)?;
                Operand::Pair(Box::new(operand), Box::new(second))
            } else {
                operand
            };
            operands.push(operand);
            if parser.take(';') {
                return Ok(operands);
            }
            parser.expect(',')?;
        }
    }

    fn operand(&mut self, parser: &mut Parser<'a>) -> Result<Operand, ParseError> {
        if parser.take('[') {
            let base = Box::new(self.scalar(parser)?);
            let offset = if parser.take('+') {
                let negative = parser.take('-');
                signed(parser, negative)?
            } else if parser.take('-') {
                signed(parser, true)?
            } else {
                0
            };
            parser.expect(']')?;
            return Ok(Operand::Address { base, offset });
        }
        if parser.take('{') {
            let mut list = Vec::new();
            loop {
                list.push(self.scalar(parser)?);
                if parser.take('}') {
                    return Ok(Operand::List(list));
                }
                parser.expect(',')?;
            }
        }
        self.scalar(parser)
    }

    fn scalar(&mut self, parser: &mut Parser<'a>) -> Result<Operand, ParseError> {
        if parser.take('!') {
            return Ok(Operand::Predicate(self.guard_from(parser)?));
        }
        if parser.take('-') {
            return Ok(Operand::Integer(signed(parser, true)? as u64));
        }
        match parser.next()? {
            Token::Integer(value) => Ok(Operand::Integer(value)),
            Token::Float(bits) => Ok(Operand::Float(bits)),
            Token::Name("_") => Ok(Operand::Sink),
            Token::Name(name) => {
                if let Some(special) = special(name) {
                    self.special(special, name, parser)?;
                    return Ok(Operand::Special(special));
                }
                if let Some(operand) = self.resolve(name, parser)? {
                    return Ok(operand);
                }
                match self.parameters.iter().position(|parameter| parameter.name == name) {
                    Some(index) => Ok(Operand::Parameter(index)),
                    None if name.starts_with('%') => Err(parser.error(format!("`{name}` is not declared"))),
                    None => Ok(Operand::Unknown),
                }
            }
            other => Err(parser.error(format!("{} is not an operand", other.describe()))),
        }
    }

    fn guard_from(&mut self, parser: &mut Parser<'a>) -> Result<Condition, ParseError> {
        let name = parser.name()?;
        match self.resolve(name, parser)? {
            Some(Operand::Predicate(condition)) => Ok(Condition { negated: true, ..condition }),
            _ => Err(parser.error(format!("`{name}` is not a predicate"))),
        }
    }

    /// The register of an operand that is read as a value of `bits`.
    pub(crate) fn value(
        &mut self,
        operand: &Operand,
        bits: u32,
        float: bool,
        parser: &Parser<'a>,
    ) -> Result<Register, ParseError> {
        let mask = u64::MAX >> (64 - bits);
        match operand {
            Operand::Register { index, ty } if ty.bits() == bits => Ok(*index),
            Operand::Register { index, ty } => Err(parser.error(format!(
                "`{}` has {} bits where {bits} are needed",
                self.register_name(*index),
                ty.bits()
            ))),
            Operand::Special(special) if bits == 32 => match self.specials.get(special) {
                Some(register) => Ok(*register),
                None => Err(parser.error("an unknown special register")),
            },
            Operand::Integer(_) if float => Err(parser.error("an f32 is written like 0f3F800000")),
            Operand::Integer(value) => {
                // Both 0xffffffff and -1 are 32-bit values; 0x1_0000_0000 is not.
                let high = value & !mask;
                if high != 0 && high != !mask {
                    return Err(parser.error(format!("{value:#x} does not fit in {bits} bits")));
                }
                self.constant(value & mask, parser)
            }
            Operand::Float(value) if bits == 32 => self.constant(u64::from(*value), parser),
            _ => Err(parser.error("an operand is not a value of the instruction's type")),
        }
    }

    pub(crate) fn address(
        &mut self,
        operand: &Operand,
        bits: &[u32],
        parser: &Parser<'a>,
    ) -> Result<Address, ParseError> {
        let Operand::Address { base, offset } = operand else {
            return Err(parser.error("an address, in brackets, is needed"));
        };
        let base = match base.as_ref() {
            Operand::Register { index, ty } if bits.contains(&ty.bits()) => *index,
            Operand::Integer(value) => self.constant(*value, parser)?,
            _ => return Err(parser.error("an address of the wrong width, or no address")),
        };
        Ok(Address { base, offset: *offset })
    }

    /// A list of values in braces, or a single value.
    pub(crate) fn values(
        &mut self,
        operand: &Operand,
        bits: u32,
        float: bool,
        parser: &Parser<'a>,
    ) -> Result<Registers, ParseError> {
        let list = match operand {
            Operand::List(list) => list.as_slice(),
            other => std::slice::from_ref(other),
        };
        let registers: Result<Vec<_>, _> =
            list.iter().map(|operand| self.value(operand, bits, float, parser)).collect();
        Registers::new(&registers?).ok_or_else(|| parser.error("a list has one to four elements"))
    }

    fn register_name(&self, register: Register) -> &str {
        self.register_names.get(usize::from(register)).map_or("", String::as_str)
    }
}

impl Range<'_> {
    fn contains(&self, name: &str) -> bool {
        name.strip_prefix(self.prefix).is_some_and(|number| {
            // `%r01` is not `%r1`.
            let plain = number == "0" || (!number.starts_with('0') && !number.starts_with('+'));
            plain && number.parse::<usize>().is_ok_and(|number| number < self.count)
        })
    }
}

fn signed(parser: &mut Parser<'_>, negative: bool) -> Result<i64, ParseError> {
    let value = parser.integer()?;
    let value = if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() };
    value.ok_or_else(|| parser.error("a number is too large"))
}

fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| match name {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((register, rest)) = name.split_once('.') {
        let axis = axis(rest)?;
        return Some(match register {
            "%tid" => Special::Thread(axis),
            "%ntid" => Special::Threads(axis),
            "%ctaid" => Special::Block(axis),
            "%nctaid" => Special::Blocks(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_eq" => Special::LanesEqual,
        "%lanemask_lt" => Special::LanesBelow,
        "%lanemask_le" => Special::LanesUpTo,
        "%lanemask_gt" => Special::LanesAbove,
        "%lanemask_ge" => Special::LanesFrom,
        "%dynamic_smem_size" => Special::DynamicShared,
        _ => return None,
    })
}
