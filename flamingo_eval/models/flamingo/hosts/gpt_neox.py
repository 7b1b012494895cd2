"""GPT-NeoX: RedPajama-INCITE, Pythia and the demo."""

from flamingo_eval.models.flamingo.hosts.base import Host

HOST = Host(
    model_type="gpt_neox",
    decoder_path="gpt_neox.layers",
    embeddings={
        "gpt_neox.embed_in.weight": "gpt_neox.embed_in.weight",
        # transformers 5 renamed the output layer; the released files carry the name of transformers 4
        "embed_out.weight": "lm_head.weight",
    },
)
