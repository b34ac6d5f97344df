//! The messages of a conversation, as every format tells them, for the model.

use amem_core::{Message, Role, ToolCall};

use crate::http::{ApiError, Result};

/// Messages of a conversation at most.
pub(crate) const MAX_MESSAGES: usize = 2048;

/// Collects the messages of a conversation, in order.
///
/// Ids of calls are written anew, as [`amem_core`] writes them itself: short enough for the strictest chat templates, and
/// the same whenever the conversation is sent again.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    messages: Vec<Message>,
    /// The ids of the last answer's calls: the client's.
    calls: Vec<String>,
}

impl Conversation {
    /// Instructions.
    pub(crate) fn system(&mut self, text: impl Into<String>) {
        self.messages.push(Message::new(Role::System, text));
    }

    /// What a user says.
    pub(crate) fn user(&mut self, text: impl Into<String>) {
        self.messages.push(Message::new(Role::User, text));
    }

    /// An answer, with the tools that it called. Answers that follow each other become one, as a model would have written
    /// them.
    ///
    /// # Errors
    /// 400 for calls whose arguments are no JSON object.
    pub(crate) fn assistant(&mut self, text: &str, calls: Vec<ToolCall>) -> Result<()> {
        let (mut all, mut ids) = (Vec::new(), Vec::new());
        let mut said = text.to_owned();
        if let Some(before) = self.messages.pop_if(|message| message.role == Role::Assistant) {
            said = [&*before.text, text].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n");
            (all, ids) = (before.tool_calls, std::mem::take(&mut self.calls));
        }
        for mut call in calls {
            if call.arguments.trim().is_empty() {
                "{}".clone_into(&mut call.arguments);
            }
            let arguments: serde_json::Result<serde_json::Map<_, _>> = serde_json::from_str(&call.arguments);
            if arguments.is_err() {
                return Err(ApiError::bad_request("the arguments of a call are a JSON object, written as a string"));
            }
            ids.push(std::mem::replace(&mut call.id, id(all.len())));
            all.push(call);
        }
        self.calls = ids;
        self.messages.push(Message::new(Role::Assistant, said).tool_calls(all));
        Ok(())
    }

    /// The result of a call, whose id is the client's.
    ///
    /// # Errors
    /// 400 when the last answer has no such call.
    pub(crate) fn tool_result(&mut self, call: &str, text: impl Into<String>) -> Result<()> {
        let Some(index) = self.calls.iter().position(|id| id == call) else {
            return Err(ApiError::bad_request("the answer before this result has no call with its id"));
        };
        self.messages.push(Message::tool_result(id(index), text));
        Ok(())
    }

    /// The messages.
    pub(crate) fn into_messages(self) -> Vec<Message> {
        self.messages
    }
}

/// The id of an answer's call: nine letters and digits.
fn id(index: usize) -> String {
    format!("call{index:05}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall::new(id, "look", arguments)
    }

    #[test]
    fn calls_have_the_same_short_ids_whatever_a_client_calls_them() {
        for (one, other) in [("call_0123456789abcdef01234567", "b"), ("toolu_x", "toolu_y")] {
            let mut told = Conversation::default();
            told.user("where?");
            told.assistant("", vec![call(one, "{}"), call(other, "")]).unwrap();
            told.tool_result(other, "there").unwrap();
            told.tool_result(one, "here").unwrap();
            assert!(told.tool_result("c", "nowhere").is_err());
            let expected = vec![
                Message::new(Role::User, "where?"),
                Message::new(Role::Assistant, "").tool_calls(vec![call("call00000", "{}"), call("call00001", "{}")]),
                Message::tool_result("call00001", "there"),
                Message::tool_result("call00000", "here"),
            ];
            assert_eq!(told.into_messages(), expected);
        }
    }

    #[test]
    fn answers_that_follow_each_other_are_one() {
        let mut told = Conversation::default();
        told.user("where?");
        told.assistant("Let me see.", Vec::new()).unwrap();
        told.assistant("", vec![call("a", "{}")]).unwrap();
        told.assistant("And there.", vec![call("b", "{}")]).unwrap();
        told.tool_result("a", "here").unwrap();
        let messages = told.into_messages();
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[1].text, "Let me see.\n\nAnd there.");
        assert_eq!(messages[1].tool_calls, [call("call00000", "{}"), call("call00001", "{}")]);
    }

    #[test]
    fn arguments_that_are_no_object_are_refused() {
        for arguments in ["[]", "{", "so"] {
            assert!(Conversation::default().assistant("", vec![call("a", arguments)]).is_err(), "{arguments}");
        }
    }
}
