//! Text and tokens: how conversations with a model are written, from the files that Hugging Face models come with.
//!
//! Memories stand where the template has a place for them: as messages of a `memory` role, else as notes below the
//! system line, else, when there is no system message, as notes above the first question:
//!
//! ```text
//! Answer from the notes.
//!
//! Notes:
//! - …
//! - …
//! ```

mod calls;
mod conversation;
mod frame;
mod outline;
mod script;
mod template;
#[cfg(test)]
mod tests;
pub(super) mod tokens;

use self::calls::CallSyntax;
use self::conversation::Writer;
use self::frame::Frame;
use self::script::Script;
use self::template::{TOKENIZER_CONFIG, Template};
use self::tokens::Tokens;
use super::settings::Settings;
use super::{Config, ModelSource};
use crate::{CallForm, Chat, Conversation, Layout, Message, Result, Sampling, Token, Tool, ToolCall};

const GENERATION_CONFIG: &str = "generation_config.json";

/// The tokenizer, chat template and sampling defaults of a model.
pub struct HfChat {
    tokens: Tokens,
    template: Template,
    script: Script,
    frame: Frame,
    calls: Option<CallSyntax>,
    stops: Vec<Token>,
    sampling: Sampling,
}

impl HfChat {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json`, or what a GGUF
    /// file has in their place.
    ///
    /// # Errors
    /// [`Error::BadModel`](crate::Error::BadModel) when a file is damaged, there is no chat template, or it cannot
    /// express a conversation to which questions and memories are only ever appended.
    pub fn open(source: &dyn ModelSource, config: &Config) -> Result<Self> {
        match source.gguf() {
            Some(gguf) => Self::read(&gguf.chat_files()?, config).map_err(|error| gguf.blame(error)),
            None => Self::read(source, config),
        }
    }

    fn read(source: &dyn ModelSource, config: &Config) -> Result<Self> {
        let tokens = Tokens::open(source, config.vocabulary)?;
        let settings = Settings::read(source, TOKENIZER_CONFIG)?;
        let template = Template::open(source, settings.as_ref())?;
        let script = Script::of(&template)?;
        let generation = Settings::read(source, GENERATION_CONFIG)?;

        let mut stops = config.stops.clone();
        if let Some(generation) = &generation {
            stops.extend(generation.tokens("eos_token_id")?);
        }
        // What a template writes between an answer and the next message ends the answer, whatever the settings say.
        stops.extend(tokens.between(&script.next_question)?.iter().find(|token| tokens.is_special(**token)));
        stops.retain(|token| (*token as usize) < config.vocabulary);
        stops.sort_unstable();
        stops.dedup();
        let frame = Frame::of(&script, &tokens)?;
        let calls = CallSyntax::of(&template, &script, &tokens)?;
        Ok(Self { tokens, template, script, frame, calls, stops, sampling: sampling(generation.as_ref())? })
    }

    /// How the model's makers would draw tokens: greedily, unless `generation_config.json` says `do_sample`.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }
}

impl Chat for HfChat {
    fn layout(&self, system: &str) -> Result<Layout> {
        self.frame.layout(&self.tokens, system)
    }

    fn encode(&self, text: &str) -> Result<Vec<Token>> {
        self.tokens.text(text)
    }

    fn decode(&self, tokens: &[Token]) -> Result<String> {
        self.tokens.decode(tokens)
    }

    fn token_bytes(&self, token: Token) -> Option<Vec<u8>> {
        self.tokens.bytes(token)
    }

    fn stops(&self) -> &[Token] {
        &self.stops
    }

    fn conversation(&self, layout: &Layout, messages: &[Message], tools: &[Tool]) -> Result<Conversation> {
        let Self { tokens, template, script, .. } = self;
        Writer { tokens, template, script, layout }.conversation(messages, tools)
    }

    fn tool_calls(&self, answer: &str) -> (String, Vec<ToolCall>) {
        self.calls.as_ref().map_or_else(|| (answer.to_owned(), Vec::new()), |syntax| syntax.read(answer))
    }

    fn text_before_calls(&self, answer: &str) -> usize {
        self.calls.as_ref().map_or(answer.len(), |syntax| syntax.text_len(answer))
    }

    fn call_form(&self) -> Option<&CallForm> {
        self.calls.as_ref().map(CallSyntax::form)
    }
}

/// Without `do_sample` the other numbers are there for those who turn sampling on; they change nothing by themselves.
fn sampling(generation: Option<&Settings<'_>>) -> Result<Sampling> {
    let mut sampling = Sampling::default();
    let Some(file) = generation else { return Ok(sampling) };
    let real = |key, most, default| Ok(file.real(key, 0.0..=most)?.map_or(default, |number| number as f32));
    sampling.repetition_penalty = real("repetition_penalty", 100.0, 1.0)?;
    if file.flag("do_sample")? {
        sampling.temperature = real("temperature", 100.0, 1.0)?;
        sampling.top_k = file.whole("top_k", 0..=usize::MAX)?.unwrap_or(0);
        sampling.top_p = real("top_p", 1.0, 1.0)?;
        sampling.min_p = real("min_p", 1.0, 0.0)?;
    }
    sampling.check()?;
    Ok(sampling)
}
