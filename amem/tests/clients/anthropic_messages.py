"""Anthropic's SDK: messages, streams and counts, as its users call them."""

import asyncio
import sys

import anthropic
from anthropic.types import Message, TextBlock, Usage

url, question, answer = sys.argv[1:]
client = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
asked = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 64,
    "temperature": 0,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [{"role": "user", "content": question}],
}
mine = {"metadata": {"user_id": "me"}}


def text_of(message):
    assert isinstance(message, Message) and message.stop_reason == "end_turn", message
    [block] = message.content
    assert isinstance(block, TextBlock), block
    return block.text


def input_of(usage):
    assert isinstance(usage, Usage), usage
    return usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens


message = client.messages.create(**asked, **mine)
# What the SDK does not know of would be in here.
assert set(message.model_extra) == {"amem"} and not message.usage.model_extra, message
assert message._request_id
assert text_of(message) == answer, message
assert message.amem["user"] == "me" and message.amem["recalled"], message.amem

# The same conversation, by somebody of whom nothing is remembered.
counted = client.messages.count_tokens(**{key: asked[key] for key in ["model", "system", "messages"]})
stranger = client.messages.create(**asked, extra_body={"user": "a stranger"})
assert counted.input_tokens == input_of(stranger.usage), (counted, stranger)
assert stranger.amem["user"] == "a stranger" and stranger.amem["recalled"] == []

events = list(client.messages.create(**asked, **mine, stream=True))
assert events[0].type == "message_start" and events[-1].type == "message_stop"
assert "".join(event.delta.text for event in events if event.type == "content_block_delta") == answer

with client.messages.stream(**asked, **mine) as stream:
    assert "".join(stream.text_stream) == answer
    final = stream.get_final_message()
assert text_of(final) == answer
assert input_of(final.usage) == input_of(message.usage)
assert final.usage.output_tokens == message.usage.output_tokens

stopped = client.messages.create(**asked, **mine, stop_sequences=[answer[1]])
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", answer[1]), stopped
assert stopped.content[0].text == answer[: answer.index(answer[1])]

conversation = asked["messages"] + [
    {"role": "assistant", "content": message.content},
    {"role": "user", "content": question},
]
again = client.messages.create(**{**asked, "messages": conversation}, **mine)
assert input_of(again.usage) > input_of(message.usage)


async def at_once():
    client = anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0)

    async def one():
        async with client.messages.stream(**asked, **mine) as stream:
            return text_of(await stream.get_final_message())

    assert await asyncio.gather(*[one() for _ in range(8)]) == [answer] * 8


asyncio.run(at_once())
