"""The language model's tokenizer: byte-level byte pairs, so that no text is unknown to it.

Sennrich et al. 2016.
"""

import json
from collections.abc import Iterable

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

BOS = "<bos>"
BOS_ID = 0
BYTES = 257  # <bos> and every byte: the tokens that no merge makes


def learn_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn a byte-level byte-pair tokenizer from texts.

    vocabulary: the number of its tokens, of which 257 are <bos> and the bytes. It puts <bos> before
    each text.
    """
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
        single=f"{BOS} $A",
        special_tokens=[(BOS, BOS_ID)],
    )
    return tokenizer


def narrow_tokenizer(tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """Return a tokenizer that has only the first tokens of another one.

    vocabulary: the number of these tokens. That is a tokenizer too, because pairs are merged in the
    order they were learnt.
    """
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    ids = model["vocab"]
    model["vocab"] = {token: number for token, number in ids.items() if number < vocabulary}
    model["merges"] = model["merges"][: vocabulary - BYTES]
    return Tokenizer.from_str(json.dumps(description))


def list_spellings(tokenizer: Tokenizer, narrow: Tokenizer) -> list[list[int]]:
    """List for each token, by id, the ids of a narrower tokenizer that spell it."""
    numbers = range(tokenizer.get_vocab_size())
    return [respell_token(tokenizer, number, narrow) for number in numbers]


def respell_token(tokenizer: Tokenizer, number: int, narrow: Tokenizer) -> list[int]:
    """Return the ids of a narrower tokenizer that spell a token of a wider one.

    tokenizer: the wider one. number: the id of the token in it. narrow: the narrower one, which has
    only the first tokens of the wider one.
    """
    token = tokenizer.id_to_token(number)
    if token == BOS:
        return [BOS_ID]
    return [piece.id for piece in narrow.model.tokenize(token)]
