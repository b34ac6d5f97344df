"""A structured start, from which induction appears within minutes; from noise it did not appear at all.

Layer 0 begins with heads that look one to four tokens back. The later layers begin as content matching, on the slow
RoPE frequencies that position hardly touches, and as copying of what they find. One key/value group of each later layer
matches the *previous* token (as head 0 of layer 0 wrote it) against the present one: together, an induction head.
"""

import numpy as np

LOOK_BACK = 14  # fast frequencies that tell neighbouring positions apart
SLOW = 0.03  # radians per token, below which a frequency carries content
SHARPNESS = 5.0  # logit that one frequency adds where a head of layer 0 looks


def parameters(shape, seed):
    rng = np.random.default_rng(seed)
    width, layers, head = shape.width, shape.layers, shape.head
    queries, keys = shape.heads * head, shape.kv_heads * head
    half, group = head // 2, shape.heads // shape.kv_heads

    def noise(*size, scale):
        return rng.standard_normal(size) * scale

    def orthogonal(rows, columns):
        q, _ = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        return q if rows >= columns else q.T

    # Every embedding shares one direction, which layer 0 reads as "there is a token here".
    common = np.ones(width) / np.sqrt(width)
    own = noise(shape.vocabulary, width, scale=width**-0.5)
    own -= np.outer(own @ common, common)
    p = {
        "embed": 0.7 * common + 0.7 * own,
        "q": noise(layers, width, queries, scale=0.3 * width**-0.5),
        "k": noise(layers, width, keys, scale=0.3 * width**-0.5),
        "v": noise(layers, width, keys, scale=width**-0.5),
        "o": noise(layers, queries, width, scale=0.3 * queries**-0.5),
        "gate": noise(layers, width, shape.mlp, scale=width**-0.5),
        "up": noise(layers, width, shape.mlp, scale=width**-0.5),
        "down": noise(layers, shape.mlp, width, scale=0.2 * shape.mlp**-0.5),
        "attention_norm": np.ones((layers, width)),
        "mlp_norm": np.ones((layers, width)),
        "norm": np.ones(width),
    }

    def of_head(index):
        return slice(index * head, (index + 1) * head)

    # Layer 0: a constant key on the fast frequencies, and queries turned back by one to four tokens.
    frequency = shape.rope_base ** (-np.arange(half) / half)
    strength = np.sqrt(SHARPNESS / (64 * head**-0.5))
    copied = None  # what head 0 writes of the previous token
    for kv in range(shape.kv_heads):
        key = np.zeros(head)
        key[:LOOK_BACK] = strength
        p["k"][0][:, of_head(kv)] = np.outer(common, key)
        value = orthogonal(width, head)
        value -= np.outer(common, common @ value)
        p["v"][0][:, of_head(kv)] = value
        for member in range(group):
            index = kv * group + member
            back = 1 + kv + 2 * member
            query = np.zeros(head)
            query[:LOOK_BACK] = strength * np.cos(back * frequency[:LOOK_BACK])
            query[half : half + LOOK_BACK] = -strength * np.sin(back * frequency[:LOOK_BACK])
            p["q"][0][:, of_head(index)] = np.outer(common, query)
            out = orthogonal(head, width) * (0.3 if index == 0 else 0.1)
            p["o"][0][of_head(index)] = out
            if index == 0:
                copied = value @ out

    # Later layers: group 0 matches previous tokens, the other matches tokens; the first head of each copies.
    slow = np.where(frequency < SLOW)[0]
    slow = np.concatenate([slow, slow + half])
    _, _, copied_space = np.linalg.svd(copied)
    for layer in range(1, layers):
        for kv in range(shape.kv_heads):
            if kv == 0:
                content = copied_space[:head].T @ orthogonal(head, len(slow))
                asked = (copied / 0.3) @ content
            else:
                content = asked = orthogonal(width, len(slow))
            p["k"][layer][:, kv * head + slow] += 1.6 * content
            copy = orthogonal(width, head)
            p["v"][layer][:, of_head(kv)] = copy
            for member in range(group):
                index = kv * group + member
                p["q"][layer][:, index * head + slow] += (1.6 if member == 0 else 0.8) * asked
            p["o"][layer][of_head(kv * group)] = copy.T * 0.15
    return {name: array.astype(np.float32) for name, array in p.items()}
