"""OpenAI's and Anthropic's clients through the proxy."""

import sys

import anthropic
import openai
from amem import Amem

url = sys.argv[1]
Amem.for_proxy(url, api_key="door").remember("alice", ["Alice lives in Denver."])
headers = {"x-amem-key": "door"}
question = [{"role": "user", "content": "Where does Alice live?"}]
system = {"role": "system", "content": "Be kind."}

client = openai.OpenAI(base_url=f"{url}/v1", api_key="theirs", default_headers=headers, max_retries=0)
answer = client.chat.completions.create(model="m", user="alice", messages=[system, *question])
assert "Denver" in answer.choices[0].message.content and "Be kind." in answer.choices[0].message.content, answer
assert answer.usage.prompt_tokens_details.cached_tokens == 60
assert answer.model_extra["amem"]["user"] == "alice", answer
chunks = list(client.chat.completions.create(model="m", user="alice", messages=[system, *question], stream=True))
assert "Denver" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert chunks[-1].usage.total_tokens == 107
other = client.chat.completions.create(model="m", user="bob", messages=question)
assert "Denver" not in other.choices[0].message.content
assert [model.id for model in client.models.list()] == ["m"]
try:
    client.chat.completions.create(model="busy", user="alice", messages=question)
except openai.RateLimitError as error:
    assert error.response.headers["retry-after"] == "7", error
else:
    raise AssertionError("429 did not come through")

client = anthropic.Anthropic(base_url=url, api_key="theirs", default_headers=headers, max_retries=0)
ask = dict(model="m", max_tokens=100, system="Be kind.", messages=question)
answer = client.messages.create(**ask, extra_headers={"x-amem-user": "alice"})
assert "Denver" in answer.content[0].text and "Be kind." in answer.content[0].text, answer
assert answer.usage.cache_read_input_tokens == 60
with client.messages.stream(**ask, extra_body={"user": "alice"}) as stream:
    text = "".join(stream.text_stream)
    usage = stream.get_final_message().usage
assert "Denver" in text and usage.output_tokens == 7, (text, usage)
assert "Denver" not in client.messages.create(**ask, extra_body={"user": "bob"}).content[0].text
try:
    client.messages.create(**(ask | {"model": "busy"}), extra_body={"user": "alice"})
except anthropic.RateLimitError as error:
    assert error.response.headers["retry-after"] == "7" and error.request_id == "req_1", error
else:
    raise AssertionError("429 did not come through")
