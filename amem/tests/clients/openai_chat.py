"""`openai` for Python: a server that remembers, a question and its answer, and a server with a script."""

import asyncio
import sys

import openai
from pydantic import BaseModel

memory_url, question, answer, script_url = sys.argv[1:]
# Responses are held to the client's own types.
options = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}
memory = openai.OpenAI(base_url=memory_url, **options)
script = openai.OpenAI(base_url=script_url, **options)


def user(text):
    return [{"role": "user", "content": text}]


def refused(kind, param, **request):
    try:
        script.chat.completions.create(**{"model": "amem", "messages": user("Count"), **request})
    except kind as error:
        assert error.param == param, error
        assert error.type == "invalid_request_error", error
    else:
        raise AssertionError(f"{request} was answered")


asked = {"model": "amem", "messages": user(question), "user": "alice"}

# What is remembered is answered, at once and as it is generated.
whole = memory.chat.completions.create(**asked)
assert answer in whole.choices[0].message.content, whole
assert whole.choices[0].finish_reason == "stop"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
assert whole.model_extra["amem"]["recalled"]
streamed = list(memory.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed[:-1]) == whole.choices[0].message.content
assert streamed[-1].usage.completion_tokens == whole.usage.completion_tokens
again = memory.chat.completions.create(**asked, extra_body={"k": 1, "residency": True})
assert again.usage.prompt_tokens_details.cached_tokens > 0
assert len(again.model_extra["amem"]["recalled"]) == 1

# Several answers, and how likely their tokens are.
several = memory.chat.completions.create(
    **asked, n=3, temperature=1.5, seed=1, logprobs=True, top_logprobs=2, max_completion_tokens=5
)
assert [choice.index for choice in several.choices] == [0, 1, 2]
for choice in several.choices:
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


async def many():
    client = openai.AsyncOpenAI(base_url=memory_url, **options)
    answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(8)))
    assert {answer.choices[0].message.content for answer in answers} == {whole.choices[0].message.content}
    text = ""
    async with client.chat.completions.stream(**asked) as stream:
        async for event in stream:
            if event.type == "content.delta":
                text += event.delta
    assert text == whole.choices[0].message.content


asyncio.run(many())

# Tools, as they come, and with their results.
tool = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
warm = {"model": "amem", "messages": user("How warm is it?"), "tools": [tool]}
with script.chat.completions.stream(**warm) as stream:
    text = "".join(event.delta for event in stream if event.type == "content.delta")
    message = stream.get_final_completion().choices[0].message
assert text == "" and not message.content, message
[call] = message.tool_calls
assert (call.function.name, call.function.arguments) == ("weather", '{"place":"Denver"}'), call
result = {"role": "tool", "tool_call_id": call.id, "content": "It is warm."}
told = script.chat.completions.create(
    model="amem", messages=[*user("How warm is it?"), message.model_dump(exclude_none=True), result], tools=[tool]
)
assert told.choices[0].message.content == "Warm & sunny.", told
for choice in ["required", {"type": "function", "function": {"name": "weather"}}]:
    forced = script.chat.completions.create(**warm, tool_choice=choice)
    assert forced.choices[0].message.tool_calls[0].function.name == "weather", forced


# An answer that is an object.
class Place(BaseModel):
    place: str


parsed = script.chat.completions.parse(model="amem", messages=user("Name a place."), response_format=Place)
assert parsed.choices[0].message.parsed == Place(place="Denver"), parsed

# A stop text, and the whole text without one.
count = {"model": "amem", "messages": user("Count")}
assert script.chat.completions.create(**count).choices[0].message.content == "one two three #four five"
assert script.chat.completions.create(**count, stop="#").choices[0].message.content == "one two three"

# What is refused says what it is.
refused(openai.BadRequestError, "temperature", temperature=3)
refused(openai.BadRequestError, "n", n=0)
refused(openai.BadRequestError, "modalities", modalities=["audio"])
image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
refused(openai.BadRequestError, "messages[0].content[0].type", messages=[{"role": "user", "content": image}])

# The model.
[model] = memory.models.list().data
assert memory.models.retrieve(model.id) == model
assert whole.model == model.id
try:
    memory.models.retrieve("owner/other")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
else:
    raise AssertionError("there is another model")
