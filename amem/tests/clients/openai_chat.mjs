// `openai` for Node: a server that remembers, a question and its answer, and a server with a script.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [memoryUrl, question, answer, scriptUrl] = process.argv.slice(2);
const options = { apiKey: "none", maxRetries: 0 };
const memory = new OpenAI({ baseURL: memoryUrl, ...options });
const script = new OpenAI({ baseURL: scriptUrl, ...options });
const user = (content) => [{ role: "user", content }];
const asked = { model: "amem", messages: user(question), user: "alice" };

const whole = await memory.chat.completions.create(asked);
const text = whole.choices[0].message.content;
assert(text.includes(answer), text);
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

const stream = await memory.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
let streamed = "";
let usage;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

// The client runs the tool, and asks again with its result.
const places = [];
const runner = script.chat.completions.runTools({
  model: "amem",
  messages: user("How warm is it?"),
  stream: true,
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        parameters: { type: "object", properties: { place: { type: "string" } } },
        parse: JSON.parse,
        function: ({ place }) => {
          places.push(place);
          return "It is warm.";
        },
      },
    },
  ],
});
assert.equal(await runner.finalContent(), "Warm & sunny.");
assert.deepEqual(places, ["Denver"]);

await assert.rejects(
  script.chat.completions.create({ model: "amem", messages: user("Count"), temperature: 3 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);

const models = await memory.models.list();
assert.equal(models.data[0].id, whole.model);
