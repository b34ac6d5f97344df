"""The openai client's other ways to ask: completions, embeddings, responses, and answers of a schema."""

import os
from typing import Annotated, Literal

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from pydantic import BaseModel, Field

URL = os.environ["AMEM_URL"] + "/v1"
client = OpenAI(base_url=URL, api_key="unused")


class Home(BaseModel):
    city: Annotated[str, Field(max_length=8)]
    warm: bool


class Person(BaseModel):
    role: Literal["cook", "pilot"]
    age: Annotated[int, Field(ge=0, le=120)]
    home: Home
    friends: Annotated[list[Literal["Ann", "Bo"]], Field(max_length=2)]


def test_vectors_are_the_same_as_numbers_and_as_bytes():
    texts = ["Alice lives in Rome.", "Bob works at Lego."]
    # The client asks for Base64 by itself, and decodes it.
    packed = client.embeddings.create(model="any", input=texts)
    plain = client.embeddings.create(model="any", input=texts, encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
        assert sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-5)
    assert packed.usage == plain.usage
    assert packed.usage.prompt_tokens > 0


def test_a_completion_is_the_same_whole_and_streamed():
    asked = {"model": "any", "prompt": ["Alice lives in", "Bob"], "max_tokens": 8, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1]
    texts = ["", ""]
    usage = None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage
    logprobs = whole.choices[0].logprobs
    assert "".join(logprobs.tokens) == whole.choices[0].text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)


def test_a_response_has_its_text_and_its_usage():
    response = client.responses.create(model="any", input="Where does Alice live?", instructions="Be brief.")
    assert response.output_text
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    items = [{"role": "user", "content": "Where does Alice live?"}, *response.output, {"role": "user", "content": "Why?"}]
    again = client.responses.create(model="any", input=items, max_output_tokens=16)
    assert again.id != response.id


def test_a_response_is_the_same_whole_and_streamed():
    asked = {"model": "any", "input": "Where does Alice live?", "temperature": 0}
    whole = client.responses.create(**asked)
    deltas = [event.delta for event in client.responses.create(**asked, stream=True) if hasattr(event, "delta")]
    assert "".join(deltas) == whole.output_text
    with client.responses.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds


def test_a_response_is_parsed_as_the_type_that_it_is_to_have():
    for seed in range(3):
        asked = {"model": "any", "input": "Who?", "temperature": 1.5, "extra_body": {"seed": seed}}
        response = client.responses.parse(**asked, text_format=Person)
        assert isinstance(response.output_parsed, Person)
    with client.responses.stream(model="any", input="Who?", text_format=Person) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Person)


def test_an_answer_in_a_chat_is_parsed_as_the_type_that_it_is_to_have():
    for seed in range(3):
        completion = client.chat.completions.parse(
            model="any",
            messages=[{"role": "user", "content": "Who?"}],
            response_format=Person,
            temperature=1.5,
            seed=seed,
        )
        assert isinstance(completion.choices[0].message.parsed, Person)


def test_what_is_not_done_is_refused_by_its_name():
    refused = [
        (client.responses.create, {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        (client.responses.create, {"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        (client.completions.create, {"prompt": "a", "suffix": "z"}, "suffix"),
        (client.embeddings.create, {"input": "a", "dimensions": 3}, "dimensions"),
    ]
    for call, asked, param in refused:
        with pytest.raises(BadRequestError) as error:
            call(model="any", **asked)
        assert error.value.param == param


async def test_many_ask_at_once():
    import asyncio

    async with AsyncOpenAI(base_url=URL, api_key="unused") as many:
        asked = [many.responses.create(model="any", input=f"Where does {name} live?") for name in ["Al", "Bo", "Cy"]]
        assert all(response.status == "completed" for response in await asyncio.gather(*asked))
