"""LangChain's standard tests of chat models, through its client of OpenAI's API."""

import os

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestAmem(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "amem",
            "base_url": os.environ["AMEM_URL"],
            "api_key": "none",
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_model_override(self):
        # There is one model, and answers say which it is, whatever name a client gives.
        return False

    @property
    def supported_usage_metadata_details(self):
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream=False):
        model = self.chat_model_class(**self.chat_model_params)
        model.invoke("Hello")
        if not stream:
            return model.invoke("Hello")
        chunks = list(model.stream("Hello"))
        return sum(chunks[1:], start=chunks[0])

    # Inputs other than text (images, audio, PDF) are off by default: models here take text alone.
