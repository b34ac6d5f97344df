//! A chat template taken apart into the strings that stand between the texts of a conversation.
//!
//! The template is rendered over texts that occur nowhere else, and the result is cut at them. A template that writes
//! the same message differently in a longer conversation cannot be appended to, so that is checked here, once.

use super::template::{Part, Template, mark, message, parts};
use crate::Result;

/// The strings around the texts of a conversation.
#[derive(Debug, PartialEq)]
pub(super) struct Script {
    /// Where the template stands.
    pub(super) file: &'static str,
    /// From the start to the system line.
    pub(super) start: String,
    /// How memories stand in the conversation.
    pub(super) memories: Memories,
    /// From a question to its answer.
    pub(super) to_answer: String,
    /// From an answer to the next question.
    pub(super) next_question: String,
}

/// How a template lets memories into a conversation.
#[derive(Debug, PartialEq)]
pub(super) enum Memories {
    /// As messages of the role `memory`.
    Messages {
        /// From the system line to the first memory.
        first: String,
        /// From one memory to the next.
        next: String,
        /// From the last memory to the question.
        to_question: String,
        /// From the system line to the question, without memories.
        none: String,
        /// From an answer to the first of the memories that come with the next question.
        late: String,
    },
    /// As notes below the system line.
    InSystem {
        /// From the end of the system message to the question.
        to_question: String,
    },
    /// As notes below the system line, which itself stands above the first question, in one message with it.
    InQuestion,
}

impl Script {
    /// Finds the best way in which this template can express a conversation with memories.
    pub(super) fn of(template: &Template) -> Result<Self> {
        let mut reasons = Vec::new();
        let mut forms: Vec<fn(&Template) -> Result<Script>> = vec![in_system, in_question];
        if template.names_memories() {
            forms.insert(0, as_messages);
        }
        for form in forms {
            match form(template) {
                Ok(script) => return Ok(script),
                Err(error) => reasons.push(error),
            }
        }
        // The last form asks least of a template, so what is wrong there is what is wrong with it.
        Err(reasons.pop().unwrap_or_else(|| template.bad("it has no form")))
    }
}

fn as_messages(template: &Template) -> Result<Script> {
    let turns = turns(template, &["system", "memory", "memory"])?;
    let [first, next, to_question] = [1, 2, 3].map(|i| turns.lead[i].clone());
    let none = pieces(template, &["system", "user"])?.swap_remove(1);

    let roles = ["system", "memory", "memory", "user", "assistant", "memory", "memory", "user"];
    let late = pieces(template, &roles)?;
    let same = late[..4] == turns.lead && late[6] == next && late[7] == to_question && late[8] == turns.to_answer;
    if !same {
        return Err(template.bad("memories look different later in the conversation"));
    }
    let memories = Memories::Messages { first, next, to_question, none, late: late[5].clone() };
    Ok(turns.script(template, memories))
}

fn in_system(template: &Template) -> Result<Script> {
    let turns = turns(template, &["system"])?;
    let to_question = turns.lead[1].clone();
    Ok(turns.script(template, Memories::InSystem { to_question }))
}

fn in_question(template: &Template) -> Result<Script> {
    Ok(turns(template, &[])?.script(template, Memories::InQuestion))
}

/// What a template writes around questions and answers, after messages of certain roles.
struct Turns {
    /// Up to the first message, between those that lead, and up to the first question.
    lead: Vec<String>,
    to_answer: String,
    next_question: String,
}

impl Turns {
    fn script(mut self, template: &Template, memories: Memories) -> Script {
        let start = std::mem::take(&mut self.lead[0]);
        Script { file: template.file(), start, memories, to_answer: self.to_answer, next_question: self.next_question }
    }
}

/// Renders conversations of one, two and three questions and checks that each only appends to the one before it.
fn turns(template: &Template, lead: &[&str]) -> Result<Turns> {
    let rendered = |questions: usize| {
        let turns = ["user", "assistant"].repeat(questions);
        pieces(template, &[lead, &turns[..2 * questions - 1]].concat())
    };
    let (mut one, two, three) = (rendered(1)?, rendered(2)?, rendered(3)?);

    let first = lead.len() + 1;
    let (answered, next) = (&two[first], &two[first + 1]);
    if one[..first] != two[..first] || two[..first] != three[..first] {
        return Err(template.bad("a later message changes what stands before the first question"));
    }
    if three[first] != *answered || three[first + 1] != *next || three[first + 3] != *next {
        return Err(template.bad("a later message changes what stands around an answer"));
    }
    if one.last() != two.last() || two.last() != three.last() {
        return Err(template.bad("what asks for an answer depends on the number of questions"));
    }
    let next_question = next.clone();
    let to_answer = one.pop().unwrap_or_default();
    // Asking for an answer may add to what an answer is introduced by (an empty thought), and leave out the space that
    // the answer's own first token brings; otherwise an old answer would stand in other words than a new one.
    if !to_answer.starts_with(answered.trim_end()) {
        return Err(template.bad("it introduces an answer in other words than it asks for one"));
    }
    Ok(Turns { lead: one, to_answer, next_question })
}

/// What the template writes before, between and after messages of these roles. Together with the messages' texts it is
/// the whole rendering.
pub(super) fn pieces(template: &Template, roles: &[&str]) -> Result<Vec<String>> {
    let messages: Vec<_> = roles.iter().enumerate().map(|(i, role)| message(role, &mark(i))).collect();
    let rendered = template.render(&messages, None)?;
    let parts = parts(&rendered).ok_or_else(|| template.bad("the text of a message is not in its place"))?;
    let text = |part: &Part<'_>| if let Part::Text { index, .. } = part { Some(*index) } else { None };
    let order: Vec<usize> = parts.iter().filter_map(text).collect();
    for (i, role) in roles.iter().enumerate() {
        match order.iter().filter(|index| **index == i).count() {
            1 if order.get(i) == Some(&i) => {}
            0 | 1 => return Err(template.bad(format!("the text of message {i} ({role}) is not in its place"))),
            _ => return Err(template.bad("the text of a message stands in it twice")),
        }
    }
    let written = |part: Part<'_>| if let Part::Written(text) = part { Some(text.to_owned()) } else { None };
    Ok(parts.into_iter().filter_map(written).collect())
}
