//! A kernel: its parameters, its directives, and its body.

use std::collections::HashMap;
use std::sync::Arc;

use super::instruction;
use super::lexer::Token;
use super::operands::Names;
use super::{PARAMETER_LIMIT, ParseError, Parser, SHARED_LIMIT, SharedVariable};
use crate::SHARED_BASE;
use crate::kernel::{Kernel, Parameter};
use crate::program::{AtomicOperands, Instruction, Operation, Space};

/// The granule of a kernel that has no access to a space.
const WIDEST_ACCESS: usize = 16;

/// Instructions that the warps of one block may execute, unless a kernel is given another limit.
const STEP_LIMIT: u64 = 1 << 26;

/// Scopes within scopes that a kernel may have.
const DEPTH_LIMIT: usize = 64;

/// A label is visible in its scope and in those within. A scope is the path of the numbers of the scopes around it.
#[derive(Default)]
struct Labels<'a> {
    path: Vec<u32>,
    scopes: u32,
    targets: HashMap<(u32, &'a str), u32>,
    branches: Vec<(usize, &'a str, Vec<u32>)>,
}

/// What stands behind `.entry`.
pub(crate) fn kernel<'a>(parser: &mut Parser<'a>, shared: &[SharedVariable]) -> Result<Kernel, ParseError> {
    let name = parser.name()?.to_owned();
    let parameters = parameters(parser)?;
    let parameter_bytes = parameters.last().map_or(0, |last| last.offset + last.size);
    if parameter_bytes > PARAMETER_LIMIT {
        return Err(parser.error(format!("{parameter_bytes} bytes of parameters: {PARAMETER_LIMIT} at most")));
    }
    let mut kernel = Kernel {
        name,
        parameters: Vec::new(),
        parameter_bytes,
        required_threads: None,
        max_threads: None,
        static_shared: 0,
        dynamic_offset: 0,
        code: Vec::new(),
        texts: Arc::default(),
        register_names: Arc::default(),
        predicate_names: Arc::default(),
        presets: Arc::default(),
        shared_granule: WIDEST_ACCESS,
        global_granule: WIDEST_ACCESS,
        step_limit: STEP_LIMIT,
    };
    directives(parser, &mut kernel)?;

    let mut names = Names::new(parameters);
    // Dynamic shared memory lies behind all static variables, which the body may still declare. A first look finds
    // them, so that its address is known when the instructions are decoded.
    let mut dynamic_align = 16;
    for variable in shared {
        match variable.bytes {
            Some(bytes) => {
                let address = place(&mut kernel, variable, bytes)?;
                names.declare_shared(variable, address);
            }
            None => dynamic_align = dynamic_align.max(variable.align),
        }
    }
    let statics = static_variables(parser)?;
    let addresses: Result<Vec<u64>, ParseError> =
        statics.iter().map(|variable| place(&mut kernel, variable, variable.bytes.unwrap_or(0))).collect();
    let mut addresses = addresses?.into_iter();
    kernel.dynamic_offset = kernel.static_shared.next_multiple_of(dynamic_align);
    for variable in shared.iter().filter(|variable| variable.bytes.is_none()) {
        names.declare_shared(variable, SHARED_BASE + kernel.dynamic_offset as u64);
    }

    let mut texts = Vec::new();
    body(parser, &mut kernel, &mut names, &mut addresses, &mut texts)?;
    for instruction in &kernel.code {
        if let Some((space, bytes)) = access(&instruction.operation) {
            let granule = match space {
                Space::Shared => &mut kernel.shared_granule,
                Space::Global => &mut kernel.global_granule,
            };
            *granule = (*granule).min(bytes);
        }
        if let Operation::CopyAsync { bytes, .. } = instruction.operation {
            // It may read less, which counts as all: copies of a few bytes next to what another block writes are rare.
            kernel.global_granule = kernel.global_granule.min(usize::from(bytes));
        }
    }
    kernel.presets = names.presets().into();
    kernel.parameters = names.parameters;
    kernel.texts = texts.into();
    kernel.register_names = names.register_names.into();
    kernel.predicate_names = names.predicate_names.into();
    Ok(kernel)
}

