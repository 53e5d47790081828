"""The language model's tokenizer: byte-level byte pairs (Sennrich et al. 2016), so that no text is unknown to it."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS = "<bos>"
BOS_ID = 0
BYTES = 257  # <bos> and every byte: the tokens that no merge makes


def learn(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn a tokenizer of ``vocabulary`` tokens, of which 257 are <bos> and the bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def narrowed(tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """The same tokenizer with its first so many tokens only: pairs are merged in the order they were learnt."""
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    model["vocab"] = {
        token: number for token, number in model["vocab"].items() if number < vocabulary
    }
    model["merges"] = model["merges"][: vocabulary - BYTES]
    return Tokenizer.from_str(json.dumps(description))


def pieces(tokenizer: Tokenizer, narrow: Tokenizer) -> list[list[int]]:
    """For each token, by id, the ids of a narrower tokenizer that spell it."""
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    return [
        [BOS_ID] if token == BOS else [piece.id for piece in narrow.model.tokenize(token)]
        for token in tokens
    ]
