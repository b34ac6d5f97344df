"""The reference system's SDK, unmodified: the methods that ask.

Arguments: the server's address, and the key that it wants, if it wants one.
"""

import sys

from amem import Amem, AmemError


def main(base, key=None):
    mem = Amem(base, api_key=key)
    mem.remember("alice", ["Alice lives in Denver.", "Alice works at Boeing.", "Bob's locker code is 4817."])
    assert "Denver" in mem.ask("alice", "Where does Alice live?")
    assert "4817" in mem.ask("alice", "What is Bob's locker code?", residency=False, max_tokens=40)
    session = mem.start_session("alice")
    first = mem.ask_full("alice", "Where does Alice live?", session=session)
    second = mem.ask_full("alice", "What is Bob's locker code?", session=session)
    for answer in [first, second]:
        report = answer["amem"]
        for number in ["resident_tokens", "memory_tokens_reused", "memory_tokens_prefilled_now", "latency_s"]:
            assert report[number] >= 0, report
        assert report["user"] == "alice" and report["session"] == session, report
    assert "4817" in second["choices"][0]["message"]["content"]
    assert second["amem"]["kv_reused"] is True and second["amem"]["memory_tokens_prefilled_now"] == 0, second
    state = mem.session_state(session)
    assert state["resident_turns"] == 3 and state["resident_tokens"] >= second["amem"]["resident_tokens"], state
    usage = mem.usage("alice")["per_user"]["alice"]
    assert usage["requests"] == 4 and usage["prefill_tokens_saved"] > 0, usage
    mem.end_session(session)
    try:
        mem.ask("alice", "Where does Alice live?", session=session)
        raise AssertionError("the session has ended")
    except AmemError as error:
        assert error.status == 404 and error.detail, error


main(*sys.argv[1:])