/// The space that an instruction touches, and with how many bytes for each lane.
fn access(operation: &Operation) -> Option<(Space, usize)> {
    match operation {
        Operation::Load { access, to, .. } => Some((access.space, access.ty.size() * to.as_slice().len())),
        Operation::Store { access, values } => Some((access.space, access.ty.size() * values.as_slice().len())),
        Operation::Atomic(AtomicOperands { access, .. }) => Some((access.space, access.ty.size())),
        Operation::CopyAsync { bytes, .. } => Some((Space::Shared, usize::from(*bytes))),
        Operation::LoadMatrix { .. } => Some((Space::Shared, 16)),
        _ => None,
    }
}

fn place(kernel: &mut Kernel, variable: &SharedVariable, bytes: usize) -> Result<u64, ParseError> {
    let offset = kernel.static_shared.next_multiple_of(variable.align);
    let end = offset.saturating_add(bytes);
    if end > SHARED_LIMIT {
        let reason = format!("{end} bytes of shared memory: {SHARED_LIMIT} at most");
        return Err(ParseError::new(variable.line, reason));
    }
    kernel.static_shared = end;
    Ok(SHARED_BASE + offset as u64)
}

/// The shared variables that the body declares, found without changing the parser's position.
fn static_variables(parser: &mut Parser<'_>) -> Result<Vec<SharedVariable>, ParseError> {
    let start = parser.at;
    let mut found = Vec::new();
    let mut depth = 0usize;
    while let Some(token) = parser.peek() {
        match token {
            Token::Punctuation('{') => depth += 1,
            Token::Punctuation('}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            Token::Name(".shared") => {
                parser.at += 1;
                found.push(parser.shared(false)?);
                continue;
            }
            _ => {}
        }
        parser.at += 1;
    }
    parser.at = start;
    Ok(found)
}

fn parameters(parser: &mut Parser<'_>) -> Result<Vec<Parameter>, ParseError> {
    let mut parameters: Vec<Parameter> = Vec::new();
    if !parser.take('(') || parser.take(')') {
        return Ok(parameters);
    }
    loop {
        let directive = parser.name()?;
        if directive != ".param" {
            return Err(parser.error(format!("expected `.param`, found `{directive}`")));
        }
        let mut align = None;
        let mut ty = None;
        let mut pointer = false;
        let name = loop {
            match parser.name()? {
                ".align" => {
                    let value = parser.align()?;
                    // Behind `.ptr` it is the alignment of what the pointer points to.
                    align = align.or((!pointer).then_some(value));
                }
                ".ptr" => pointer = true,
                ".global" | ".shared" if pointer => {}
                directive if directive.starts_with('.') => ty = Some(parser.type_of(directive)?),
                name => break name.to_owned(),
            }
        };
        let ty = ty.ok_or_else(|| parser.error(format!("`{name}` has no type")))?;
        let elements = if parser.take('[') {
            let elements = parser.size()?;
            parser.expect(']')?;
            elements
        } else {
            1
        };
        if parameters.iter().any(|parameter| parameter.name == name) {
            return Err(parser.error(format!("`{name}` is declared twice")));
        }
        let align = align.unwrap_or(ty.size());
        let end = parameters.last().map_or(0, |last| last.offset + last.size);
        let size = elements.saturating_mul(ty.size());
        if size > PARAMETER_LIMIT {
            return Err(parser.error(format!("`{name}` has {size} bytes: {PARAMETER_LIMIT} at most")));
        }
        parameters.push(Parameter { name, offset: end.next_multiple_of(align), size, align });
        if parameters.len() > PARAMETER_LIMIT {
            return Err(parser.error("too many parameters"));
        }
        if parser.take(')') {
            return Ok(parameters);
        }
        parser.expect(',')?;
    }
}

fn directives(parser: &mut Parser<'_>, kernel: &mut Kernel) -> Result<(), ParseError> {
    while !parser.take('{') {
        match parser.name()? {
            ".reqntid" => kernel.required_threads = Some(dimensions(parser)?),
            ".maxntid" => kernel.max_threads = Some(dimensions(parser)?),
            ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {
                parser.integer()?;
            }
            ".pragma" => {
                parser.next()?;
                parser.expect(';')?;
            }
            other => return Err(parser.error(format!("`{other}` cannot be run"))),
        }
    }
    // So that a look at the body starts with its brace.
    parser.at -= 1;
    Ok(())
}

