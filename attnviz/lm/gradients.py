"""Gradients of a prediction of our language model by its weights: see ``attnviz.engine.observers.gradient``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.layer.arrays import Array
from attnviz.lm.corpus import Ids
from attnviz.lm.model import Config, blocks, logits
from attnviz.record import Floats
from attnviz.request import Change, Weigh, Weighed


def gradients(
    parameters: Mapping[str, Array],
    ids: Ids,
    place: int,
    target: int,
    config: Config,
    masks: Mapping[int, Array],
    change: Change | None,
) -> tuple[Floats, int]:
    """max(A * dL/dA, 0), (layer, head, query, key), and the token of whose logit, less the mean of all, L is.

    Inference mode is left for the while. ids (1, n). place: of the token after which that is predicted. target: the
    token, -1 for the likeliest.
    """
    outputs: list[Tensor] = []
    made: list[Weighed] = []

    def keep(layer: int, output: Any, weigh: Weigh) -> Any:
        if not output.requires_grad:  # the graph begins here
            output = output.detach().requires_grad_()
        outputs.append(output)
        made.append(weigh(range(config.heads)))
        return change(layer, output, weigh) if change else output

    with torch.inference_mode(False), torch.enable_grad():
        tensors = {name: make_normal_tensor(array) for name, array in parameters.items()}
        device = tensors["embedding"].device
        placed = {layer: make_normal_tensor(mask) for layer, mask in masks.items()}
        *_, last = blocks(tensors, torch.as_tensor(ids, device=device), config, placed, keep)
        said = logits(tensors, last.hidden[0, place]).float()
        target = int(said.argmax()) if target < 0 else target
        slopes = torch.autograd.grad(
            said[target] - said.mean(), outputs, allow_unused=True, materialize_grads=True
        )
        pairs = zip(made, slopes, strict=True)
        return np.stack(
            [positive(part, slope).detach().cpu().numpy() for part, slope in pairs]
        ), target


def make_normal_tensor(array: Array) -> Tensor:
    """Make a tensor of an array that a graph may hold: a copy of one that was made in inference mode."""
    tensor = torch.as_tensor(array)
    return tensor.clone() if tensor.is_inference() else tensor


def positive(part: Weighed, slope: Tensor) -> Tensor:
    """max(A * dL/dA, 0) of all heads of a layer, (head, query, key). slope: dL/dO, (1, query, head, d_v)."""
    gradient = slope[0].transpose(0, 1).float() @ part.value[0].float().mT  # (head, query, key)
    found: Tensor = (part.weights[0] * gradient).clamp_min(0).float()
    return found
