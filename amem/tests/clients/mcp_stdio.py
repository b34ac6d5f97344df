"""`amem mcp` on standard input and output: mcp_stdio.py AMEM DATA_DIR"""

import sys
from functools import partial

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from mcp_checks import all_of_it, call, describes_itself, refused

amem, data = sys.argv[1:]


def start(*arguments, folder="shared", env=None, **options):
    """A process of its own, as a client's configuration starts it."""
    env = {"AMEM_DATA_DIR": f"{data}/{folder}", **(env or {})}
    return Client(StdioServerParameters(command=amem, args=["mcp", *arguments], env=env), **options)


async def the_operator_chooses_the_user():
    async with start(env={"AMEM_USER": "alice"}) as alice, start("--user", "bob") as bob:
        _, result = await call(alice, "remember", texts=["Alice's own note."], user="alice")
        assert result["user"] == "alice"
        assert (await call(bob, "recall", query="note"))[1]["memories"] == []
        assert "leave `user` out" in await refused(bob, "list_memories", user="alice")
        id = result["memories"][0]["id"]
        assert await refused(bob, "forget", memory_id=id) == f"No active memory with id {id}."
    async with start("--allow-user") as anybody:
        await describes_itself(anybody, user_is_an_argument=True)
        assert (await call(anybody, "recall", query="note"))[1]["user"] == "default"
        assert len((await call(anybody, "recall", query="note", user="alice"))[1]["memories"]) == 1


async def two_processes_share_a_directory():
    async with start() as one, start() as other:
        _, result = await call(one, "remember", texts=["The door code is 4711."])
        assert "4711" in (await call(other, "recall", query="door code"))[0]
        await call(other, "forget", memory_id=result["memories"][0]["id"])
        assert (await call(one, "recall", query="door code"))[0] == "(no relevant memories)"


async def main():
    for mode in ["legacy", "auto"]:
        await all_of_it(partial(start, folder=mode), mode)
    await the_operator_chooses_the_user()
    await two_processes_share_a_directory()


anyio.run(main)
