"""Language hosts: one small file each, found by ``config.model_type``."""

from flamingo_eval.errors import CheckpointError
from flamingo_eval.models.flamingo.hosts import gpt_neox
from flamingo_eval.models.flamingo.hosts.base import Host

HOSTS: dict[str, Host] = {host.model_type: host for host in (gpt_neox.HOST,)}

__all__ = ["HOSTS", "Host", "host_for"]


def host_for(model_type: str) -> Host:
    """The host of a language model's family.

    Raises:
        CheckpointError: the family is not known; the message lists those that are.
    """
    try:
        return HOSTS[model_type]
    except KeyError:
        raise CheckpointError(
            f"language model of type {model_type!r} is not supported; supported types: {', '.join(sorted(HOSTS))}"
        ) from None
