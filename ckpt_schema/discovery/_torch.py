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
        # Buffers that are not persistent, as tables of positions, are in no checkpoint: they stay.
        stored = self._module.state_dict(keep_vars=True)
        shapes: dict[str, tuple[int, ...]] = {}
        # A tied weight is listed once here, and by each of its names in the state dict.
        for name, tensor in (*self._module.named_parameters(), *self._module.named_buffers()):
            if name in stored and tensor.is_floating_point():
                shapes[name] = tuple(tensor.shape)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self.skipped: Sequence[str] = tuple(name for name in stored if name not in shapes)
        # What it is stored as, whatever it is computed in here.
        self.tree = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}

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
        pulled = self._torch.autograd.grad(
            outputs, list(tensors.values()), given, allow_unused=True
        )
        gradients: dict[str, np.ndarray[Any, Any]] = {}
        for name, gradient in zip(tensors, pulled, strict=True):
            if gradient is None:
                gradients[name] = np.zeros(self.shapes[name])
            else:
                gradients[name] = gradient.double().numpy()
        return gradients

    def _tensors(self, leaves: Leaves) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        for name, value in leaves.items():
            tensors[name] = self._torch.tensor(value, dtype=self._torch.float64, requires_grad=True)
        return tensors

    def _outputs(self, tensors: Mapping[str, Any]) -> Any:
        # Stands for the module, and has these tensors in the place of its own.
        def called(*args: Any, **kwargs: Any) -> Any:
            return self._torch.func.functional_call(self._module, tensors, args, kwargs)

        outputs = self._forward(called)
        self.output_shapes = (tuple(outputs.shape),)
        return outputs.double().reshape(-1)


def _differentiable(module: Any, torch: Any) -> None:
    """Gives batch norms a forward that running statistics have gradients in; torch's own has none."""

    def forward(norm: Any, x: Any) -> Any:
        # Channels are the second axis: (8,) beside an image (2, 8, 5, 5) is (8, 1, 1).
        def along(value: Any) -> Any:
            return value.reshape(-1, *[1] * (x.ndim - 2))

        made = (x - along(norm.running_mean)) / (along(norm.running_var) + norm.eps).sqrt()
        return made * along(norm.weight) + along(norm.bias) if norm.affine else made

    for each in module.modules():
        if isinstance(each, torch.nn.modules.batchnorm._BatchNorm):
            each.forward = forward.__get__(each)
