"""Weights without our header: under which names they stand in a file, and which network they belong to."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.model.fused import FusedNetwork
from foundation_stereo_depth.model.guided import GuidedNetwork
from foundation_stereo_depth.model.predecessor import predecessor_options
from foundation_stereo_depth.model.unet import unet_options
from foundation_stereo_depth.options.training import ModelOptions

_WRAPPERS = {"module", "_orig_mod"}
"""What DataParallel, DistributedDataParallel, AveragedModel and torch.compile put into the names of parameters."""
_COUNT_OF_AVERAGED = "n_averaged"
"""The buffer that torch's AveragedModel adds."""
_KEYS = ("model_state_dict", "state_dict", "model", "network", "net", "weights")
"""Under which training scripts save the weights."""


def find_weights(content: Any) -> dict[str, Tensor] | None:
    """Return the weights in what any program saved, a state_dict alone or under a usual key; None without one.

    Raises:
        CheckpointError: two of the names are one without the wrappers' prefixes.
    """
    if not isinstance(content, dict):
        return None
    for found in (content, *(content[key] for key in _KEYS if key in content)):
        if isinstance(found, dict) and found and all(map(_is_weight, found.items())):
            return _unwrapped(found)
    return None


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def recognise_network(weights: Mapping[str, Tensor]) -> ModelOptions | None:
    """Return the options of the network that has these weights, by their names and shapes; None where none has.

    Raises:
        UserError: an option is out of its range.
    """
    kinds = (unet_options, GuidedNetwork.options_of, FusedNetwork.options_of, predecessor_options)
    return next((options for kind in kinds if (options := kind(weights)) is not None), None)


def _unwrapped(weights: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names that the network itself gives them."""
    parts = {
        name: [part for part in str(name).split(".") if part not in _WRAPPERS]
        for name in weights
        if name != _COUNT_OF_AVERAGED
    }
    # A network that is an attribute of a larger module: "model.stem...".
    while parts and len({tuple(each[:1]) for each in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        parts = {name: each[1:] for name, each in parts.items()}
    plain = {".".join(each): weights[name] for name, each in parts.items()}
    if len(plain) < len(parts):
        raise CheckpointError("its weights stand in it twice, with and without the prefix of a wrapper")
    return plain
