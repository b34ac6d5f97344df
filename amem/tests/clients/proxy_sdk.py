"""Every method of the reference SDK's client for proxies."""

import sys

from amem import Amem, AmemError

url = sys.argv[1]
mem = Amem.for_proxy(url, api_key="door")


def fails(status, call):
    try:
        call()
    except AmemError as error:
        assert error.status == status, error
        assert isinstance(error.detail, str) and error.detail, error
    else:
        raise AssertionError(f"this should have failed with {status}")


assert mem.health()["status"] == "ok"
fails(401, lambda: Amem.for_proxy(url).stats())
fails(401, lambda: Amem.for_proxy(url, api_key="wrong").remember("alice", "x"))

added = mem.remember("alice", ["Alice lives in Denver.", "Bob has a cat."], keys=["home", "pet"])
assert len(added["added"]) == 2 and added["active"] == 2, added
again = mem.remember("alice", "Alice lives in Oslo.", keys="home")
assert again["counts"]["active"] == 2, again

memories = mem.list_memories("alice")
assert [memory["text"] for memory in memories] == ["Bob has a cat.", "Alice lives in Oslo."], memories
bob, home = (memory["id"] for memory in memories)
assert mem.update("alice", bob, "Bob has a dog.")["updated"] is True
found = mem.recall("alice", "Where does Alice live?")
assert found["memories"][0]["text"] == "Alice lives in Oslo." and found["memories"][0]["id"] == home, found
assert mem.list_memories("somebody") == []
fails(404, lambda: mem.forget("alice", "0" * 32))
fails(400, lambda: mem.recall("alice", " "))
fails(400, lambda: mem.remember("alice", []))

session = mem.start_session("alice", seed_query="Where does Alice live?", budget_tokens=500)
state = mem.session_state(session)
assert state["resident_turns"] == 2 and state["resident_tokens"] > 0, state
answer = mem.ask_full("alice", "Where does Alice live?", session=session)
for field in ["resident_tokens", "memory_tokens_reused", "memory_tokens_prefilled_now", "kv_reused", "latency_s"]:
    assert field in answer["amem"], answer
assert answer["amem"]["session"] == session and answer["amem"]["kv_reused"] is True, answer
assert home in answer["amem"]["recalled"], answer
text = mem.ask("alice", "What does Bob have?", session=session)
assert "Alice lives in Oslo." in text and "Bob has a dog." in text, text
assert "Oslo" not in mem.ask("nobody", "Where does Alice live?")

assert mem.forget("alice", home)["forgotten"] is True
assert "Oslo" not in mem.ask("alice", "Where does Alice live?", session=session)
assert mem.end_session(session)["ended"] is True
fails(404, lambda: mem.session_state(session))

users = {user["user"]: user["active_memories"] for user in mem.users()}
assert users == {"alice": 1}, users
usage = mem.usage(user="alice", since="2020-01-01T00:00:00Z")["per_user"]["alice"]
assert (usage["requests"], usage["tokens_in"], usage["prefill_tokens_saved"]) == (3, 300, 180), usage
assert mem.usage(since=32503680000)["per_user"] == {}
stats = mem.stats()
assert stats["requests"] == 4 and stats["reuse_rate"] == 0.6, stats
# A proxy has no model of its own.
fails(404, lambda: mem.extract("alice", "Alice lives in Oslo and paints."))
