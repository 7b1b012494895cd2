"""Language hosts: one small file each, found by ``config.model_type``."""

from typing import Any

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.models.flamingo.hosts import gpt_neox, llama, mosaic_gpt, mpt, opt
from flamingo_eval.models.flamingo.hosts.base import Host, max_positions

HOSTS: dict[str, Host] = {host.HOST.model_type: host.HOST for host in (gpt_neox, llama, mosaic_gpt, mpt, opt)}

__all__ = ["HOSTS", "Host", "generic_host", "host_for", "max_positions"]


def host_for(model_type: str) -> Host:
    """The host of a language model's family.

    Raises:
        CheckpointError: the family is not known; the message lists the known ones.
    """
    try:
        return HOSTS[model_type]
    except KeyError:
        raise CheckpointError(
            f"language model of type {model_type!r} is not supported; supported types: {', '.join(sorted(HOSTS))}; "
            'for another one say where its decoder layers are: decoder_layers = "model.layers" in [language]'
        ) from None


def generic_host(model: Any, model_type: str, decoder_path: str) -> Host:
    """A host for any causal language model of transformers whose decoder is a list of layers.

    Raises:
        CheckpointError: there is no list of modules at that path; the message names the existing lists.
    """
    from torch import nn

    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if decoder_path not in lists:
        outer = [name for name in lists if not any(name.startswith(other + ".") for other in lists)]
        raise CheckpointError(
            f"decoder_layers = {decoder_path!r}: {type(model).__name__} has no list of layers there; "
            f"it has: {', '.join(outer) or 'none'}"
        )
    paths = {id(module): name for name, module in model.named_modules()}
    inputs = paths[id(model.get_input_embeddings())] + ".weight"
    output = model.get_output_embeddings()
    optional = {} if output is None else {(key := paths[id(output)] + ".weight"): key}
    return Host(model_type, decoder_path, {inputs: inputs}, optional)
