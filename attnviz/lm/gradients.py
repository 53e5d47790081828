"""Gradients of a prediction of our language model by its weights.

The method is that of ``attnviz.engine.observers.gradient``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.layer.arrays import Array
from attnviz.lm.corpus import Ids
from attnviz.lm.model import ModelConfig, evaluate_layers, project_logits
from attnviz.lm.transformer import take_last_run
from attnviz.record import Floats
from attnviz.request import HeadInputs, OutputChange, WeighHeads


def compute_gradients(
    parameters: Mapping[str, Array],
    ids: Ids,
    position: int,
    target: int,
    config: ModelConfig,
    masks: Mapping[int, Array],
    change: OutputChange | None,
) -> tuple[Floats, int]:
    """Compute the attention weights of all heads times the gradients of a prediction.

    Returns max(A * dL/dA, 0), (layer, head, query, key), with A the weights and L the logit of the
    target token less the mean of all logits, and the id of the target token.
    parameters: arrays by name, of the sizes in config. ids: of the text, (1, n). position: of the
    token after which the target is predicted. target: the id of a token, -1 for the likeliest.
    masks, change: what is cut and changed in the run, as in ``attnviz.lm.model.evaluate_layers``.
    Torch's inference mode is left meanwhile, because it has no gradients.
    """
    outputs: list[Tensor] = []
    layers: list[HeadInputs] = []

    def keep_layer(layer: int, output: Any, weigh: WeighHeads) -> Any:
        # Nothing before it is of interest: the graph begins here.
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs.append(output)
        layers.append(weigh(range(config.heads)))
        if change is None:
            return output
        return change(layer, output, weigh)

    with torch.inference_mode(False), torch.enable_grad():
        tensors = {name: make_normal_tensor(array) for name, array in parameters.items()}
        normal_masks = {layer: make_normal_tensor(mask) for layer, mask in masks.items()}
        tokens = torch.as_tensor(ids, device=tensors["embedding"].device)
        runs = evaluate_layers(tensors, tokens, config, masks=normal_masks, change=keep_layer)
        hidden = take_last_run(runs).hidden[0, position]
        predicted = project_logits(tensors, hidden).float()
        if target < 0:
            target = int(predicted.argmax())
        logit = predicted[target] - predicted.mean()
        slopes = torch.autograd.grad(logit, outputs, allow_unused=True, materialize_grads=True)
        products = []
        for layer, slope in zip(layers, slopes, strict=True):
            product = multiply_gradient(layer, slope)
            products.append(product.detach().cpu().numpy())
        return np.stack(products), target


def make_normal_tensor(array: Array) -> Tensor:
    """Make a tensor of an array that torch's autograd graph may hold.

    Such a tensor shares its memory with the array, unless that was made in inference mode.
    """
    tensor = torch.as_tensor(array)
    return tensor.clone() if tensor.is_inference() else tensor


def multiply_gradient(layer: HeadInputs, slope: Tensor) -> Tensor:
    """Compute max(A * dL/dA, 0) for all heads of a layer, (head, query, key).

    A are the attention weights, L is a prediction. layer: the weights, and the values of which the
    heads make their output O. slope: dL/dO, (1, query, head, d_v).
    """
    slope_by_head = slope[0].transpose(0, 1).float()
    value = layer.value[0].float()
    gradient = slope_by_head @ value.mT  # (head, query, key)
    products: Tensor = (layer.weights[0] * gradient).clamp_min(0).float()
    return products
