"""Whether the Python clients can be imported, and which they are."""

from importlib.metadata import version

for name in ["atelya", "openai"]:
    print(name, version(name))
