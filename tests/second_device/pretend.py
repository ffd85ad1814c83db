"""A second device: a GPU where there is one; otherwise one that is only pretended, so that what a GPU refuses fails.

The pretended device keeps its numbers in the computer's memory and computes with the computer's kernels. It refuses
what CUDA refuses: tensors of two devices in one operation (but for 0-dim tensors and indices), and NumPy. What it
cannot show are CUDA's own kernels, their speed, memory and rounding, and mixed precision. It is registered with torch
for the whole process, which is why these tests run in one of their own (`make test`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

NAME = "cuda" if torch.cuda.is_available() else "pretend"
COPIES = ("aten::copy_", "aten::_copy_from")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
COMPOSED = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


class Pretended(torch.Tensor):
    """A tensor there; `here` is the one that is computed with."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        """CUDA's tensors have it too."""
        return self.here.tolist()

    def data_ptr(self) -> int:
        """Tells tensors that share memory from others."""
        return self.here.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The same."""
        return self.here.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"{self.here!r} on {NAME}"

    def __format__(self, form: str) -> str:
        return format(self.here, form)


def compute(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation of which some tensor is there, or is to be made there."""
    name = operation._schema.name
    if name == "aten::_copy_from":
        _here(args[1]).copy_(_here(args[0]))
        return args[1]
    indices_may_be_here = name in INDEXED and isinstance(args[0], Pretended)
    _refuse_two_devices(operation, (args[:1], args[2:]) if indices_may_be_here else args, kwargs)
    given = _tensors((args, kwargs))
    args, kwargs = _mapped(_here, args), _mapped(_here, kwargs)
    device = kwargs.get("device")
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    kwargs.pop("pin_memory", None)
    found = operation(*args, **kwargs)
    if device is not None and torch.device(device).type == "cpu":
        return found
    same = {id(_here(value)): value for value in given}  # what is changed in place is handed back itself
    return _mapped(lambda value: same.get(id(value), _there(value)), found)


def _refuse_two_devices(operation: Any, *what: Any) -> None:
    tensors = _tensors(what)
    others = [value for value in tensors if value.dim() and not isinstance(value, Pretended)]
    if others and len(others) < len(tensors) and operation._schema.name not in COPIES:
        shapes = ", ".join(str(tuple(value.shape)) for value in others)
        raise RuntimeError(f"{operation}: tensors of two devices; on the CPU are those of shape {shapes}")


def _tensors(value: Any) -> list[torch.Tensor]:
    """Of an argument, or a list of arguments; quicker than torch's own way through any structure."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, part) for part in value)
    return function(value)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Pretended) else value


def _there(value: Any) -> Any:
    return Pretended(value) if isinstance(value, torch.Tensor) and not isinstance(value, Pretended) else value


def _register() -> list[torch.library.Library]:
    """Make torch know the device. What it would make of several operations there is computed as a whole."""
    from torch.utils import backend_registration as backends

    class Device(backends._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

        def synchronize(self) -> None:
            pass

    backends._setup_privateuseone_for_python_backend(NAME, Device())
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that tied weights stay tied when they move
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(compute, "PrivateUse1")
    for name in torch._C._dispatch_get_all_op_names():
        composed = any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in COMPOSED)
        plain, _, overload = name.removeprefix("aten::").partition(".")
        packet = getattr(torch.ops.aten, plain, None) if composed and name.startswith("aten::") else None
        if packet is not None:
            operation = getattr(packet, overload or "default")
            aten.impl(operation, functools.partial(compute, operation), "PrivateUse1")
    return [everything, aten]


LIBRARIES = _register() if NAME == "pretend" else []  # kept: with a library go its kernels
