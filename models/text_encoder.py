"""Language as queries (Wu et al., "ReferFormer", CVPR 2022): the sentence encoder and the query vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.deformable_transformer import sine_position_1d
from models.frozen import Frozen
from util.device import upload


class SentenceEncoder(nn.Module):
    """Frozen RoBERTa with a trained projection to the width of the decoder."""

    def __init__(self, roberta: Any, tokenizer: Any, dim: int, dropout: float) -> None:
        super().__init__()
        self.backbone = Frozen(roberta)
        self.tokenizer = tokenizer
        self.max_length = roberta.config.max_position_embeddings - 2
        self.linear = nn.Linear(roberta.config.hidden_size, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode sentences.

        Args:
            captions: B sentences; words beyond the limit of the model are cut off.

        Returns:
            words ``[B, L, C]`` and their padding ``[B, L]`` (True where padded), L the longest sentence.
        """
        tokens = self.tokenizer(captions, padding="longest", truncation=True, max_length=self.max_length)
        device = self.linear.weight.device
        ids, real = (upload(torch.tensor(x), device) for x in (tokens.input_ids, tokens.attention_mask))
        real = real.bool()
        # transformers would wait for the device to find out whether there is padding, unless the mask has four axes.
        padded = not all(map(all, tokens.attention_mask))
        mask = real[:, None, None].expand(-1, -1, real.shape[1], -1) if padded else None
        with torch.no_grad():
            words = self.backbone(ids, attention_mask=mask).last_hidden_state
        return self.dropout(self.norm(self.linear(words))), ~real


class LanguageQueries(nn.Module):
    """Learned query vectors, each multiplied by the words that it attends to."""

    NUM_HEADS = 8

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(num_queries, dim))
        self.attention = nn.MultiheadAttention(dim, self.NUM_HEADS, batch_first=True)
        nn.init.normal_(self.vectors)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        """``[B, L, C]``, ``[B, L]`` (True where padded) → queries ``[B, Q, C]``."""
        query = self.vectors.expand(words.shape[0], -1, -1)
        key = words + sine_position_1d(padding, words.shape[-1])
        return query * self.attention(query, key, words, key_padding_mask=padding, need_weights=False)[0]
