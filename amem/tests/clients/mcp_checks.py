"""What an MCP client may rely on, whichever way it is connected. For mcp_stdio.py and mcp_http.py."""

import json
import re

import anyio
from mcp import Client, MCPError
from mcp_types import ResourceListChangedNotification, ResourceUpdatedNotification

TOOLS = ["remember", "recall", "list_memories", "forget", "update"]
LIST = "amem://memories"
# A client that waits for ever is a failed test.
PATIENCE = 30


def text(result) -> str:
    assert len(result.content) == 1 and result.content[0].type == "text", result
    return result.content[0].text


async def call(client: Client, tool: str, **arguments):
    """The text and the structure that a tool answers with."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    return text(result), result.structured_content


async def refused(client: Client, tool: str, **arguments) -> str:
    """Why a tool does not do it, which its model can read: a result, not an error of the protocol."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error and result.structured_content is None, result
    return text(result)


async def describes_itself(client: Client, user_is_an_argument: bool = False):
    assert client.server_info.name == "amem" and "recall" in client.instructions
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == TOOLS
    assert '"format"' not in str([tool.model_dump_json() for tool in tools]), "validators complain of formats of ours"
    for tool in tools:
        assert tool.title and tool.description and tool.output_schema["type"] == "object", tool
        assert ("user" in tool.input_schema["properties"]) == user_is_an_argument, tool
        assert tool.annotations.open_world_hint is False
    hints = {tool.name: tool.annotations for tool in tools}
    assert [hints[name].read_only_hint for name in TOOLS] == [False, True, True, False, False]
    assert [hints[name].destructive_hint for name in TOOLS] == [False, None, None, True, True]
    assert tools[0].input_schema["required"] == ["texts"] and tools[4].input_schema["required"] == ["memory_id", "text"]


async def remembers_and_forgets(client: Client):
    """All five tools, with the texts that users of the reference system know."""
    assert await call(client, "list_memories") == ("(no memories for 'default')",
                                                   {"user": "default", "memories": [], "total": 0})
    said, result = await call(client, "remember", texts=["Alice works at Acme.", "Alice likes tea."], keys=["job", None])
    acme, tea = (memory["id"] for memory in result["memories"])
    assert said == (f"Saved 2 memory item(s) for 'default'. active=2 superseded=0 deleted=0. ids=['{acme}', '{tea}']")
    assert [memory["outcome"] for memory in result["memories"]] == ["added", "added"]

    # The ids line up with the texts, whatever becomes of each.
    said, result = await call(client, "remember", texts=["Alice likes tea.", "Alice works at Globex."],
                              keys=["", "job"], user="default")
    known, globex = result["memories"]
    assert known == {"id": tea, "outcome": "duplicate"}
    assert (globex["outcome"], globex["superseded"]) == ("superseded", acme)
    assert said.startswith("Saved 1 memory item(s)") and "known already" in said
    assert (result["active"], result["superseded"], result["forgotten"]) == (2, 1, 0)
    globex = globex["id"]

    said, result = await call(client, "recall", query="Where does Alice work?", max_results=1)
    assert said == f"- [{globex}] Alice works at Globex." and result["memories"][0]["score"] > 0
    said, result = await call(client, "recall", query="zebra")
    assert (said, result["memories"]) == ("(no relevant memories)", [])

    said, result = await call(client, "update", memory_id=tea, text="Alice likes coffee.")
    assert (said, result["text"]) == (f"Updated memory {tea}.", "Alice likes coffee.")
    said, result = await call(client, "list_memories")
    assert said == f"2 active memory item(s) for 'default':\n- [{tea}] Alice likes coffee.\n- [{globex}] Alice works at Globex."
    assert result["memories"][1]["key"] == "job"

    assert (await call(client, "forget", memory_id=tea))[0] == f"Forgot memory {tea}."
    said, result = await call(client, "recall", query="What does Alice like?", max_results=9)
    assert "coffee" not in said and [memory["id"] for memory in result["memories"]] in ([], [globex])
    assert (await call(client, "forget", memory_id=globex))[1]["id"] == globex


