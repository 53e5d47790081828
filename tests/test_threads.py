"""Threads that capture one model at once get what each would get alone, and the model is left as it was."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import attnviz
from attnviz.models.huggingface.model import HuggingFace
from attnviz.record import Capture
from attnviz.request import NOTHING, Edge, Intervention, Placement, Prompt, Request
from tests.conftest import SENTENCE, Tiny
from tests.untouched import state, world

THREADS, CAPTURES, DISTINCT = 8, 32, 4
TEXTS = [SENTENCE, "one two three four", "a b", "The old woman opened the window."]


class Attending(nn.Module):
    """nn.MultiheadAttention twice, the second time between two lengths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own = nn.MultiheadAttention(16, 4, batch_first=True)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(1, time, dim) to the same."""
        x = self.own(x, x, x)[0]
        return self.cross(x, x[:, :3], x[:, :3])[0]


def captures_of_texts(model: Any, tokenizer: Any, **options: Any) -> Callable[[int], Capture]:
    """A function that captures one of a few texts, by the number of the capture."""

    def run(number: int) -> Capture:
        return attnviz.capture(
            TEXTS[number % DISTINCT], model=model, tokenizer=tokenizer, **options
        )

    return run


def captures_of_vectors(model: nn.Module) -> Callable[[int], Capture]:
    """A function that captures a module on a few sets of vectors, by the number of the capture."""

    def run(number: int) -> Capture:
        x = torch.randn(
            1, 5 + number % DISTINCT, 16, generator=torch.Generator().manual_seed(number % DISTINCT)
        )
        return attnviz.capture(model=model, inputs=x)

    return run


FOLDERS = {  # of tests.tiny, and the class that loads them
    "bert": ("bytes", AutoModel),
    "llama": ("llama", AutoModelForCausalLM),
    "bart": ("bart", AutoModelForSeq2SeqLM),
    "gpt_neo": ("gpt_neo", AutoModelForCausalLM),
}


def model_and_captures(name: str, tiny: Tiny) -> tuple[nn.Module, Callable[[int], Capture]]:
    """A model by name, and a function that captures it."""
    if name == "multihead":
        net = Attending()
        return net, captures_of_vectors(net)
    folder, kind = FOLDERS[name]
    model = kind.from_pretrained(tiny(folder))
    options = {"target": "ein Text"} if name == "bart" else {}
    return model, captures_of_texts(model, AutoTokenizer.from_pretrained(tiny(folder)), **options)


def at_once(run: Callable[[int], Any], count: int = CAPTURES) -> list[Any]:
    """The results of many calls, made by all threads at the same time."""
    start = threading.Barrier(THREADS, timeout=60)

    def wait_and_run(numbers: range) -> list[Any]:
        start.wait()
        return [run(number) for number in numbers]

    with ThreadPoolExecutor(THREADS) as pool:
        shares = [range(first, count, THREADS) for first in range(THREADS)]
        results = list(pool.map(wait_and_run, shares))
    return [results[number % THREADS][number // THREADS] for number in range(count)]


def require_equal(found: Capture, expected: Capture) -> None:
    """The same maps, to the rounding of one sum over keys."""
    assert [part.kind for part in found.maps] == [part.kind for part in expected.maps]
    for one, other in zip(found.maps, expected.maps, strict=True):
        assert one.layers == other.layers
        assert one.weights.shape == other.weights.shape
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one.visible, other.visible)


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "llama", "gpt_neo")),
        "multihead",
    ],
)
def test_captures_of_one_model_at_once(name: str, tiny: Tiny) -> None:
    """Eight threads make 32 captures of a model in training: each is right, and everything is as it was."""
    model, run = model_and_captures(name, tiny)
    model.train()
    expected = [run(number) for number in range(DISTINCT)]
    before = state(model), world()
    for number, found in enumerate(at_once(run)):
        require_equal(found, expected[number % DISTINCT])
    assert (state(model), world()) == before


@pytest.mark.slow
def test_captures_of_models_that_share_parts(tiny: Tiny) -> None:
    """Threads that capture a model and its own encoder change the same modules, one after the other."""
    folder = tiny("bart")
    tokenizer, whole = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSeq2SeqLM.from_pretrained(folder),
    )
    ids = tokenizer(SENTENCE, return_tensors="pt")["input_ids"]

    def run(number: int) -> Capture:
        if number % 2:
            return attnviz.capture(SENTENCE, model=whole, tokenizer=tokenizer, target="ein Text")
        return attnviz.capture(model=whole.model.encoder, inputs={"input_ids": ids})

    expected = run(0), run(1)
    before = state(whole), world()
    for number, found in enumerate(at_once(run)):
        require_equal(found, expected[number % 2])
    assert (state(whole), world()) == before


def test_a_loaded_model_answers_all_threads(tiny: Tiny) -> None:
    """Captures, gradients, knock-outs, generation and losses of one loaded model at the same time."""
    model = HuggingFace.load("llama", tiny("llama"), Placement("cpu"), writes=True, predicts=True)
    cut = Intervention(cuts=(Edge(None, None, None, query=2, key=0),))
    ids = np.arange(5, 17).reshape(2, 6)
    questions: list[Callable[[], Any]] = [
        lambda: model.capture(Prompt(SENTENCE), Request()).maps[0].weights,
        lambda: model.capture(Prompt(SENTENCE), Request(method="gradient")).maps[0].weights,
        lambda: model.capture(Prompt("a b", generate=3), Request()).maps[0].weights,
        lambda: model.respond(Prompt(SENTENCE), [NOTHING, cut]).outputs,
        lambda: model.losses(ids),
    ]
    expected = [ask() for ask in questions]
    before = state(model.model), world()
    for number, found in enumerate(
        at_once(lambda number: questions[number % len(questions)](), 40)
    ):
        np.testing.assert_allclose(found, expected[number % len(questions)], rtol=1e-5, atol=1e-6)
    assert (state(model.model), world()) == before


def test_a_plain_run_in_another_thread_is_not_captured() -> None:
    """While one thread is inside a captured module, another runs a module of its own: neither notices the other."""
    captured_inside, other_inside, capture_done = (
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )

    class WaitingAttention(nn.MultiheadAttention):
        def forward(self, *args: Any, **options: Any) -> Any:
            captured_inside.set()
            assert other_inside.wait(60)
            return super().forward(*args, **options)

    class WaitingIdentity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            other_inside.set()
            assert capture_done.wait(60)
            return x

    net, other = Attending(), nn.Sequential(WaitingIdentity(), Attending())
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    alone = attnviz.capture(model=net, inputs=x)
    expected = net(x)
    waiting = WaitingAttention(16, 4, batch_first=True)
    waiting.load_state_dict(net.own.state_dict())
    net.own = waiting
    with ThreadPoolExecutor(2) as pool:
        capturing = pool.submit(attnviz.capture, model=net, inputs=x)
        assert captured_inside.wait(60)
        running = pool.submit(other, x)
        found = capturing.result(60)
        capture_done.set()
        torch.testing.assert_close(running.result(60), expected)
    require_equal(found, alone)
    assert found.notes == alone.notes
