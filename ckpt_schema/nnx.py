"""The layouts NNX code makes: a model with its optimizer, and a model alone."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from flax import nnx
from jaxtyping import Array, UInt32

from ckpt_schema._frameworks.states import arguments, optimizer, remembered
from ckpt_schema._frameworks.variables import Variables, is_filter
from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.kinds import Dicts
from ckpt_schema._layouts.schema import OptState, Schema, schema_name
from ckpt_schema._layouts.table import Row

__all__ = ["ModelAndOptimizer", "Params", "State", "TrainState"]


class State(Schema):
    """The base of schemas of an ``nnx.State``, or of the module that it is the state of.

    Models in it have Variables; an attribute that is a lone leaf is a plain ``Variable``, unless
    ``type=`` says what else.

    Example:
        >>> import ckpt_schema as cs, optax
        >>> from jaxtyping import Array, Float32, UInt32
        >>> class Net(cs.Schema):
        ...     kernel: Float32[Array, "a b"]
        >>> class Run(cs.nnx.State):
        ...     net: Net
        ...     step: UInt32[Array, ""] = cs.field(key="opt/step", type=nnx.optimizer.OptState)
        ...     trace: cs.OptState = cs.optimizer(optax.sgd(0.1, 0.9), of="net", key="opt/opt_state")
        ...     epoch: UInt32[Array, ""]
        >>> print(cs.layout(Run))
        Run: 4 rows
          net/kernel            net/kernel                    float32[a b]  Param
          step                  opt/step                      uint32[]      OptState
          trace/0/trace/kernel  opt/opt_state/0/trace/kernel  float32[a b]  OptVariable
          epoch                 epoch                         uint32[]      Variable
    """

    __kinds__: ClassVar[Dicts] = Variables()


def _given(name: str, item: Any) -> tuple[Any, Any, Any, Any]:
    """What stands in the brackets of a train state: the body, the transformation, sizes, and what is trained."""
    given: tuple[Any, ...] = item if isinstance(item, tuple) else (item,)
    filters = [each for each in given[2:] if is_filter(each) and not isinstance(each, str)]
    rest = tuple(each for each in given if not any(each is one for one in filters))
    return *arguments(name, rest if isinstance(item, tuple) else item), *(filters or [None])[:1]


class _TrainState:
    """``TrainState[Body, tx]``: a module that holds ``model`` and ``optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)``.

    ``TrainState[Body, tx, nnx.LoRAParam]`` is the same with ``wrt=nnx.LoRAParam``: other params are
    not trained. Any filter of ``flax.nnx`` may stand there.
    """

    @remembered
    def __getitem__(self, item: Any) -> type[Schema]:
        """The schema for a body, the transformation that made its optimizer state, and what it trains."""
        body, tx, sizes, wrt = _given("nnx.TrainState", item)
        name = f"nnx.TrainState[{schema_name(body)}]"

        class Training(State, name=name):
            params: body = field(key="model")  # pyright: ignore[reportInvalidTypeForm]
            step: UInt32[Array, ""] = field(key="optimizer/step", type=nnx.optimizer.OptState)
            opt_state: OptState = optimizer(
                tx, of="params", key="optimizer/opt_state", wrt=wrt, sizes=sizes
            )

        return Training


class _ModelAndOptimizer:
    """``ModelAndOptimizer[Body, tx]``: an ``nnx.ModelAndOptimizer``, which is ``{model, step, opt_state}``."""

    @remembered
    def __getitem__(self, item: Any) -> type[Schema]:
        """The schema for a body, the transformation that made its optimizer state, and what it trains."""
        body, tx, sizes, wrt = _given("nnx.ModelAndOptimizer", item)
        name = f"nnx.ModelAndOptimizer[{schema_name(body)}]"

        class Training(State, name=name):
            params: body = field(key="model")  # pyright: ignore[reportInvalidTypeForm]
            step: UInt32[Array, ""] = field(type=nnx.optimizer.OptState)
            opt_state: OptState = optimizer(tx, of="params", wrt=wrt, sizes=sizes)

        return Training


# What a model works without, and what no step of training depends on: these a model's own state may lack.
_PASSING = (nnx.RngState, nnx.Cache, nnx.Intermediate)


class _Weights(Variables):
    """A model alone, which may lack what it works without."""

    def model(self, row: Row, collection: str | None) -> Row:
        """A leaf of the model."""
        made = super().model(row, collection)
        return dataclasses.replace(made, optional=made.optional or issubclass(made.kind, _PASSING))


class _Params:
    """``Params[Body]``: a model's own state.

    Streams, caches and intermediates may be left out, statistics may not.
    """

    @remembered
    def __getitem__(self, body: Any) -> type[Schema]:
        """The schema for a body."""

        class Model(State, name=f"nnx.Params[{schema_name(body)}]"):
            __kinds__: ClassVar[Dicts] = _Weights()
            params: body = field(key="")  # pyright: ignore[reportInvalidTypeForm]

        return Model


TrainState: Final = _TrainState()
ModelAndOptimizer: Final = _ModelAndOptimizer()
Params: Final = _Params()
