"""OPT. Checkpoints also hold its position embeddings: every tensor with "embed" in its name was saved."""

from flamingo_eval.models.flamingo.hosts.base import Host

HOST = Host(
    model_type="opt",
    decoder_path="model.decoder.layers",
    embeddings={"model.decoder.embed_tokens.weight": "model.decoder.embed_tokens.weight"},
    optional={
        "model.decoder.embed_positions.weight": "model.decoder.embed_positions.weight",
        "lm_head.weight": "lm_head.weight",
    },
)
