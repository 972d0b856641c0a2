"""The two tokenizers: byte-level BPE, lower case, trained on captions.

Byte level means that any text has tokens, words outside the vocabulary too. CLIP's starts and ends
with its own marks and pads with the end mark, as its pooling takes the first end mark; T5's ends
with one.
"""

import random

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from scripts.embedded.captions import ENDINGS, OPENINGS, random_caption
from scripts.embedded.scene import random_scene

VOCABULARY_SIZE = 1024
CLIP_MAX_LENGTH = 77  # tokens
T5_MAX_LENGTH = 64  # tokens


def train_tokenizers(
    seed: int, captions_count: int
) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Return the tokenizers of CLIP and T5, trained on so many captions."""
    rng = random.Random(f"tokenizers/{seed}")
    captions = [random_caption(random_scene(rng), rng).text for _ in range(captions_count)]
    captions += list(OPENINGS) + list(ENDINGS)
    clip = _train(captions, ["<|startoftext|>", "<|endoftext|>"])
    clip.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    t5 = _train(captions, ["<pad>", "</s>"])
    t5.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return (
        PreTrainedTokenizerFast(
            tokenizer_object=clip,
            bos_token="<|startoftext|>",
            eos_token="<|endoftext|>",
            pad_token="<|endoftext|>",
            model_max_length=CLIP_MAX_LENGTH,
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=t5,
            eos_token="</s>",
            pad_token="<pad>",
            model_max_length=T5_MAX_LENGTH,
        ),
    )


def _train(captions: list[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=8,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer
