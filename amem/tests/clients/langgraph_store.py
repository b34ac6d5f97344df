"""The reference system's LangGraph store, unmodified, against LangGraph's InMemoryStore under random operations.

Arguments: the server's address, and how many runs there are to be.

Where the two differ, the reference's client is at fault, and the difference is left out here, as narrowly as said:

- Times: the client makes up `created_at` and `updated_at` when it reads. Items are compared without them.
- A search looks into the one namespace that is given, not into those below it. Our expectation is cut to that namespace.
- A search ignores its `filter`. None is given.
- A search with a query ignores its `offset`, and gets at most 8 hits, whatever its `limit`. It is a search by meaning, and
  InMemoryStore without an index returns everything: only that each hit is an item of the namespace as it is, that there
  are not more than `limit`, and that a word that one item alone has finds this item.
- `list_namespaces` ignores `prefix` and `suffix`. None is given.
- Labels of namespaces that `urllib.parse.quote` changes: the client sends them escaped in bodies, and in paths too,
  where HTTP takes the escapes for what they stand for. So it puts items into one user's memory and looks for them in
  another's. Labels here have only letters, digits, `_`, `-` and `~`. A server that took both names for one user would
  show one tenant's memories to another.
- Labels of which one begins like another: the client lists namespaces in the order of their names joined with dots, so
  `a-b` stands before `a.c`, while tuples are ordered label by label. Labels here are of equal length.
- An empty key: the reference's wire has it for no key at all, so a put replaces nothing. Keys here are not empty.
- Reads in one batch with writes: the client does one after the other, InMemoryStore reads first. Batches here only read or
  only write.

Where InMemoryStore is: a `get` or `delete` in a namespace makes it, so `list_namespaces` names it though nothing was ever
put there. Such namespaces are taken out of our expectation.

Where nobody is: a put that changes an item moves it to the end of a list here; InMemoryStore keeps its place. LangGraph
promises no order. The order expected here is that of the last changes, page by page.
"""

import asyncio
import random
import sys
from urllib.parse import quote
from urllib.request import Request, urlopen

from amem.integrations.langgraph import AmemStore
from langgraph.store.base import GetOp, PutOp
from langgraph.store.memory import InMemoryStore

KEYS = ["a", "b", "a/b", "k 1", "ключ", '"q"', "{}", "null"]
WORDS = ["tea", "jazz", "Rome", "größe", "4817"]


def a_value(rng, depth=0):
    if depth == 0:
        return {rng.choice("xyz"): a_value(rng, 1) for _ in range(rng.randrange(3))}
    kinds = [None, True, False, rng.randrange(-9, 99), 0.5, rng.choice(WORDS), "", "a\nb"]
    if depth < 3:
        kinds += [[a_value(rng, depth + 1)], {"n": a_value(rng, depth + 1)}]
    return rng.choice(kinds)


def bare(item):
    return None if item is None else (tuple(item.namespace), item.key, item.value)


class Run:
    def __init__(self, base, seed):
        self.base, self.rng = base, random.Random(seed)
        self.ours, self.theirs = AmemStore(base_url=base), InMemoryStore()
        self.namespaces = [("u1",), ("u2", "n1"), ("u2", "n2"), ("u2", "n1", "d1"), ("U_", "~-")]
        # Keys in the order of their last changes, for each namespace that something was put into.
        self.order = {}
        self.unique = 0

    def expected(self, namespace):
        """The items of a namespace, those that changed last at the end."""
        items = {item.key: bare(item) for item in self.theirs.search(namespace, limit=1000) if item.namespace == namespace}
        assert items.keys() == set(self.order.get(namespace, []))
        return [items[key] for key in self.order.get(namespace, [])]

    def note(self, namespace, key, value):
        before = self.theirs.get(namespace, key)
        keys = self.order.get(namespace, [])
        if value is None:
            keys = [other for other in keys if other != key]
        elif before is None or before.value != value or repr(before.value) != repr(value):
            keys = [other for other in keys if other != key] + [key]
        if value is not None or namespace in self.order:
            self.order[namespace] = keys

    def put(self, asynchronous=False):
        namespace, key, value = self.rng.choice(self.namespaces), self.rng.choice(KEYS), a_value(self.rng)
        self.note(namespace, key, value)
        if asynchronous:
            asyncio.run(self.ours.aput(namespace, key, value))
        else:
            self.ours.put(namespace, key, value)
        self.theirs.put(namespace, key, value)

    def put_async(self):
        self.put(asynchronous=True)

    def get(self):
        namespace, key = self.rng.choice(self.namespaces), self.rng.choice(KEYS)
        assert bare(self.ours.get(namespace, key)) == bare(self.theirs.get(namespace, key)), (namespace, key)
        assert bare(asyncio.run(self.ours.aget(namespace, key))) == bare(self.theirs.get(namespace, key))

    def delete(self):
        namespace, key = self.rng.choice(self.namespaces), self.rng.choice(KEYS)
        self.note(namespace, key, None)
        self.ours.delete(namespace, key)
        self.theirs.delete(namespace, key)

    def batch(self):
        writes = []
        for _ in range(self.rng.randrange(4)):
            # InMemoryStore does only the last write of a key: the same, but for the order of changes.
            namespace, key = self.rng.choice(self.namespaces), self.rng.choice(KEYS)
            if all((op.namespace, op.key) != (namespace, key) for op in writes):
                writes.append(PutOp(namespace, key, self.rng.choice([None, a_value(self.rng)])))
        for op in writes:
            self.note(op.namespace, op.key, op.value)
        assert self.ours.batch(writes) == self.theirs.batch(writes)
        reads = [GetOp(self.rng.choice(self.namespaces), self.rng.choice(KEYS)) for _ in range(self.rng.randrange(4))]
        assert [bare(item) for item in self.ours.batch(reads)] == [bare(item) for item in self.theirs.batch(reads)]

    def search(self):
        namespace, limit, offset = self.rng.choice(self.namespaces), self.rng.randrange(1, 6), self.rng.randrange(4)
        found = [bare(item) for item in self.ours.search(namespace, limit=limit, offset=offset)]
        assert found == self.expected(namespace)[offset : offset + limit], (namespace, limit, offset, found)

    def search_by_meaning(self):
        namespace, limit = self.rng.choice(self.namespaces), self.rng.randrange(1, 9)
        self.unique += 1
        word = f"zebra{self.unique}"
        self.note(namespace, "unique", {"text": f"It is a {word}."})
        for store in [self.ours, self.theirs]:
            store.put(namespace, "unique", {"text": f"It is a {word}."})
        assert [hit.key for hit in self.ours.search(namespace, query=word, limit=limit)] == ["unique"]
        hits = self.ours.search(namespace, query=f"It is {self.rng.choice(WORDS)}", limit=limit)
        assert len(hits) <= limit and all(bare(hit) in self.expected(namespace) and hit.score > 0 for hit in hits)
        assert len({hit.key for hit in hits}) == len(hits) > 0, hits

    def list_namespaces(self):
        depth, limit, offset = self.rng.choice([None, 1, 2, 3]), self.rng.randrange(1, 6), self.rng.randrange(3)
        put = {namespace[:depth] for namespace in self.order}
        theirs = [namespace for namespace in self.theirs.list_namespaces(max_depth=depth, limit=100) if namespace in put]
        ours = self.ours.list_namespaces(max_depth=depth, limit=limit, offset=offset)
        assert ours == theirs[offset : offset + limit], (depth, limit, offset, ours, theirs)

    def all(self, steps):
        kinds = [self.put, self.put, self.put, self.put_async, self.get, self.get, self.delete, self.batch, self.search]
        kinds += [self.search_by_meaning, self.list_namespaces]
        try:
            for _ in range(steps):
                self.rng.choice(kinds)()
        finally:
            for user in [user["user"] for user in self.ours._c.users()]:
                urlopen(Request(f"{self.base}/v1/memories/{quote(user, safe='')}", method="DELETE")).read()


base, runs = sys.argv[1], int(sys.argv[2])
for seed in range(runs):
    try:
        Run(base, seed).all(60)
    except BaseException:
        print(f"seed {seed}", file=sys.stderr)
        raise
