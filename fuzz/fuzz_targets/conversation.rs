//! Any conversation is put into tokens or refused; more messages only add exchanges; and whatever an answer says, the
//! calls in it are read without a panic.
#![no_main]

use std::sync::LazyLock;

use amem_core::transformer::{Config, HfChat};
use amem_core::{Chat, Layout, Message, Role, Tool, ToolCall};
use amem_fuzz::demo_with;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

/// Tools below the system message and calls in tags; tools above the first question and calls that are JSON alone.
const TEMPLATES: [&str; 2] = [
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'system' and tools %}{% for tool in tools %}\
     {{ tool | tojson }}{% endfor %}{% endif %}{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}\
     </call>{% endfor %}<|end|>{% endfor %}<|assistant|>",
    "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}\
     {% elif m.role == 'tool' %}{{ m.content | tojson }}{% else %}\
     {% if m.role == 'user' and loop.index <= 2 and tools %}{{ tools | tojson(indent=1) }}{% endif %}{{ m.content }}\
     {% endif %}<|end|>{% endfor %}<|assistant|>",
];

static CHATS: LazyLock<Vec<(HfChat, Layout)>> = LazyLock::new(|| {
    let config = Config::parse(&amem_demo::files()).expect("the demo model is sound");
    let chat = |template: &str| {
        let chat = HfChat::open(&demo_with("chat_template.jinja", template.as_bytes()), &config).expect("it is sound");
        let layout = chat.layout(amem_demo::SYSTEM).expect("it takes a system line");
        (chat, layout)
    };
    TEMPLATES.into_iter().map(chat).collect()
});

#[derive(Arbitrary, Debug)]
enum Said {
    System(String),
    User(String),
    Assistant(String, Vec<[String; 3]>),
    Tool(String, String),
}

#[derive(Arbitrary, Debug)]
struct Case {
    said: Vec<Said>,
    tools: Vec<[String; 3]>,
}

fuzz_target!(|case: Case| {
    let message = |said: &Said| match said {
        Said::System(text) => Message::new(Role::System, text),
        Said::User(text) => Message::new(Role::User, text),
        Said::Assistant(text, calls) => {
            let call = |[id, name, arguments]: &[String; 3]| ToolCall::new(id, name, arguments);
            Message::new(Role::Assistant, text).tool_calls(calls.iter().map(call).collect())
        }
        Said::Tool(id, text) => Message::tool_result(id, text),
    };
    let messages: Vec<Message> = case.said.iter().map(message).collect();
    let tools: Vec<Tool> = case.tools.iter().map(|[name, what, json]| Tool::new(name, what, json)).collect();
    for (chat, layout) in CHATS.iter() {
        for message in &messages {
            let _ = chat.tool_calls(&message.text);
        }
        let Ok(whole) = chat.conversation(layout, &messages, &tools) else { continue };
        for end in 0..messages.len() {
            let Ok(part) = chat.conversation(layout, &messages[..end], &tools) else { continue };
            let answered = part.exchanges.len() - 1;
            assert_eq!(part.opening, whole.opening);
            assert_eq!(part.exchanges[..answered], whole.exchanges[..answered]);
        }
    }
});
