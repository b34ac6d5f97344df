"""Anthropic's SDK: each error as the exception that its users catch."""

import sys

import anthropic

url, busy, narrow, key = sys.argv[1:]
asked = {"model": "any", "max_tokens": 8, "messages": [{"role": "user", "content": "Why?"}]}


def raised(exception, kind, base_url=url, api_key=key, **fields):
    client = anthropic.Anthropic(base_url=base_url, api_key=api_key, max_retries=0)
    for streams in [False, True]:
        try:
            client.messages.create(**{**asked, **fields}, stream=streams)
        except anthropic.APIStatusError as error:
            assert type(error) is exception, error
            assert error.body["type"] == "error" and error.body["error"]["type"] == kind, error.body
            assert error.body["error"]["message"] in error.message, error
            assert error.request_id or base_url != url, error
        else:
            raise AssertionError(f"no {exception}")


image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
raised(anthropic.BadRequestError, "invalid_request_error", messages=[{"role": "user", "content": [image]}])
raised(anthropic.BadRequestError, "invalid_request_error", temperature=2)
raised(anthropic.BadRequestError, "invalid_request_error", messages=[{"role": "user"}])
raised(anthropic.AuthenticationError, "authentication_error", api_key="wrong")
raised(anthropic.PermissionDeniedError, "permission_error", extra_body={"user": "somebody else"})
raised(anthropic.NotFoundError, "not_found_error", extra_body={"session": "none"})
raised(anthropic.RequestTooLargeError, "request_too_large", base_url=narrow, system="x" * 4096)
raised(anthropic.RateLimitError, "rate_limit_error", base_url=busy + "/always")

# This one has room again by the time that it names.
patient = anthropic.Anthropic(base_url=busy + "/once", api_key=key, max_retries=1)
response = patient.messages.with_raw_response.create(**asked)
assert response.retries_taken == 1 and response.parse().type == "message"
