"""The state of any torch optimizer as tensors and JSON, so that no pickle is needed to go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pursuit.errors import SettingsError

Plain = bool | int | float | str | None


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `<parameter's name>.<key>`, and what else the optimizer keeps, JSON-able.

    Raises:
        SettingsError: it keeps something that is neither tensor nor number.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Plain]] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if type(value) is Tensor:
                tensors[f"{name}.{key}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                values.setdefault(name, {})[key] = value
            else:
                raise SettingsError(
                    f"the optimizer {type(_bare(optimizer)).__name__} keeps {key} as {type(value).__name__}, which "
                    "cannot be stored without pickle, so a killed training could not go on. Choose another optimizer."
                )
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]
    on_cpu = sorted({key.rpartition(".")[2] for key, tensor in tensors.items() if tensor.device.type == "cpu"})
    plain = [{key: value for key, value in group.items() if _is_plain(value)} for group in groups]
    return tensors, {"values": values, "groups": plain, "on_cpu": on_cpu}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> None:  # fmt: skip
    """Put back what `optimizer_state` took, bit for bit; learning rates are the schedule's."""
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in record["values"].items()}
    for place, tensor in tensors.items():
        name, _, key = place.rpartition(".")
        device = "cpu" if key in record["on_cpu"] else parameters[name].device
        states.setdefault(name, {})[key] = tensor.to(device)
    for name, state in states.items():
        optimizer.state[parameters[name]] = state
    for group, saved in zip(optimizer.param_groups, record["groups"], strict=True):
        for key, value in saved.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _bare(optimizer: Any) -> Any:
    """Without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
