"""Who runs a whole model, by name: each a function that makes a call of a model and its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Call = Callable[[], Any]


def _eager(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    return lambda: model(*inputs)


def _compiled(backend: str, **options: Any) -> Callable[[nn.Module, tuple[Tensor, ...]], Call]:
    def make(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
        compiled = torch.compile(model, backend=backend, dynamic=False, options=options)
        return lambda: compiled(*inputs)

    return make


def _openvino(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """OpenVINO at f32, which always freezes; outputs are tensors over its own memory."""
    import openvino

    converted = openvino.convert_model(model, example_input=inputs)
    asked = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.compile_model(converted, "CPU", asked).create_infer_request()
    given = [x.numpy() for x in inputs]

    def call() -> list[Tensor]:
        found = request.infer(given, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(found[output]) for output in range(len(found))]

    return call


INFERENCE: Final[Mapping[str, Callable[[nn.Module, tuple[Tensor, ...]], Call]]] = {
    "rewright": _compiled("rewright"),
    "rewright-frozen": _compiled("rewright", freeze=True),
    "eager": _eager,
    "inductor": _compiled("inductor"),
    "inductor-frozen": _compiled("inductor", freezing=True),
    "inductor-autotune": _compiled("inductor", max_autotune=True, freezing=True),
    "openvino": _openvino,
}
# Layers by torchao's names of what they become: weights in int8, with activations or without.
TORCHAO: Final = {
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "int8-weight": "Int8WeightOnlyConfig",
}
TRAINING: Final = ("rewright", "eager", "inductor")


def by_torchao(model: nn.Module, format: str) -> nn.Module:
    """A copy with every linear layer in one format of torchao's, compiled by Inductor, as its
    documentation advises."""
    from torchao import quantization

    made = copy.deepcopy(model)
    quantization.quantize_(made, getattr(quantization, TORCHAO[format])())
    return cast(nn.Module, torch.compile(made, dynamic=False))


def step_of(call: Call, model: nn.Module) -> Call:
    """A training step without an optimizer: the mean squares of all outputs, and gradients."""

    def step() -> list[Tensor]:
        for parameter in model.parameters():
            parameter.grad = None
        outputs = [x for x in tree_leaves(call()) if x.requires_grad]
        loss = torch.stack([x.square().mean() for x in outputs]).sum()
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    return step


def without_dropout(model: nn.Module) -> nn.Module:
    """In training mode, but for what would make the answers of two backends differ."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
