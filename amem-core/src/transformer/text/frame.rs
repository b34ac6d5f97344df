//! A script in tokens: everything of a [`Layout`] that does not depend on the system line.

use super::script::{Memories, Script};
use super::tokens::Tokens;
use crate::transformer::settings::bad_model;
use crate::{Layout, Result, Token};

/// Above the memories, where the template has no role for them.
const NOTES: &str = "Notes:";
/// Before each of them. The line's end stands in front, for many templates trim the end of a message.
const NOTE: &str = "\n- ";
/// Between the last of them and a question in the same message.
pub(super) const END_OF_NOTES: &str = "\n\n";

/// The tokens around the system line, and those that come after it.
pub(super) struct Frame {
    start: Vec<Token>,
    /// Whether memories are notes below the system line.
    notes: bool,
    /// From the system line to the first memory, less what every memory starts with.
    after_system: Vec<Token>,
    /// The layout, its prefix empty.
    rest: Layout,
}

impl Frame {
    /// Puts a script into tokens.
    pub(super) fn of(script: &Script, tokens: &Tokens) -> Result<Self> {
        let next_question = tokens.between(&script.next_question)?;
        let noted = [next_question.clone(), tokens.text(NOTES)?].concat();
        let mut frame = Self {
            start: tokens.opening(&script.start)?,
            notes: true,
            after_system: Vec::new(),
            rest: Layout {
                prefix: [].into(),
                memory_open: tokens.between(NOTE)?.into(),
                memory_close: [].into(),
                to_question: tokens.between(END_OF_NOTES)?.into(),
                to_answer: tokens.closing(&script.to_answer)?.into(),
                next_question: next_question.into(),
                late_memories: noted.into(),
                late_question: tokens.between(END_OF_NOTES)?.into(),
            },
        };
        match &script.memories {
            Memories::InQuestion => {}
            Memories::InSystem { to_question } => frame.rest.to_question = tokens.between(to_question)?.into(),
            Memories::Messages { first, next, to_question, none, late } => {
                let [first, next, late] = [tokens.between(first)?, tokens.between(next)?, tokens.between(late)?];
                let [to_question, none] = [tokens.between(to_question)?, tokens.between(none)?];
                let fits = frame.put_in_messages(&first, &next, &late, &to_question);
                // The pieces of a conversation with memories must make one without them too.
                if !fits || none != [&frame.after_system, &*frame.rest.to_question].concat() {
                    let reason = "the chat template fails: it introduces a question differently after memories";
                    return Err(bad_model(script.file, reason));
                }
            }
        }
        Ok(frame)
    }

    /// Splits what stands between memories into the end of one and the start of the next. The start is what stands
    /// before first memories too. Tokens are compared, not characters, so that none is cut in two. False if the end is
    /// not what stands after a last memory.
    fn put_in_messages(&mut self, first: &[Token], next: &[Token], late: &[Token], to_question: &[Token]) -> bool {
        let open = common_end(common_end(next, first), late);
        let without_open = |tokens: &[Token]| tokens[..tokens.len() - open.len()].to_vec();
        let close = without_open(next);
        let Some(to_question) = to_question.strip_prefix(close.as_slice()) else { return false };
        self.notes = false;
        self.after_system = without_open(first);
        self.rest.memory_open = open.into();
        self.rest.memory_close = close.into();
        self.rest.to_question = to_question.into();
        self.rest.late_memories = without_open(late).into();
        self.rest.late_question = to_question.into();
        true
    }

    /// The layout under a system line.
    pub(super) fn layout(&self, tokens: &Tokens, system: &str) -> Result<Layout> {
        // One text, so that the tokens at its seam are the usual ones.
        let system = match (self.notes, system.trim()) {
            (false, system) => system.to_owned(),
            (true, "") => NOTES.to_owned(),
            (true, system) => format!("{system}\n\n{NOTES}"),
        };
        let prefix = [self.start.as_slice(), &tokens.text(&system)?, &self.after_system].concat();
        Ok(Layout { prefix: prefix.into(), ..self.rest.clone() })
    }
}

fn common_end<'a>(one: &'a [Token], other: &[Token]) -> &'a [Token] {
    let same = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    &one[one.len() - same..]
}
