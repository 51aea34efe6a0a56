"""A model of PyTorch as discovery sees it. Nothing else imports torch, and this only when it is asked for."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ckpt_schema.discovery._models import Leaves

__all__ = ["TorchModel", "torch_model"]


def torch_model(module: Any, forward: Callable[[Any], Any]) -> TorchModel:
    """A ``torch.nn.Module`` as `discover` takes it, in float64 and evaluation mode; the module stays as it is.

    Args:
        module: The module. Its parameters and buffers of floats are leaves, by their dotted names.
        forward: Computes outputs, a tensor of floats, of a callable that stands for the module:
            ``lambda model: model(tokens).logits``.

    Raises:
        ImportError: torch is not installed.
    """
    return TorchModel(module, forward)


class TorchModel:
    """See `torch_model`."""

    def __init__(self, module: Any, forward: Callable[[Any], Any]) -> None:
        """Copies the module."""
        torch: Any = importlib.import_module("torch")
        self.joined: str | None = "."
        self.wide = True
        self.output_shapes: tuple[tuple[int, ...], ...] = ()
        self._torch = torch
        self._module = copy.deepcopy(module).double().eval()
        self._forward = forward
        _differentiable(self._module, torch)
        stored = self._module.state_dict(keep_vars=True)
        own = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        live = {name: own[name] for name in own if name in stored and own[name].is_floating_point()}
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(x.shape) for n, x in live.items()}
        self.skipped: Sequence[str] = tuple(name for name in stored if name not in live)
        self.tree = {
            name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in self.shapes.items()
        }

    def run(self, leaves: Leaves) -> np.ndarray[Any, Any]:
        """The outputs at these values."""
        with self._torch.no_grad():
            return self._outputs(self._tensors(leaves)).numpy()

    def pullback(
        self, leaves: Leaves, cotangent: np.ndarray[Any, Any]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The gradients at these values; a leaf that the outputs do not depend on has 0."""
        tensors = self._tensors(leaves)
        outputs = self._outputs(tensors)
        given = self._torch.tensor(cotangent, dtype=outputs.dtype)
        found = self._torch.autograd.grad(outputs, list(tensors.values()), given, allow_unused=True)
        pairs = zip(tensors, found, strict=True)
        return {
            name: np.zeros(self.shapes[name]) if each is None else each.double().numpy()
            for name, each in pairs
        }

    def _tensors(self, leaves: Leaves) -> dict[str, Any]:
        return {
            name: self._torch.tensor(value, dtype=self._torch.float64, requires_grad=True)
            for name, value in leaves.items()
        }

    def _outputs(self, tensors: Mapping[str, Any]) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            return self._torch.func.functional_call(self._module, tensors, args, kwargs)

        outputs = self._forward(called)
        self.output_shapes = (tuple(outputs.shape),)
        return outputs.double().reshape(-1)


def _differentiable(module: Any, torch: Any) -> None:
    """Gives batch norms a forward that running statistics have gradients in; torch's own has none."""

    def forward(norm: Any, x: Any) -> Any:
        def along(value: Any) -> Any:
            return value.reshape(-1, *[1] * (x.ndim - 2))

        made = (x - along(norm.running_mean)) / (along(norm.running_var) + norm.eps).sqrt()
        return made * along(norm.weight) + along(norm.bias) if norm.affine else made

    for each in module.modules():
        if isinstance(each, torch.nn.modules.batchnorm._BatchNorm):
            each.forward = forward.__get__(each)
