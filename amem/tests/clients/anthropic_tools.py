"""Anthropic's SDK: tools that the model calls and this program runs, at once and streamed, by hand and by its runner."""

import sys

import anthropic
from anthropic import beta_tool
from anthropic.types import ToolUseBlock

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="any", max_retries=0)
tool = {
    "name": "weather",
    "description": "The weather of a place",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
asked = {"model": "any", "max_tokens": 200, "tools": [tool]}
question = [{"role": "user", "content": "How warm is it in Rome?"}]

message = client.messages.create(**asked, messages=question)
assert message.stop_reason == "tool_use", message
text, call = message.content
assert text.text == "Let me see." and isinstance(call, ToolUseBlock), message
assert (call.name, call.input) == ("weather", {"place": "Rome"}) and call.id.startswith("toolu_"), call

with client.messages.stream(**asked, messages=question) as stream:
    parts = [event.partial_json for event in stream if event.type == "input_json"]
    streamed = stream.get_final_message()
assert parts and streamed.stop_reason == "tool_use", streamed
assert streamed.content[0].text == "Let me see." and streamed.content[1].input == {"place": "Rome"}, streamed

result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "It has 20 degrees."}]}
told = question + [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
answer = client.messages.create(**asked, messages=told)
assert answer.stop_reason == "end_turn" and answer.content[0].text == "Quite warm.", answer
counted = client.messages.count_tokens(model="any", messages=told, tools=[tool])
usage = answer.usage
assert counted.input_tokens == usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens


@beta_tool
def weather(place: str) -> str:
    """The weather of a place."""
    assert place == "Rome"
    return "It has 20 degrees."


runner = client.beta.messages.tool_runner(model="any", max_tokens=200, tools=[weather], messages=question)
assert runner.until_done().content[0].text == "Quite warm."
