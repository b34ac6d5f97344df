"""The reference system's SDK, unmodified: every method but those that ask, which are in sdk_ask.py.

Arguments: the server's address, and the key that it wants, if it wants one.

What is the SDK's own fault, and not tested: it puts the names of users into paths as they are. A name with a slash, a
question mark, `#` or `%` reaches another path than the one that is meant; one with a blank or a letter beyond ASCII is
refused by urllib before anything is sent. Whoever has such users escapes their names where a path needs it
(`urllib.parse.quote(user, safe="")`), as the last part here does.
"""

import json
import sys
from urllib.parse import quote

from amem import Amem, AmemError


def refused(status, call, *arguments, **more):
    """What the error of this status says in detail."""
    try:
        call(*arguments, **more)
    except AmemError as error:
        assert error.status == status, error
        assert isinstance(error.detail, str) and error.detail, error
        return error.detail
    raise AssertionError(f"{call.__name__}{arguments} was not refused")


def main(base, key=None):
    mem = Amem(base + "/", api_key=key)
    health = mem.health()
    assert health["status"] == "ok" and health["auth"] == ("on" if key else "off"), health
    if key:
        for wrong in [Amem(base), Amem(base, api_key="other"), Amem.for_proxy(base, api_key=key)]:
            assert "API key" in refused(401, wrong.list_memories, "alice")
    proxied = Amem.for_proxy("http://localhost:8100/", api_key="k")
    assert proxied.base == "http://localhost:8100" and proxied._headers["x-amem-key"] == "k"
    assert "cannot reach" in refused(0, Amem("http://127.0.0.1:1").health)

    one = mem.remember("alice", "Alice lives in Denver.")
    assert len(one["added"]) == 1 and one["active"] == 1, one
    more = mem.remember("alice", ["Alice works at Boeing.", "Alice lives in Denver."], keys=["job", None])
    assert more["added"][1] == one["added"][0], "the id of a text that is known is that of its memory"
    mem.remember("alice", "Alice works at Adidas.", keys="job")
    listed = mem.list_memories("alice")
    assert [m["text"] for m in listed] == ["Alice lives in Denver.", "Alice works at Adidas."], listed
    assert mem.list_memories("nobody") == []
    refused(400, mem.remember, "alice", [])
    refused(400, mem.remember, "alice", "  ")
    refused(400, mem.remember, "alice", ["a", "b"], keys=["one"])
    refused(422, mem.remember, "alice", [1])

    updated = mem.update("alice", listed[0]["id"], "Alice lives in Paris.")
    assert updated["updated"] is True and updated["id"] == listed[0]["id"], updated
    assert mem.list_memories("alice")[0]["text"] == "Alice lives in Paris."
    refused(400, mem.update, "alice", listed[0]["id"], " ")
    refused(404, mem.update, "alice", "nothing", "x")
    refused(404, mem.update, "bob", listed[0]["id"], "x")
    refused(409, mem.update, "alice", more["added"][0], "x")
    assert mem.forget("alice", listed[1]["id"])["forgotten"] is True
    refused(404, mem.forget, "alice", listed[1]["id"])
    refused(404, mem.forget, "alice", "nothing")

    users = {user["user"]: user for user in mem.users()}
    assert users["alice"]["active_memories"] == 1 and isinstance(users["alice"]["loaded"], bool), users

    extracted = mem.extract("bob", "Bob has a dog named Rex. Bob's locker code is 4817.")
    assert extracted["facts"] == ["Bob has a dog named Rex.", "Bob's locker code is 4817."], extracted
    assert extracted["added"] == [m["id"] for m in mem.list_memories("bob")] and extracted["active"] == 2

    recalled = mem.recall("bob", "What is Bob's locker code?")
    assert recalled["memories"][0]["text"] == "Bob's locker code is 4817.", recalled
    assert recalled["memories"][0]["id"] in extracted["added"] and recalled["memories"][0]["score"] > 0
    assert recalled["working_set"].split("\n") == recalled["sources"] and recalled["tokens"] > 0
    refused(400, mem.recall, "bob", "")

    session = mem.start_session("bob", seed_query="Bob's dog", budget_tokens=6000)
    state = mem.session_state(session)
    assert state["user"] == "bob" and state["resident_turns"] == 2 and state["resident_tokens"] > 0, state
    inside = mem.recall("bob", "What is Bob's locker code?", session=session, budget_tokens=100)
    assert inside["session"] == session and "4817" in inside["working_set"], inside
    refused(404, mem.recall, "alice", "Bob", session=session)
    assert mem.end_session(session) == {"session": session, "ended": True}
    refused(404, mem.session_state, session)
    refused(404, mem.end_session, session)
    assert mem.session_state(mem.start_session("alice"))["resident_turns"] == 0

    usage = mem.usage()
    assert usage["per_user"]["alice"]["memory_ops"] == 5, usage
    assert {"per_user", "totals", "instance", "window"} <= usage.keys()
    for since, until in [(0, 4102444800.5), ("2020-01-01", "2100-01-01T00:00:00Z"), ("2020-01-01T00:00:00+02:00", None)]:
        assert set(mem.usage("bob", since=since, until=until)["per_user"]) == {"bob"}
    assert mem.usage(until="2020-01-01")["per_user"] == {}
    refused(400, mem.usage, since="soon")
    stats = mem.stats()
    assert {"turns", "chunks_blended", "chunks_reused", "reuse_rate", "prefill_saved_tokens", "est_usd_saved", "users"} <= stats.keys()
    assert {"chunks", "hot_tokens", "hot_budget", "tiers"} <= stats["policy"].keys() and stats["users"] == 2, stats
    json.dumps([usage, stats])

    strange = "../ä b/c?d#e%20"
    mem.remember(strange, "It is odd.")
    escaped = quote(strange, safe="")
    [kept] = mem.list_memories(escaped)
    mem.update(escaped, kept["id"], "It is even.")
    assert mem.recall(strange, "even")["memories"][0]["id"] == kept["id"]
    mem.forget(escaped, kept["id"])
    assert mem.list_memories(escaped) == []


main(*sys.argv[1:])