async def says_what_is_wrong(client: Client):
    nowhere = "0" * 32
    for wrong in [nowhere, "7", ""]:
        assert await refused(client, "forget", memory_id=wrong) == f"No active memory with id {wrong}."
        assert await refused(client, "update", memory_id=wrong, text="x") == f"No active memory with id {wrong}."
    assert "texts" in await refused(client, "remember")
    assert "0 texts" in await refused(client, "remember", texts=[])
    assert "empty" in await refused(client, "remember", texts=["kept?", "  "])
    assert "2 keys for 1 texts" in await refused(client, "remember", texts=["x"], keys=["a", "b"])
    assert "bytes" in await refused(client, "remember", texts=["x" * 100_000])
    assert "empty" in await refused(client, "recall", query=" ")
    assert "max_results" in await refused(client, "recall", query="x", max_results=0)
    assert "cursor" in await refused(client, "list_memories", cursor=nowhere)
    assert (await call(client, "list_memories"))[1]["total"] == 0, "what is refused leaves nothing behind"
    _, result = await call(client, "remember", texts=["once"])
    once = result["memories"][0]["id"]
    await call(client, "forget", memory_id=once)
    assert "forgotten" in await refused(client, "update", memory_id=once, text="again")
    for request in [client.call_tool("drop_tables", {}), client.read_resource("file:///etc/passwd"),
                    client.read_resource(f"{LIST}/{nowhere}"), client.list_resources(cursor="7")]:
        try:
            await request
        except MCPError:
            continue
        raise AssertionError("an unknown name is an error of the protocol")


async def is_for_one_user(client: Client):
    assert "leave `user` out" in await refused(client, "recall", query="x", user="bob")
    assert "leave `user` out" in await refused(client, "remember", texts=["x"], user="bob")


async def memories_are_resources(client: Client):
    texts = [f"note {n}" for n in range(250)]
    _, result = await call(client, "remember", texts=texts)
    ids = [memory["id"] for memory in result["memories"]]

    templates = (await client.list_resource_templates()).resource_templates
    assert f"{LIST}/{{id}}" in [template.uri_template for template in templates]
    listed, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = await client.list_resources(cursor=cursor)
        listed, cursor, pages = listed + page.resources, page.next_cursor, pages + 1
    assert [str(resource.uri) for resource in listed] == [LIST] + [f"{LIST}/{id}" for id in ids] and pages == 3
    assert listed[1].title == "note 0"

    one = await read(client, f"{LIST}/{ids[7]}")
    assert (one["id"], one["text"], one["state"]) == (ids[7], "note 7", "active")
    assert re.match(r"\d{4}-\d\d-\d\dT", one["created_at"])
    everything = await read(client, LIST)
    assert [memory["text"] for memory in everything["memories"]] == texts and "next" not in everything
    rest = await read(client, f"{LIST}?after={ids[247]}")
    assert [memory["id"] for memory in rest["memories"]] == ids[248:]

    seen, cursor = [], None
    while True:
        _, page = await call(client, "list_memories", **({"cursor": cursor} if cursor else {}))
        assert page["total"] == 250
        seen, cursor = seen + [memory["id"] for memory in page["memories"]], page.get("next_cursor")
        if cursor is None:
            break
    assert seen == ids
    await call(client, "forget", memory_id=ids[7])
    assert (await read(client, f"{LIST}/{ids[7]}"))["text"] == "", "a forgotten memory says nothing"


async def read(client: Client, uri: str):
    contents = (await client.read_resource(uri)).contents
    assert len(contents) == 1 and contents[0].mime_type == "application/json" and str(contents[0].uri) == uri
    return json.loads(contents[0].text)


async def tells_of_changes(connect, mode: str):
    """Of memories that come and go, and of the resources that a client subscribed to."""
    heard = []

    async def hear(message):
        if isinstance(message, ResourceListChangedNotification):
            heard.append("list")
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(str(message.params.uri))

    async def wait_for(what: str):
        with anyio.fail_after(PATIENCE):
            while what not in heard:
                await anyio.sleep(0.01)
        heard.clear()

    async with connect(mode=mode, message_handler=hear) as client:
        if mode == "legacy":
            _, result = await call(client, "remember", texts=["a note"])
            await wait_for("list")
            id = result["memories"][0]["id"]
            await client.subscribe_resource(f"{LIST}/{id}")
            await call(client, "update", memory_id=id, text="another note")
            await wait_for(f"{LIST}/{id}")
            await client.unsubscribe_resource(f"{LIST}/{id}")
            await call(client, "forget", memory_id=id)
            await wait_for("list")
            assert f"{LIST}/{id}" not in heard
        else:
            _, result = await call(client, "remember", texts=["a note"])
            id = result["memories"][0]["id"]
            uri = f"{LIST}/{id}"
            async with client.listen(resources_list_changed=True, resource_subscriptions=[uri]) as changes:
                await call(client, "forget", memory_id=id)
                with anyio.fail_after(PATIENCE):
                    told = {str(await anext(changes)) for _ in range(2)}
                assert any("ResourcesListChanged" in event for event in told), told
                assert any(uri in event for event in told), told


async def all_of_it(connect, mode: str):
    """`connect` makes clients of a server that has no memories yet; `mode` says how old their protocol is."""
    async with connect(mode=mode) as client:
        assert (client.protocol_version >= "2026-07-28") == (mode == "auto"), client.protocol_version
        await describes_itself(client)
        await remembers_and_forgets(client)
        await says_what_is_wrong(client)
        await is_for_one_user(client)
        await memories_are_resources(client)
    await tells_of_changes(connect, mode)
