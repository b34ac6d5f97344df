"""`litellm`: a server that remembers, a question and its answer, and a server with a script."""

import os
import sys

# Its table of prices is fetched from elsewhere otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

memory_url, question, answer, script_url = sys.argv[1:]


def complete(url, text, **options):
    messages = [{"role": "user", "content": text}]
    return litellm.completion(model="openai/amem", api_base=url, api_key="none", messages=messages, **options)


# It leaves `user` out for models that it does not know, unless told to send it.
alice = {"extra_body": {"user": "alice"}}
whole = complete(memory_url, question, **alice)
text = whole.choices[0].message.content
assert answer in text, whole
assert whole.usage.prompt_tokens > 0
chunks = complete(memory_url, question, **alice, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text

tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
[call] = complete(script_url, "How warm is it?", tools=[tool]).choices[0].message.tool_calls
assert call.function.name == "weather", call
try:
    complete(script_url, "Count", n=0)
except litellm.BadRequestError:
    pass
else:
    raise AssertionError("no answers were asked for, and it was answered")
