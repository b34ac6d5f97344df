//! A model that says what a test wants, for what a small model does not do by itself: calling tools.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs, dead_code, unreachable_pub, unused_imports)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amem_core::transformer::{Options, Transformer};
use amem_core::{
    Chat, Context, Memory, Model, ModelInfo, PrefillText, Result, Sampler, Sampling, Step, Token, TokenMask, Usage,
};
use amem_cpu::Cpu;

/// Words for tools, and for calls of them.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'system' and tools %}\
    {{ tools | tojson }}{% endif %}{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>\
    {% endfor %}<end>{% endfor %}<assistant>";

/// The demo model, which computes all that is asked of it and draws the tokens of a script.
pub struct Scripted {
    model: Transformer<Cpu>,
    /// What is answered to a prompt in which a text comes last of all these: the first such answer whose tokens are allowed.
    script: Vec<(String, String)>,
    /// The bytes of every token; none where it is special.
    spelling: Vec<Vec<u8>>,
    /// What every token takes.
    pause: Duration,
    /// The prompts that were answered, as texts.
    prompts: Mutex<Vec<String>>,
}

impl Scripted {
    /// A model that answers a prompt by the text in it that comes last. Where several answers fit, it is the first that is
    /// allowed.
    pub fn new(script: &[(&str, &str)]) -> Self {
        let mut files: BTreeMap<String, Vec<u8>> =
            amem_demo::files().into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        files.insert("chat_template.jinja".into(), TEMPLATE.as_bytes().to_vec());
        let model = Transformer::load(&files, Cpu::with_threads(2).unwrap(), Options::default()).unwrap();
        let script = script.iter().map(|(asked, answer)| ((*asked).to_owned(), (*answer).to_owned())).collect();
        let tokens = 0..model.info().vocabulary as Token;
        let spelling = tokens.map(|token| model.chat().token_bytes(token).unwrap_or_default()).collect();
        Self { model, script, spelling, pause: Duration::ZERO, prompts: Mutex::default() }
    }

    /// That takes so long for each token.
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// A memory in RAM over it.
    pub fn memory(self) -> (Memory, Arc<Self>) {
        let model = Arc::new(self);
        (Memory::builder(Arc::clone(&model) as Arc<dyn Model>).build().unwrap(), model)
    }

    /// The prompts that were answered so far.
    pub fn prompts(&self) -> Vec<String> {
        self.prompts.lock().unwrap().clone()
    }
}

impl Model for Scripted {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    fn chat(&self) -> &dyn Chat {
        self.model.chat()
    }

    fn sampling(&self) -> Sampling {
        Model::sampling(&self.model)
    }

    fn prefill(
        &self,
        prefix: &[Token],
        texts: &[PrefillText],
        measure: bool,
    ) -> Result<(Vec<amem_core::KvChunk>, Usage)> {
        self.model.prefill(prefix, texts, measure)
    }

    fn open(&self, tokens: usize) -> Result<Box<dyn Context>> {
        self.model.open(tokens)
    }

    fn advance(&self, steps: &mut [Step<'_>]) -> Vec<Result<amem_core::Progress>> {
        self.model.advance(steps)
    }

    fn sample(&self, context: &dyn Context, _: &mut Sampler, allowed: Option<&TokenMask>) -> Result<Token> {
        std::thread::sleep(self.pause);
        let (chat, tokens) = (self.chat(), context.tokens());
        let to_answer = chat.layout("")?.to_answer;
        let is_start = |start: &usize| tokens[..*start].ends_with(&to_answer);
        let start = (0..=tokens.len()).rev().find(is_start).expect("an answer begins somewhere");
        let (prompt, drawn) = (chat.decode(&tokens[..start])?, &tokens[start..]);
        if drawn.is_empty() {
            self.prompts.lock().unwrap().push(prompt.clone());
        }
        let last = self.script.iter().filter_map(|(asked, _)| prompt.rfind(asked.as_str())).max();
        let answers = self.script.iter().filter(|(asked, _)| last.is_some() && prompt.rfind(asked.as_str()) == last);
        // By their bytes: what a grammar allows is not spelled as a text of its own is.
        let said: Vec<u8> = drawn.iter().flat_map(|token| self.spelling[*token as usize].clone()).collect();
        let is_allowed = |token: &Token| allowed.is_none_or(|allowed| allowed.contains(*token));
        let mut next = answers.filter_map(|(_, answer)| {
            let rest = answer.as_bytes().strip_prefix(said.as_slice())?;
            let tokens = (0..).zip(&self.spelling).filter(|(token, bytes)| {
                (!bytes.is_empty() && rest.starts_with(bytes) && is_allowed(token))
                    || (rest.is_empty() && *token == chat.stops()[0])
            });
            tokens.max_by_key(|(_, bytes)| bytes.len()).map(|(token, _)| token)
        });
        Ok(next.next().unwrap_or_else(|| panic!("no answer to {prompt}")))
    }
}
