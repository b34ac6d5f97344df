//! Tokens as every upstream counts them, in one shape.

use serde_json::Value;

/// Bytes of a line of a stream that is read at most: longer ones hold no usage.
const LINE_BYTES: usize = 1 << 20;

/// What an upstream says it used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    /// All of the prompt.
    pub(super) input: u64,
    /// Those of the prompt that the prefix cache held.
    pub(super) cache_read: u64,
    /// Those of the prompt that were written to it.
    pub(super) cache_write: u64,
    /// What was generated.
    pub(super) output: u64,
}

impl Tokens {
    /// Those of the prompt that were computed and not written to a cache at a price of their own.
    pub(super) fn fresh(&self) -> u64 {
        self.input.saturating_sub(self.cache_read).saturating_sub(self.cache_write)
    }
}

/// The usage objects that were seen of one answer. A later one overrules an earlier one, field by field.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    seen: bool,
    /// Anthropic's input counts without what was cached.
    input: Option<u64>,
    prompt: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    output: Option<u64>,
}

impl Usage {
    /// Takes in a body or an event, if it has usage.
    pub(super) fn read(&mut self, body: &Value) {
        for place in ["/usage", "/message/usage"] {
            if let Some(usage) = body.pointer(place).filter(|usage| usage.is_object()) {
                self.take(usage);
            }
        }
        // llama.cpp, in streams too.
        if let Some(cached) = body.pointer("/timings/cache_n").and_then(Value::as_u64) {
            self.cache_read.get_or_insert(cached);
        }
    }

    fn take(&mut self, usage: &Value) {
        self.seen = true;
        let count = |names: &[&str]| names.iter().find_map(|name| usage.pointer(name)?.as_u64());
        let set = |field: &mut Option<u64>, count: Option<u64>| *field = count.or(*field);
        set(&mut self.input, count(&["/input_tokens"]));
        set(&mut self.prompt, count(&["/prompt_tokens"]));
        // OpenAI, vLLM and SGLang; DeepSeek; Anthropic; Moonshot.
        let read = ["/prompt_tokens_details/cached_tokens", "/prompt_cache_hit_tokens", "/cache_read_input_tokens"];
        set(&mut self.cache_read, count(&read).or_else(|| count(&["/cached_tokens"])));
        set(&mut self.cache_write, count(&["/cache_creation_input_tokens"]));
        set(&mut self.output, count(&["/completion_tokens", "/output_tokens"]));
    }

    /// What was used; `None` if nothing was said of it.
    pub(super) fn tokens(&self) -> Option<Tokens> {
        if !self.seen {
            return None;
        }
        let (read, write) = (self.cache_read.unwrap_or(0), self.cache_write.unwrap_or(0));
        let apart = self.input.map(|input| input.saturating_add(read).saturating_add(write));
        let input = self.prompt.or(apart).unwrap_or(0);
        let cache_read = read.min(input);
        let cache_write = write.min(input - cache_read);
        Some(Tokens { input, cache_read, cache_write, output: self.output.unwrap_or(0) })
    }
}

/// Reads the usage from a stream of server-sent events as its bytes pass.
#[derive(Default)]
pub(super) struct Observer {
    line: Vec<u8>,
    /// The line is too long to be kept.
    is_long: bool,
    usage: Usage,
}

impl Observer {
    /// Bytes that pass.
    pub(super) fn observe(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() > LINE_BYTES {
                self.is_long = true;
                self.line.clear();
            }
            if !self.is_long {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let data = self
            .line
            .strip_prefix(b"data:")
            .filter(|data| contains(data, b"\"usage\"") || contains(data, b"\"timings\""));
        if let Some(event) = data.and_then(|data| serde_json::from_slice::<Value>(data).ok()) {
            self.usage.read(&event);
        }
        self.line.clear();
        self.is_long = false;
    }

    /// What was used, at the stream's end.
    pub(super) fn tokens(&mut self) -> Option<Tokens> {
        self.end_line();
        self.usage.tokens()
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(body: &Value) -> Option<Tokens> {
        let mut usage = Usage::default();
        usage.read(body);
        usage.tokens()
    }

    #[test]
    fn every_upstreams_usage_has_one_shape() {
        let cached = Some(Tokens { input: 100, cache_read: 60, cache_write: 0, output: 7 });
        let openai =
            json!({ "prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": { "cached_tokens": 60 } });
        let deepseek = json!({
            "prompt_tokens": 100, "completion_tokens": 7, "prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40,
        });
        let anthropic = json!({ "input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": 7 });
        let moonshot = json!({ "prompt_tokens": 100, "completion_tokens": 7, "cached_tokens": 60 });
        for usage in [openai, deepseek, anthropic, moonshot] {
            assert_eq!(of(&json!({ "usage": usage })), cached, "{usage}");
        }
        let llama_cpp = json!({
            "usage": { "prompt_tokens": 100, "completion_tokens": 7 }, "timings": { "cache_n": 60, "prompt_n": 40 },
        });
        assert_eq!(of(&llama_cpp), cached);
        let written = json!({ "input_tokens": 10, "cache_creation_input_tokens": 90, "output_tokens": 7 });
        let tokens = of(&json!({ "usage": written })).unwrap();
        assert_eq!((tokens.input, tokens.cache_write, tokens.fresh()), (100, 90, 10));
        let vllm = json!({ "prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": null });
        assert_eq!(of(&json!({ "usage": vllm })), Some(Tokens { input: 5, output: 1, ..Tokens::default() }));
        assert_eq!(of(&json!({ "usage": null })), None);
    }

    #[test]
    fn more_cached_than_was_asked_is_bounded_by_what_was_asked() {
        let usage = json!({ "prompt_tokens": 5, "prompt_tokens_details": { "cached_tokens": u64::MAX } });
        assert_eq!(of(&json!({ "usage": usage })).unwrap().cache_read, 5);
    }

    #[test]
    fn usage_is_read_from_a_stream_wherever_its_bytes_are_cut() {
        let start = json!({ "type": "message_start", "message": { "usage": {
            "input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": 1 } } });
        let end = json!({ "type": "message_delta", "usage": { "output_tokens": 7 } });
        let stream = format!("event: message_start\r\ndata: {start}\r\n\r\nevent: message_delta\ndata: {end}\n\n");
        for cut in 1..stream.len() {
            let mut observer = Observer::default();
            let (first, second) = stream.as_bytes().split_at(cut);
            observer.observe(first);
            observer.observe(second);
            let expected = Tokens { input: 100, cache_read: 60, cache_write: 0, output: 7 };
            assert_eq!(observer.tokens(), Some(expected), "cut at {cut}");
        }
    }

    #[test]
    fn a_line_that_never_ends_is_not_kept() {
        let mut observer = Observer::default();
        for _ in 0..40 {
            observer.observe(&vec![b'x'; LINE_BYTES / 16]);
            assert!(observer.line.len() <= LINE_BYTES);
        }
        observer.observe(b"\ndata: {\"usage\": {\"prompt_tokens\": 3}}");
        assert_eq!(observer.tokens().unwrap().input, 3);
    }
}
