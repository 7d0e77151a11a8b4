"""A BERT of transformers that is small enough for tests."""

from transformers import BertConfig


def small_bert(words):
    """Its sizes, for a vocabulary."""
    return BertConfig(
        vocab_size=words.size,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=30,
    )
