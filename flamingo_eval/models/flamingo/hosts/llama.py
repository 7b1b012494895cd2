"""LLaMA: the deprecated 9B. Its untied output layer is not in the checkpoint, only in the base model."""

from flamingo_eval.models.flamingo.hosts.base import Host

HOST = Host(
    model_type="llama",
    decoder_path="model.layers",
    embeddings={"model.embed_tokens.weight": "model.embed_tokens.weight"},
    optional={"lm_head.weight": "lm_head.weight"},
    tidies_spaces=False,
)