fn dimensions(parser: &mut Parser<'_>) -> Result<[u32; 3], ParseError> {
    let mut dimensions = [1; 3];
    for (index, dimension) in dimensions.iter_mut().enumerate() {
        if index > 0 && !parser.take(',') {
            break;
        }
        let value = parser.integer()?;
        *dimension = u32::try_from(value)
            .ok()
            .filter(|value| (1..=1024).contains(value))
            .ok_or_else(|| parser.error("a block has 1 to 1024 threads"))?;
    }
    Ok(dimensions)
}

fn body<'a>(
    parser: &mut Parser<'a>,
    kernel: &mut Kernel,
    names: &mut Names<'a>,
    shared: &mut impl Iterator<Item = u64>,
    texts: &mut Vec<String>,
) -> Result<(), ParseError> {
    parser.expect('{')?;
    names.enter();
    let mut labels = Labels { path: vec![0], ..Labels::default() };
    loop {
        if parser.take('}') {
            names.leave();
            labels.path.pop();
            if labels.path.is_empty() {
                break;
            }
            continue;
        }
        if parser.take('{') {
            if labels.path.len() >= DEPTH_LIMIT {
                return Err(parser.error("too many scopes within scopes"));
            }
            names.enter();
            labels.scopes += 1;
            labels.path.push(labels.scopes);
            continue;
        }
        let first = parser.at;
        let guard = if parser.take('@') { Some(names.guard(parser)?) } else { None };
        let line = parser.line();
        let opcode = parser.name()?;
        match opcode {
            ".reg" if guard.is_none() => names.declare(parser)?,
            ".shared" if guard.is_none() => {
                let variable = parser.shared(false)?;
                let address = shared.next().ok_or_else(|| parser.error("a shared variable was missed"))?;
                names.declare_shared(&variable, address);
            }
            ".loc" if guard.is_none() => parser.skip_debug_line(),
            ".pragma" if guard.is_none() => {
                parser.next()?;
                parser.expect(';')?;
            }
            label if guard.is_none() && parser.take(':') => {
                let scope = labels.path.last().copied().unwrap_or_default();
                if labels.targets.insert((scope, label), kernel.code.len() as u32).is_some() {
                    return Err(parser.error(format!("there are two labels `{label}`")));
                }
            }
            directive if directive.starts_with('.') => {
                return Err(parser.error(format!("`{directive}` cannot be run")));
            }
            opcode => {
                let operation = if let "bra" | "bra.uni" = opcode {
                    labels.branches.push((kernel.code.len(), parser.name()?, labels.path.clone()));
                    parser.expect(';')?;
                    Operation::Branch { target: 0, uniform: opcode == "bra.uni" }
                } else {
                    let operands = names.operands(parser)?;
                    instruction::decode(parser, names, opcode, line, &operands)?
                };
                let line = parser.tokens.get(first).map_or(line, |spanned| spanned.line);
                kernel.code.push(Instruction { guard, operation, line });
                texts.push(source(parser, first));
            }
        }
    }
    for (index, label, path) in labels.branches {
        let target = path.iter().rev().find_map(|scope| labels.targets.get(&(*scope, label)).copied());
        let Some(instruction) = kernel.code.get_mut(index) else { continue };
        let Some(target) = target else {
            return Err(ParseError::new(instruction.line, format!("there is no label `{label}`")));
        };
        if let Operation::Branch { target: place, .. } = &mut instruction.operation {
            *place = target;
        }
    }
    Ok(())
}

/// The text from a token to the one before the parser's position, with single blanks.
fn source(parser: &Parser<'_>, first: usize) -> String {
    let start = parser.tokens.get(first).map_or(0, |spanned| spanned.start);
    let end = parser.tokens.get(parser.at - 1).map_or(start, |spanned| spanned.end);
    let text = parser.text.get(start..end).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
