"""The byte-level BPE of the world's words, and the seven tokens that give a prompt its form."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import world

SIZE = 1536
SPECIAL = ["<|pad|>", "<|bos|>", "<|system|>", "<|mem|>", "<|user|>", "<|assistant|>", "<|end|>"]
PAD, BOS, SYSTEM, MEMORY, USER, ASSISTANT, END = range(len(SPECIAL))


def train(seed):
    """A tokenizer in which every word of the lexicon is one token, and every digit is its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    return tokenizer


def _texts(seed):
    for number in range(6000):
        memories, questions = world.draw(f"vocabulary-{seed}-{number}", 6, 8)
        yield from memories
        for question in questions:
            yield question.text
            yield question.answer
    yield world.SYSTEM
    for _ in range(300):
        for words in world.LEXICON:
            yield from words


class Encoder:
    """Turns texts into token ids, a word at a time, and remembers the words."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._words = {}

    def text(self, text):
        ids = []
        for word in text.split(" "):
            if word not in self._words:
                self._words[word] = self._tokenizer.encode(word).ids
            ids += self._words[word]
        return ids

    def context(self, memories):
        """The head of the prompt, then each memory: a list of token lists."""
        head = [BOS, SYSTEM] + self.text(world.SYSTEM)
        return [head] + [[MEMORY] + self.text(memory) for memory in memories]

    def question(self, question):
        """What is asked, up to the token that the answer follows; and the answer."""
        return [USER] + self.text(question.text) + [ASSISTANT], self.text(question.answer) + [END]
